"""Radii against published values, 50-digit arithmetic, SciPy's optimiser, and each other."""

import math

import mpmath as mp
import numpy as np
import pytest
from fifty_digits import upper_quantile
from scipy.optimize import minimize_scalar

from art_rs_plugin.core.radii import RADII, cohen, lecuyer, lecuyer_at, li, li_at, near_gaussian

# Cohen, Lecuyer and Li at sigma = 1, to 6 digits
REFERENCE = {
    (0.6, 0.4): (0.253347, 0.059224, 0.202216),
    (0.8, 0.1): (1.061586, 0.361515, 0.912459),
    (0.9, 0.1): (1.281552, 0.390267, 1.031930),
    (0.99, 0.01): (2.326348, 0.554867, 1.908009),
    (0.999, 0.001): (3.090232, 0.568911, 2.575740),
}
PAIRS = [*REFERENCE, (0.45, 0.3), (0.51, 0.48), (0.7, 1e-9), (0.9, 0.0), (1 - 1e-7, 3e-8), (0.75, 0.25), (0.4, 0.1)]

# bounds as they come: from coarse to within an ulp of 0, 1/2 and 1
LOWER = [0.26, 0.45, 0.5, 0.5 + 2**-53, 0.5 + 1e-9, 0.51, 0.6, 0.9, 0.99993, 1 - 1e-7, 1 - 1e-12, 1 - 2**-53]
# SciPy's own quantile is more than 2 ulp too far out at these
LOWER += [1 - 5.245577400303514e-05, 1 - 7.817076732050068e-05, 1 - 0.03209192998198307]
UPPER = [5e-324, 1e-310, 1e-300, 1e-100, 1e-16, 1e-9, 6.9e-5, 0.01, 0.25, 0.4, 0.45, 0.49, 0.5 - 2**-54]


@pytest.fixture(autouse=True)
def fifty_digits():
    with mp.workdps(50):
        yield


@pytest.mark.parametrize("pair", REFERENCE)
def test_published_values(pair):
    radii = [float(radius(*pair, sigma=1.0)) for radius in RADII.values()]
    np.testing.assert_allclose(radii, REFERENCE[pair], rtol=0, atol=5.01e-7)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0, 3.7])
def test_cohen_is_never_above_the_true_radius(sigma):
    quantile = {p: -upper_quantile(p) for p in {*LOWER, *UPPER, *(1 - p for p in LOWER)}}
    for p_lower in LOWER:
        for p_upper in UPPER:
            p_b = min(p_upper, 1 - p_lower)
            if p_lower <= p_b:
                continue
            true = mp.mpf(sigma) / 2 * (quantile[p_lower] - quantile[p_b])
            radius = mp.mpf(float(cohen(p_lower, p_upper, sigma=sigma)))
            assert 0 <= radius <= true
            # below the normal range p_B is taken as 2.2e-308
            assert p_b < 2.3e-308 or true - radius <= 1e-9 * sigma


def test_cohen_on_random_probabilities():
    rng = np.random.default_rng(0)
    p_lower = 1 - np.exp(-rng.uniform(0.7, 30, 200))
    p_upper = (1 - p_lower) * rng.uniform(0, 1, 200)
    for p_a, p_b, radius in zip(p_lower, p_upper, cohen(p_lower, p_upper, sigma=0.5), strict=True):
        true = (upper_quantile(p_b) - upper_quantile(p_a)) / 4
        assert radius <= true <= radius + 5e-10


def test_cohen_at_the_ends():
    assert cohen(0.9, 0.0, sigma=1.0) == np.inf
    assert cohen(1.0, 0.3, sigma=1.0) == np.inf
    assert cohen(0.0, 0.0, sigma=1.0) == 0.0
    assert np.isfinite(cohen(0.99, 0.01, sigma=1.7e308))


