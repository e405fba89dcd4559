"""What certificates of a sample say of the population that it was drawn from: lower bounds on g's certified accuracy.

The estimand is the probability that g classifies a fresh example of that population correctly everywhere within radius
r. The examples must be drawn from it independently and certified with independent noise. An example of which this is
not true is certified so with probability at most alpha, so that the expected share of correct certificates exceeds the
estimand by at most alpha. `core.curves.certified_accuracy_lower` (Theorem 6) speaks of the fixed test set instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.core.radii import FloatArray


def population_accuracy_lower(
    certified: ArrayLike, m: int, alpha: float, *, rho: float, form: str = "binomial"
) -> FloatArray:
    """Lower bound on certified accuracy over the population, from the counts of correct certificates in a sample.

    The form "binomial" is the one-sided Clopper-Pearson limit on the expected share, less alpha: it holds with
    probability at least 1 - rho for each radius by itself. "dkw" is the one-sided band of Dvoretzky, Kiefer and
    Wolfowitz (1956), with Massart's constant (1990): share - sqrt(ln(1/rho) / (2 m)) - alpha. It holds with probability
    at least 1 - rho for all radii at once.

    :param certified: How many of the m examples are classified correctly with a radius of at least r; whole numbers
        from 0 to m, any shape; the result has the same, and is at least 0.
    :param m: Number of examples submitted to CERTIFY, abstentions and errors included.
    :param alpha: Failure probability of each certificate, in (0, 1).
    :param rho: Failure probability of the statement, in (0, 1); at most 1/2 for "dkw".
    :param form: Name in `POPULATION_FORMS`.
    :raises ValueError: If an option is out of range; TypeError if `certified` are not whole numbers.
    """
    lower = POPULATION_FORMS[checks.one_of("form", form, POPULATION_FORMS)]
    size, level = checks.whole("m", m), checks.in_unit_interval("alpha", alpha)
    counts = checks.counts("certified", certified, most=size)
    slack = 2 * np.finfo(np.float64).eps  # for the roundings of numbers below 1
    share = lower(counts, size, checks.in_unit_interval("rho", rho))
    return np.asarray(np.maximum(share - level - slack, 0.0))


def familywise_alpha(alpha: float, m: int) -> float:
    """The level at which each of m certificates is made for all to hold at once with probability at least 1 - alpha.

    alpha / m, rounded down (a union bound: nothing need be independent), to be fixed before the votes are seen. At
    alpha itself, 500 independent certificates of level .001 may all hold with probability .61 only.

    :raises ValueError: If an option is out of range.
    """
    level, size = checks.in_unit_interval("alpha", alpha), checks.whole("m", m)
    share = level / size
    return share if Fraction(share) * size <= Fraction(level) else math.nextafter(share, 0.0)


def _binomial(certified: NDArray[np.int64], m: int, rho: float) -> FloatArray:
    return clopper_pearson_lower(certified, m, rho)


def _dkw(certified: NDArray[np.int64], m: int, rho: float) -> FloatArray:
    if rho > 0.5:
        raise ValueError(f"`rho` must be at most 1/2 in the form 'dkw', got {rho}")
    return np.asarray(certified / m - math.sqrt(-math.log(rho) / (2 * m)))


POPULATION_FORMS: dict[str, Callable[[NDArray[np.int64], int, float], FloatArray]] = {
    "binomial": _binomial,
    "dkw": _dkw,
}
