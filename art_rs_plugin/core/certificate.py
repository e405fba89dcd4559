"""The paper's two algorithms that turn votes into an answer: CERTIFY and PREDICT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import votes_to_predict
from art_rs_plugin.core.budgets import Draw, Fixed, Task, drawn, drive
from art_rs_plugin.core.radii import FloatArray
from art_rs_plugin.core.records import (
    ABSTAIN,
    Certificate,
    Counts,
    VoteCertificate,
    certify_from_counts,
    check_votes,
    checked_counts,
)

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Counts",
    "Draw",
    "VoteCertificate",
    "certify",
    "certify_from_counts",
    "check_prediction_votes",
    "check_votes",
    "predict",
    "predict_from_counts",
]


def certify(
    draw: Draw,
    *,
    radius: Callable[[float, float], FloatArray],
    n0: int,
    n: int,
    alpha: float,
    bound: str = "clopper-pearson",
    uniform: float | None = None,
    index: int = 0,
    seed: int | None = None,
    norm: float = 2,
) -> VoteCertificate:
    """Cohen et al. 2019, CERTIFY: n0 votes select a class, n fresh votes bound its probability.

    With probability at least 1 - alpha over the votes (and U, if the bound is randomized), g predicts `prediction`
    everywhere within `radius`, or this abstains.

    :param draw: Gives the votes at one input, see `Draw`.
    :param radius: (p_lower, p_upper) -> certified radius in the unit of `x`, such as `Gaussian(sigma).radius`.
    :param bound: Name in `BOUNDS`.
    :param uniform: U in [0, 1] for a randomized bound, drawn once and independently of all votes; else ignored.
    :param index: The example's place in its data set; `seed`, what `draw` derives its noise from; `norm`, of `radius`:
        recorded as they are.
    :raises ValueError: If an option is out of range, or if n votes can never certify at this alpha.
    """
    task = Task(radius=radius, alpha=alpha, index=index, seed=seed, norm=norm, uniform=uniform)
    return drive(Fixed(n0=n0, n=n, bound=bound).steps(task), draw)


def predict(draw: Draw, *, n: int, alpha: float) -> tuple[int, Counts]:
    """Cohen et al. 2019, PREDICT: the class that g returns, or ABSTAIN; and the n votes by class.

    :param draw: Gives the votes at one input, see `Draw`.
    :raises ValueError: If an option is out of range, or if n votes can never predict at this alpha.
    """
    check_prediction_votes(n, alpha)
    counts = drawn(draw, "prediction", n)
    return predict_from_counts(counts, alpha), counts


def predict_from_counts(counts: ArrayLike, alpha: float) -> int:
    """The decision of PREDICT: the most voted class if a two-sided binomial test tells it from the second, or ABSTAIN.

    A class other than g's is returned with probability at most alpha (Cohen et al. 2019, Proposition 1).

    :param counts: Votes by class, shape (classes,), at least two classes.
    :raises ValueError: If an option is out of range; TypeError if counts are not whole numbers.
    """
    votes = checked_counts(counts)
    level = checks.in_unit_interval("alpha", alpha)
    second, first = (int(count) for count in np.sort(votes)[-2:])
    if first == second:
        return ABSTAIN
    return int(np.argmax(votes)) if binomtest(first, first + second, 0.5).pvalue <= level else ABSTAIN


def check_prediction_votes(n: int, alpha: float) -> None:
    """Raise ValueError or TypeError unless n is whole, alpha in (0, 1), and n votes can predict at alpha."""
    needed = votes_to_predict(alpha)
    if checks.whole("n", n) < needed:
        raise ValueError(f"`n` must be at least {needed} to ever predict at alpha = {alpha}, got {n}")
