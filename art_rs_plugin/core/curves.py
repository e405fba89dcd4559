"""Summaries of many certificates: certified accuracy at a radius, what it guarantees (Theorem 6), average radius."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.radii import FloatArray


def certified_accuracy(prediction: ArrayLike, radius: ArrayLike, label: ArrayLike, at: ArrayLike) -> FloatArray:
    """Share of examples predicted correctly with a radius of at least r, for each r in `at`. Abstentions are wrong.

    The approximate certified test set accuracy of Cohen et al. 2019, Section 4; see `certified_accuracy_lower`.

    :param prediction: Classes or `ABSTAIN`, shape (m,): every example submitted to CERTIFY, or the share is too high.
    :param radius: Certified radii, shape (m,).
    :param label: True classes, shape (m,).
    :param at: Radii r, in the unit of `radius`, any shape; the result has the same.
    :raises ValueError: If shapes differ, nothing was submitted, or a radius is negative or NaN.
    """
    correct, radii = _correct(prediction, radius, label)
    thresholds = np.asarray(at, dtype=np.float64)
    if np.isnan(thresholds).any():
        raise ValueError(f"`at` must not be NaN, got {thresholds.tolist()}")
    held = np.sort(radii[correct])
    return np.asarray((held.size - np.searchsorted(held, thresholds, side="left")) / radii.size)


def average_certified_radius(prediction: ArrayLike, radius: ArrayLike, label: ArrayLike) -> float:
    """Mean radius, where wrong predictions and abstentions count as 0 (Zhai et al. 2020, MACER).

    Parameters and errors as in `certified_accuracy`.
    """
    correct, radii = _correct(prediction, radius, label)
    return float(np.where(correct, radii, 0.0).mean())


def certified_accuracy_lower(
    accuracy: ArrayLike, m: int, alpha: float, *, rho: float, form: str = "exact"
) -> FloatArray:
    """Lower bound on g's certified accuracy on a fixed test set, from the approximate one (Cohen et al. 2019, Thm 6).

    It holds with probability at least 1 - rho and for all radii at once, if noise is independent between examples. The
    form "exact" deducts the share of false certificates that Binomial(m, alpha) exceeds with probability at most rho;
    "bernstein", the paper's, deducts alpha + sqrt(2 alpha (1 - alpha) ln(1/rho) / m) + ln(1/rho) / (3 m). Neither
    speaks of the population that the test set comes from.

    :param accuracy: Approximate certified accuracy in [0, 1], any shape; the result has the same, and is at least 0.
    :param m: Number of examples submitted to CERTIFY, abstentions and errors included; not the number certified.
    :param alpha: Failure probability of each certificate, in (0, 1); at most 1/2 for "bernstein".
    :param rho: Failure probability of the statement, in (0, 1).
    :param form: Name in `DEDUCTIONS`.
    :raises ValueError: If an option is out of range.
    """
    share = np.asarray(accuracy, dtype=np.float64)
    if not np.all((share >= 0.0) & (share <= 1.0)):
        raise ValueError(f"`accuracy` must be in [0, 1], got {share.tolist()}")
    checks.whole("m", m)
    checks.in_unit_interval("alpha", alpha)
    checks.in_unit_interval("rho", rho)
    deduction = DEDUCTIONS[checks.one_of("form", form, DEDUCTIONS)](m, alpha, rho)
    slack = 2 * np.finfo(np.float64).eps  # for three roundings of numbers below 1
    return np.asarray(np.maximum(share - deduction - slack, 0.0))


def _exact(m: int, alpha: float, rho: float) -> float:
    return float(binom.isf(rho, m, alpha)) / m


def _bernstein(m: int, alpha: float, rho: float) -> float:
    if alpha > 0.5:
        # beyond 1/2 an example's variance is not bounded by alpha (1 - alpha): its failure probability may be 1/2
        raise ValueError(f"`alpha` must be at most 1/2 in the form 'bernstein', got {alpha}")
    log = -math.log(rho)
    return alpha + math.sqrt(2.0 * alpha * (1.0 - alpha) * log / m) + log / (3.0 * m)


DEDUCTIONS: dict[str, Callable[[int, float, float], float]] = {"exact": _exact, "bernstein": _bernstein}


def _correct(prediction: ArrayLike, radius: ArrayLike, label: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray]:
    predicted, true = np.asarray(prediction), np.asarray(label)
    radii = np.asarray(radius, dtype=np.float64)
    if not predicted.shape == radii.shape == true.shape or radii.ndim != 1 or radii.size == 0:
        raise ValueError(
            "`prediction`, `radius` and `label` must have one shape (m,) with m > 0, "
            f"got {predicted.shape}, {radii.shape} and {true.shape}"
        )
    if not np.all(radii >= 0.0):
        raise ValueError(f"`radius` must be at least 0, got {float(radii[~(radii >= 0.0)][0])!r}")
    return (predicted == true) & (predicted != ABSTAIN), radii
