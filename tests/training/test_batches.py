"""Mini-batches: their order, their augmentation, and what is refused."""

import pytest
import torch

from art_rs_plugin.training import loader_batches

X, Y = torch.full((4, 3), 0.5), torch.tensor([0, 1, 0, 1])


def test_order_is_a_function_of_seed_and_epoch():
    x = torch.arange(50.0)[:, None]

    def order(seed, epoch):
        return (
            torch.cat([batch for batch, _ in loader_batches((x, torch.zeros(50)), 8, seed)(epoch)]).flatten().tolist()
        )

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}) == 6


def test_batches_of_a_data_set_are_augmented_and_may_drop_the_last():
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.full((1, 2, 2), float(index)), index

    batches = loader_batches(Squares(), 4, 0, augment=lambda x: x + 100, drop_last=True)
    given = list(batches(1))
    assert [len(x) for x, _ in given] == [4, 4]
    for x, y in given:
        assert y.dtype == torch.int64
        assert torch.equal(x[:, 0, 0, 0], y + 100.0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((X, Y[:3]), 2, 0), {}, "one label a sample, got 4 samples and 3 labels"),
        (((X, Y), 0, 0), {}, "`batch_size` must be at least 1, got 0"),
        (((X, Y), 5, 0), {"drop_last": True}, r"`len\(dataset\)` must be at least 5, got 4"),
        (((X[:0], Y[:0]), 5, 0), {}, r"`len\(dataset\)` must be at least 1, got 0"),
    ],
)
def test_loader_batches_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        loader_batches(*arguments, **options)
