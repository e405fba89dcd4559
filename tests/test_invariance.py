"""Certificates and votes depend on seed, index and input alone: not on batches, order, grouping, threads or history."""

import itertools

import numpy as np
import pytest
import torch

from art_rs_plugin import RandomizedSmoothingPyTorch, voting

SHAPE = (2, 3, 2)
CLASSES = 3
M = 80
N = 100
INDICES = np.random.default_rng(0).permutation(10 * M)[:M]
BATCH_SIZES = [1, 7, 100, 1_000, None]


class Exact(torch.nn.Module):
    """A classifier whose logits no order of summation can change, whatever kernel a batch size leads to.

    Pixels are rounded to whole 64ths and weights are whole, so that all products and sums are whole numbers, far below
    2^53 and thus exact in float64. The last digit names the class: no ties.
    """

    def __init__(self, size: int = 12):
        super().__init__()
        weight = torch.randint(-8, 9, (size, CLASSES), generator=torch.Generator().manual_seed(3))
        self.register_buffer("weight", weight.double())

    def forward(self, x):
        whole = torch.round(64 * (x.flatten(1) - 0.5)).double()
        return CLASSES * (whole @ self.weight) + torch.arange(CLASSES, device=x.device)


def smoothed(seed: int | None = 17, **kwargs) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(Exact(), 0.5, n0=20, n=N, alpha=0.01, seed=seed, **kwargs)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    # spread so that votes are split, some inputs are certified and some are not
    return np.random.default_rng(1).normal(0.5, 0.6, (M, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def certificates(x):
    """What every other way to ask must return, field by field."""
    expected = smoothed().certificates(x, indices=INDICES)
    # the comparisons below have something to tell apart: classes, abstentions, radii, split votes
    assert {certificate.prediction for certificate in expected} == {-1, *range(CLASSES)}
    assert len({certificate.radius for certificate in expected}) > 20
    assert len({certificate.counts for certificate in expected}) > 50
    assert [certificate.index for certificate in expected] == INDICES.tolist()
    return expected


@pytest.fixture(scope="module")
def votes(x):
    expected = smoothed().votes(x, N, indices=INDICES)
    assert len(np.unique(expected, axis=0)) > 50
    assert (expected.sum(axis=1) == N).all()
    return expected


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestCertificates:
    @pytest.mark.parametrize("batch_size", BATCH_SIZES)
    def test_any_batch_size(self, x, certificates, batch_size):
        assert smoothed().certificates(x, indices=INDICES, batch_size=batch_size) == certificates

    @pytest.mark.parametrize("batch_size", BATCH_SIZES)
    def test_reversed_order(self, x, certificates, batch_size):
        reversed_ = smoothed().certificates(x[::-1], indices=INDICES[::-1], batch_size=batch_size)
        assert reversed_[::-1] == certificates

    def test_one_at_a_time(self, x, certificates):
        estimator = smoothed()
        alone = [estimator.certificates(x[i : i + 1], indices=INDICES[i : i + 1])[0] for i in range(M)]
        assert alone == certificates

    def test_some_of_them(self, x, certificates):
        chosen = [41, 3, 17]
        assert smoothed().certificates(x[chosen], indices=INDICES[chosen]) == [certificates[i] for i in chosen]

    @pytest.mark.parametrize("together", [1, 250, 1_000, 10**9])
    def test_any_grouping_of_examples(self, x, certificates, monkeypatch, together):
        # one example, two, eight, or all of them are counted in one go; without this, 68 of the 80
        monkeypatch.setattr(voting, "_VOTES_AT_ONCE", together)
        assert smoothed().certificates(x, indices=INDICES, batch_size=100) == certificates

    def test_as_they_are_made(self, x, certificates):
        assert list(smoothed().iter_certificates(x, indices=INDICES)) == certificates

    def test_votes_of_any_n_are_the_first_of_one_stream(self, x, certificates):
        # another n groups examples anew, and n0 and n share no noise: counts only grow, by as many as were added
        more = smoothed().certificates(x, indices=INDICES, n=N + 50)
        added = np.array([c.counts for c in more]) - np.array([c.counts for c in certificates])
        assert (added >= 0).all()
        assert (added.sum(axis=1) == 50).all()
        assert [c.selected for c in more] == [c.selected for c in certificates]
        estimator = smoothed()
        estimator.set_params(n0=900)
        other_n0 = estimator.certificates(x, indices=INDICES)
        assert [c.counts for c in other_n0] == [c.counts for c in certificates]

    def test_any_number_of_threads(self, threads):
        # images, so large that torch shares a batch out between threads
        x = np.random.default_rng(2).random((2, 3, 32, 32), dtype=np.float32)
        estimator = RandomizedSmoothingPyTorch(Exact(x[0].size), 0.5, n0=20, n=N, alpha=0.01, seed=17)
        made = []
        for number in (1, 2, 3):
            threads(number)
            made.append(estimator.certificates(x, batch_size=100))
        assert made[0] == made[1] == made[2]
        assert all(len(set(certificate.counts)) > 1 for certificate in made[0])

    def test_global_seeds_neither_matter_nor_move(self, x, certificates):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        estimator = smoothed()
        assert estimator.certificates(x, indices=INDICES) == certificates
        estimator.predict(x)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002

    def test_history_does_not_matter(self, x, certificates):
        estimator = smoothed()
        estimator.predict(x[:5])
        estimator.certify(x[5:9])
        estimator.loss_gradient(x[:2], np.array([0, 1]))
        assert estimator.certificates(x, indices=INDICES) == certificates
        assert estimator.certificates(x, indices=INDICES) == certificates

    def test_array_or_tensor_of_any_float(self, x, certificates):
        for same in (torch.from_numpy(x), x.astype(np.float64), x.astype(">f4"), np.asfortranarray(x)):
            assert smoothed().certificates(same, indices=INDICES) == certificates

    def test_certify_is_the_same_by_position(self, x):
        estimator = smoothed()
        expected = estimator.certificates(x)
        assert [certificate.index for certificate in expected] == list(range(M))
        for batch_size in BATCH_SIZES:
            prediction, radius = estimator.certify(x, batch_size=batch_size)
            assert prediction.tolist() == [certificate.prediction for certificate in expected]
            assert radius.tolist() == [certificate.radius for certificate in expected]


class TestVotesAndPredict:
    @pytest.mark.parametrize("batch_size", BATCH_SIZES)
    def test_any_batch_size_and_order(self, x, votes, batch_size):
        estimator = smoothed()
        assert np.array_equal(estimator.votes(x, N, indices=INDICES, batch_size=batch_size), votes)
        reversed_ = estimator.votes(x[::-1], N, indices=INDICES[::-1], batch_size=batch_size)
        assert np.array_equal(reversed_[::-1], votes)

    def test_one_at_a_time(self, x, votes):
        estimator = smoothed()
        alone = [estimator.votes(x[i : i + 1], N, indices=INDICES[i : i + 1])[0] for i in range(M)]
        assert np.array_equal(np.stack(alone), votes)

    @pytest.mark.parametrize("is_abstain", [True, False])
    def test_predict(self, x, is_abstain):
        estimator = smoothed()
        expected = estimator.predict(x, n=N, indices=INDICES, is_abstain=is_abstain)
        assert (expected.sum(axis=1) == 0).any() == is_abstain
        for batch_size in BATCH_SIZES:
            again = estimator.predict(x[::-1], n=N, indices=INDICES[::-1], is_abstain=is_abstain, batch_size=batch_size)
            assert np.array_equal(again[::-1], expected)

    def test_predict_decides_by_votes(self, x, votes):
        most = smoothed().predict(x, n=N, indices=INDICES, is_abstain=False)
        assert np.array_equal(most.argmax(axis=1), votes.argmax(axis=1))
        assert (most.sum(axis=1) == 1).all()


class TestSeeds:
    def test_without_a_seed_every_call_draws_one_and_records_it(self, x):
        estimator = smoothed(seed=None)
        calls = [estimator.certificates(x, indices=INDICES) for _ in range(3)]
        seeds = [{certificate.seed for certificate in call} for call in calls]
        assert all(len(seed) == 1 for seed in seeds)
        assert len(set.union(*seeds)) == 3
        assert estimator.seed is None
        counts = [np.array([certificate.counts for certificate in call]) for call in calls]
        assert all((a != b).any(axis=1).mean() > 0.5 for a, b in itertools.combinations(counts, 2))
        for call, (seed,) in zip(calls, seeds, strict=True):
            assert smoothed(seed=seed).certificates(x, indices=INDICES, batch_size=7) == call

    def test_another_seed_or_index_gives_other_votes(self, x, votes):
        for other in (
            smoothed(seed=18).votes(x, N, indices=INDICES),
            smoothed(seed=17 + 2**32).votes(x, N, indices=INDICES),
            smoothed().votes(x, N, indices=INDICES + 10 * M),
        ):
            assert (other != votes).any(axis=1).mean() > 0.5


class Recorder(torch.nn.Module):
    """Names class 0, and remembers every row it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().flatten(1).clone())
        return torch.stack([x.flatten(1).sum(dim=1) * 0 + 1, x.flatten(1).sum(dim=1) * 0], dim=1)

    def take(self) -> torch.Tensor:
        rows, self.seen = torch.cat(self.seen), []
        return rows


class TestSharedNoise:
    @pytest.fixture
    def estimator(self):
        """Shows its model whole batches only, n0 and n being multiples of 64; the trial pass is over."""
        estimator = RandomizedSmoothingPyTorch(Recorder(), 0.5, n0=64, n=192, alpha=0.01, seed=17)
        estimator.votes(np.zeros((1, *SHAPE), dtype=np.float32), 64)
        estimator.model.take()
        return estimator

    def test_calls_of_one_seed_and_index_share_it(self, estimator):
        zero = np.zeros((2, *SHAPE), dtype=np.float32)
        seen = []
        # an input of 2 rounds away the last bits of its noise, and no more
        for x, indices in ((zero, [4, 9]), (zero, [4, 9]), (zero + 2, [4, 9]), (zero, [9, 4]), (zero, [5, 10])):
            estimator.certificates(x, indices=indices, batch_size=64)
            seen.append(estimator.model.take())
        first, again, shifted, swapped, other = seen
        assert first.shape == (2 * (64 + 192), 12)
        assert torch.equal(first, again)
        assert torch.allclose(first, shifted - 2, rtol=0, atol=2**-20)
        assert torch.equal(torch.unique(first, dim=0), torch.unique(swapped, dim=0))
        assert len(torch.unique(torch.cat([first, other]), dim=0)) == 2 * len(first)

    def test_nothing_else_does(self, estimator):
        # all inputs are zero, so that rows are noise: of examples, of purposes, of blocks, of calls for a gradient
        zero = np.zeros((4, *SHAPE), dtype=np.float32)
        estimator.certificates(zero, batch_size=64)
        certified = estimator.model.take()
        assert certified.shape == (4 * (64 + 192), 12)
        assert len(torch.unique(certified, dim=0)) == len(certified)
        estimator.votes(zero, 192, batch_size=64)
        predicted = estimator.model.take()
        gradients = []
        for _ in range(2):
            estimator.loss_gradient(zero, np.zeros(4, dtype=np.int64), num_samples=64, batch_size=64)
            gradients.append(estimator.model.take())
        everything = torch.cat([certified, predicted, *gradients])
        assert len(everything) == 4 * (64 + 192 + 192 + 64 + 64)
        assert len(torch.unique(everything, dim=0)) == len(everything)
