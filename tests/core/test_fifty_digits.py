"""From counts to the radius, all the way, against 50 digits: never above the truth, and hardly below it."""

import itertools

import mpmath as mp
import numpy as np
import pytest
from fifty_digits import exact_miss, upper_quantile

from art_rs_plugin.core.certificate import certify_from_counts
from art_rs_plugin.core.rounded import total_variation
from art_rs_plugin.noise import Gaussian, RoundedGaussian

ALPHAS = [1e-6, 0.001, 0.01, 0.05]
SIGMA, DIMENSION = 0.5, 3_072


@pytest.fixture(autouse=True)
def fifty_digits():
    with mp.workdps(50):
        yield


def some_counts(n: int, shares=(0.6, 0.9, 0.99, 0.999)) -> list[int]:
    """Counts from hardly a majority to all."""
    majority = n // 2 + int(2.5 * n**0.5)
    return sorted(
        {k for k in (majority, *(int(share * n) for share in shares), n - 40, n - 3, n - 1, n) if n / 2 < k <= n}
    )


def check(k: int, n: int, alpha: float) -> None:
    """p_lower at most 4 ulp, and the radius at most 1e-9 sigma and what these ulp are worth, below the true one."""
    counts = np.array([k, n - k])
    made = certify_from_counts(counts, 0, radius=Gaussian(SIGMA).radius, n0=1, alpha=alpha)
    q = exact_miss(k, n, alpha, made.p_lower)
    p = 1 - q
    assert 0 <= p - mp.mpf(made.p_lower) <= 4 * np.spacing(made.p_lower), (k, n, alpha)
    assert mp.mpf(made.p_upper) >= q
    if q >= 0.5:
        assert made.radius == 0.0
        return
    z = upper_quantile(q)
    true, radius = SIGMA * z, mp.mpf(made.radius)
    assert radius <= true, (k, n, alpha)
    # as floats, p next to 1 is coarser than q: from 2e8 votes on, nearly all of them alike, by more than 1e-9 of sigma
    coarse = (p - mp.mpf(made.p_lower)) / mp.npdf(z)
    assert true - radius <= SIGMA * (mp.mpf("1e-9") + 1.1 * coarse), (k, n, alpha)
    assert n > 10**8 or coarse < 5e-10
    # sound mode: the same bounds, its distance paid for at x and at x'
    rounded = RoundedGaussian(SIGMA, DIMENSION)
    sound = certify_from_counts(counts, 0, radius=rounded.radius, n0=1, alpha=alpha).radius
    e = mp.mpf(total_variation(SIGMA, DIMENSION))
    paid = SIGMA * (upper_quantile(q + e) - upper_quantile(mp.mpf(0.5) - e))
    assert mp.mpf(sound) <= paid <= true
    loss = e / mp.npdf(z) + coarse
    assert paid - sound <= SIGMA * (mp.mpf("1e-9") + 2 * loss), (k, n, alpha)


@pytest.mark.parametrize("n", [20, 100, 1_000, 100_000])
def test_votes(n):
    for k, alpha in itertools.product(some_counts(n), ALPHAS):
        check(k, n, alpha)


@pytest.mark.parametrize("n", [10**6, 10**7, 10**8, 10**9])
def test_many_votes_nearly_all_alike(n):
    for k, alpha in itertools.product((n - 40, n - 3, n - 1, n), ALPHAS):
        check(k, n, alpha)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10**6, 10**7, 10**8])
def test_many_votes(n):
    for k, alpha in itertools.product(some_counts(n), (0.001, 0.05)):
        check(k, n, alpha)


@pytest.mark.slow
@pytest.mark.parametrize("k", [500_100_000, 900_000_000, 999_000_000])
def test_a_billion_votes(k):
    check(k, 10**9, 0.001)
