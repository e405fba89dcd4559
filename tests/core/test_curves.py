"""Curves against hand counts, the authors' published logs, and exact enumeration of Theorem 6."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.curves import DEDUCTIONS, average_certified_radius, certified_accuracy, certified_accuracy_lower

PREDICTION = [0, 1, 2, ABSTAIN, 1, ABSTAIN]
RADIUS = [0.5, 0.25, 1.0, 0.0, 0.75, 0.0]
LABEL = [0, 1, 0, 1, 1, ABSTAIN]  # a label of -1 must not make an abstention right


def test_certified_accuracy_by_hand():
    at = [[0.0, 0.25], [0.2500001, 0.5], [0.75, 0.8]]
    expected = np.array([[3, 3], [2, 2], [1, 0]]) / 6
    np.testing.assert_array_equal(certified_accuracy(PREDICTION, RADIUS, LABEL, at), expected)
    single = certified_accuracy(PREDICTION, RADIUS, LABEL, 0.5)
    assert isinstance(single, np.ndarray)
    assert (single.shape, single.dtype) == ((), np.float64)


def test_certified_accuracy_against_counting():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(-1, 4, 500), rng.integers(0, 4, 500)
    radius = np.where(prediction == ABSTAIN, 0, rng.choice(np.linspace(0, 2, 41), 500))
    at = np.linspace(0, 2.5, 101)
    counted = [
        sum(p == c and p != ABSTAIN and r >= t for p, r, c in zip(prediction, radius, label, strict=True)) / 500
        for t in at
    ]
    np.testing.assert_array_equal(certified_accuracy(prediction, radius, label, at), counted)
    # the average certified radius is the area under the curve
    steps = np.linspace(0, 2.5, 100_001)
    area = certified_accuracy(prediction, radius, label, steps).mean() * 2.5
    assert average_certified_radius(prediction, radius, label) == pytest.approx(area, abs=1e-4)


def test_average_certified_radius_by_hand():
    assert average_certified_radius(PREDICTION, RADIUS, LABEL) == pytest.approx(1.5 / 6, rel=1e-15)


@pytest.mark.parametrize(
    ("log", "at", "published"),
    [
        ("cifar10/resnet110/noise_0.25/test/sigma_0.25", (0, 0.25, 0.5, 0.75), (0.75, 0.60, 0.43, 0.27)),
        ("imagenet/resnet50/noise_0.50/test/sigma_0.50", (0, 0.5, 1, 1.5), (0.57, 0.46, 0.37, 0.29)),
        ("imagenet/resnet50/noise_1.00/test/sigma_1.00", (0, 1, 2, 3), (0.44, 0.33, 0.19, 0.12)),
    ],
)
def test_published_logs(reference, log, at, published):
    """500 images each: Table 2 of Cohen et al. 2019, and for CIFAR-10 the table in the authors' repository."""
    rows = np.loadtxt(reference / "certlogs/cohen2019/certify" / log, skiprows=1, usecols=(1, 2, 3))
    label, prediction, radius = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]
    found = certified_accuracy(prediction, radius, label, at)
    np.testing.assert_allclose(found, published, rtol=0, atol=0.0051)


@pytest.mark.parametrize("function", [average_certified_radius, lambda *a: certified_accuracy(*a, at=0.0)])
def test_refuses_what_is_no_list_of_certificates(function):
    with pytest.raises(ValueError, match=r"must have one shape \(m,\) with m > 0, got \(2,\), \(2,\) and \(3,\)"):
        function([0, 1], [0.1, 0.2], [0, 1, 2])
    with pytest.raises(ValueError, match="with m > 0"):
        function([], [], [])
    with pytest.raises(ValueError, match="`radius` must be at least 0, got nan"):
        function([0, 1], [0.1, math.nan], [0, 1])
    with pytest.raises(ValueError, match=r"`radius` must be at least 0, got -0.1"):
        function([0, 1], [0.1, -0.1], [0, 1])


def test_refuses_nan_radii_to_look_at():
    with pytest.raises(ValueError, match="`at` must not be NaN"):
        certified_accuracy(PREDICTION, RADIUS, LABEL, [0.1, math.nan])


@pytest.mark.parametrize(
    ("form", "m", "deduction"),
    [("bernstein", 10_000, 0.00240), ("exact", 10_000, 0.00210), ("bernstein", 500, 0.0109), ("exact", 500, 0.0080)],
)
def test_theorem_6_at_known_points(form, m, deduction):
    lower = certified_accuracy_lower(0.7, m, 0.001, rho=0.001, form=form)
    assert 0.7 - lower == pytest.approx(deduction, abs=1e-5 if m == 10_000 else 1e-4)


@pytest.mark.parametrize("form", DEDUCTIONS)
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("rho", [0.001, 0.05])
def test_theorem_6_fails_no_more_often_than_it_says(form, alpha, rho):
    """If certified accuracy is c, at worst each other example is certified falsely with probability alpha."""
    for m in (1, 20, 500, 10_000):
        for true in (0, m // 2, m - 1):
            false = np.arange(m - true + 1)
            lower = certified_accuracy_lower((true + false) / m, m, alpha, rho=rho, form=form)
            fails = lower > true / m
            assert binom.pmf(false, m - true, alpha) @ fails <= rho * (1 + 1e-9)


def test_theorem_6_needs_the_two_under_its_root():
    # negative control: the failure probability of the form that is often printed, which the test above would catch
    m = 10_000
    deduction = 0.001 + math.sqrt(0.001 * 0.999 * math.log(1000) / m) + math.log(1000) / (3 * m)
    assert binom.sf(math.floor(m * deduction), m, 0.001) == pytest.approx(1.58e-3, rel=0.01)


def test_theorem_6_exact_is_the_tighter_form_and_neither_is_negative():
    accuracy = np.linspace(0, 1, 11)
    exact = certified_accuracy_lower(accuracy, 500, 0.001, rho=0.001)
    bernstein = certified_accuracy_lower(accuracy, 500, 0.001, rho=0.001, form="bernstein")
    assert exact.shape == accuracy.shape
    assert exact[0] == bernstein[0] == 0
    assert np.all(exact[1:] > bernstein[1:])
    single = certified_accuracy_lower(0.5, 500, 0.001, rho=0.001)
    assert isinstance(single, np.ndarray)
    assert single == exact[5]


def test_theorem_6_refuses():
    with pytest.raises(ValueError, match=r"`accuracy` must be in \[0, 1\], got 65"):
        certified_accuracy_lower(65, 500, 0.001, rho=0.001)
    with pytest.raises(ValueError, match=r"`m` must be at least 1, got 0"):
        certified_accuracy_lower(0.5, 0, 0.001, rho=0.001)
    with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), got 0"):
        certified_accuracy_lower(0.5, 500, 0, rho=0.001)
    with pytest.raises(ValueError, match=r"`rho` must be in \(0, 1\), got 1"):
        certified_accuracy_lower(0.5, 500, 0.001, rho=1)
    with pytest.raises(ValueError, match="`form` must be one of 'exact', 'bernstein', got 'hoeffding'"):
        certified_accuracy_lower(0.5, 500, 0.001, rho=0.001, form="hoeffding")
    with pytest.raises(ValueError, match=r"`alpha` must be at most 1/2 in the form 'bernstein', got 0.6"):
        certified_accuracy_lower(0.5, 500, 0.6, rho=0.001, form="bernstein")
    assert certified_accuracy_lower(1.0, 500, 0.6, rho=0.001) > 0
