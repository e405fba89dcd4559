"""Bounds on the population against exact enumeration and the exact law of the one-sided Kolmogorov-Smirnov distance."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta, binom, ksone

from art_rs_plugin.core.population import POPULATION_FORMS, familywise_alpha, population_accuracy_lower


@pytest.mark.parametrize("form", POPULATION_FORMS)
@pytest.mark.parametrize("m", [1, 30, 500])
@pytest.mark.parametrize(("alpha", "rho"), [(0.001, 0.001), (0.01, 0.05), (0.2, 0.5)])
def test_it_fails_no_more_often_than_it_says(form, m, alpha, rho):
    """At worst an example that is not robust is certified with probability alpha: p + alpha (1 - p) of them in all."""
    counts = np.arange(m + 1)
    lower = population_accuracy_lower(counts, m, alpha, rho=rho, form=form)
    for true in np.linspace(0, 0.999, 150):
        law = binom.pmf(counts, m, true + alpha * (1 - true))
        assert law[lower > true].sum() <= rho * (1 + 1e-9)


def test_without_alpha_it_would_fail_more_often():
    """Negative control: what the test above catches."""
    m, alpha, rho, true = 500, 0.2, 0.05, 0.3
    counts = np.arange(m + 1)
    undiminished = population_accuracy_lower(counts, m, alpha, rho=rho) + alpha
    assert binom.pmf(counts, m, true + alpha * (1 - true))[undiminished > true].sum() > 10 * rho


@pytest.mark.parametrize("m", [5, 50, 500])
@pytest.mark.parametrize("rho", [0.5, 0.05, 0.001])
def test_the_band_holds_for_all_radii_at_once(m, rho):
    """The largest excess of a survival curve over its expectation has the law of the one-sided KS distance, at most."""
    alpha = 1e-12
    width = 1 - float(population_accuracy_lower(m, m, alpha, rho=rho, form="dkw"))
    assert width == pytest.approx(math.sqrt(math.log(1 / rho) / (2 * m)), abs=1e-9)
    assert ksone.sf(width, m) <= rho
    assert ksone.sf(0.8 * width, m) > rho or rho == 0.5


def test_known_points():
    lower = population_accuracy_lower([285, 0], 500, 0.001, rho=0.001)
    assert lower[0] == pytest.approx(beta.ppf(0.001, 285, 216) - 0.001, abs=1e-12)
    assert lower[1] == 0
    band = population_accuracy_lower(285, 500, 0.001, rho=0.001, form="dkw")
    assert band.shape == ()
    assert float(band) == pytest.approx(0.57 - math.sqrt(math.log(1000) / 1000) - 0.001, abs=1e-12)


def test_every_certificate_at_once():
    # 500 certificates of level .001 that err independently: one of them with probability .39
    assert binom.sf(0, 500, 0.001) == pytest.approx(0.39, abs=0.005)
    for alpha, m in ((0.001, 500), (0.001, 427), (0.01, 3), (0.3, 1)):
        level = familywise_alpha(alpha, m)
        assert Fraction(level) * m <= Fraction(alpha)
        assert level == pytest.approx(alpha / m, rel=1e-15)
        assert binom.sf(0, m, level) <= alpha


def test_refusals():
    with pytest.raises(ValueError, match="`form` must be one of 'binomial', 'dkw', got 'wilson'"):
        population_accuracy_lower(1, 2, 0.1, rho=0.1, form="wilson")
    with pytest.raises(ValueError, match=r"`rho` must be at most 1/2 in the form 'dkw', got 0.6"):
        population_accuracy_lower(1, 2, 0.1, rho=0.6, form="dkw")
    with pytest.raises(TypeError, match="`certified` must be whole numbers, got dtype float64"):
        population_accuracy_lower(0.5, 2, 0.1, rho=0.1)
    with pytest.raises(ValueError, match=r"`certified` must be in \[0, 2\], got 3 to 3"):
        population_accuracy_lower(3, 2, 0.1, rho=0.1)
    with pytest.raises(ValueError, match="`m` must be at least 1, got 0"):
        familywise_alpha(0.1, 0)
