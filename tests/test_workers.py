"""Votes by several workers: the plain loop's counts exactly, whoever casts them, and what happens when one fails."""

import copy
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from torch import nn

from art_rs_plugin import CertificationError, Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.arithmetic import replicas
from art_rs_plugin.noise import Gaussian, Purpose, stream
from art_rs_plugin.votes import BLOCK, Request, count_votes

SIGMA, SEED = 0.25, 11


@pytest.fixture
def threads():
    """Sets the number of threads that torch lends, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def count(forwards, x, requests, **options):
    options = {"noise": Gaussian(SIGMA), "nb_classes": 2, "seed": SEED, "batch_size": BLOCK, **options}
    return count_votes(forwards, x, requests, **options)


def sign(x):
    """Two logits without rounding."""
    first = x.flatten(1)[:, 0]
    return torch.stack([torch.zeros_like(first), first], dim=1)


REQUESTS = [Request(row, 5 * row, Purpose.ESTIMATION, 40 + 90 * row, start=7 * row) for row in range(6)]
X = torch.linspace(-0.5, 0.5, 6).repeat_interleave(12).view(6, 3, 2, 2)


class TestWorkers:
    @pytest.mark.parametrize("batch_size", [1, 7, BLOCK, 100, 1_000])
    def test_any_number_counts_the_same(self, threads, batch_size):
        threads(1)
        alone = count(lambda number: [sign] * number, X, REQUESTS, batch_size=batch_size)
        assert (alone[1:] > 0).all()
        for number in (2, 3, 8):
            threads(number)
            assert np.array_equal(count(lambda number: [sign] * number, X, REQUESTS, batch_size=batch_size), alone)

    def test_each_has_a_thread_and_a_function_of_its_own(self, threads):
        threads(3)
        seen, all_started = {}, threading.Barrier(3, timeout=60)

        def forward(worker):
            def run(x):
                if worker not in seen:
                    all_started.wait()  # nobody can do all the work before the others start
                seen.setdefault(worker, set()).add((threading.get_ident(), torch.get_num_threads()))
                return sign(x)

            return run

        count(lambda number: [forward(worker) for worker in range(number)], X, REQUESTS)
        assert sorted(seen) == [0, 1, 2]
        assert all(len(who) == 1 for who in seen.values())
        idents, numbers = zip(*(next(iter(who)) for who in seen.values()), strict=True)
        assert len(set(idents)) == 3
        assert threading.get_ident() not in idents
        assert set(numbers) == {1}
        assert torch.get_num_threads() == 3

    def test_little_work_has_few_workers_with_the_threads_of_all(self, threads):
        threads(4)
        asked, numbers = [], set()

        def forward(x):
            numbers.add(torch.get_num_threads())
            return sign(x)

        def forwards(number):
            asked.append(number)
            return [forward] * number

        count(forwards, X, [Request(0, 0, Purpose.SELECTION, 100)])
        assert asked == [2]
        assert numbers == {2}

    def test_one_that_is_late_keeps_its_number_when_another_is_done(self, threads):
        threads(4)
        started, numbers = threading.Event(), set()

        def late(x):
            started.set()
            time.sleep(0.2)  # the other finishes, and gives back the threads that it had
            numbers.add(torch.get_num_threads())
            return sign(x)

        def early(x):
            assert started.wait(60)  # so that it does not take the late one's share too
            return sign(x)

        count(lambda number: [early, late], X, [Request(0, 0, Purpose.SELECTION, 100)])
        assert numbers == {2}

    def test_threads_that_start_later_begin_with_as_many_as_before(self, threads):
        threads(3)
        count(lambda number: [sign] * number, X, REQUESTS)
        number = []
        thread = threading.Thread(target=lambda: number.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert number == [3]

    def test_an_error_in_one_stops_all_and_comes_out(self, threads):
        threads(2)
        calls, broke = [], threading.Event()

        def broken(x):
            broke.set()
            raise KeyError("mine")

        def counted(x):
            assert broke.wait(60)
            calls.append(len(x))
            time.sleep(0.005)
            return sign(x)

        with pytest.raises(KeyError, match="mine"):
            count(lambda number: [counted, broken], X, [Request(0, 0, Purpose.ESTIMATION, 1_000 * BLOCK)])
        assert len(calls) < 500, "of a thousand"
        assert torch.get_num_threads() == 2


class Keeps(nn.Module):
    """A model that hands its features on through an attribute, and waits in between: two at once would mix them up."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 2)
        with torch.no_grad():
            nn.init.zeros_(self.layer.bias)
            self.layer.weight.copy_(torch.linspace(-1, 1, 24).sin().view(2, 12))
        self.features = None

    def forward(self, x):
        self.features = x.flatten(1)
        time.sleep(0.002)
        return self.layer(self.features)


