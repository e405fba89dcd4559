"""The randomized Clopper-Pearson bound: its error over votes and U, exactly, and the ways to spoil it."""

import math
from dataclasses import dataclass
from functools import partial

import mpmath as mp
import numpy as np
import pytest
from scipy.stats import binom, norm

from art_rs_plugin.core.bounds import (
    BOUNDS,
    P_LOWER_CAP,
    RANDOMIZED,
    at_uniform,
    clopper_pearson_lower,
    votes_to_certify,
)
from art_rs_plugin.core.budgets import BUDGETS, Fixed, Looks, Pilot, Steps, Task, drive
from art_rs_plugin.core.certificate import ABSTAIN, certify, certify_from_counts
from art_rs_plugin.core.looks import certify_from_looks, growing, scaled, spending
from art_rs_plugin.core.radii import RADII, cohen

RADIUS = partial(cohen, sigma=0.5)
BEFORE = [  # the bound's floats before it knew of U
    (1, 1, 0.001, "0x1.0624dd2f1a9fbp-10"),
    (3, 10, 0.05, "0x1.656f641c3e609p-4"),
    (7, 7, 0.5, "0x1.cfbb031a741a4p-1"),
    (52, 100, 0.001, "0x1.74495a25022bfp-2"),
    (950, 1000, 0.001, "0x1.d99fbb4743831p-1"),
    (45000, 100000, 0.0009, "0x1.c7c522078d4a2p-2"),
    (99000, 100000, 0.001, "0x1.fa5ccf9207197p-1"),
    (100000, 100000, 0.001, "0x1.fff6f238d5681p-1"),
    (999999, 1000000, 1e-09, "0x1.fffcdcb9a981dp-1"),
]


def test_at_one_every_float_is_as_before():
    for k, n, alpha, value in BEFORE:
        assert float(clopper_pearson_lower(k, n, alpha, 1.0)).hex() == value
        assert float(clopper_pearson_lower(k, n, alpha)).hex() == value


@pytest.mark.parametrize("n", [1, 2, 10, 1_000, 100_000])
def test_falls_from_the_bound_of_one_success_more(n):
    for k in sorted({0, 1, n // 2, n - 1, n}):
        for alpha in (0.001, 0.3):
            u = [0.0, alpha / 2, alpha, 0.4, 0.999, 1.0]
            values = [float(clopper_pearson_lower(k, n, alpha, uniform)) for uniform in u]
            assert values == sorted(values, reverse=True)
            more = float(clopper_pearson_lower(k + 1, n, alpha)) if k < n else 1.0
            assert values[0] == pytest.approx(more, rel=1e-15)


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.3])
def test_sound_where_u_is_next_to_alpha(alpha):
    """At k = n the root of U p^n = alpha, at k = 0 that of 1 - (1 - U) (1 - p)^n = alpha, leave [0, 1] there."""
    for n in (1, 10, 1_000):
        assert clopper_pearson_lower(n, n, alpha, alpha) == 1.0
        assert clopper_pearson_lower(0, n, alpha, alpha) == 0.0
        above, below = math.nextafter(alpha, 1), math.nextafter(alpha, 0)
        with mp.workdps(60):
            p = mp.mpf(float(clopper_pearson_lower(n, n, alpha, above)))
            assert above * p**n <= alpha < above * (p + mp.mpf(2) ** -51) ** n
            assert (
                1 - (1 - mp.mpf(below)) * (1 - mp.mpf(float(clopper_pearson_lower(0, n, alpha, below)))) ** n <= alpha
            )


def error(name: str, n: int, p: float, alpha: float) -> float:
    """P(p_lower > p) over votes and a continuous U: all hits above some number, and the smaller U at that number."""

    def exceeds(k: int, uniform: float) -> bool:
        return BOUNDS[name](np.array([k, n - k]), 0, alpha, uniform)[0] > p

    most, sure = -1, n + 1  # hits at which U = 1 does not exceed p, and does
    while sure - most > 1:
        k = (most + sure) // 2
        most, sure = (most, k) if exceeds(k, 1.0) else (k, sure)
    assert most < 1 or not exceeds(most - 1, 0.0)
    low, high = 0.0, 1.0
    if most < 0 or not exceeds(most, 0.0):
        high = 0.0
    while high - low > 1e-12:
        u = (low + high) / 2
        low, high = (u, high) if exceeds(most, u) else (low, u)
    return float(binom.sf(most, n, p) + high * binom.pmf(most, n, p))


@pytest.mark.parametrize(
    ("n", "alpha"), [(1, 0.3), (1, 0.001), (7, 0.1), (100, 0.01), (1_000, 0.001), (100_000, 0.001)]
)
def test_errs_with_probability_alpha_exactly_below_the_cap(n, alpha):
    for p in (0.01, 0.3, 0.5, 0.6, 0.9, 0.99, 0.9999, 0.999999, math.nextafter(P_LOWER_CAP, 0)):
        assert error("randomized", n, p, alpha) == pytest.approx(alpha, rel=1e-7), p
    assert error("randomized", n, P_LOWER_CAP, alpha) == 0.0


