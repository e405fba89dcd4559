"""Comparing two classifiers, methods or attacks on the same examples, example by example."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

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


def difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Mean of `first - second` over the examples, and its standard error, sqrt(variance / m).

    :param first: Finite numbers (m,), such as radii, m of at least 2, and `second` for the same examples.
    :raises ValueError: Other shapes, too few examples, or a value that is not finite.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _check(one, other)
    checks.whole("number of examples", len(one), minimum=2)
    apart = one - other
    if not np.isfinite(apart).all():
        raise ValueError(f"`first` and `second` must be finite, got {first!r} and {second!r}")
    return float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(len(apart))


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"both must have the same shape (m,), got {first.shape} and {second.shape}")