class TestNearGaussian:
    """Noise that is within a total variation distance of the Gaussian, at x and at x'."""

    @pytest.mark.parametrize("distance", [5e-324, 2.8e-17, 2.7e-13, 1e-9, 1e-4])
    def test_is_never_above_the_true_radius_and_close(self, distance):
        e = mp.mpf(distance)
        for p_lower in LOWER:
            for p_upper in UPPER:
                radius = float(near_gaussian(p_lower, p_upper, sigma=1.0, distance=distance))
                p_a, p_b = p_lower - e, min(mp.mpf(p_upper), 1 - mp.mpf(p_lower)) + e
                if p_a <= p_b:
                    assert radius == 0.0
                    continue
                a, b = -upper_quantile(p_a), -upper_quantile(p_b)

                def gap(r, a=a, b=b):
                    """How far apart the least p_A and the most p_B are at a distance r."""
                    return mp.ncdf(a - r) - mp.ncdf(b + r) - 2 * e

                assert radius == 0.0 or gap(mp.mpf(radius)) > 0
                # what is lost: an ulp of p_A next to 1, and for a large e that q is not the best one
                ulp = 2 * mp.mpf(2) ** -53 / mp.npdf(a)
                assert p_upper < 2.3e-308 or gap(radius + 1e-9 + ulp + 10 * e) < 0, (p_lower, p_upper)

    def test_two_class_form(self):
        # sigma [Phi^-1(p_lower - e) - Phi^-1(1/2 + e)]
        for p_lower in (0.51, 0.9, 0.99993):
            for e in (1e-13, 1e-6, 1e-3):
                expected = 0.5 * (upper_quantile(mp.mpf(0.5) + e) - upper_quantile(mp.mpf(p_lower) - e))
                found = float(near_gaussian(p_lower, 1 - p_lower, sigma=0.5, distance=e))
                assert expected - 1e-9 <= found <= expected

    def test_costs_nothing_to_speak_of_and_never_pays(self):
        p, q = np.meshgrid(np.linspace(0.3, 0.99999, 200), np.linspace(0.0, 0.49, 50))
        plain, paid = cohen(p, q, sigma=0.25), near_gaussian(p, q, sigma=0.25, distance=2.7e-13)
        assert np.all(paid <= plain)
        # p_B = 0 alone is infinite there
        finite = np.isfinite(plain) & (paid > 0)
        assert np.all(paid[finite & (q > 1e-6)] >= plain[finite & (q > 1e-6)] - 1e-6)
        assert near_gaussian(1.0, 0.0, sigma=1.0, distance=1e-12) < 8
        assert np.array_equal(paid > 0, plain > 0)

    def test_falls_with_the_distance(self):
        radii = [float(near_gaussian(0.9, 0.05, sigma=1.0, distance=e)) for e in (0.0, 1e-9, 1e-3, 0.1, 0.4, 0.5, 1.0)]
        assert radii == sorted(radii, reverse=True)
        assert radii[0] == pytest.approx(float(cohen(0.9, 0.05, sigma=1.0)), abs=1e-9)
        assert radii[-2:] == [0.0, 0.0]

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"`distance` must be in \[0, 1\], got -0\.1"):
            near_gaussian(0.9, 0.1, sigma=1.0, distance=-0.1)
        with pytest.raises(ValueError, match=r"`p_lower` must be in \[0, 1\], got 2"):
            near_gaussian(2, 0.1, sigma=1.0, distance=0.1)


def exact_lecuyer(p_a, p_b, b):
    gap = p_a - mp.exp(2 * b) * p_b
    return b / mp.sqrt(2 * mp.log(mp.mpf("1.25") * (1 + mp.exp(b)) / gap)) if gap > 0 else mp.mpf(0)


def exact_li(p_a, p_b, order):
    power = 1 - order
    mean = mp.mpf(0) if p_b == 0 and power <= 0 else ((p_a**power + p_b**power) / 2) ** (1 / power)
    return mp.sqrt(-2 / order * mp.log(1 - p_a - p_b + 2 * mean))


def optimum(value, low, high):
    """Maximum by a coarse grid and SciPy's bounded Brent search about its best point."""
    grid = np.linspace(low, high, 200)
    best = int(np.argmax([float(value(mp.mpf(s))) for s in grid]))
    about = (grid[max(best - 1, 0)], grid[min(best + 1, 199)])
    found = minimize_scalar(lambda s: -float(value(mp.mpf(s))), bounds=about, method="bounded", options={"xatol": 1e-9})
    return max(-found.fun, float(value(mp.mpf(grid[best]))))


@pytest.mark.parametrize("pair", PAIRS)
def test_optimised_radii_agree_with_scipy(pair):
    p_a, p_b = map(mp.mpf, pair)
    highest = 1.0 if p_b == 0 else float(min(mp.mpf(1), mp.log(p_a / p_b) / 2))
    for radius, best in (
        (lecuyer, optimum(lambda b: exact_lecuyer(p_a, p_b, b), 1e-12, highest)),
        (li, optimum(lambda s: exact_li(p_a, p_b, mp.exp(s)), -9.0, 9.0)),
    ):
        found = float(radius(*pair, sigma=1.0))
        # SciPy's search stops short of the supremum, by far less than 1e-12
        assert best - 1e-10 <= found <= best * (1 + 1e-12)


def test_li_where_its_best_order_passes_one():
    # (1 + x)^(1/t) cancels near t = 0; the best order is 1.04 at p_B = 1e-3 and .89 at p_B = 1e-9
    for p_b in np.logspace(-9, -3, 15):
        best = optimum(lambda s, p_b=p_b: exact_li(mp.mpf(0.9), mp.mpf(p_b), mp.exp(s)), -0.5, 0.5)
        assert best - 1e-10 <= float(li(0.9, p_b, sigma=1.0)) <= best * (1 + 1e-12)


def test_order():
    # below p_A = .1 Lecuyer et al. can exceed Li et al.
    p_lower, p_upper = np.meshgrid(np.linspace(0.1, 0.9999, 60), np.linspace(0, 0.5, 60))
    best, middle, least = (radius(p_lower, p_upper, sigma=0.5) for radius in (cohen, li, lecuyer))
    assert np.all(best >= middle)
    assert np.all(middle >= least)
    np.testing.assert_array_equal(best > 0, p_lower > np.minimum(p_upper, 1 - p_lower))


