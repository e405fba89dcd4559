"""Certificates as records, and how counts of votes become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import at_uniform, votes_to_certify
from art_rs_plugin.core.radii import FloatArray

ABSTAIN = -1
"""The prediction of an abstention. It is no class: never index with it, never take an argmax over it."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The prediction at one input, and the radius within which it is certified not to change.

    `radius` is in the unit of `x`, in the l_`norm`; 0.0 with the prediction `ABSTAIN`. With the norm "patch" it is the
    side of a square of pixels that may be anything, wherever it is. `certifies` says of which classifier: "f", the base
    classifier, or "g", the smoothed one. `alpha` bounds the probability that the statement is false: 0.0 for a
    deterministic certifier. `index` is the example's place in its data set.
    """

    prediction: int
    radius: float
    index: int = 0
    norm: float | Literal["patch"] = 2
    certifies: Literal["f", "g"] = "g"
    alpha: float


@dataclass(frozen=True, kw_only=True)
class VoteCertificate(Certificate):
    """A certificate from votes under noise, with all it takes to bound it anew at another alpha.

    `selected` is the class that the `n0` selection votes chose, kept when the prediction is `ABSTAIN`, or, with n0 = 0,
    one that was known before any vote; `counts` are the `n` estimation votes by class; p_lower <= p_A and
    p_upper >= p_B, both with probability at least 1 - alpha. `uniform` is the U that a randomized bound used, and None
    for the others: bounded anew by such a bound, the votes must meet this U and no other.
    """

    selected: int
    p_lower: float
    p_upper: float
    counts: tuple[int, ...]
    n0: int
    n: int
    seed: int | None
    uniform: float | None = None

    @property
    def votes(self) -> int:
        """All votes that were drawn for it."""
        return self.n0 + self.n


def certify_from_counts(
    counts: ArrayLike,
    selected: int,
    *,
    radius: Callable[[float, float], FloatArray],
    n0: int,
    alpha: float,
    bound: str = "clopper-pearson",
    uniform: float | None = None,
    index: int = 0,
    seed: int | None = None,
    norm: float = 2,
) -> VoteCertificate:
    """The second half of CERTIFY: the certificate that estimation votes give to a class selected by other votes.

    Serves to bound recorded votes anew, at another alpha or by another bound, provided that n was fixed before they
    were drawn and that both were chosen without a look at them (and `uniform` too). Parameters as in `certify`.

    :param counts: Estimation votes by class, shape (classes,), at least two classes.
    :param selected: The class that the selection votes chose, or one that was known before any vote.
    :raises ValueError: If an option is out of range; TypeError if counts are not whole numbers.
    """
    votes, level = checked_counts(counts, selected), checks.in_unit_interval("alpha", alpha)
    of_counts, used = at_uniform(bound, uniform)
    bounds = of_counts(votes, selected, level)
    return certificate_from_bounds(
        *bounds, votes, selected, radius=radius, n0=n0, alpha=level, index=index, seed=seed, norm=norm, uniform=used
    )


def certificate_from_bounds(
    p_lower: float,
    p_upper: float,
    counts: Counts,
    selected: int,
    *,
    radius: Callable[[float, float], FloatArray],
    n0: int,
    alpha: float,
    index: int,
    seed: int | None,
    norm: float,
    uniform: float | None = None,
) -> VoteCertificate:
    """The certificate that bounds on p_A and p_B give: `selected` and its radius, or an abstention.

    Parameters as in `certify`; the caller answers for the bounds, which must both hold with probability 1 - alpha.
    """
    certified = float(radius(p_lower, p_upper))
    holds = certified > 0.0
    return VoteCertificate(
        prediction=int(selected) if holds else ABSTAIN,
        radius=certified if holds else 0.0,
        index=index,
        norm=norm,
        alpha=alpha,
        selected=int(selected),
        p_lower=p_lower,
        p_upper=p_upper,
        counts=tuple(counts.tolist()),
        n0=n0,
        n=int(counts.sum()),
        seed=seed,
        uniform=uniform,
    )


def check_votes(n0: int, n: int, alpha: float, *, bound: str = "clopper-pearson") -> None:
    """Raise ValueError or TypeError unless n0 and n are whole, alpha in (0, 1), and n votes can certify at alpha.

    By a randomized bound they can at U = 1, hence whatever U is.
    """
    checks.whole("n0", n0)
    needed = votes_to_certify(checks.in_unit_interval("alpha", alpha), bound)
    if checks.whole("n", n) < needed:
        raise ValueError(f"`n` must be at least {needed} to ever certify at alpha = {alpha}, got {n}")


def checked_counts(counts: ArrayLike, selected: int | None = None) -> Counts:
    """Votes by class as int64, and `selected`, if given, one of the classes; ValueError or TypeError if not."""
    array = np.asarray(counts)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`counts` must be whole numbers, got dtype {array.dtype}")
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"`counts` must have shape (classes,) with at least 2 classes, got shape {array.shape}")
    if array.min() < 0 or array.sum() == 0:
        raise ValueError(f"`counts` must be at least 0 and not all 0, got {array.tolist()}")
    if selected is not None and checks.whole("selected", selected, minimum=0) >= array.size:
        raise ValueError(f"`selected` must be a class below {array.size}, got {selected}")
    return array.astype(np.int64)
