"""The integer table of sound mode against mpmath's own normal distribution at 120 digits, and against its law."""

import threading
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest

from art_rs_plugin.core.rounded import MOST_SIGMA, Table, table, total_variation

SIGMAS = [1e-4, 0.002, 0.12, 0.25, 1.0]


@pytest.fixture(autouse=True)
def many_digits():
    with mp.workdps(120):
        yield


def cumulative(made: Table) -> list[Fraction]:
    """P(Z <= i) for i from -reach to reach, exactly."""
    return [*(Fraction(int(value), 2**63) for value in made.thresholds), Fraction(1)]


@pytest.mark.parametrize("sigma", SIGMAS)
class TestTable:
    def test_is_the_normal_distribution_rounded_down_to_63_bits(self, sigma):
        made, scale = table(sigma), 255 * mp.mpf(sigma)
        assert made.reach == max(1, mp.ceil(mp.mpf("8.6") * scale))
        expected = [int(mp.floor(mp.ncdf((i + mp.mpf(0.5)) / scale) * 2**63)) for i in range(-made.reach, made.reach)]
        assert made.thresholds.tolist() == expected
        assert made.thresholds.dtype == np.int64

    def test_distance_is_its_total_variation_rounded_up(self, sigma):
        made, scale = table(sigma), 255 * mp.mpf(sigma)
        exact = [mp.mpf(p.numerator) / p.denominator for p in np.diff(cumulative(made), prepend=Fraction(0))]
        edges = [mp.ncdf((i + mp.mpf(0.5)) / scale) for i in range(-made.reach - 1, made.reach + 1)]
        beyond = edges[0] + 1 - edges[-1]
        total = (beyond + sum(abs(p - (b - a)) for p, a, b in zip(exact, edges, edges[1:], strict=False))) / 2
        assert total <= made.distance <= total * (1 + mp.mpf(10) ** -15) + mp.mpf(5e-324)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_has_the_variance_of_a_rounded_gaussian(sigma):
    # s^2 + 1/12 (Sheppard), but for terms below exp(-2 pi^2 s^2)
    made = table(sigma)
    p = np.diff(cumulative(made), prepend=Fraction(0))
    at = np.arange(-made.reach, made.reach + 1).astype(object)
    assert abs((p * at).sum()) < Fraction(made.reach, 2**62)
    # rounding down moves each of P(Z <= i) by at most 2^-63, and the tail that is cut off weighs as little
    assert float((p * at**2).sum()) == pytest.approx((255 * sigma) ** 2 + 1 / 12, rel=1e-12)


def test_distance_at_sigma_one():
    assert table(1.0).distance == pytest.approx(8.9e-17, rel=0.01)


def test_total_variation_of_many_is_no_less_than_their_sum():
    for dimension in (1, 2, 3072, 150_528):
        found = total_variation(0.25, dimension)
        sum_ = dimension * Fraction(table(0.25).distance)
        assert sum_ <= Fraction(found) <= sum_ * (1 + Fraction(1, 2**50))


def test_threads_do_not_spoil_each_others_digits():
    # mpmath's own context is shared by all threads, and so is its precision
    expected = table.__wrapped__(0.05)
    made = []
    threads = [threading.Thread(target=lambda: made.append(table.__wrapped__(0.05))) for _ in range(4)]
    for thread in threads:
        thread.start()
    with mp.workdps(5):
        for thread in threads:
            thread.join()
    assert all(np.array_equal(one.thresholds, expected.thresholds) for one in made)
    assert {one.distance for one in made} == {expected.distance}


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (0.0, ValueError, "`sigma` must be a finite number above 0, got 0"),
        (float("nan"), ValueError, "`sigma` must be a finite number above 0, got nan"),
        (MOST_SIGMA + 1, ValueError, r"`sigma` must be at most 16 for sound=True, got 17\.0"),
        ("wide", TypeError, "`sigma` must be a number, got 'wide'"),
    ],
)
def test_refuses_sigma(sigma, error, message):
    with pytest.raises(error, match=message):
        table(sigma)


def test_refuses_dimension():
    with pytest.raises(ValueError, match="`dimension` must be at least 1, got 0"):
        total_variation(0.25, 0)
