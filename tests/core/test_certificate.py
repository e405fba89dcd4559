"""CERTIFY and PREDICT against exact enumeration and the known margin of a half-space."""

import dataclasses
import itertools
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom, multinomial, norm
from statsmodels.stats.proportion import proportion_confint

from art_rs_plugin.core.bounds import BOUNDS
from art_rs_plugin.core.certificate import (
    ABSTAIN,
    Certificate,
    certify,
    certify_from_counts,
    check_prediction_votes,
    check_votes,
    predict,
    predict_from_counts,
)
from art_rs_plugin.core.radii import cohen

SIGMA = 0.5
RADIUS = partial(cohen, sigma=SIGMA)


def outcomes(n: int, classes: int) -> np.ndarray:
    """Every way to spread n votes over the classes."""
    heads = itertools.product(range(n + 1), repeat=classes - 1)
    return np.array([(*head, n - sum(head)) for head in heads if sum(head) <= n])


class Recorder:
    """Deals prepared counts, and remembers what was asked."""

    def __init__(self, **counts):
        self.counts = counts
        self.calls = []

    def __call__(self, purpose, votes):
        self.calls.append((purpose, votes))
        return np.array(self.counts[purpose])


class TestCertify:
    def test_votes_that_select_are_not_those_that_bound(self):
        draw = Recorder(selection=[1, 7, 2], estimation=[10, 950, 40])
        result = certify(draw, radius=RADIUS, n0=10, n=1_000, alpha=0.001, index=7, seed=3)
        assert draw.calls == [("selection", 10), ("estimation", 1_000)]
        assert result.prediction == result.selected == 1
        assert result.counts == (10, 950, 40)
        assert (result.n0, result.n, result.alpha, result.index, result.seed) == (10, 1_000, 0.001, 7, 3)
        assert (result.norm, result.certifies) == (2, "g")
        low, _ = proportion_confint(950, 1_000, alpha=0.002, method="beta")
        assert result.p_lower == pytest.approx(low, rel=1e-12)
        assert result.radius == pytest.approx(SIGMA * norm.ppf(low), rel=1e-12)

    def test_selection_decides_even_against_the_estimation(self):
        draw = Recorder(selection=[6, 4], estimation=[0, 1_000])
        result = certify(draw, radius=RADIUS, n0=10, n=1_000, alpha=0.001)
        assert (result.prediction, result.radius, result.selected) == (ABSTAIN, 0.0, 0)

    def test_an_abstention_keeps_what_it_was_computed_from(self):
        result = certify_from_counts([52, 48], 0, radius=RADIUS, n0=10, alpha=0.001, seed=1)
        assert (result.prediction, result.radius) == (ABSTAIN, 0.0)
        assert (result.selected, result.counts) == (0, (52, 48))
        assert 0 < result.p_lower < 0.5 < result.p_upper

    def test_bounding_anew(self):
        first = certify_from_counts(np.array([90, 7, 3]), 0, radius=RADIUS, n0=10, alpha=0.001)
        again = partial(certify_from_counts, first.counts, first.selected, radius=RADIUS, n0=first.n0)
        assert again(alpha=0.001) == first
        assert again(alpha=0.05).radius > first.radius
        assert again(alpha=0.05, bound="runner-up").p_upper < again(alpha=0.05).p_upper

    def test_runner_up_certifies_without_a_majority(self):
        counts = [45_000, 30_000, 25_000]
        assert certify_from_counts(counts, 0, radius=RADIUS, n0=100, alpha=0.001).prediction == ABSTAIN
        result = certify_from_counts(counts, 0, radius=RADIUS, n0=100, alpha=0.001, bound="runner-up")
        true = SIGMA / 2 * (norm.ppf(0.45) - norm.ppf(0.3))
        assert result.prediction == 0
        assert 0.9 * true < result.radius < true

    def test_records_are_plain_and_frozen(self):
        result = certify_from_counts(np.array([90, 10]), np.int64(0), radius=RADIUS, n0=10, alpha=0.001)
        assert {type(value) for value in dataclasses.asdict(result).values()} <= {int, float, str, tuple, type(None)}
        assert all(type(count) is int for count in result.counts)
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.radius = 9.0
        deterministic = Certificate(prediction=3, radius=0.2, norm=math.inf, certifies="f", alpha=0.0)
        assert deterministic.index == 0

    @pytest.mark.parametrize("wrong", [[5, 4], [11, -1]])
    def test_a_draw_that_breaks_its_promise_is_caught(self, wrong):
        with pytest.raises((AssertionError, ValueError)):
            certify(Recorder(selection=[10, 0], estimation=wrong), radius=RADIUS, n0=10, n=10, alpha=0.05)

    def test_refuses(self):
        draw = Recorder(selection=[10, 0], estimation=[9, 0])
        refused = partial(certify, draw, radius=RADIUS)
        with pytest.raises(ValueError, match=r"`n` must be at least 10 to ever certify at alpha = 0.001, got 9"):
            refused(n0=10, n=9, alpha=0.001)
        with pytest.raises(ValueError, match=r"`n` must be at least 11 to ever certify at alpha = 0.001, got 10"):
            refused(n0=10, n=10, alpha=0.001, bound="runner-up")
        with pytest.raises(ValueError, match=r"`n0` must be at least 1, got 0"):
            refused(n0=0, n=100, alpha=0.001)
        with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), got 7.0"):
            refused(n0=10, n=100, alpha=7.0)
        with pytest.raises(ValueError, match="`bound` must be one of"):
            refused(n0=10, n=100, alpha=0.001, bound="hoeffding")
        with pytest.raises(TypeError, match=r"`n` must be a whole number, got 1000.0"):
            check_votes(10, 1e3, 0.001)
        assert draw.calls == []

    def test_refuses_counts(self):
        refused = partial(certify_from_counts, radius=RADIUS, n0=10, alpha=0.001)
        with pytest.raises(ValueError, match=r"`selected` must be a class below 2, got 2"):
            refused([5, 5], 2)
        with pytest.raises(ValueError, match=r"`selected` must be at least 0, got -1"):
            refused([5, 5], ABSTAIN)
        with pytest.raises(ValueError, match="at least 2 classes, got shape"):
            refused([5], 0)
        with pytest.raises(ValueError, match="at least 2 classes, got shape"):
            refused([[5, 5]], 0)
        with pytest.raises(ValueError, match=r"`counts` must be at least 0 and not all 0, got \[0, 0\]"):
            refused([0, 0], 0)
        with pytest.raises(TypeError, match="`counts` must be whole numbers, got dtype float64"):
            refused([5.0, 5.0], 0)


