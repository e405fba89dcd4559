"""The rounded Gaussian: whole numbers drawn from an exact table, and how far that is from rounding a Gaussian.

Sound mode counts in steps of 1/255, in which the noise has the standard deviation s = 255 sigma. A Gaussian N(0, s^2)
rounded to whole numbers is at most i with probability Phi((i + 1/2) / s). What is drawn instead is Z, whose
probabilities are multiples of 2^-63, since 63 random bits decide it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from art_rs_plugin.core import checks

LEVELS = 255
"""Steps to the unit of `x`: 8-bit images, divided by 255, lie on this grid."""

BITS = 63
"""Bits of the uniform number that decides one Z."""

MOST_SIGMA = 16.0
"""Beyond that tables are longer than anybody waits for: 4 080 of 255 grey levels."""

# in standard deviations: 2^63 times the tail beyond is 37
_REACH = 8.6
_DIGITS = 50


class Table(NamedTuple):
    """Z = -reach + how many `thresholds` are at most U, for U uniform on the whole numbers from 0 to 2^63 - 1.

    So P(Z <= i) = thresholds[i + reach] / 2^63 for -reach <= i < reach, and P(Z <= reach) = 1. `distance` is the total
    variation distance of Z from the Gaussian rounded to whole numbers, rounded up.
    """

    reach: int
    thresholds: NDArray[np.int64]
    distance: float


@lru_cache(maxsize=64)
def table(sigma: float) -> Table:
    """The table for this sigma, in the unit of `x`: thresholds floor(2^63 Phi((i + 1/2) / (255 sigma))).

    :raises ValueError: For a sigma that is not above 0, or above `MOST_SIGMA`; TypeError if it is no number.
    """
    from mpmath.ctx_mp import MPContext

    sigma = check_sigma(sigma)
    context = MPContext()  # of our own: the precision of the shared one is any thread's to change
    context.dps = _DIGITS
    scale = LEVELS * context.mpf(sigma)
    reach = max(1, math.ceil(_REACH * LEVELS * sigma))
    # 2^63 P(rint(s G) > i) for i from 0 to reach, by the upper tail; by symmetry it is 2^63 P(rint(s G) < -i)
    tails = [context.ldexp(context.erfc((2 * i + 1) / (scale * context.sqrt(8))), BITS - 1) for i in range(reach + 1)]
    lower = [int(context.floor(tail)) for tail in tails[reach - 1 :: -1]]
    upper = [2**BITS - int(context.ceil(tail)) for tail in tails[:reach]]
    # what flooring takes from P(Z <= i): nothing below -reach, all that is beyond from reach on
    beyond = tails[reach]
    taken = [beyond]
    taken += [tail - floor for tail, floor in zip(tails[reach - 1 :: -1], lower, strict=True)]
    taken += [2**BITS - tail - floor for tail, floor in zip(tails[:reach], upper, strict=True)]
    taken += [-beyond]
    difference = 2 * beyond + sum(abs(one - other) for one, other in zip(taken[1:], taken, strict=False))
    return Table(
        reach=reach,
        thresholds=np.array(lower + upper, dtype=np.int64),
        distance=math.nextafter(float(context.ldexp(difference, -BITS - 1)), 1.0),
    )


def total_variation(sigma: float, dimension: int) -> float:
    """Total variation distance, at most, of `dimension` independent Z from so many rounded Gaussians, rounded up."""
    dimension = checks.whole("dimension", dimension)
    return min(1.0, math.nextafter(dimension * table(sigma).distance, 1.0))


def check_sigma(sigma: float) -> float:
    """`sigma` as a float, if there is a table for it; ValueError or TypeError if not."""
    sigma = checks.positive("sigma", sigma)
    if sigma > MOST_SIGMA:
        raise ValueError(f"`sigma` must be at most {MOST_SIGMA:g} for sound=True, got {sigma!r}")
    return sigma
