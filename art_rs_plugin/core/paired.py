"""Comparing two classifiers, methods or attacks on the same examples, example by example."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, bootstrap

from art_rs_plugin.core import checks


def mcnemar(better: ArrayLike, worse: ArrayLike) -> float:
    """Exact one-sided McNemar test: were both equally good, how likely `better` alone succeeds at least as often.

    :param better: Where it succeeds, bool (m,), and `worse` on the same examples.
    :return: P(X >= b), X ~ Binomial(b + c, 1/2), for b examples on which `better` alone succeeds and c on which `worse`
        alone does; 1 where they never differ.
    :raises ValueError: Other shapes, or values that are not bool.
    """
    first, second = np.asarray(better), np.asarray(worse)
    _check(first, second)
    for name, values in (("better", first), ("worse", second)):
        if values.dtype != np.bool_:
            raise ValueError(f"`{name}` must be of type bool, got {values.dtype}")
    only, only_other = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binom.sf(only - 1, only + only_other, 0.5))


def mcnemar_two_sided(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided McNemar test: were both equally good, how likely they differ at least as much, either way.

    Parameters and errors as in `mcnemar`; for who did not know beforehand which would be the better.
    """
    return min(1.0, 2.0 * min(mcnemar(first, second), mcnemar(second, first)))


def difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Mean of `first - second` over the examples, and its standard error, sqrt(variance / m).

    :param first: Finite numbers (m,), such as radii, m of at least 2, and `second` for the same examples.
    :raises ValueError: Other shapes, too few examples, or a value that is not finite.
    """
    apart = _apart(first, second)
    return float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(len(apart))


def difference_interval(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean of `first - second` (bias-corrected and accelerated, Efron 1987).

    Whole examples are drawn again, 9 999 times, so that what belongs together stays together. The interval speaks of
    examples like these, and its confidence is approximate.

    :param confidence: In (0, 1).
    :param seed: Makes the interval repeatable.
    :raises ValueError: As `difference`, or an option out of its range.
    """
    apart = _apart(first, second)
    level = checks.in_unit_interval("confidence", confidence)
    chance = np.random.default_rng(checks.whole("seed", seed, minimum=0))
    if np.ptp(apart) == 0.0:  # every sample of them has the same mean, which leaves nothing to correct by
        return float(apart[0]), float(apart[0])
    # in parts: all samples of 10 000 examples at once would take 800 MB
    found = bootstrap((apart,), np.mean, confidence_level=level, batch=100, random_state=chance)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _apart(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _check(one, other)
    checks.whole("number of examples", len(one), minimum=2)
    apart = one - other
    if not np.isfinite(apart).all():
        raise ValueError(f"`first` and `second` must be finite, got {first!r} and {second!r}")
    return np.asarray(apart)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"both must have the same shape (m,), got {first.shape} and {second.shape}")