class TestReplicas:
    def test_a_model_that_keeps_things_is_not_shared(self, threads):
        model = Keeps()
        made = []
        for number in (1, 3):
            threads(number)
            estimator = RandomizedSmoothingPyTorch(model, SIGMA, n0=20, n=700, alpha=0.01, seed=3)
            made.append(estimator.certificates(X))
        assert made[0] == made[1]

        # shared, it does go wrong: the comparison can fail
        shared = [count(lambda number: [model] * number, X, REQUESTS) for _ in range(3)]
        threads(1)
        alone = count(lambda number: [model] * number, X, REQUESTS)
        assert any(not np.array_equal(counts, alone) for counts in shared)

    def test_share_weights_and_nothing_else(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        one, other = replicas(model, 2)
        for replica in (one, other):
            assert replica is not model
            assert replica[0] is not model[0]
            shared = [*replica.parameters(), *replica.buffers()]
            mine = [*model.parameters(), *model.buffers()]
            assert all(a is b for a, b in zip(shared, mine, strict=True))
        assert one is not other
        assert replicas(model, 1) == [model]

    def test_a_model_that_cannot_be_copied_has_one_worker_and_says_so(self, threads):
        class Unique(Keeps):
            def __deepcopy__(self, memo):
                raise TypeError("there is only one")

        threads(1)
        model = Unique()
        options = {"n0": 20, "n": 300, "alpha": 0.01, "seed": 3}
        expected = RandomizedSmoothingPyTorch(model, SIGMA, **options).certificates(X)
        threads(3)
        estimator = RandomizedSmoothingPyTorch(model, SIGMA, **options)
        with pytest.warns(UserWarning, match=r"cannot be copied \(TypeError: there is only one\).* one worker"):
            assert estimator.certificates(X) == expected


class Halves(FeatureSqueezing):
    """A defence of ART's that hands its input on through an attribute, and waits in between."""

    def __call__(self, x, y=None):
        self.kept = x
        time.sleep(0.002)
        return super().__call__(self.kept, y)


def test_a_defence_that_keeps_things_is_not_shared(threads):
    model, made = Keeps(), []
    for number in (1, 3):
        threads(number)
        defence = Halves(clip_values=(-3, 3), bit_depth=6)
        estimator = RandomizedSmoothingPyTorch(
            model, SIGMA, n0=20, n=700, alpha=0.01, seed=3, preprocessing_defences=defence
        )
        made.append(estimator.certificates(X))
    assert made[0] == made[1]
    assert any(min(certificate.counts) > 20 for certificate in made[0])


class Fails(nn.Module):
    """Fails at inputs whose mean is near 9."""

    def forward(self, x):
        if ((x.flatten(1).mean(dim=1) - 9).abs() < 1).any():
            raise RuntimeError("nine")
        return sign(x)


@pytest.mark.parametrize("budget", [None, Looks(radii=(0.1,), n_max=1_000)], ids=["fixed", "looks"])
@pytest.mark.parametrize("where", [0, 1, 40, 69])
def test_an_input_that_fails_costs_no_earlier_one_its_certificate(budget, where):
    x = torch.linspace(-1, 1, 70).repeat_interleave(12).view(70, 3, 2, 2)
    expected = RandomizedSmoothingPyTorch(Fails(), SIGMA, n0=20, n=100, alpha=0.01, seed=3).certificates(
        x, budget=budget
    )
    x[where] += 9
    estimator = RandomizedSmoothingPyTorch(Fails(), SIGMA, n0=20, n=100, alpha=0.01, seed=3, input_shape=(3, 2, 2))
    estimator.certify(x[-1:] if where == 0 else x[:1])  # the trial pass is over
    if where == 0:
        with pytest.raises(RuntimeError, match="nine"):
            estimator.certificates(x, budget=budget)
        return
    with pytest.raises(CertificationError, match="nine") as caught:
        estimator.certificates(x, budget=budget)
    assert caught.value.certificates == expected[:where]


def plain_counts(model, x, index, votes):
    """The plain loop: noise written down once more, 64 rows at a time, images with channels last."""
    _, channels, height, width = x.shape
    counts = np.zeros(10, dtype=np.int64)
    for block in range(-(-votes // BLOCK)):
        generator = stream(SEED, Purpose.PREDICTION, index, block)
        noise = torch.empty(BLOCK, height, width, channels).normal_(0, SIGMA, generator=generator)
        noise += x[0].permute(1, 2, 0)
        with torch.inference_mode():
            named = model(noise.permute(0, 3, 1, 2)).argmax(dim=1)
        counts += np.bincount(named[: votes - block * BLOCK], minlength=10)
    return counts


def test_packed_votes_of_a_trained_network_by_workers_are_the_plain_loops(published, threads):
    model, x = published
    x = torch.from_numpy(x)
    threads(1)
    expected = np.stack([plain_counts(model, x[i : i + 1], 3 * i, 200) for i in range(4)])
    assert ((expected > 10).sum(axis=1) >= 2).any()
    estimator = RandomizedSmoothingPyTorch(copy.deepcopy(model), SIGMA, seed=SEED, compile=False)
    for number in (1, 2):
        threads(number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(estimator.votes(x, 200, indices=[0, 3, 6, 9]), expected)
