"""Confidence bounds on class probabilities from counts of independent votes.

A bound is exact where it stands: the binomial tail at every returned float is compared with alpha in integers, so that
no rounding can push the error above alpha. SciPy only proposes: its inverse was off by thousands of ulps at n = 10^6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, betaincinv

from art_rs_plugin.core import checks
from art_rs_plugin.core.radii import FloatArray

Bound = Callable[[NDArray[np.int64], int, float], tuple[float, float]]
"""(counts of fresh votes by class, class selected by other votes, alpha) -> (p_lower, p_upper).

With probability at least 1 - alpha both p_lower <= p_A and p_upper >= p_B hold, for A the selected class and B the
likeliest other one. Whatever joins `BOUNDS` inherits the tests that enumerate this.
"""

# the pmf at k, and the least term worth adding to it: the 64 bits between are ample for a float, 32 more take rounding
_UNIT, _NEGLIGIBLE = 1 << 96, 1 << 32


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> FloatArray:
    """One-sided lower Clopper-Pearson bound: the p at which P(X >= k) = alpha for X ~ Binomial(n, p), rounded down.

    :param k: Successes, whole numbers with 0 <= k <= n; broadcasts against `n`.
    :param n: Trials.
    :param alpha: P(bound > p) is at most this, whatever p is; in (0, 1).
    :raises ValueError: If a number is out of its range; TypeError if `k` or `n` are not whole numbers.
    """
    return _each(_lower, k, n, alpha)


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: float) -> FloatArray:
    """One-sided upper Clopper-Pearson bound: the p at which P(X <= k) = alpha for X ~ Binomial(n, p), rounded up.

    Parameters and errors as in `clopper_pearson_lower`.
    """
    return _each(_upper, k, n, alpha)


def _two_class(counts: NDArray[np.int64], selected: int, alpha: float) -> tuple[float, float]:
    """Cohen et al. 2019, Section 3.2.2: Clopper-Pearson on p_A, and p_B <= 1 - p_A."""
    p_lower = float(clopper_pearson_lower(counts[selected], counts.sum(), alpha))
    return p_lower, _complement(p_lower)


def _runner_up(counts: NDArray[np.int64], selected: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson on p_A at 0.9 alpha and on p_B at 0.1 alpha.

    The largest other count stands for the true runner-up without a union over classes: that class is fixed before the
    votes are drawn, its own bound fails with probability 0.1 alpha, and the largest count only raises it.
    """
    alpha_b = 0.1 * alpha
    alpha_a = math.nextafter(alpha - alpha_b, 0.0)  # rounded so that the two never sum to more than alpha
    n = counts.sum()
    p_lower = float(clopper_pearson_lower(counts[selected], n, alpha_a))
    other = float(clopper_pearson_upper(np.delete(counts, selected).max(), n, alpha_b))
    return p_lower, min(_complement(p_lower), other)


BOUNDS: dict[str, Bound] = {"clopper-pearson": _two_class, "runner-up": _runner_up}


@lru_cache
def votes_to_certify(alpha: float, bound: str = "clopper-pearson") -> int:
    """The least n at which unanimous votes certify a radius above 0 (10 for Clopper-Pearson at alpha = 0.001)."""
    checks.in_unit_interval("alpha", alpha)
    bounds = BOUNDS[checks.one_of("bound", bound, BOUNDS)]
    n = 1
    while True:
        p_lower, p_upper = bounds(np.array([n, 0]), 0, alpha)
        if p_lower > p_upper:
            return n
        n += 1


def votes_to_predict(alpha: float) -> int:
    """The least n at which unanimous votes are a prediction: 2^(1-n) <= alpha (11 at alpha = 0.001)."""
    checks.in_unit_interval("alpha", alpha)
    n = 1
    while math.ldexp(1.0, 1 - n) > alpha:
        n += 1
    return n


def _complement(p: float) -> float:
    """1 - p rounded up; exact from 1/2 on."""
    return 1.0 - p if p >= 0.5 else math.nextafter(1.0 - p, 1.0)


def _each(bound: Callable[[int, int, float], float], k: ArrayLike, n: ArrayLike, alpha: float) -> FloatArray:
    successes, trials = np.asarray(k), np.asarray(n)
    for name, array in (("k", successes), ("n", trials)):
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"`{name}` must be whole numbers, got dtype {array.dtype}")
    successes, trials = np.broadcast_arrays(successes, trials)
    outside = (successes < 0) | (successes > trials)
    if outside.any():
        raise ValueError(f"`k` must be in [0, n], got {successes[outside][0]} of n = {trials[outside][0]}")
    level = checks.in_unit_interval("alpha", alpha)
    values = [bound(int(i), int(j), level) for i, j in zip(successes.flat, trials.flat, strict=True)]
    return np.array(values, dtype=np.float64).reshape(successes.shape)


@lru_cache(maxsize=1 << 16)
def _lower(k: int, n: int, alpha: float) -> float:
    if k == 0:
        return 0.0
    return _settled(float(betaincinv(k, n - k + 1, alpha)), 0, lambda p: _room(k, n, p, Fraction(alpha)))


@lru_cache(maxsize=1 << 16)
def _upper(k: int, n: int, alpha: float) -> float:
    if k == n:
        return 1.0
    # P(X <= k) is the probability of at least n - k failures
    return _settled(float(betainccinv(k + 1, n - k, alpha)), 1, lambda p: _room(n - k, n, 1 - p, Fraction(alpha)))


def _settled(guess: float, safe: int, room: Callable[[Fraction], Fraction]) -> float:
    """The float next to the root of `room` on the side of `safe` (0 or 1), found from a guess near it."""
    if math.isnan(guess):  # SciPy found none: seen from alpha = 1e-200 down
        return float(safe)
    outward = 1 - 2 * safe
    p = Fraction(_inside(guess))
    p = Fraction(_inside(float(p + outward * room(p))))  # one Newton step: a fraction of an ulp is left
    step = Fraction(math.ulp(float(p)))
    while room(p) < 0:
        p = Fraction(float(p - outward * step))
        if not 0 < p < 1:
            return float(safe)
        step *= 2
    return float(p)


def _inside(p: float) -> float:
    return min(max(p, math.ulp(0.0)), math.nextafter(1.0, 0.0))


def _room(k: int, n: int, p: Fraction, alpha: Fraction) -> Fraction:
    """Newton step from p to the root of P(X >= k) = alpha, X ~ Binomial(n, p), k >= 1; if >= 0, P(X >= k) <= alpha.

    Sums the pmf outward from k, in integers and relative to the pmf at k: no logarithm or gamma function enters. The
    tail is rounded up and the rest down, so that rounding can only make the step smaller.
    """
    hit, miss = p.numerator, p.denominator - p.numerator
    term = tail = _UNIT
    for j in range(k, n):
        up, down = (n - j) * hit, (j + 1) * miss
        term = -(-term * up // down)
        tail += term
        if term < _NEGLIGIBLE:
            # past the mode ratios of neighbours fall, so that a geometric series bounds what is left
            tail += term * up // (down - up) + 1
            break
    term, rest = _UNIT, 0
    for j in range(k, 0, -1):
        term = term * j * miss // ((n - j + 1) * hit)
        rest += term
        if term < _NEGLIGIBLE:
            break
    return p * (alpha * (tail + rest) - tail) / (k * _UNIT)