def test_the_cap():
    with mp.workdps(40):
        assert mp.mpf(P_LOWER_CAP) <= mp.ncdf(5) < mp.mpf(math.nextafter(P_LOWER_CAP, 1))
    for n in (1, 1_000, 10**9):
        assert BOUNDS["randomized"](np.array([n, 0]), 0, 0.001, 0.0)[0] == P_LOWER_CAP
    for radius in RADII.values():
        assert 0 < radius(P_LOWER_CAP, 1 - P_LOWER_CAP, sigma=1.0) <= 5
    p_lower, p_upper = BOUNDS["randomized"](np.array([0, 9]), 0, 0.3, 0.1)
    assert 0 < p_lower < p_upper == math.nextafter(1 - p_lower, 1)


def test_mean_radius_of_unanimous_votes():
    """At n = 100 000, alpha = .001: 3.811 sigma at U = 1, 3.855 sigma on average, which the cap alone keeps finite."""
    n, alpha = 100_000, 0.001

    def radius(uniform: float) -> float:
        return float(cohen(*BOUNDS["randomized"](np.array([n, 0]), 0, alpha, uniform), sigma=1.0))

    # Gauss-Legendre in ln U above the kink, where p_lower = (alpha / U)^(1/n) leaves the cap
    kink = alpha * P_LOWER_CAP**-n
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = math.log(kink) * (1 - nodes) / 2
    values = np.array([u * radius(u) for u in np.exp(t)])
    mean = 5 * kink - math.log(kink) / 2 * float(weights @ values)
    assert radius(1.0) == pytest.approx(3.811, abs=5e-4)
    assert radius(kink * 1.001) < radius(kink * 0.999) == radius(0.0) == pytest.approx(5, abs=1e-8)
    assert mean == pytest.approx(3.855, abs=5e-4)
    # the same by another road: SciPy's quantile at the middles of 10^6 steps
    u = (np.arange(10**6) + 0.5) / 10**6
    assert mean == pytest.approx(norm.ppf(np.minimum((alpha / u) ** (1 / n), P_LOWER_CAP)).mean(), abs=1e-4)


U8, U16 = ((np.arange(1, steps + 1) / steps).tolist() for steps in (8, 16))


class TestLooks:
    @pytest.mark.parametrize("p", [0.5, 0.7, 0.84, 0.95, 0.99])
    def test_exact_error_of_one_u_at_all_looks(self, p):
        """P(some look's bound exceeds p), by dynamic programming over the looks for each U."""
        alpha, budget = 0.01, Looks(radii=(0.5,), n_max=1_000)
        shares, errors = spending(alpha, len(budget.schedule)), []
        for uniform in U16:
            state, drawn, crossed = np.ones(1), 0, 0.0
            for votes, share in zip(budget.schedule, shares, strict=True):
                state = np.convolve(state, binom.pmf(np.arange(votes - drawn + 1), votes - drawn, p))
                k, drawn = np.arange(votes + 1), votes
                hits = int(
                    np.argmax(np.append(binom.sf(k, votes, p) + uniform * binom.pmf(k, votes, p) <= share, True))
                )
                assert float(clopper_pearson_lower(hits - 1, votes, share, uniform)) <= p
                assert hits > votes or float(clopper_pearson_lower(hits, votes, share, uniform)) > p
                crossed += state[hits:].sum()
                state[hits:] = 0.0
            errors.append(crossed)
        assert 0.7 * alpha < np.mean(errors) <= alpha
        assert p < 0.99 or errors[0] > 1.4 * alpha  # at a given U: only the average holds
        assert errors[-1] < np.mean(errors)  # U = 1 is the deterministic bound

    def test_what_can_be_asked_does_not_depend_on_luck(self):
        beyond = Looks(radii=(1.95,), bound="randomized")  # 3.9 sigma: within reach for small U alone
        for uniform in (0.0, 0.1, 1.0):
            with pytest.raises(ValueError, match="`radii` must hold one that 100000 votes can certify"):
                next(beyond.steps(Task(radius=RADIUS, alpha=0.001, uniform=uniform)))


