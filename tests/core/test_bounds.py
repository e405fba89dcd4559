"""Confidence bounds against 50-digit arithmetic, statsmodels, and exact enumeration of their errors."""

import itertools

import mpmath as mp
import numpy as np
import pytest
from fifty_digits import exact_tail
from scipy.stats import binom, multinomial
from statsmodels.stats.proportion import proportion_confint

from art_rs_plugin.core.bounds import (
    BOUNDS,
    clopper_pearson_lower,
    clopper_pearson_upper,
    votes_to_certify,
    votes_to_predict,
)

ALPHAS = [1e-9, 0.001, 0.01, 0.05, 0.5, 0.9, 0.999]


def some_counts(n):
    return sorted({0, 1, 2, 3, 7, n // 10, n // 3, n // 2, 9 * n // 10, n - 2, n - 1, n} & set(range(n + 1)))


def check_lower(k: int, n: int, alpha: float, uniform: float = 1.0) -> None:
    """The lower bound does not err with a probability above alpha; one moved inward by 4 ulp would."""
    with mp.workdps(50):
        lower = float(clopper_pearson_lower(k, n, alpha, uniform))
        assert (lower == 1) == (k == n and uniform <= alpha)
        if 0 < lower < 1:
            assert exact_tail(k, n, mp.mpf(lower), uniform) <= alpha, (k, n, alpha, uniform)
        inward = mp.mpf(lower) + 4 * np.spacing(lower)
        if inward < 1:
            assert exact_tail(k, n, inward, uniform) > alpha, (k, n, alpha, uniform)


def check_against_exact_tails(k: int, n: int, alpha: float) -> None:
    """Neither bound errs with a probability above alpha; one moved inward by 4 ulp would."""
    check_lower(k, n, alpha)
    with mp.workdps(50):
        upper = float(clopper_pearson_upper(k, n, alpha))
        if k < n:
            assert exact_tail(n - k, n, 1 - mp.mpf(upper)) <= alpha, (k, n, alpha)
            assert exact_tail(n - k, n, 1 - mp.mpf(upper) + 4 * np.spacing(upper)) > alpha, (k, n, alpha)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1_000, 10_000, 100_000])
def test_within_four_ulp_and_never_on_the_wrong_side(n):
    for k, alpha in itertools.product(some_counts(n), ALPHAS):
        check_against_exact_tails(k, n, alpha)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("uniform", [0.0, 2**-53, 1e-4, 0.3, 1 - 2**-53])
def test_randomized_within_four_ulp_and_never_above(n, uniform):
    for k, alpha in itertools.product(some_counts(n), ALPHAS):
        check_lower(k, n, alpha, uniform)


@pytest.mark.parametrize(
    ("k", "n"), [(1_000_000, 10**6), (999_000, 10**6), (3, 10**6), (10**9 - 40, 10**9), (1, 10**9)]
)
def test_many_votes(k, n):
    check_against_exact_tails(k, n, 0.001)
    check_lower(k, n, 0.001, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("k", [500_000_000, 900_000_000, 999_000_000])
def test_a_billion_votes(k):
    check_against_exact_tails(k, 10**9, 0.001)


def test_agrees_with_statsmodels():
    for n, alpha in itertools.product([1, 5, 100, 100_000], [0.001, 0.05, 0.3]):
        k = np.array(some_counts(n))
        low, high = proportion_confint(k, n, alpha=2 * alpha, method="beta")
        np.testing.assert_allclose(clopper_pearson_lower(k, n, alpha), low, rtol=1e-11)
        np.testing.assert_allclose(clopper_pearson_upper(k, n, alpha), high, rtol=1e-11)


def test_closed_forms():
    for n, alpha in itertools.product([1, 10, 1_000, 100_000], ALPHAS):
        assert clopper_pearson_lower(0, n, alpha) == 0.0
        assert clopper_pearson_upper(n, n, alpha) == 1.0
        with mp.workdps(50):
            unanimous = mp.mpf(alpha) ** (mp.mpf(1) / n)
            lower, upper = clopper_pearson_lower(n, n, alpha), clopper_pearson_upper(0, n, alpha)
            assert 0 <= unanimous - mp.mpf(float(lower)) <= 2 * np.spacing(lower)
            assert 0 <= mp.mpf(float(upper)) - (1 - unanimous) <= 2 * np.spacing(upper)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1 - 2**-53])
