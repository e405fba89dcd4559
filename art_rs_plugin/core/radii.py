"""Radii: (lower bound on p_A, upper bound on p_B) -> certified l2 radius under Gaussian noise, rounded down.

Every function takes probabilities in [0, 1] that broadcast against each other and returns float64 of their common
shape, in the unit of sigma, which is that of `x`. An upper bound above 1 - p_lower counts as 1 - p_lower, since
p_B <= 1 - p_A always; the radius is 0.0 where p_lower <= p_upper even so. ValueError for a probability outside [0, 1]
or NaN, and for a sigma that is not finite and above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from art_rs_plugin.core import checks

FloatArray = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)


class Radius(Protocol):
    """A way to turn bounds on the two class probabilities into a certified radius."""

    def __call__(self, p_lower: ArrayLike, p_upper: ArrayLike, *, sigma: float) -> FloatArray:
        """Certified radius, in the unit of sigma."""


def cohen(p_lower: ArrayLike, p_upper: ArrayLike, *, sigma: float) -> FloatArray:
    """Cohen et al. 2019, Theorem 1: R = sigma/2 (Phi^-1(p_A) - Phi^-1(p_B)), the largest radius that holds for every f.

    At most 1e-9 sigma below the formula's value, and never above it. Infinite at p_A = 1 and at p_B = 0.
    """
    sigma, certified, p_a, p_b = _checked(sigma, p_lower, p_upper)
    # below the normal range ndtr loses its relative accuracy; a larger p_B is a bound too
    p_b = np.where(p_b > 0.0, np.maximum(p_b, _TINY), 0.0)
    margin = _quantile_below(p_a, 1.0 - p_a) + _quantile_below(1.0 - p_b, p_b)
    return _rounded_down(_toward_zero(margin) / 2, sigma, certified)


def near_gaussian(p_lower: ArrayLike, p_upper: ArrayLike, *, sigma: float, distance: float) -> FloatArray:
    """Theorem 1 for noise whose law at every point is within total variation `distance` of the Gaussian one there.

    With e the distance, a = Phi^-1(p_A - e) and b = Phi^-1(p_B + e): at a distance r from x the noise gives A at least
    Phi(a - r / sigma) - e and every other class at most Phi(b + r / sigma) + e. So A wins where, for any q in (0, 1),
    the one is above q and the other below: R = sigma min(a - Phi^-1(q + e), Phi^-1(q - e) - b). The q here is
    Phi((a + b) / 2); it is 1/2 where p_B = 1 - p_A, and R is then sigma (a - Phi^-1(1/2 + e)). Finite always, and at
    most 1e-9 sigma below what the best q gives, for e up to 1e-9.
    """
    sigma, certified, p_a, p_b = _checked(sigma, p_lower, p_upper)
    e = checks.probability("distance", distance)
    p_a, p_b = _below(p_a - e), np.maximum(_above(p_b + e), _TINY)
    certified = certified & (p_a > p_b)
    p_a, p_b = np.where(certified, p_a, 0.75), np.where(certified, p_b, 0.25)
    a, minus_b = _quantile_below(p_a, 1.0 - p_a), _quantile_below(1.0 - p_b, p_b)
    q = ndtr((a - minus_b) / 2)  # every q serves, so that its rounding does no harm
    low, high = _below(q - e), _above(q + e)
    margin = np.minimum(a + _quantile_below(1.0 - high, high), minus_b + _quantile_below(low, 1.0 - low))
    return _rounded_down(_toward_zero(margin), sigma, certified)


def lecuyer(p_lower: ArrayLike, p_upper: ArrayLike, *, sigma: float) -> FloatArray:
    """Lecuyer et al. 2019 as in Cohen et al. 2019, Appendix I, eq. 31, from differential privacy.

    R = sup over 0 < b <= min(1, ln(p_A / p_B) / 2) of sigma b / sqrt(2 ln(1.25 (1 + e^b) / (p_A - e^(2b) p_B))).
    """
    sigma, certified, p_a, p_b = _checked(sigma, p_lower, p_upper)
    p_b = np.maximum(p_b, _TINY)  # 0 has no logarithm; a larger p_B is a bound too
    best = _maximum(partial(_lecuyer, p_a, p_b), np.zeros_like(p_a), np.minimum(1.0, np.log(p_a / p_b) / 2))
    return _rounded_down(best, sigma, certified)


def lecuyer_at(p_lower: ArrayLike, p_upper: ArrayLike, b: ArrayLike, *, sigma: float) -> FloatArray:
    """The radius of `lecuyer` at one b in (0, 1] instead of the best; 0.0 where b is too large for these probabilities.

    Parameters broadcast against each other. ValueError also for a b outside (0, 1].
    """
    sigma, certified, p_a, p_b, parameter = _checked_at(sigma, p_lower, p_upper, b, "b", 1.0)
    return _rounded_down(_lecuyer(p_a, p_b, parameter[..., None])[..., 0], sigma, certified)


def li(p_lower: ArrayLike, p_upper: ArrayLike, *, sigma: float) -> FloatArray:
    """Li et al. 2019 as in Cohen et al. 2019, Appendix I, eq. 38, from the Renyi divergence of order a.

    R = sup over a > 0, a != 1 of sigma sqrt(-(2/a) ln(1 - p_A - p_B + 2 M)), where M is the power mean
    ((p_A^(1-a) + p_B^(1-a)) / 2)^(1/(1-a)); as a tends to 1 it tends to the geometric mean.
    """
    sigma, certified, p_a, p_b = _checked(sigma, p_lower, p_upper)
    p_b = np.maximum(p_b, _TINY)  # 0 has no logarithm; a larger p_B is a bound too
    limit = np.full_like(p_a, np.log(1e4))
    return _rounded_down(_maximum(partial(_li, p_a, p_b), -limit, limit), sigma, certified)


def li_at(p_lower: ArrayLike, p_upper: ArrayLike, a: ArrayLike, *, sigma: float) -> FloatArray:
    """The radius of `li` at one order a > 0 instead of the best.

    Parameters broadcast against each other. ValueError also for an a that is not finite and above 0.
    """
    sigma, certified, p_a, p_b, parameter = _checked_at(sigma, p_lower, p_upper, a, "a", np.finfo(np.float64).max)
    return _rounded_down(_li(p_a, p_b, np.log(parameter)[..., None])[..., 0], sigma, certified)


RADII: dict[str, Radius] = {"cohen": cohen, "lecuyer": lecuyer, "li": li}


def _checked(
    sigma: float, p_lower: ArrayLike, p_upper: ArrayLike
) -> tuple[float, NDArray[np.bool_], FloatArray, FloatArray]:
    """Sigma; where p_A > p_B; both there, with p_B at most 1 - p_A, and elsewhere numbers that do no harm."""
    lower, upper = np.broadcast_arrays(_probabilities("p_lower", p_lower), _probabilities("p_upper", p_upper))
    # 1 - p_A is exact from 1/2 on; where it is rounded it exceeds p_A, so that nothing is certified by it
    upper = np.minimum(upper, 1.0 - lower)
    certified = np.asarray(lower > upper)
    p_a, p_b = np.where(certified, lower, 0.75), np.where(certified, upper, 0.25)
    return checks.positive("sigma", sigma), certified, p_a, p_b


def _checked_at(
    sigma: float, p_lower: ArrayLike, p_upper: ArrayLike, parameter: ArrayLike, name: str, most: float
) -> tuple[float, NDArray[np.bool_], FloatArray, FloatArray, FloatArray]:
    """As `_checked`, p_B no less than the least normal float; and the parameter, above 0 and at most `most`."""
    values = np.asarray(parameter, dtype=np.float64)
    outside = ~((values > 0.0) & (values <= most))
    if outside.any():
        raise ValueError(f"`{name}` must be above 0 and at most {most:g}, got {float(values[outside][0])!r}")
    sigma, certified, p_a, p_b = _checked(sigma, p_lower, p_upper)
    certified, p_a, p_b, values = np.broadcast_arrays(certified, p_a, p_b, values)
    return sigma, certified, p_a, np.maximum(p_b, _TINY), values


def _lecuyer(p_a: FloatArray, p_b: FloatArray, b: FloatArray) -> FloatArray:
    """Radius / sigma of `lecuyer` at b, which has one axis more; 0 where b is too large."""
    # float slack: the difference cancels, each of its terms is at most p_A
    gap = p_a[..., None] * (1.0 - 8 * _EPS) - np.exp(2.0 * b) * p_b[..., None]
    feasible = gap > 0.0
    log = np.log(1.25 * (1.0 + np.exp(b)) / np.where(feasible, gap, 1.0))
    return np.where(feasible, b / np.sqrt(2.0 * log), 0.0) * (1.0 - 16 * _EPS)


def _li(p_a: FloatArray, p_b: FloatArray, log_order: FloatArray) -> FloatArray:
    """Radius / sigma of `li` at ln a, which has one axis more."""
    log_a, log_b = np.log(p_a)[..., None], np.log(p_b)[..., None]
    rest = np.maximum(1.0 - p_a - p_b, 0.0)[..., None]
    # ln M = (ln p_A + ln p_B) / 2 + ln cosh(t (ln p_A - ln p_B) / 2) / t with t = 1 - a does not cancel at a = 1
    t = -np.expm1(log_order)
    t = np.where(t == 0.0, _TINY, t)
    log_mean = (log_a + log_b) / 2 + _log_cosh(t * (log_a - log_b) / 2) / t
    mean = np.exp(log_mean) * (1.0 + 16 * _EPS * (1.0 - log_a - log_b))  # float slack: ln M is off by eps ln p_B
    remainder = np.minimum((rest + 2.0 * mean) * (1.0 + 8 * _EPS), 1.0)
    return np.asarray(np.sqrt(np.log(remainder) * -2.0 * np.exp(-log_order)) * (1.0 - 16 * _EPS))


def _probabilities(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    outside = ~((array >= 0.0) & (array <= 1.0))
    if outside.any():
        raise ValueError(f"`{name}` must be in [0, 1], got {float(array[outside][0])!r}")
    return array


def _quantile_below(p: FloatArray, q: FloatArray) -> FloatArray:
    """The largest z that we can show to satisfy Phi(z) <= p, where q = 1 - p and the smaller of the two is exact."""
    tail = np.maximum(np.minimum(p, q), _TINY)
    # z = -depth below the median, where a deeper z is the safe one, and z = depth above it, where a shallower one is
    side = np.where(p < q, 1.0, -1.0)
    depth = -ndtri(tail)
    nudge = 8 * _EPS
    while True:
        safe = depth + side * nudge * (1.0 + depth)
        mass = ndtr(-safe) * (1.0 + side * 4 * _EPS * (1.0 + safe * safe))  # relative error of ndtr grows with z^2
        if np.all(side * mass <= side * tail):
            return np.where(np.minimum(p, q) > 0.0, -side * safe, -side * np.inf)
        nudge *= 2


def _log_cosh(u: FloatArray) -> FloatArray:
    near = 0.5 * np.log1p(np.sinh(np.clip(u, -1.0, 1.0)) ** 2)
    far: FloatArray = np.logaddexp(u, -u) - np.log(2.0)
    return np.where(np.abs(u) < 1.0, near, far)


def _maximum(value: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray) -> FloatArray:
    """Maximum of `value` over [low, high], elementwise, by zooming in on the best of a grid (along a new last axis).

    Any feasible parameter gives a valid radius, so a maximum missed costs tightness, never soundness.
    """
    steps = np.linspace(0.0, 1.0, 65)
    for _ in range(6):
        grid = np.minimum(low[..., None] + (high - low)[..., None] * steps, high[..., None])
        values = value(grid)
        best = values.argmax(axis=-1, keepdims=True)
        low = np.take_along_axis(grid, np.maximum(best - 1, 0), axis=-1)[..., 0]
        high = np.take_along_axis(grid, np.minimum(best + 1, steps.size - 1), axis=-1)[..., 0]
    return np.asarray(values.max(axis=-1))


def _rounded_down(radius: FloatArray, sigma: float, certified: NDArray[np.bool_]) -> FloatArray:
    """The product of radius and sigma, rounded toward zero, and 0.0 where nothing is certified."""
    with np.errstate(over="ignore", under="ignore"):
        # a product beyond the largest float becomes that float; only an infinite radius is infinite
        product = np.where(np.isinf(radius), radius, np.nextafter(radius * sigma, 0.0))
    return np.where(certified, np.maximum(product, 0.0), 0.0)


def _below(p: FloatArray) -> FloatArray:
    """The float below, but no less than 0."""
    return np.maximum(np.nextafter(p, -1.0), 0.0)


def _above(p: FloatArray) -> FloatArray:
    """The float above, but no more than 1."""
    return np.minimum(np.nextafter(p, 2.0), 1.0)


def _toward_zero(value: FloatArray) -> FloatArray:
    """The next float toward zero; infinity stays."""
    return np.where(np.isinf(value), value, np.nextafter(value, 0.0))