def false_certificates(bound: str, p, n0: int, n: int, alpha: float, uniforms) -> float:
    """P(CERTIFY returns a radius beyond the true one), over both stages; a class that g does not return has none.

    Each U is equally likely.
    """
    p = np.asarray(p)
    chosen = outcomes(n0, p.size)
    weight_chosen = multinomial.pmf(chosen, n0, p)
    counts = outcomes(n, p.size)
    weight = multinomial.pmf(counts, n, p)
    total = 0.0
    for selected, uniform in itertools.product(range(p.size), uniforms):
        true = SIGMA / 2 * (norm.ppf(p[selected]) - norm.ppf(np.delete(p, selected).max()))
        again = partial(
            certify_from_counts, selected=selected, radius=RADIUS, n0=n0, alpha=alpha, bound=bound, uniform=uniform
        )
        results = [again(count) for count in counts]
        wrong = [r.prediction != ABSTAIN and r.radius > max(true, 0) + 1e-12 for r in results]
        total += weight_chosen[chosen.argmax(axis=1) == selected].sum() * (weight @ wrong)
    return total / len(uniforms)


@pytest.mark.parametrize("bound", BOUNDS)
class TestFalseCertificates:
    @pytest.mark.parametrize("p", [0.5, 0.5001, 0.6, 0.8, 0.95, 0.999])
    def test_two_classes(self, bound, p, uniforms):
        assert false_certificates(bound, [p, 1 - p], 5, 100, 0.05, uniforms(bound)) <= 0.05 * (1 + 1e-9)

    @pytest.mark.parametrize("p", [(0.4, 0.35, 0.25), (0.34, 0.33, 0.33), (0.6, 0.39, 0.01), (0.9, 0.05, 0.05)])
    def test_three_classes(self, bound, p, uniforms):
        assert false_certificates(bound, p, 3, 20, 0.1, uniforms(bound)) <= 0.1 * (1 + 1e-9)