@pytest.mark.parametrize("name", RADII)
class TestEveryRadius:
    def test_grows_with_the_margin_and_scales_with_sigma(self, name):
        p = np.linspace(0.51, 0.99999, 300)
        radius = RADII[name](p, 1 - p, sigma=1.0)
        assert np.all(np.diff(radius) > 0)
        assert np.all(np.diff(RADII[name](0.7, np.linspace(0, 0.3, 50), sigma=1.0)) < 0)
        np.testing.assert_allclose(RADII[name](p, 1 - p, sigma=0.25), radius / 4, rtol=1e-14)

    def test_nothing_is_certified_without_a_margin(self, name):
        p_lower, p_upper = np.array([0.0, 0.1, 0.3, 0.5, 0.25]), np.array([0.0, 0.1, 0.4, 1.0, 0.9])
        np.testing.assert_array_equal(RADII[name](p_lower, p_upper, sigma=1.0), np.zeros(5))

    def test_p_upper_is_at_most_what_p_lower_leaves(self, name):
        assert RADII[name](0.8, 0.9, sigma=1.0) == RADII[name](0.8, 1 - 0.8, sigma=1.0) > 0

    def test_without_a_second_class(self, name):
        assert RADII[name](0.8, 0.0, sigma=1.0) > RADII[name](0.8, 0.01, sigma=1.0)

    def test_shapes(self, name):
        single = RADII[name](0.9, 0.1, sigma=1.0)
        assert isinstance(single, np.ndarray)
        assert (single.shape, single.dtype) == ((), np.float64)
        table = RADII[name](np.full((3, 1), 0.9), np.full(4, 0.1, np.float32), sigma=1)
        assert (table.shape, table.dtype) == ((3, 4), np.float64)
        assert RADII[name](np.empty(0), 0.1, sigma=1.0).shape == (0,)

    @pytest.mark.parametrize("value", [-1e-9, 1.0000001, np.nan, np.inf])
    def test_refuses_what_is_no_probability(self, name, value):
        with pytest.raises(ValueError, match=rf"`p_lower` must be in \[0, 1\], got {value}"):
            RADII[name]([0.9, value], 0.1, sigma=1.0)
        with pytest.raises(ValueError, match=rf"`p_upper` must be in \[0, 1\], got {value}"):
            RADII[name](0.9, value, sigma=1.0)

    @pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
    def test_refuses_sigma(self, name, sigma):
        with pytest.raises(ValueError, match=f"`sigma` must be a finite number above 0, got {sigma}"):
            RADII[name](0.9, 0.1, sigma=sigma)


@pytest.mark.parametrize(("p_a", "p_b"), [*REFERENCE, (0.999, 0.0001)])
def test_radii_at_one_parameter_are_the_formulas_and_their_best_is_the_radius(p_a, p_b):
    """Cohen et al. 2019, equations 30 and 37 as they are printed."""
    b = np.linspace(0.001, min(1.0, math.log(p_a / p_b) / 2) * 0.999, 2000)
    printed = 0.5 * b / np.sqrt(2 * np.log(1.25 * (1 + np.exp(b)) / (p_a - np.exp(2 * b) * p_b)))
    np.testing.assert_allclose(lecuyer_at(p_a, p_b, b, sigma=0.5), printed, rtol=1e-9)
    assert printed.max() == pytest.approx(float(lecuyer(p_a, p_b, sigma=0.5)), rel=1e-3)
    a = np.concatenate([np.linspace(0.3, 0.99, 500), np.linspace(1.01, 20, 2000)])
    mean = ((p_a ** (1 - a) + p_b ** (1 - a)) / 2) ** (1 / (1 - a))
    printed = 0.5 * np.sqrt(-2 / a * np.log(1 - p_a - p_b + 2 * mean))
    np.testing.assert_allclose(li_at(p_a, p_b, a, sigma=0.5), printed, rtol=1e-6)
    assert printed.max() == pytest.approx(float(li(p_a, p_b, sigma=0.5)), rel=1e-3)


def test_a_parameter_out_of_reach_certifies_nothing_and_an_impossible_one_is_refused():
    assert lecuyer_at(0.6, 0.4, [0.3, 1.0], sigma=1.0).tolist() == [0.0, 0.0]
    assert li_at(0.4, 0.6, 2.0, sigma=1.0) == 0.0
    assert lecuyer_at([0.8, 0.9], 0.1, [[0.2], [0.4]], sigma=1.0).shape == (2, 2)
    with pytest.raises(ValueError, match=r"`b` must be above 0 and at most 1, got 1.5"):
        lecuyer_at(0.9, 0.1, 1.5, sigma=1.0)
    with pytest.raises(ValueError, match=r"`a` must be above 0 and at most .*, got 0.0"):
        li_at(0.9, 0.1, [1.0, 0.0], sigma=1.0)
