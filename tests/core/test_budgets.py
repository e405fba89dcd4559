"""Budgets: errors of every outcome enumerated, the paper's CERTIFY word for word, and the generators' protocol."""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from art_rs_plugin.core.bounds import BOUNDS
from art_rs_plugin.core.budgets import BUDGETS, Fixed, Looks, Pilot, Steps, Task, drive
from art_rs_plugin.core.certificate import ABSTAIN, certify, certify_from_counts
from art_rs_plugin.core.radii import cohen, lecuyer

SIGMA = 0.5
RADIUS = partial(cohen, sigma=SIGMA)
SMALL = {
    "fixed": partial(Fixed, n0=3, n=12),
    "looks": partial(Looks, radii=(0.0, 0.3), n0=3, first=3, growth=2.0, n_max=12),
    "pilot": partial(Pilot, n0=3, n_pilot=6, n_max=14, cost=0.02),
}


TWO = [(p, 1 - p) for p in (0.499, 0.5, 0.52, 0.6, 0.7, 0.725, 0.8, 0.9, 0.99)]
THREE = [(0.34, 0.33, 0.33), (0.4, 0.35, 0.25), (0.45, 0.3, 0.25), (0.6, 0.39, 0.01), (0.9, 0.05, 0.05)]


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("bound", BOUNDS)
class TestFalseCertificates:
    def test_two_classes(self, name, bound, errors, uniforms):
        every = errors(SMALL[name](bound=bound), 2, 0.2, uniforms=uniforms(bound))
        found = [every.false(p) for p in TWO]
        assert max(found) <= 0.2 * (1 + 1e-9)
        assert max(found) > 0.02  # or the enumeration would show nothing

    @pytest.mark.parametrize("label", [0, 1])
    def test_three_classes_with_the_label_known(self, name, bound, label, errors, uniforms):
        smaller = {"looks": {"n_max": 6}, "pilot": {"n_pilot": 4, "n_max": 9}, "fixed": {}}[name]
        budget = dataclasses.replace(SMALL[name](bound=bound), **smaller)
        every = errors(budget, 3, 0.3, label, uniforms(bound))
        assert max(every.false(p) for p in THREE) <= 0.3 * (1 + 1e-9)
        assert {certificate.prediction for _, certificate in every.runs} == {label, ABSTAIN}


@dataclass(frozen=True)
class Reuse:
    """Unsound: the votes that are bounded have also chosen the class."""

    n: int

    def steps(self, task: Task) -> Steps:
        counts = yield "estimation", self.n
        return task.certify(counts, int(counts.argmax()), n0=self.n, bound="clopper-pearson")


@dataclass(frozen=True)
class StopAtWill:
    """Unsound: a bound for a number of votes fixed beforehand, made at each look until it certifies."""

    schedule: tuple[int, ...]
    radius: float

    def steps(self, task: Task) -> Steps:
        selected, n0 = yield from task.select(1)
        counts = None
        for more in np.diff(self.schedule, prepend=0):
            fresh = yield "estimation", int(more)
            counts = fresh if counts is None else counts + fresh
            certificate = task.certify(counts, selected, n0=n0, bound="clopper-pearson")
            if certificate.radius > self.radius:
                break
        return certificate


class TestNegativeControls:
    """The enumeration that passes every budget above finds the fault in these."""

    def test_reused_votes(self, errors):
        assert max(errors(Reuse(12), 2, 0.2).false(p) for p in TWO) > 0.2 * 1.5

    def test_stopping_at_will(self, errors):
        assert errors(StopAtWill((3, 6, 12), 0.0), 2, 0.2, label=0).false([0.5, 0.5]) > 0.2 * 1.3
        # Looks takes the same looks
        assert errors(Looks(radii=(0.0,), first=3, growth=2, n_max=12), 2, 0.2, label=0).false([0.5, 0.5]) <= 0.2


class Recorder:
    """Deals prepared counts in turn, and remembers what was asked."""

    def __init__(self, *counts):
        self.counts = list(counts)
        self.calls = []

    def __call__(self, purpose, votes):
        self.calls.append((purpose, votes))
        return np.array(self.counts.pop(0))