def test_half_space():
    """Cohen et al. 2019, Appendix B: at distance r inside a half-space noise stays inside with p = Phi(r / sigma)."""
    rng = np.random.default_rng(0)
    n0, n, alpha, each = 20, 500, 0.01, 4_000
    margins = SIGMA * np.array([0.05, 0.25, 0.6, 1.2, 2.0])
    beyond, mean, expected = 0, 0.0, 0.0
    for margin in margins:
        p = norm.cdf(margin / SIGMA)

        def draw(purpose, votes, p=p):
            hits = rng.binomial(votes, p)
            return np.array([hits, votes - hits])

        found = [certify(draw, radius=RADIUS, n0=n0, n=n, alpha=alpha) for _ in range(each)]
        beyond += sum(r.prediction == 1 or r.radius > margin for r in found)
        mean += sum(r.radius for r in found) / each
        # independently: statsmodels' bound and SciPy's quantile, weighted by the binomial distribution
        hits = np.arange(n + 1)
        low, _ = proportion_confint(hits, n, alpha=2 * alpha, method="beta")
        radius = SIGMA * np.maximum(norm.ppf(np.maximum(low, 0.5)), 0)
        right = binom.sf(math.ceil(n0 / 2) - 1, n0, p)  # a tie selects the first class
        expected += right * (binom.pmf(hits, n, p) @ radius) + (1 - right) * (binom.pmf(hits, n, 1 - p) @ radius)
    assert beyond <= binom.isf(1e-6, each * margins.size, alpha)
    assert mean == pytest.approx(expected, rel=0.01)


class TestPredict:
    def test_asks_once_and_returns_the_votes(self):
        draw = Recorder(prediction=[3, 90, 7])
        prediction, counts = predict(draw, n=100, alpha=0.001)
        assert draw.calls == [("prediction", 100)]
        assert prediction == 1
        np.testing.assert_array_equal(counts, [3, 90, 7])

    def test_votes_it_takes(self):
        assert predict_from_counts([0, 11], 0.001) == 1
        assert predict_from_counts([0, 10], 0.001) == ABSTAIN
        with pytest.raises(ValueError, match=r"`n` must be at least 11 to ever predict at alpha = 0.001, got 10"):
            predict(Recorder(), n=10, alpha=0.001)
        check_prediction_votes(11, 0.001)

    def test_ties_abstain(self):
        assert predict_from_counts([50, 50], 0.999) == ABSTAIN
        assert predict_from_counts([40, 0, 40], 0.999) == ABSTAIN

    def test_decision_by_exact_fractions(self):
        for n, alpha in itertools.product([11, 40, 100], [0.001, 0.01, 0.05]):
            for first in range(n // 2 + 1, n + 1):
                p_value = 2 * Fraction(sum(math.comb(n, j) for j in range(first, n + 1)), 2**n)
                decided = predict_from_counts([n - first, first], alpha)
                assert decided == (1 if p_value <= alpha else ABSTAIN)

    @pytest.mark.parametrize(("n", "alpha"), [(11, 0.001), (50, 0.01), (60, 0.1)])
    def test_wrong_class_among_two(self, n, alpha):
        counts = outcomes(n, 2)
        predicted = np.array([predict_from_counts(count, alpha) for count in counts])
        for p in [0.5, 0.501, 0.51, 0.6, 0.9]:
            assert binom.pmf(counts[:, 0], n, p) @ (predicted == 1) <= alpha * (1 + 1e-9)
        # the test is two-sided: of two equal classes either is returned, together at most alpha
        assert binom.pmf(counts[:, 0], n, 0.5) @ (predicted != ABSTAIN) <= alpha * (1 + 1e-9)

    @pytest.mark.parametrize("p", [(0.34, 0.33, 0.33), (0.4, 0.35, 0.25), (0.5, 0.49, 0.01), (0.8, 0.1, 0.1)])
    def test_wrong_class_among_three(self, p):
        counts = outcomes(30, 3)
        predicted = np.array([predict_from_counts(count, 0.05) for count in counts])
        wrong = (predicted != ABSTAIN) & (predicted != 0)
        assert multinomial.pmf(counts, 30, p) @ wrong <= 0.05
        assert (predicted == 0).any()

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), got 1"):
            predict_from_counts([5, 5], 1)
        with pytest.raises(TypeError, match="`counts` must be whole numbers"):
            predict_from_counts([0.5, 0.5], 0.001)
