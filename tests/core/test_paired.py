"""Paired comparisons against statsmodels and SciPy."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar as two_sided

from art_rs_plugin.core.paired import difference, difference_interval, mcnemar, mcnemar_two_sided


def outcomes(only, only_other, both=3, neither=2):
    first = [True] * (only + both) + [False] * (only_other + neither)
    second = [False] * only + [True] * (both + only_other) + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("only", "only_other"), [(0, 1), (1, 0), (5, 2), (2, 5), (14, 3), (40, 41)])
def test_mcnemar_is_half_of_the_two_sided_test(only, only_other):
    better, worse = outcomes(only, only_other)
    table = [[3, only], [only_other, 2]]
    assert 2 * min(mcnemar(better, worse), mcnemar(worse, better)) == pytest.approx(two_sided(table, exact=True).pvalue)


@pytest.mark.parametrize(("only", "only_other"), [(0, 0), (0, 1), (5, 2), (14, 3), (40, 41), (7, 7)])
def test_two_sided_mcnemar_is_that_of_statsmodels(only, only_other):
    expected = two_sided([[3, only], [only_other, 2]], exact=True).pvalue
    for first, second in (outcomes(only, only_other), outcomes(only_other, only)):
        assert mcnemar_two_sided(first, second) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_counts_the_ways():
    assert mcnemar(*outcomes(3, 1)) == (4 + 1) / 2**4
    assert mcnemar(*outcomes(1, 3)) == (16 - 1) / 2**4
    assert mcnemar(*outcomes(0, 0)) == 1.0


def test_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 30))
    mean, error = difference(first, second)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert mean / error == pytest.approx(ttest_rel(first, second).statistic)


def test_the_interval_is_the_normal_one_where_examples_are_many():
    rng = np.random.default_rng(1)
    first, second = rng.exponential(size=(2, 4_000))
    mean, error = difference(first, second)
    low, high = difference_interval(first, second, confidence=0.9, seed=3)
    # the bootstrap's own noise: a quantile of 9 999 means is off by about .03 of a standard error
    assert [low, high] == pytest.approx(
        [mean - norm.ppf(0.95) * error, mean + norm.ppf(0.95) * error], abs=0.15 * error
    )
    assert difference_interval(first, second, confidence=0.9, seed=3) == (low, high)
    assert difference_interval(first, second, confidence=0.9, seed=4) != (low, high)


def test_the_interval_resamples_pairs():
    """Large radii that go together, and a difference that is the same for most: all of it is in the pairs."""
    common = np.arange(50.0)
    low, high = difference_interval(common + np.r_[np.ones(49), 2.0], common)
    assert 1.0 <= low <= 1.02 <= high <= 1.2
    assert difference_interval(common + 0.5, common) == (0.5, 0.5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\), got 95"):
        difference_interval([1.0, 2.0], [0.0, 0.0], confidence=95)
    with pytest.raises(ValueError, match=r"the same shape \(m,\), got \(2,\) and \(3,\)"):
        mcnemar([True, False], [True, False, True])
    with pytest.raises(ValueError, match="`worse` must be of type bool, got int64"):
        mcnemar([True, False], np.array([1, 0], dtype=np.int64))
    with pytest.raises(ValueError, match="`number of examples` must be at least 2, got 1"):
        difference([1.0], [2.0])
    with pytest.raises(ValueError, match="must be finite"):
        difference([1.0, np.nan], [2.0, 1.0])
