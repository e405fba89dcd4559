"""The Monte-Carlo loop against a plain second implementation, and what it must refuse."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from art_rs_plugin import votes
from art_rs_plugin.noise import Gaussian, Purpose, stream
from art_rs_plugin.votes import BLOCK, ModelOutputError, Request, automatic_batch_size, count_votes

SIGMA = 0.5
SHAPE = (2, 3, 2)
CLASSES = 4
SEED = 2**40 + 9
BATCH_SIZES = [1, 2, 7, 64, 100, 1_000]

# votes just below, at and above a block, one vote, several blocks; rows out of order, purposes and examples mixed
REQUESTS = [
    Request(row=2, example=40, purpose=Purpose.ESTIMATION, votes=BLOCK + 1),
    Request(row=0, example=7, purpose=Purpose.SELECTION, votes=1),
    Request(row=0, example=7, purpose=Purpose.ESTIMATION, votes=BLOCK - 1),
    Request(row=1, example=0, purpose=Purpose.PREDICTION, votes=BLOCK),
    Request(row=2, example=40, purpose=Purpose.SELECTION, votes=10),
    Request(row=0, example=2**62, purpose=Purpose.ESTIMATION, votes=5 * BLOCK + 13),
    Request(row=2, example=7, purpose=Purpose.ESTIMATION, votes=2),
    Request(row=1, example=9, purpose=Purpose.ESTIMATION, votes=2 * BLOCK + 5, start=BLOCK - 7),
]


def exact(x: torch.Tensor) -> torch.Tensor:
    """Logits that no order of summation can change: sums of whole numbers far below 2^53, in float64, without ties."""
    weight = torch.randint(-8, 9, (math.prod(SHAPE), CLASSES), generator=torch.Generator().manual_seed(0))
    whole = torch.round(64 * x.flatten(1)).double()
    return CLASSES * (whole @ weight.double()) + torch.arange(CLASSES)


def inputs() -> torch.Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def count(forward, requests, *, x=None, batch_size=64, nb_classes=CLASSES, seed=SEED):
    x = inputs() if x is None else x
    return count_votes(
        lambda count: [forward] * count,
        x,
        requests,
        noise=Gaussian(SIGMA),
        nb_classes=nb_classes,
        seed=seed,
        batch_size=batch_size,
    )


def noise_of(request: Request, seed: int = SEED) -> torch.Tensor:
    """The request's noise, written down once more: blocks of 64 rows, channels last, each from a stream of its own."""
    channels, height, width = SHAPE
    blocks = [
        torch.empty(64, height, width, channels).normal_(
            0.0, SIGMA, generator=stream(seed, request.purpose, request.example, block)
        )
        for block in range(math.ceil((request.start + request.votes) / 64))
    ]
    return torch.cat(blocks)[request.start : request.start + request.votes].permute(0, 3, 1, 2)


def plain(forward, x: torch.Tensor, requests: list[Request]) -> np.ndarray:
    cast = [forward(noise_of(request) + x[request.row]).argmax(dim=1).numpy() for request in requests]
    return np.stack([np.bincount(named, minlength=CLASSES) for named in cast])


class Recording:
    """A forward pass that remembers its batches."""

    def __init__(self, forward=exact):
        self.forward = forward
        self.batches = []

    def __call__(self, x):
        self.batches.append(x.clone())
        return self.forward(x)

    @property
    def rows(self) -> torch.Tensor:
        return torch.cat(self.batches)


class TestCountVotes:
    @pytest.mark.parametrize("batch_size", BATCH_SIZES)
    def test_is_what_a_plain_loop_counts(self, batch_size):
        expected = plain(exact, inputs(), REQUESTS)
        counts = count(exact, REQUESTS, batch_size=batch_size)
        assert counts.dtype == np.int64
        assert counts.flags.c_contiguous
        assert np.array_equal(counts, expected)
        # the comparison has something to tell apart
        assert (expected[-3] > 0).all()
        assert len(np.unique(expected, axis=0)) == len(REQUESTS)

    @pytest.mark.parametrize("batch_size", BATCH_SIZES)
    def test_every_forward_pass_has_the_same_rows_and_every_vote_its_own(self, batch_size):
        forward = Recording()
        count(forward, REQUESTS, batch_size=batch_size)
        rows, total = max(2, batch_size), sum(request.votes for request in REQUESTS)
        assert {len(batch) for batch in forward.batches} == {rows}
        assert len(forward.batches) == math.ceil(total / rows)
        expected = torch.cat([noise_of(request) + inputs()[request.row] for request in REQUESTS])
        assert torch.equal(forward.rows[:total], expected)

    @pytest.mark.parametrize("request_", REQUESTS)
    def test_a_request_counts_the_same_alone(self, request_):
        alone = count(exact, [request_])[0]
        assert np.array_equal(alone, count(exact, REQUESTS)[REQUESTS.index(request_)])

    def test_the_order_of_requests_does_not_matter(self):
        assert np.array_equal(count(exact, REQUESTS[::-1])[::-1], count(exact, REQUESTS))

    def test_fewer_votes_are_the_first_of_more(self):
        requests = [Request(0, 3, Purpose.ESTIMATION, votes) for votes in range(1, 3 * BLOCK)]
        steps = np.diff(count(exact, requests, batch_size=1_000), axis=0)
        assert ((steps == 0) | (steps == 1)).all()
        assert (steps.sum(axis=1) == 1).all()

    def test_padding_never_votes(self):
        # padding that comes before any vote is zero, later it is what an earlier batch left
        def zero_is_nan(x):
            return torch.where(x.flatten(1).any(dim=1, keepdim=True), exact(x), math.nan)

        for batch_size in BATCH_SIZES:
            for number in (1, 3, BLOCK + 3):
                counts = count(zero_is_nan, [Request(0, 0, Purpose.SELECTION, number)], batch_size=batch_size)
                assert counts.sum() == number
        counts = count(exact, REQUESTS, batch_size=100)
        assert counts.sum(axis=1).tolist() == [request.votes for request in REQUESTS]

    def test_no_requests(self):
        counts = count(exact, [])
        assert counts.shape == (0, CLASSES)
        assert counts.dtype == np.int64

    def test_another_seed_gives_other_votes(self):
        assert not np.array_equal(count(exact, REQUESTS), count(exact, REQUESTS, seed=SEED + 2**32))

    def test_sees_inputs_and_leaves_them(self):
        x = inputs()
        before = x.clone()
        count(exact, REQUESTS, x=x)
        assert torch.equal(x, before)

    def test_votes_without_a_graph(self):
        layer = torch.nn.Linear(math.prod(SHAPE), CLASSES)
        requires_grad = []

        def forward(x):
            logits = layer(x.flatten(1))
            requires_grad.append(logits.requires_grad)
            return logits

        count(forward, REQUESTS)
        assert not any(requires_grad)


