"""Looks: exact error at every stopping rule by dynamic programming, the code's own by simulation, and re-bounding."""

import itertools
import math
from fractions import Fraction
from functools import cache, partial

import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.stats import beta, binom, norm

from art_rs_plugin.core.bounds import BOUNDS, clopper_pearson_lower
from art_rs_plugin.core.budgets import Looks, Task, drive
from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.looks import certify_from_looks, growing, prospect, scaled, spending
from art_rs_plugin.core.radii import cohen

SIGMA = 0.5
RADIUS = partial(cohen, sigma=SIGMA)
FALSE_ALARM = 1e-6


def after(step: int, state: np.ndarray, p: float) -> np.ndarray:
    """Distribution of the hits, `step` votes later. Rounding is below 1e-15, errors counted here are 1e-5 and more."""
    more = binom.pmf(np.arange(step + 1), step, p)
    return np.maximum(fftconvolve(state, more), 0.0) if min(step, state.size) > 100 else np.convolve(state, more)


def crossed(schedule, p: float, above, below=None) -> tuple[float, float]:
    """P(at some look the hits are at least `above`, never at most `below` before), and the mean number of votes."""
    state, drawn, hit, mean = np.ones(1), 0, 0.0, 0.0
    for look, votes in enumerate(schedule):
        mean += state.sum() * (votes - drawn)
        state, drawn = after(votes - drawn, state, p), votes
        hit += state[above[look] :].sum()
        state[above[look] :] = 0.0
        if below is not None:
            state[: below[look] + 1] = 0.0
    return hit, mean


def least_hits_above(p: float, schedule, spend) -> list[int]:
    """At each look the fewest hits whose bound exceeds p, by SciPy's binomial tail; and the code's bound agrees."""
    found = []
    for votes, share in zip(schedule, spend, strict=True):
        hits = int(binom.isf(share, votes, p)) + 1  # the least k with P(X >= k) <= share
        hits -= int(binom.sf(hits - 2, votes, p) <= share * (1 + 1e-11))  # as some versions of SciPy round it
        assert float(clopper_pearson_lower(hits - 1, votes, share)) <= p
        assert hits > votes or float(clopper_pearson_lower(hits, votes, share)) > p
        found.append(hits)
    return found


class TestSpending:
    @pytest.mark.parametrize("alpha", [0.001, 0.05, 0.1, 1 / 3, 0.5, 1e-9])
    def test_never_more_than_alpha(self, alpha):
        for looks in (1, 2, 3, 7, 18, 1_000):
            shares = spending(alpha, looks)
            assert len(shares) == looks
            assert Fraction(alpha) * (1 - Fraction(1, 10**12)) < sum(map(Fraction, shares)) <= Fraction(alpha)
            if looks > 1:
                np.testing.assert_allclose(
                    shares, [0.3 * alpha / (looks - 1)] * (looks - 1) + [0.7 * alpha], rtol=1e-12
                )

    def test_schedule(self):
        assert Looks(radii=(0.5,)).schedule[:6] == (100, 150, 225, 337, 505, 757)
        assert Looks(radii=(0.5,)).schedule[-3:] == (43_606, 65_409, 100_000)
        assert growing(100, 1.5, 100) == growing(200, 1.5, 100) == (100,)
        assert growing(1, 1.01, 5) == (1, 2, 3, 4, 5)


@cache
def exact_error(p: float, n_max: int, alpha: float) -> float:
    schedule = Looks(radii=(0.5,), n_max=n_max).schedule
    return crossed(schedule, p, least_hits_above(p, schedule, spending(alpha, len(schedule))))[0]