def test_sound_at_the_ends_of_alpha(alpha):
    for n in (1, 2, 5, 100):
        for k in some_counts(n):
            lower, upper = float(clopper_pearson_lower(k, n, alpha)), float(clopper_pearson_upper(k, n, alpha))
            randomized = {u: float(clopper_pearson_lower(k, n, alpha, u)) for u in (0.0, 5e-324, 0.3)}
            with mp.workdps(400):
                assert all(low in (0, 1) or exact_tail(k, n, mp.mpf(low), u) <= alpha for u, low in randomized.items())
                assert lower == 0 or exact_tail(k, n, mp.mpf(lower)) <= alpha
                assert upper == 1 or exact_tail(n - k, n, 1 - mp.mpf(upper)) <= alpha


def test_shapes():
    table = clopper_pearson_lower(np.array([[1], [2]]), np.array([5, 6, 7]), 0.05)
    assert (table.shape, table.dtype) == ((2, 3), np.float64)
    assert table[1, 2] == clopper_pearson_lower(2, 7, 0.05)
    single = clopper_pearson_upper(2, 7, 0.05)
    assert isinstance(single, np.ndarray)
    assert single.shape == ()


@pytest.mark.parametrize("bound", [clopper_pearson_lower, clopper_pearson_upper])
def test_refuses(bound):
    for k in (-1, 11):
        with pytest.raises(ValueError, match=rf"`k` must be in \[0, n\], got {k} of n = 10"):
            bound(k, 10, 0.05)
    with pytest.raises(TypeError, match="`k` must be whole numbers, got dtype float64"):
        bound(3.0, 10, 0.05)
    with pytest.raises(TypeError, match="`n` must be whole numbers, got dtype float64"):
        bound(3, 10.5, 0.05)
    for alpha in (0.0, 1.0, np.nan, -0.1):
        with pytest.raises(ValueError, match=rf"`alpha` must be in \(0, 1\), got {alpha}"):
            bound(3, 10, alpha)


class Outcomes:
    """Every outcome of n votes among some classes, and what a bound makes of each: errors by enumeration."""

    def __init__(self, bound, n: int, classes: int, alpha: float, uniforms=(1.0,)):
        heads = itertools.product(range(n + 1), repeat=classes - 1)
        self.counts = np.array([(*head, n - sum(head)) for head in heads if sum(head) <= n])
        self.n = n
        limits = [bound(c, a, alpha, u) for u in uniforms for c in self.counts for a in range(classes)]
        self.limits = np.array(limits).reshape(len(uniforms), len(self.counts), classes, 2)

    def error(self, p, reuse: bool = False) -> float:
        """P(p_lower > p_A or p_upper < p_B), for the worst A, or (unsound) for the A that these votes choose.

        Each U is equally likely.
        """
        p = np.asarray(p)
        runner_up = np.array([np.delete(p, selected).max() for selected in range(p.size)])
        wrong = ((self.limits[..., 0] > p) | (self.limits[..., 1] < runner_up)).mean(axis=0)
        weight = multinomial.pmf(self.counts, self.n, p)
        if reuse:
            return float(weight @ wrong[np.arange(len(wrong)), self.counts.argmax(axis=1)])
        return float((weight @ wrong).max())


THREE_CLASSES = [
    (a, b, 1 - a - b) for a, b in itertools.product(np.linspace(0.02, 0.96, 12), repeat=2) if a + b < 0.999
]