class TestFixed:
    def test_is_certify(self):
        for bound, label in itertools.product(BOUNDS, [None, 2]):
            votes = [[1, 7, 2], [10, 950, 40]] if label is None else [[10, 950, 40]]
            draw = Recorder(*votes)
            task = Task(radius=RADIUS, alpha=0.01, index=7, seed=3, norm=2, label=label, uniform=0.3)
            found = drive(Fixed(n0=10, n=1_000, bound=bound).steps(task), draw)
            selected, n0 = (1, 10) if label is None else (2, 0)
            assert draw.calls == [("selection", 10), ("estimation", 1_000)][-len(votes) :]
            options = {"radius": RADIUS, "alpha": 0.01, "bound": bound, "index": 7, "seed": 3, "uniform": 0.3}
            assert found == certify_from_counts([10, 950, 40], selected, n0=n0, **options)
            assert found.votes == n0 + 1_000
            if label is None:
                assert certify(Recorder(*votes), n0=10, n=1_000, **options) == found

    def test_defaults_are_the_papers(self):
        assert (Fixed().n0, Fixed().n, Fixed().bound) == (100, 100_000, "clopper-pearson")


class TestPilot:
    @pytest.mark.parametrize("hits", [1_000, 990, 800, 510, 3])
    @pytest.mark.parametrize("cost", [1e-7, 1e-6, 1e-5])
    def test_chooses_the_votes_that_pay(self, hits, cost):
        steps = Pilot(cost=cost).steps(Task(radius=RADIUS, alpha=0.001))
        assert next(steps) == ("selection", 100)
        assert steps.send(np.array([90, 10])) == ("pilot", 1_000)
        purpose, n = steps.send(np.array([hits, 1_000 - hits]))
        assert purpose == "estimation"

        def value(n):  # by SciPy, in units of sigma
            k = hits * n // 1_000
            p_lower = np.where(k > 0, beta.ppf(0.001, np.maximum(k, 1), n - k + 1), 0.0)
            return norm.ppf(np.maximum(p_lower, 0.5)) - cost * n

        grid = np.arange(10, 100_001)
        # a grid of steps of 1.25 is off by a few hundredths at most, and by nothing where the value is flat
        assert value(n) >= value(grid).max() - 0.02
        if hits < 500:
            assert n == 10  # nothing to win: the least votes that can certify

    def test_cost_is_in_units_of_the_noise(self):
        asked = []
        for radius in (RADIUS, partial(cohen, sigma=40.0), partial(lecuyer, sigma=0.25), partial(lecuyer, sigma=2.0)):
            steps = Pilot().steps(Task(radius=radius, alpha=0.001, label=0))
            next(steps)
            asked.append(steps.send(np.array([950, 50])))
        assert asked[0] == asked[1]
        assert asked[2] == asked[3]

    def test_pilot_votes_do_not_enter_the_bound(self):
        counts = []

        def draw(purpose, votes):
            counts.append((purpose, votes))
            return np.array([votes, 0] if purpose == "pilot" else [votes - votes // 4, votes // 4])

        found = drive(Pilot(cost=1e-5).steps(Task(radius=RADIUS, alpha=0.001, seed=4)), draw)
        purposes, votes = zip(*counts, strict=True)
        assert purposes == ("selection", "pilot", "estimation")
        assert (found.pilot, found.n, found.votes) == ((1_000, 0), votes[2], sum(votes))
        expected = certify_from_counts(found.counts, 0, radius=RADIUS, n0=100, alpha=0.001, seed=4)
        assert {**vars(found), "pilot": None} == {**vars(expected), "pilot": None}


@pytest.mark.parametrize("name", BUDGETS)
class TestEveryBudget:
    def test_interleaved_runs_give_what_single_ones_do(self, name):
        """As an engine does that packs the votes of many inputs into one batch."""
        budget = SMALL[name]()
        tasks = [Task(radius=RADIUS, alpha=0.1, index=index) for index in range(40)]

        def ballot(index):
            rng = np.random.default_rng(index)
            return lambda purpose, votes: rng.multinomial(
                votes, [0.5 + index / 100, 0.3 - index / 200, 0.2 - index / 200]
            )

        single = [drive(budget.steps(task), ballot(task.index)) for task in tasks]
        draws, steps = [ballot(task.index) for task in tasks], [budget.steps(task) for task in tasks]
        requests = {index: next(step) for index, step in enumerate(steps)}
        done = {}
        while requests:
            for index in list(requests):
                try:
                    requests[index] = steps[index].send(draws[index](*requests[index]))
                except StopIteration as stop:
                    done[index] = stop.value
                    del requests[index]
        assert [done[index] for index in range(40)] == single

    def test_records_are_plain(self, name):
        budget = SMALL[name](n0=np.int64(3))
        assert budget.name == name
        assert {type(value) for value in dataclasses.asdict(budget).values()} <= {int, float, str, tuple}
        with pytest.raises(dataclasses.FrozenInstanceError):
            budget.n0 = 9
        found = drive(budget.steps(Task(radius=RADIUS, alpha=np.float64(0.1))), lambda _, votes: np.array([0, votes]))
        assert {type(value) for value in dataclasses.asdict(found).values()} <= {int, float, str, tuple, type(None)}
        assert (found.prediction, found.index, found.n0) == (1, 0, 3)

    def test_refuses(self, name):
        with pytest.raises(ValueError, match="`n0` must be at least 1, got 0"):
            SMALL[name](n0=0)
        with pytest.raises(TypeError, match=r"`n0` must be a whole number, got 3\.5"):
            SMALL[name](n0=3.5)
        with pytest.raises(ValueError, match=r"`bound` must be one of 'clopper-pearson', .*, got 'wilson'"):
            SMALL[name](bound="wilson")
        with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), got 7"):
            Task(radius=RADIUS, alpha=7)
        with pytest.raises(ValueError, match="`label` must be at least 0, got -1"):
            Task(radius=RADIUS, alpha=0.1, label=-1)
        with pytest.raises(ValueError, match="`selected` must be a class below 2, got 2"):
            drive(SMALL[name]().steps(Task(radius=RADIUS, alpha=0.2, label=2)), lambda _, votes: np.array([votes, 0]))
        with pytest.raises(ValueError, match=r"(must be at least|up to)"):  # too few votes, before any is drawn
            drive(SMALL[name]().steps(Task(radius=RADIUS, alpha=1e-9)), Recorder())

    def test_a_draw_that_breaks_its_promise_is_caught(self, name):
        with pytest.raises(AssertionError, match="asked for 3 votes, drew"):
            drive(SMALL[name]().steps(Task(radius=RADIUS, alpha=0.2)), lambda _, votes: np.array([votes, 1]))
        with pytest.raises(StopIteration):  # a draw's own must not pass for the end of the budget
            drive(SMALL[name]().steps(Task(radius=RADIUS, alpha=0.2)), lambda *_: next(iter(())))


def test_a_users_budget_is_a_few_lines():
    @dataclass(frozen=True)
    class Twice:
        n: int

        def steps(self, task: Task) -> Steps:
            selected, n0 = yield from task.select(10)
            yield "pilot", 5
            counts = yield "estimation", self.n
            return task.certify(counts, selected, n0=n0, bound="runner-up")

    found = drive(Twice(50).steps(Task(radius=RADIUS, alpha=0.01)), lambda _, votes: np.array([1, votes - 1]))
    assert (found.prediction, found.n) == (1, 50)


def test_pilot_refuses():
    with pytest.raises(ValueError, match="`cost` must be a finite number above 0, got 0"):
        Pilot(cost=0)
    with pytest.raises(ValueError, match="`n_pilot` must be at least 1, got 0"):
        Pilot(n_pilot=0)


def test_true_probability_of_selection_is_the_papers(errors):
    """Votes that select are counted in `n0` alone; a tie goes to the first class."""
    every = errors(Fixed(n0=4, n=10), 2, 0.2)
    mass = {0: 0.0, 1: 0.0}
    for sent, certificate in every.runs:
        mass[certificate.selected] += np.prod([binom.pmf(counts[0], counts.sum(), 0.7) for counts in sent])
    assert mass[0] == pytest.approx(binom.sf(1, 4, 0.7))