class TestExactCoverage:
    """P(some look's lower bound exceeds p): what the certificate errs by if it stops at the worst possible moment."""

    def test_at_the_papers_votes(self):
        errors = [exact_error(p, 100_000, 0.001) / 0.001 for p in np.linspace(0.5, 0.95, 10)]
        assert 0.83 < min(errors) <= max(errors) < 0.91

    @pytest.mark.slow
    def test_at_the_papers_votes_over_more_p(self):
        values = [*np.linspace(0.5, 0.95, 181), *1 - np.geomspace(1e-5, 0.05, 40)]
        errors = np.array([exact_error(p, 100_000, 0.001) / 0.001 for p in values])
        assert errors.max() <= 1.0
        assert 0.82 < errors[:181].min() <= errors[:181].max() < 0.91

    @pytest.mark.parametrize(("n_max", "alpha"), [(100, 0.05), (1_000, 0.01), (3_000, 0.001)])
    def test_just_below_the_values_that_a_bound_can_take(self, n_max, alpha):
        schedule = Looks(radii=(0.5,), n_max=n_max).schedule
        shares = spending(alpha, len(schedule))
        values = []
        for votes, share in zip(schedule[-2:], shares[-2:], strict=False):
            values += [
                clopper_pearson_lower(k, votes, share) for k in range(votes // 2, votes + 1, max(1, votes // 20))
            ]
        assert max(exact_error(float(np.nextafter(p, 0)), n_max, alpha) for p in values) <= alpha * (1 + 1e-9)

    def test_a_bound_at_alpha_at_each_look_is_caught(self):
        schedule = Looks(radii=(0.5,)).schedule
        above = least_hits_above(0.84, schedule, [0.001] * len(schedule))
        assert crossed(schedule, 0.84, above)[0] > 0.008

    def test_final_counts_bounded_as_if_their_number_had_been_fixed_are_caught(self):
        """The rule of Looks stops it short of p, and a bound at alpha on the counts that it stopped at exceeds p."""
        p, schedule = 0.84, Looks(radii=(0.5,)).schedule
        stop = least_hits_above(p - 0.005, schedule, spending(0.001, len(schedule)))
        wrong = least_hits_above(p, schedule, [0.001] * len(schedule))
        state, drawn, false = np.ones(1), 0, 0.0
        for votes, stops, errs in zip(schedule, [*stop[:-1], 0], wrong, strict=True):
            state, drawn = after(votes - drawn, state, p), votes
            false += state[max(stops, errs) :].sum()
            state[stops:] = 0.0
        assert false > 3 * 0.001


def two_counts(rng, votes: int, p: float) -> np.ndarray:
    hits = rng.binomial(votes, p)
    return np.array([hits, votes - hits])


class TestRule:
    @pytest.mark.parametrize("radius", [0.0, 0.5])
    def test_simulated_just_below_the_threshold(self, radius):
        """Whatever is certified at an input just short of a radius is false: at most alpha, and not much less."""
        p, runs, alpha = float(norm.cdf(radius / SIGMA)) - 1e-9, 2_000, 0.05
        budget = Looks(radii=(radius,), n_max=1_000)
        rng = np.random.default_rng(1)
        task = Task(radius=RADIUS, alpha=alpha, label=0)
        false = 0
        for _ in range(runs):
            found = drive(budget.steps(task), lambda _, votes: two_counts(rng, votes, p))
            false += found.prediction != ABSTAIN and found.radius >= radius
        assert false <= binom.isf(FALSE_ALARM, runs, alpha)
        assert false >= binom.ppf(FALSE_ALARM, runs, 0.5 * alpha)

    def test_giving_up_costs_little_power(self):
        """P(radius certified), exactly, with and without giving up; and the votes that this saves."""
        p0, budget = float(norm.cdf(1.0)), Looks(radii=(SIGMA,))
        schedule, shares = budget.schedule, spending(0.001, len(budget.schedule))
        above = least_hits_above(p0 - 1e-12, schedule, shares)

        def hopeless(votes: int) -> int:  # the most hits at which even what they leave plausible does not certify
            low, high = -1, votes
            while high - low > 1:
                hits = (low + high) // 2
                hoped = prospect(np.array([hits, votes - hits]), 0, budget.n_max)
                bound = beta.ppf(shares[-1], hoped[0], hoped[1] + 1) if hoped[0] else 0.0
                low, high = (hits, high) if bound < p0 else (low, hits)
            return low

        below = [hopeless(votes) for votes in schedule]
        assert below[-1] == above[-1] - 1
        for margin, loss, votes in [
            (0.0, 1e-3, 0.6),
            (0.004, 0.035, 0.95),
            (0.008, 0.025, 1),
            (0.02, 0.005, 1),
            (-0.02, 1e-5, 0.02),
        ]:
            power, mean = crossed(schedule, p0 + margin, above, below)
            full, most = crossed(schedule, p0 + margin, above)
            assert full - loss <= power <= full + 1e-12
            assert mean <= votes * most

    def test_stops_when_every_radius_is_settled(self):
        def looks(p, *radii, **options):
            draw = lambda _, votes: np.array([round(votes * p), votes - round(votes * p)])  # noqa: E731
            return drive(Looks(radii=radii, **options).steps(Task(radius=RADIUS, alpha=0.001, label=0)), draw)

        assert looks(1.0, 0.25).n == 100
        assert looks(0.3, 0.0).n == 100
        found = looks(0.9, 0.25, 0.5)
        assert found.radius >= 0.5
        assert found.schedule[: len(found.looks)] == tuple(map(sum, found.looks))
        assert looks(0.9, 0.25).n < found.n < looks(0.9, 0.25, 0.5, 0.6).n
        assert looks(0.9, 0.25, 0.5, 1.0).n == found.n  # unreachable at .9, given up before .5 is certified
        assert looks(1.0, 1.0, 2.0) == looks(1.0, 1.0)  # 2.0 is beyond what 100 000 unanimous votes certify
        assert looks(0.5, 0.0, n_max=50).n == 50

    def test_refuses_radii_out_of_reach(self):
        with pytest.raises(
            ValueError, match=r"that 1000 votes can certify at alpha = 0.001, which is up to 1\.2.*, got \(2"
        ):
            next(Looks(radii=(2.0, 9.0), n_max=1_000).steps(Task(radius=RADIUS, alpha=0.001)))
        for wrong in ((), 0.5):
            with pytest.raises(ValueError, match="`radii` must be one or more numbers in a row"):
                Looks(radii=wrong)
        with pytest.raises(ValueError, match=r"`radii` must be a finite number of at least 0, got -1"):
            Looks(radii=(0.5, -1.0))
        with pytest.raises(ValueError, match=r"`growth` must be above 1, got 1"):
            Looks(radii=(0.5,), growth=1)

    def test_prospect(self):
        counts = np.array([60, 25, 15])
        for votes in (100, 150, 1_000, 100_000):
            found = prospect(counts, 0, votes)
            assert found.sum() == votes
            assert found[0] == min(math.ceil(votes * beta.ppf(0.99, 61, 40)), 60 + votes - 100)
            np.testing.assert_allclose(found[1:] / found[1:].sum(), [0.625, 0.375], atol=2 / found[1:].sum())
        np.testing.assert_array_equal(prospect(np.array([0, 100]), 1, 500), [0, 500])
        np.testing.assert_array_equal(scaled(np.array([7, 3, 0]), 0, 8, 11), [8, 3, 0])
        np.testing.assert_array_equal(counts, [60, 25, 15])


LOOKS = [[60, 30, 10], [125, 60, 15], [245, 120, 35]]
SHARES = (0.01, 0.02, 0.02, 0.05)


class TestReBounding:
    @pytest.mark.parametrize("bound", BOUNDS)
    def test_gives_the_certificate_again(self, bound):
        rng = np.random.default_rng(2)
        budget = Looks(radii=(0.0, 0.25, 0.5), n_max=5_000, bound=bound)
        for p, label in itertools.product([0.45, 0.6, 0.7, 0.85, 0.99], [None, 0]):
            task = Task(radius=RADIUS, alpha=0.01, index=5, seed=6, label=label, uniform=0.3)
            found = drive(budget.steps(task), lambda _, n, p=p: rng.multinomial(n, [p, 0.7 * (1 - p), 0.3 * (1 - p)]))
            assert (found.counts, found.n) == (found.looks[-1], sum(found.looks[-1]))
            assert (found.n0, found.votes) == (0 if label == 0 else 100, found.n + found.n0)
            assert found.uniform == (0.3 if bound == "randomized" else None)
            fields = ("looks", "selected", "schedule", "spend", "n0", "alpha", "index", "seed", "uniform")
            assert certify_from_looks(**{f: getattr(found, f) for f in fields}, radius=RADIUS, bound=bound) == found

    def test_running_bounds_by_scipy(self):
        found = certify_from_looks(
            LOOKS, 0, schedule=(100, 200, 400, 800), spend=SHARES, radius=RADIUS, n0=9, alpha=0.1, bound="runner-up"
        )
        lower = [
            beta.ppf(0.9 * a, k, n - k + 1) for (k, _, _), n, a in zip(LOOKS, (100, 200, 400), SHARES, strict=False)
        ]
        upper = [
            beta.isf(0.1 * a, k + 1, n - k) for (_, k, _), n, a in zip(LOOKS, (100, 200, 400), SHARES, strict=False)
        ]
        assert found.p_lower == pytest.approx(max(lower), rel=1e-12)
        assert found.p_upper == pytest.approx(min(upper), rel=1e-12)
        assert found.radius == pytest.approx(SIGMA / 2 * (norm.ppf(max(lower)) - norm.ppf(min(upper))), rel=1e-8)
        assert (found.counts, found.n, found.spend) == ((245, 120, 35), 400, SHARES)

    def test_an_early_look_may_hold_the_bound(self):
        looks = [[100, 0], [130, 70]]
        found = certify_from_looks(looks, 0, schedule=(100, 200), spend=(0.03, 0.07), radius=RADIUS, n0=9, alpha=0.1)
        assert found.p_lower == clopper_pearson_lower(100, 100, 0.03) > clopper_pearson_lower(130, 200, 0.07)

    def test_refuses(self):
        again = partial(certify_from_looks, LOOKS, 0, radius=RADIUS, n0=9)
        with pytest.raises(ValueError, match=r"`spend` must add up to at most alpha = 0.05, got 0.1"):
            again(schedule=(100, 200, 400, 800), spend=SHARES, alpha=0.05)
        with pytest.raises(
            ValueError, match=r"`looks` must add up to the first of the schedule .*, got \[100, 200, 400\]"
        ):
            again(schedule=(100, 200, 300, 800), spend=SHARES, alpha=0.1)
        with pytest.raises(ValueError, match="`schedule` must ascend, one look for each of 4"):
            again(schedule=(100, 200, 400), spend=SHARES, alpha=0.1)
        with pytest.raises(ValueError, match="`schedule` must ascend"):
            again(schedule=(100, 200, 400, 400), spend=SHARES, alpha=0.1)
        again = partial(certify_from_looks, schedule=(10, 20), spend=(0.03, 0.07), radius=RADIUS, n0=9, alpha=0.1)
        with pytest.raises(ValueError, match="counts fell"):
            again([[9, 1], [8, 12]], 0)
        with pytest.raises(ValueError, match="`selected` must be a class below 2, got 2"):
            again([[9, 1]], 2)
        with pytest.raises(ValueError, match="`looks` must add up"):
            again([], 0)
