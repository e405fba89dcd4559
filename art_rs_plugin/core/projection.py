"""Back from a printed radius to the votes behind it, and on to another alpha or number of votes.

A log that gives radii and no counts gives each count up to rounding only: every answer here is a range that holds all
counts that print so. Votes of another number than was drawn are an extrapolation, never a certificate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import binom

from art_rs_plugin.core import checks
from art_rs_plugin.core.radii import FloatArray

PUBLISHED_ALPHAS = (0.001, 0.01)
"""The levels that published logs were made at: the paper's, and the one that most of its logs fit."""

_SLACK = 1e-9  # relative: a radius that lies on the border of rounding, computed in floating point


def rounding_interval(radius: ArrayLike, digits: int = 3) -> tuple[FloatArray, FloatArray]:
    """The numbers that `digits` significant digits print as `radius`: from lowest to highest, borders included.

    Below a power of ten the neighbour is ten times as near: 1.0 stands for .9995 to 1.005.

    :param radius: Numbers of at least 0 with at most so many digits, any shape; the results have the same.
    :raises ValueError: A number is negative or not finite, or has more digits.
    """
    checks.whole("digits", digits)
    radii = np.asarray(radius, dtype=np.float64)
    ends = np.array([_printed(float(value), digits) for value in radii.flat]).reshape(*radii.shape, 2)
    return ends[..., 0], ends[..., 1]


def printed_digits(radius: ArrayLike) -> int:
    """The significant digits that a log's radii were printed with: of the longest of them, and at least three."""
    return max([3, *(_significant(Decimal(repr(float(value)))) for value in np.asarray(radius).flat)])


def counts_between(
    low: ArrayLike, high: ArrayLike, *, sigma: float, n: int, alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least and the largest count k out of n votes that certify a radius in [low, high]; least > largest if none.

    The radius of k is that of CERTIFY, sigma Phi^-1 of the one-sided Clopper-Pearson bound at alpha: it is at least r
    where P(X >= k) <= alpha for X ~ Binomial(n, Phi(r / sigma)).

    :param low: Radii of at least 0 in the unit of sigma, and `high` at least as large; they broadcast.
    :raises ValueError: An option is out of range; TypeError if it is no number.
    """
    scale = checks.positive("sigma", sigma)
    votes, level = checks.whole("n", n), checks.in_unit_interval("alpha", alpha)
    p_low, p_high = (ndtr(np.asarray(end, dtype=np.float64) / scale) for end in (low, high))
    least = binom.isf(level, votes, p_low) + 1
    largest = np.minimum(binom.isf(level, votes, p_high), votes)
    return np.asarray(least, dtype=np.int64), np.asarray(largest, dtype=np.int64)


def counts_behind(
    radius: ArrayLike, *, sigma: float, n: int, alpha: float, digits: int = 3
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least and the largest count out of n votes whose radius prints as `radius`; least > largest if none does.

    Radius 0, an abstention, has every count that certifies nothing. Parameters and errors as in `rounding_interval` and
    `counts_between`.
    """
    radii = np.asarray(radius, dtype=np.float64)
    low, high = rounding_interval(radii, digits)
    least, largest = counts_between(low * (1 - _SLACK), high * (1 + _SLACK), sigma=sigma, n=n, alpha=alpha)
    return np.where(radii > 0, least, 0), largest


def inferred_alphas(
    radius: ArrayLike, *, sigma: float, n: int, candidates: Sequence[float] = PUBLISHED_ALPHAS, digits: int = 3
) -> tuple[float, ...]:
    """The candidates at which every radius of a log is attainable: one, several (undetermined), or none.

    Where votes are nearly unanimous, and where they are nearly split, neighbouring counts print as different radii,
    which tells levels apart; in between every printed radius is attainable at any. It supposes that `n` is known.

    :param radius: All radii of the log, shape (m,).
    """
    ranges = ((alpha, counts_behind(radius, sigma=sigma, n=n, alpha=alpha, digits=digits)) for alpha in candidates)
    return tuple(alpha for alpha, (least, largest) in ranges if (least <= largest).all())


def scaled_counts(k: ArrayLike, n: int, new_n: int, *, up: bool = False) -> NDArray[np.int64]:
    """The counts out of `new_n` votes at the share k / n, rounded down, or up: the paper's projection (Figure 8).

    It supposes that the votes not drawn would have fallen as those that were: an extrapolation, never a certificate.

    :param k: Whole numbers from 0 to n, any shape.
    :raises ValueError, TypeError: A number is out of its range or not whole.
    """
    old, new = checks.whole("n", n), checks.whole("new_n", new_n)
    counts = checks.counts("k", k, most=old)
    # in whole numbers: a product in floating point may fall below a count that is exact
    made = [-(-int(count) * new // old) if up else int(count) * new // old for count in counts.flat]
    return np.array(made, dtype=np.int64).reshape(counts.shape)


def _printed(value: float, digits: int) -> tuple[float, float]:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`radius` must be finite numbers of at least 0, got {value!r}")
    if value == 0:
        return 0.0, 0.0
    exact = Decimal(repr(value))
    if _significant(exact) > digits:
        raise ValueError(f"`radius` must have at most {digits} significant digits, got {value!r}")
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    below = unit / 10 if exact == Decimal(1).scaleb(exact.adjusted()) else unit
    return float(exact - below / 2), float(exact + unit / 2)


def _significant(value: Decimal) -> int:
    return len(value.normalize().as_tuple().digits)