@pytest.mark.parametrize("name", BOUNDS)
class TestEveryBound:
    """Errors of at most alpha, for each bound in the table; 1e-9 is for the pmf's rounding."""

    @pytest.mark.parametrize(("n", "alpha"), [(1, 0.3), (7, 0.1), (30, 0.05), (100, 0.01), (1_000, 0.001)])
    def test_two_classes(self, name, n, alpha, uniforms):
        outcomes = Outcomes(BOUNDS[name], n, 2, alpha, uniforms(name))
        attained = outcomes.limits[..., 0, 0]
        # a bound errs most often for a p just below one of its values
        for p in {*np.linspace(0.001, 0.999, 60), *np.nextafter(attained[attained > 0], 0)}:
            assert outcomes.error([p, 1 - p]) <= alpha * (1 + 1e-9)

    @pytest.mark.parametrize(("n", "alpha"), [(5, 0.2), (12, 0.05), (25, 0.1)])
    def test_three_classes(self, name, n, alpha, uniforms):
        outcomes = Outcomes(BOUNDS[name], n, 3, alpha, uniforms(name))
        assert max(outcomes.error(p) for p in THREE_CLASSES) <= alpha * (1 + 1e-9)

    @pytest.mark.parametrize(("n", "alpha"), [(100, 0.01), (1_000, 0.001)])
    def test_reused_votes_are_caught(self, name, n, alpha, uniforms):
        # negative control: the same enumeration finds the error of selecting by the votes that are bounded
        outcomes = Outcomes(BOUNDS[name], n, 2, alpha, uniforms(name))
        assert max(outcomes.error([p, 1 - p], reuse=True) for p in np.linspace(0.49, 0.51, 21)) > 1.3 * alpha

    def test_runner_up_is_bounded_from_above_by_what_is_left(self, name, uniforms):
        for counts in ([60, 30, 10], [0, 0, 5], [90_000, 9_000, 1_000]):
            for selected, uniform in itertools.product(range(3), uniforms(name)):
                p_lower, p_upper = BOUNDS[name](np.array(counts), selected, 0.001, uniform)
                assert isinstance(p_lower, float)
                assert isinstance(p_upper, float)
                assert p_upper <= np.nextafter(1 - p_lower, 1)

    @pytest.mark.parametrize("alpha", [0.5, 0.25, 0.1, 0.01, 0.001, 1e-6, 1e-30])
    def test_votes_to_certify(self, name, alpha):
        n = votes_to_certify(alpha, name)
        enough, too_few = (BOUNDS[name](np.array([m, 0, 0]), 0, alpha) for m in (n, n - 1))
        assert enough[0] > enough[1]
        assert too_few[0] <= too_few[1]


def test_clopper_pearson_is_tight():
    outcomes = Outcomes(BOUNDS["clopper-pearson"], 100, 2, 0.01)
    p = np.nextafter(float(clopper_pearson_lower(80, 100, 0.01)), 0)
    assert binom.sf(79, 100, p) == pytest.approx(0.01, rel=1e-9)
    assert outcomes.error([p, 1 - p]) == pytest.approx(0.01, rel=1e-9)


def test_runner_up_certifies_without_a_majority():
    counts = np.array([45_000, 30_000, 25_000])
    p_lower, p_upper = BOUNDS["runner-up"](counts, 0, 0.001)
    assert p_upper < p_lower < 0.5
    assert p_lower == clopper_pearson_lower(45_000, 100_000, np.nextafter(0.0009, 0))
    assert p_upper == clopper_pearson_upper(30_000, 100_000, 0.0001)


def test_votes_needed():
    assert votes_to_certify(0.001) == 10
    assert votes_to_certify(0.001, "runner-up") == 11
    assert votes_to_certify(0.5) == 2  # at p_lower = 1/2 nothing is certified
    assert votes_to_predict(0.001) == 11
    assert votes_to_predict(0.5) == 2
    with pytest.raises(ValueError, match=r"`bound` must be one of 'clopper-pearson', .*, got 'wilson'"):
        votes_to_certify(0.001, "wilson")