@dataclass(frozen=True, kw_only=True)
class PilotThatSeesU(Pilot):
    """Unsound: chooses the number of votes with the U in hand."""

    def _best(self, pilot, selected, task):
        bound, _ = at_uniform(self.bound, task.uniform)

        def value(n):
            counts = scaled(pilot, selected, int(pilot[selected]) * n // self.n_pilot, n)
            return float(task.radius(*bound(counts, selected, task.alpha))) - self.cost * 0.5 * n

        return max(growing(votes_to_certify(task.alpha, self.bound), 1.25, self.n_max), key=value)


@dataclass(frozen=True, kw_only=True)
class AnotherUIfItAbstains(Fixed):
    """Unsound: a second U, uniform as well, is drawn in the light of the votes."""

    def steps(self, task: Task) -> Steps:
        selected, n0 = yield from task.select(self.n0)
        counts = yield "estimation", self.n
        certificate = task.certify(counts, selected, n0=n0, bound=self.bound)
        if certificate.prediction != ABSTAIN:
            return certificate
        other = task.uniform - 0.5 if task.uniform > 0.5 else task.uniform + 0.5
        options = {"radius": task.radius, "alpha": task.alpha, "n0": n0, "bound": self.bound, "uniform": other}
        return certify_from_counts(counts, selected, **options)


class TestNegativeControls:
    """The enumeration finds the fault in a U that meets votes it has seen, or that chose their number."""

    def test_a_number_of_votes_that_suits_u(self, errors):
        options = {"n_pilot": 6, "n_max": 14, "cost": 0.02, "bound": "randomized"}
        sound, unsound = (errors(budget(**options), 2, 0.2, 0, U8) for budget in (Pilot, PilotThatSeesU))
        assert max(sound.false((p, 1 - p)) for p in (0.5, 0.86, 0.92)) <= 0.2 * (1 + 1e-9)
        assert unsound.false((0.92, 0.08)) > 1.2 * 0.2

    def test_a_second_u(self, errors):
        options = {"n0": 1, "n": 12, "bound": "randomized"}
        found, unsound = (
            errors(budget(**options), 2, 0.15, 0, U16).false((0.5, 0.5)) for budget in (Fixed, AnotherUIfItAbstains)
        )
        assert 0.9 * 0.15 < found <= 0.15 * (1 + 1e-9)
        assert unsound > 1.2 * 0.15


SMALL = {
    "fixed": partial(Fixed, n=50),
    "looks": partial(Looks, radii=(0.0,), n_max=200),
    "pilot": partial(Pilot, n_max=500),
}


def two_to_one(_, votes):
    return np.array([votes - votes // 3, votes // 3])


@pytest.mark.parametrize("name", BUDGETS)
class TestEveryBudget:
    def test_needs_a_u_before_any_vote(self, name):
        for bound in BOUNDS:
            steps = SMALL[name](bound=bound).steps(Task(radius=RADIUS, alpha=0.05))
            if bound in RANDOMIZED:
                with pytest.raises(
                    ValueError, match=r"`uniform` must be in \[0, 1\] for the bound 'randomized', got None"
                ):
                    next(steps)
            else:
                next(steps)

    def test_records_the_u_that_was_used(self, name):
        for bound in BOUNDS:
            task = Task(radius=RADIUS, alpha=0.05, uniform=np.float64(0.25))
            found = drive(SMALL[name](bound=bound).steps(task), two_to_one)
            assert (type(found.uniform), found.uniform) == (
                (float, 0.25) if bound in RANDOMIZED else (type(None), None)
            )

    def test_deterministic_bounds_ignore_it(self, name):
        for bound in set(BOUNDS) - RANDOMIZED:
            tasks = (Task(radius=RADIUS, alpha=0.05, uniform=uniform) for uniform in (None, 0.0, 0.9))
            first, *others = (drive(SMALL[name](bound=bound).steps(task), two_to_one) for task in tasks)
            assert others == [first, first]

    def test_a_smaller_u_gives_a_larger_radius(self, name):
        tasks = (Task(radius=RADIUS, alpha=0.05, label=0, uniform=uniform) for uniform in (0.01, 0.5, 1.0))
        found = [drive(SMALL[name](bound="randomized").steps(task), two_to_one) for task in tasks]
        assert found[0].radius > found[1].radius > found[2].radius
        plain = drive(SMALL[name]().steps(Task(radius=RADIUS, alpha=0.05, label=0)), two_to_one)
        assert (found[2].p_lower, found[2].radius, found[2].n) == (plain.p_lower, plain.radius, plain.n)
        if name == "pilot":
            assert {certificate.n for certificate in found} == {plain.n}


def test_refuses():
    with pytest.raises(ValueError, match=r"`uniform` must be in \[0, 1\], got 1\.5"):
        Task(radius=RADIUS, alpha=0.05, uniform=1.5)
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match=rf"`uniform` must be in \[0, 1\], got {wrong}"):
            clopper_pearson_lower(3, 10, 0.05, wrong)
        with pytest.raises(ValueError, match=rf"`uniform` must be in \[0, 1\], got {wrong}"):
            certify_from_counts([9, 1], 0, radius=RADIUS, n0=9, alpha=0.05, bound="randomized", uniform=wrong)
    with pytest.raises(TypeError, match="`uniform` must be a number, got '0'"):
        clopper_pearson_lower(3, 10, 0.05, "0")
    missing = r"`uniform` must be in \[0, 1\] for the bound 'randomized', got None"
    options = {"radius": RADIUS, "n0": 9, "alpha": 0.05, "bound": "randomized"}
    with pytest.raises(ValueError, match=missing):
        certify_from_counts([9, 1], 0, **options)
    with pytest.raises(ValueError, match=missing):
        certify_from_looks([[9, 1]], 0, schedule=(10,), spend=(0.05,), **options)
    with pytest.raises(ValueError, match=missing):
        certify(two_to_one, n=10, **options)


def test_votes_to_certify_are_those_at_one():
    for alpha in (0.5, 0.1, 0.001, 1e-9):
        assert votes_to_certify(alpha, "randomized") == votes_to_certify(alpha)
