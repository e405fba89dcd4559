"""Training by several ranks is training by one with the same batches and the same noise."""

from itertools import chain

import company
import pytest
import ranked_steps as script
import torch
from torch.nn.functional import cross_entropy

from art_rs_plugin.noise import Purpose, stream
from art_rs_plugin.ranks import ALONE, Ranks
from art_rs_plugin.training import OBJECTIVES, loader_batches

SIZE = 2


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of two ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    company.together(script.__file__, folder, size=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]


def shares(x, y, size=SIZE, batch_size=script.BATCH, epoch=1, **options):
    """The batches of each rank."""
    made = [loader_batches((x, y), batch_size, script.SEED, ranks=Ranks(rank, size), **options) for rank in range(size)]
    return [list(batches(epoch)) for batches in made]


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process(ends):
    """A plain loop over the batches of both, each with its own rank's noise, by torch alone."""
    model = script.network()
    optimizer = script.optimizer_of(model)
    losses = []
    for step, both in enumerate(zip(*shares(*script.digits(script.STEPS * script.BATCH)), strict=True), start=1):
        noisy, labels = [], []
        for rank, (x, y) in enumerate(both):
            generator = stream(script.SEED, Purpose.TRAINING, 1, step, rank)
            noise = torch.empty(len(x), 8, 8, 1).normal_(generator=generator) * script.SIGMA
            noisy.append(x + noise.permute(0, 3, 1, 2))
            labels.append(y)
        assert sum(map(len, labels)) == script.BATCH
        loss = cross_entropy(model(torch.cat(noisy)), torch.cat(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert step == script.STEPS
    begun = script.network().state_dict()
    for name, value in model.state_dict().items():
        theirs = ends[0]["gaussian"][name]
        # 20 steps move a weight by about .1; sums of 64 terms in another order differ in the last bits
        torch.testing.assert_close(theirs, value, rtol=1e-5, atol=1e-6)
        assert name.startswith("0.") or not torch.allclose(theirs, begun[name], atol=1e-3)
    assert ends[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert ends[0]["loss"] == ends[1]["loss"]
    assert ends[0]["accuracy"] == ends[1]["accuracy"]


@pytest.mark.parametrize("method", ["gaussian", *(f"all of {name}" for name in OBJECTIVES)])
@pytest.mark.slow
def test_all_ranks_end_with_the_same_weights_and_statistics(ends, method):
    ours, theirs = (end[method] for end in ends)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(value.isfinite().all() for value in ours.values() if value.is_floating_point())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_share_every_batch_evenly_and_leave_nothing_out(size):
    x, y = torch.arange(53.0).unsqueeze(1), torch.arange(53)
    parts = shares(x, y, size=size, batch_size=12)
    assert len({len(part) for part in parts}) == 1
    seen = []
    for batches in zip(*parts, strict=True):
        assert len({len(labels) for _, labels in batches}) == 1
        assert all(torch.equal(images.squeeze(1).long(), labels) for images, labels in batches)
        seen.append(torch.cat([labels for _, labels in batches]).tolist())
    assert [len(batch) for batch in seen[:-1]] == [12] * 4
    everything = [*chain(*seen)]
    assert set(everything) == set(range(53))
    assert len(everything) == -(-53 // size) * size
    other = [label for part in shares(x, y, size=size, batch_size=12, epoch=2) for _, y in part for label in y.tolist()]
    assert other != everything


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 3 ranks that share it, got 64"):
        loader_batches((torch.zeros(99, 1), torch.zeros(99).long()), 64, 0, ranks=Ranks(0, 3))
    assert loader_batches((torch.zeros(99, 1), torch.zeros(99).long()), 64, 0, ranks=ALONE)(1).batch_size == 64
