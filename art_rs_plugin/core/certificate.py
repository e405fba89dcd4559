"""Certificates, and the paper's two algorithms that turn votes into one: CERTIFY and PREDICT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import BOUNDS, votes_to_certify, votes_to_predict
from art_rs_plugin.core.radii import FloatArray

ABSTAIN = -1
"""The prediction of an abstention. It is no class: never index with it, never take an argmax over it."""

Counts = NDArray[np.int64]

Draw = Callable[[str, int], Counts]
"""(purpose, votes) -> votes by class, drawn afresh.

Purposes are "selection", "estimation" and "prediction"; votes for different purposes never share noise.
"""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The prediction at one input, and the radius within which it is certified not to change.

    `radius` is in the unit of `x`, in the l_`norm`; 0.0 with the prediction `ABSTAIN`. `certifies` says of which
    classifier: "f", the base classifier, or "g", the smoothed one. `alpha` bounds the probability that the statement is
    false: 0.0 for a deterministic certifier. `index` is the example's place in its data set.
    """

    prediction: int
    radius: float
    index: int = 0
    norm: float = 2
    certifies: Literal["f", "g"] = "g"
    alpha: float


@dataclass(frozen=True, kw_only=True)
class VoteCertificate(Certificate):
    """A certificate from votes under noise, with all it takes to bound it anew at another alpha.

    `selected` is the class that the `n0` selection votes chose, kept when the prediction is `ABSTAIN`; `counts` are the
    `n` estimation votes by class; p_lower <= p_A and p_upper >= p_B, both with probability at least 1 - alpha.
    """

    selected: int
    p_lower: float
    p_upper: float
    counts: tuple[int, ...]
    n0: int
    n: int
    seed: int | None


def certify(
    draw: Draw,
    *,
    radius: Callable[[float, float], FloatArray],
    n0: int,
    n: int,
    alpha: float,
    bound: str = "clopper-pearson",
    index: int = 0,
    seed: int | None = None,
    norm: float = 2,
) -> VoteCertificate:
    """Cohen et al. 2019, CERTIFY: n0 votes select a class, n fresh votes bound its probability.

    With probability at least 1 - alpha over the votes, g predicts `prediction` everywhere within `radius`, or this
    abstains.

    :param draw: Gives the votes at one input, see `Draw`.
    :param radius: (p_lower, p_upper) -> certified radius in the unit of `x`, such as `Gaussian(sigma).radius`.
    :param bound: Name in `BOUNDS`.
    :param index: The example's place in its data set; `seed`, what `draw` derives its noise from; `norm`, of `radius`:
        recorded as they are.
    :raises ValueError: If an option is out of range, or if n votes can never certify at this alpha.
    """
    check_votes(n0, n, alpha, bound=bound)
    selected = int(np.argmax(_drawn(draw, "selection", n0)))
    # fresh votes: those that selected the class would favour it, and void the bound
    counts = _drawn(draw, "estimation", n)
    return certify_from_counts(
        counts, selected, radius=radius, n0=n0, alpha=alpha, bound=bound, index=index, seed=seed, norm=norm
    )


def certify_from_counts(
    counts: ArrayLike,
    selected: int,
    *,
    radius: Callable[[float, float], FloatArray],
    n0: int,
    alpha: float,
    bound: str = "clopper-pearson",
    index: int = 0,
    seed: int | None = None,
    norm: float = 2,
) -> VoteCertificate:
    """The second half of CERTIFY: the certificate that estimation votes give to a class selected by other votes.

    Serves to bound recorded votes anew, at another alpha or by another bound, provided that n was fixed before they
    were drawn and that both were chosen without a look at them. Parameters as in `certify`.

    :param counts: Estimation votes by class, shape (classes,), at least two classes.
    :param selected: The class that the selection votes chose.
    :raises ValueError: If an option is out of range; TypeError if counts are not whole numbers.
    """
    votes = _checked_counts(counts)
    if checks.whole("selected", selected, minimum=0) >= votes.size:
        raise ValueError(f"`selected` must be a class below {votes.size}, got {selected}")
    level = checks.in_unit_interval("alpha", alpha)
    p_lower, p_upper = BOUNDS[checks.one_of("bound", bound, BOUNDS)](votes, selected, level)
    certified = float(radius(p_lower, p_upper))
    holds = certified > 0.0
    return VoteCertificate(
        prediction=int(selected) if holds else ABSTAIN,
        radius=certified if holds else 0.0,
        index=index,
        norm=norm,
        alpha=level,
        selected=int(selected),
        p_lower=p_lower,
        p_upper=p_upper,
        counts=tuple(votes.tolist()),
        n0=n0,
        n=int(votes.sum()),
        seed=seed,
    )


def predict(draw: Draw, *, n: int, alpha: float) -> tuple[int, Counts]:
    """Cohen et al. 2019, PREDICT: the class that g returns, or ABSTAIN; and the n votes by class.

    :param draw: Gives the votes at one input, see `Draw`.
    :raises ValueError: If an option is out of range, or if n votes can never predict at this alpha.
    """
    check_prediction_votes(n, alpha)
    counts = _drawn(draw, "prediction", n)
    return predict_from_counts(counts, alpha), counts


def predict_from_counts(counts: ArrayLike, alpha: float) -> int:
    """The decision of PREDICT: the most voted class if a two-sided binomial test tells it from the second, or ABSTAIN.

    A class other than g's is returned with probability at most alpha (Cohen et al. 2019, Proposition 1).

    :param counts: Votes by class, shape (classes,), at least two classes.
    :raises ValueError: If an option is out of range; TypeError if counts are not whole numbers.
    """
    votes = _checked_counts(counts)
    level = checks.in_unit_interval("alpha", alpha)
    second, first = (int(count) for count in np.sort(votes)[-2:])
    if first == second:
        return ABSTAIN
    return int(np.argmax(votes)) if binomtest(first, first + second, 0.5).pvalue <= level else ABSTAIN


def check_votes(n0: int, n: int, alpha: float, *, bound: str = "clopper-pearson") -> None:
    """Raise ValueError or TypeError unless n0 and n are whole, alpha in (0, 1), and n votes can certify at alpha."""
    checks.whole("n0", n0)
    needed = votes_to_certify(checks.in_unit_interval("alpha", alpha), bound)
    if checks.whole("n", n) < needed:
        raise ValueError(f"`n` must be at least {needed} to ever certify at alpha = {alpha}, got {n}")


def check_prediction_votes(n: int, alpha: float) -> None:
    """Raise ValueError or TypeError unless n is whole, alpha in (0, 1), and n votes can predict at alpha."""
    needed = votes_to_predict(alpha)
    if checks.whole("n", n) < needed:
        raise ValueError(f"`n` must be at least {needed} to ever predict at alpha = {alpha}, got {n}")


def _drawn(draw: Draw, purpose: str, votes: int) -> Counts:
    counts = _checked_counts(draw(purpose, votes))
    assert counts.sum() == votes, f"asked for {votes} votes, drew {counts.tolist()}"
    return counts


def _checked_counts(counts: ArrayLike) -> Counts:
    array = np.asarray(counts)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`counts` must be whole numbers, got dtype {array.dtype}")
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"`counts` must have shape (classes,) with at least 2 classes, got shape {array.shape}")
    if array.min() < 0 or array.sum() == 0:
        raise ValueError(f"`counts` must be at least 0 and not all 0, got {array.tolist()}")
    return array.astype(np.int64)
