"""Confidence bounds on class probabilities from counts of independent votes.

A bound is exact where it stands: the binomial tail at every returned float is compared with alpha in integers, so that
no rounding can push the error above alpha. SciPy only proposes: its inverse was off by thousands of ulps at n = 10^6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc, betainccinv, betaincinv

from art_rs_plugin.core import checks
from art_rs_plugin.core.radii import FloatArray


class Bound(Protocol):
    """Bounds on the class probabilities. Whatever joins `BOUNDS` inherits the tests that enumerate its errors."""

    def __call__(
        self, counts: NDArray[np.int64], selected: int, alpha: float, uniform: float = 1.0
    ) -> tuple[float, float]:
        """(counts of fresh votes by class, class selected by other votes, alpha, U) -> (p_lower, p_upper).

        With probability at least 1 - alpha both p_lower <= p_A and p_upper >= p_B hold, for A the selected class and B
        the likeliest other one. Over the votes alone if the bound ignores U, and over the votes and U for those in
        `RANDOMIZED`: their U is uniform on (0, 1], independent of every vote and of whatever the number of votes was
        chosen by, and drawn once. Given U the error may be far from alpha: to choose among several U, or a number of
        votes to suit the U at hand, voids the bound. U = 1 is the bound that needs no luck.
        """


P_LOWER_CAP = 0.9999997133484281
"""Phi(5) rounded down: the most that a randomized bound says of p_A, so that its radius is at most 5 sigma."""

# the pmf at k, and the least term worth adding to it: the 64 bits between are ample for a float, 32 more take rounding
_UNIT, _NEGLIGIBLE = 1 << 96, 1 << 32


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: float, uniform: float = 1.0) -> FloatArray:
    """One-sided lower Clopper-Pearson bound: the p at which P(X >= k) = alpha for X ~ Binomial(n, p), rounded down.

    With a `uniform` U below 1 the randomized one (Stevens 1950): the p at which P(X > k) + U P(X = k) = alpha. That sum
    is uniform on (0, 1) at the true p if U is and is independent of k, so that the bound errs with probability alpha
    exactly, where the other may err far less. It is 1.0 at k = n and U <= alpha, and falls as U rises.

    :param k: Successes, whole numbers with 0 <= k <= n; broadcasts against `n`.
    :param n: Trials.
    :param alpha: P(bound > p) is at most this, whatever p is; in (0, 1).
    :param uniform: U in [0, 1]; 1 needs no luck. A random one is to be rounded up, as in j / 2^53 with j from 1 to
        2^53, which can only lower the bound.
    :raises ValueError: If a number is out of its range; TypeError if `k` or `n` are not whole numbers.
    """
    return _each(partial(_lower, uniform=checks.probability("uniform", uniform)), k, n, alpha)


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: float) -> FloatArray:
    """One-sided upper Clopper-Pearson bound: the p at which P(X <= k) = alpha for X ~ Binomial(n, p), rounded up.

    Parameters and errors as in `clopper_pearson_lower`.
    """
    return _each(_upper, k, n, alpha)


def _two_class(counts: NDArray[np.int64], selected: int, alpha: float, uniform: float = 1.0) -> tuple[float, float]:
    """Cohen et al. 2019, Section 3.2.2: Clopper-Pearson on p_A, and p_B <= 1 - p_A."""
    p_lower = float(clopper_pearson_lower(counts[selected], counts.sum(), alpha))
    return p_lower, _complement(p_lower)


def _randomized(counts: NDArray[np.int64], selected: int, alpha: float, uniform: float = 1.0) -> tuple[float, float]:
    """Randomized Clopper-Pearson on p_A, at most `P_LOWER_CAP`, and p_B <= 1 - p_A.

    Without the cap unanimous votes would certify an infinite radius with probability about alpha. A lower p_lower is a
    bound whenever a higher one is: the cap costs radius, never validity. It costs something at U = 1 only where n is
    above 2.4e7 (alpha = 0.001).
    """
    p_lower = min(float(clopper_pearson_lower(counts[selected], counts.sum(), alpha, uniform)), P_LOWER_CAP)
    return p_lower, _complement(p_lower)


def _runner_up(counts: NDArray[np.int64], selected: int, alpha: float, uniform: float = 1.0) -> tuple[float, float]:
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


BOUNDS: dict[str, Bound] = {"clopper-pearson": _two_class, "runner-up": _runner_up, "randomized": _randomized}
RANDOMIZED = frozenset({"randomized"})
"""Names of the bounds that use their `uniform`."""


def at_uniform(bound: str, uniform: float | None) -> tuple[Bound, float | None]:
    """The named bound at this U, and the U that it uses: None for a bound that uses none, whatever is given.

    :raises ValueError: If `bound` is no name in `BOUNDS`, or uses a U that is None or outside [0, 1].
    """
    of_counts = BOUNDS[checks.one_of("bound", bound, BOUNDS)]
    if bound not in RANDOMIZED:
        return of_counts, None
    if uniform is None:
        raise ValueError(f"`uniform` must be in [0, 1] for the bound {bound!r}, got None")
    used = checks.probability("uniform", uniform)
    return partial(of_counts, uniform=used), used


@lru_cache
def votes_to_certify(alpha: float, bound: str = "clopper-pearson") -> int:
    """The least n at which unanimous votes certify a radius above 0, whatever U (10 for Clopper-Pearson at 0.001)."""
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
def _lower(k: int, n: int, alpha: float, uniform: float) -> float:
    if k == 0 and uniform >= alpha:
        return 0.0
    if k == n and uniform <= alpha:
        return 1.0
    level, weight = Fraction(alpha), Fraction(uniform)
    return _settled(_lower_guess(k, n, alpha, uniform), 0, lambda p: _room(k, n, p, level, weight))


@lru_cache(maxsize=1 << 16)
def _upper(k: int, n: int, alpha: float) -> float:
    if k == n:
        return 1.0
    # P(X <= k) is the probability of at least n - k failures
    level, weight = Fraction(alpha), Fraction(1)
    return _settled(float(betainccinv(k + 1, n - k, alpha)), 1, lambda p: _room(n - k, n, 1 - p, level, weight))


def _lower_guess(k: int, n: int, alpha: float, uniform: float) -> float:
    """The bound by SciPy, by halving between those at U = 1 and U = 0; the latter is that of k + 1 at U = 1."""
    low = float(betaincinv(k, n - k + 1, alpha)) if k > 0 else 0.0
    if uniform == 1.0:
        return low
    high = float(betaincinv(k + 1, n - k, alpha)) if k < n else 1.0
    for _ in range(64):
        p = (low + high) / 2
        above = (1.0 - uniform) * bdtrc(k, n, p) + uniform * bdtrc(k - 1, n, p) > alpha
        low, high = (low, p) if above else (p, high)
        if high - low <= low * (1.0 - high) * 2**-40:  # the Newton step that follows doubles the digits
            break
    return (low + high) / 2


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


def _room(k: int, n: int, p: Fraction, alpha: Fraction, uniform: Fraction) -> Fraction:
    """Newton step from p to the root of T = P(X > k) + U P(X = k) = alpha, X ~ Binomial(n, p); if >= 0, T <= alpha.

    Sums the pmf outward from k, in integers and relative to the pmf at k: no logarithm or gamma function enters. What
    is above k is rounded up and what is below down, so that rounding can only make the step smaller. T must depend on
    p: not k = 0 with U = 1, nor k = n with U = 0.
    """
    hit, miss = p.numerator, p.denominator - p.numerator
    term, above = _UNIT, 0
    for j in range(k, n):
        up, down = (n - j) * hit, (j + 1) * miss
        term = -(-term * up // down)
        above += term
        if term < _NEGLIGIBLE:
            # past the mode ratios of neighbours fall, so that a geometric series bounds what is left
            above += term * up // (down - up) + 1
            break
    term, below = _UNIT, 0
    for j in range(k, 0, -1):
        term = term * j * miss // ((n - j + 1) * hit)
        below += term
        if term < _NEGLIGIBLE:
            break
    excess = alpha * (above + _UNIT + below) - above - uniform * _UNIT
    slope = uniform * k / p + (1 - uniform) * (n - k) / (1 - p)  # of T, relative to the pmf at k
    return excess / (slope * _UNIT)