class TestRefusals:
    @pytest.mark.parametrize(
        ("spoil", "got"),
        [
            (lambda logits: logits[:, :3], r"\(64, 3\)"),
            (lambda logits: logits[:, :1], r"\(64, 1\)"),
            (lambda logits: torch.cat([logits, logits], dim=1), r"\(64, 8\)"),
            (lambda logits: logits[1:], r"\(63, 4\)"),
            (lambda logits: logits[:, 0], r"\(64,\)"),
            (lambda logits: logits.argmax(dim=1), r"\(64,\)"),
            (lambda logits: logits[None], r"\(1, 64, 4\)"),
            (lambda logits: logits.mean(), r"\(\)"),
        ],
    )
    def test_logits_of_another_shape(self, spoil, got):
        with pytest.raises(ModelOutputError, match=rf"logits of shape \(64, 4\) for 64 inputs, got {got}"):
            count(lambda x: spoil(exact(x)), REQUESTS)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", range(CLASSES))
    @pytest.mark.parametrize("batch_size", [1, 7, 1_000])
    def test_logits_that_are_not_finite(self, bad, place, batch_size):
        # only the inputs far from 0 are spoilt: they belong to one example among three
        x = inputs()
        x[1] += 100

        def forward(batch):
            logits = exact(batch)
            logits[batch.flatten(1).mean(dim=1) > 50, place] = bad
            return logits

        requests = [Request(row, 10 + row, Purpose.ESTIMATION, 70) for row in range(3)]
        message = "finite logits, got NaN or infinity in 70 of 70 noisy copies of the example with index 11"
        with pytest.raises(ModelOutputError, match=message):
            count(forward, requests, x=x, batch_size=batch_size)

    def test_one_bad_vote_among_many(self):
        calls = []

        def forward(x):
            logits = exact(x)
            calls.append(len(x))
            if len(calls) == 2:
                logits[5, 1] = math.nan
            return logits

        requests = [Request(0, 3, Purpose.SELECTION, 60), Request(0, 8, Purpose.ESTIMATION, 500)]
        with pytest.raises(ModelOutputError, match="in 1 of 500 noisy copies of the example with index 8"):
            count(forward, requests)

    def test_is_a_value_error(self):
        assert issubclass(ModelOutputError, ValueError)


class Sizes(TorchDispatchMode):
    """Records the bytes of every tensor that torch makes."""

    def __init__(self):
        super().__init__()
        self.largest = self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.seen += 1
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


class TestMemory:
    @pytest.mark.parametrize("batch_size", [2, 64, 1_000])
    def test_no_tensor_grows_with_the_votes(self, batch_size, monkeypatch):
        # a dispatch mode sees its own thread alone
        monkeypatch.setattr(votes, "_side_by_side", lambda cast, functions, threads, work: cast(functions[0]))
        largest = {}
        for number in (BLOCK, 4_000):
            with Sizes() as sizes:
                count_votes(
                    lambda _: [lambda x: x[:, :2]],  # a view: what is made here is made by the loop
                    torch.zeros(1, 3_000),
                    [Request(0, 0, Purpose.ESTIMATION, number)],
                    noise=Gaussian(SIGMA),
                    nb_classes=2,
                    seed=SEED,
                    batch_size=batch_size,
                )
            assert sizes.seen > 10
            largest[number] = sizes.largest
        assert largest[4_000] == largest[BLOCK] == 4 * 3_000 * max(BLOCK, batch_size)


@pytest.mark.parametrize(
    ("shape", "device", "rows"),
    [
        ((1,), "cpu", 64),
        ((3, 32, 32), "cpu", 64),
        ((3, 64, 64), "cpu", 32),
        ((3, 224, 224), "cpu", 32),
        # "meta" stands for every device that is no CPU
        ((1,), "meta", 2_048),
        ((3, 32, 32), "meta", 2_048),
        ((3, 64, 64), "meta", 682),
        ((3, 224, 224), "meta", 64),
    ],
)
def test_automatic_batch_size(shape, device, rows):
    assert automatic_batch_size(shape, torch.device(device)) == rows
