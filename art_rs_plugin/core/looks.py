"""Bounds that hold at every look at a growing number of votes, so that a run may stop whenever it likes.

A union bound pays for it: look j's confidence bound is made at its own alpha_j, and the alpha_j add up to at most
alpha. So with probability at least 1 - alpha every look's bound holds, hence the running maximum of the lower ones and
the running minimum of the upper ones hold, at whatever look the run stops and for all radii at once. One U serves a
randomized bound at all looks: each look's bound by itself errs with probability alpha_j over its votes and U, and the
union bound asks for no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import at_uniform
from art_rs_plugin.core.radii import FloatArray
from art_rs_plugin.core.records import Counts, VoteCertificate, certificate_from_bounds, checked_counts

Bounds = tuple[float, float]
"""p_lower <= p_A and p_upper >= p_B."""

_HOPELESS = 0.01


@dataclass(frozen=True, kw_only=True)
class LooksCertificate(VoteCertificate):
    """A certificate from votes that were looked at as they came in, with all it takes to bound them anew.

    The run could stop at each number of votes in `schedule`, look j spending `spend[j]` of alpha; `looks` holds the
    counts by class that each look taken saw, all votes up to it together. `counts` are the last of them. A bound for a
    number of votes fixed beforehand does not hold for those (optional stopping): `certify_from_looks` bounds them.
    """

    schedule: tuple[int, ...]
    spend: tuple[float, ...]
    looks: tuple[tuple[int, ...], ...]


def certify_from_looks(
    looks: ArrayLike,
    selected: int,
    *,
    schedule: Sequence[int],
    spend: Sequence[float],
    radius: Callable[[float, float], FloatArray],
    n0: int,
    alpha: float,
    bound: str = "clopper-pearson",
    uniform: float | None = None,
    index: int = 0,
    seed: int | None = None,
    norm: float = 2,
) -> LooksCertificate:
    """The certificate that votes give which were looked at as they came in: running bounds over all looks taken.

    Serves to bound recorded votes anew, by another bound or spending too, provided that schedule, spending and bound
    were chosen without a look at them. Parameters as in `core.certificate.certify`, but:

    :param looks: Votes by class up to each look taken, shape (looks, classes), look j's adding up to `schedule[j]`.
    :param selected: The class that the selection votes chose, or one that was known before any vote.
    :param schedule: Votes at every look that could have been taken, ascending.
    :param spend: alpha of each of those looks, in (0, 1), adding up to at most `alpha`.
    :raises ValueError: If an option is out of range or looks, schedule and spending do not go together; TypeError if
        counts are not whole numbers.
    """
    level = checks.in_unit_interval("alpha", alpha)
    planned = tuple(checks.whole("schedule", votes) for votes in schedule)
    levels = tuple(checks.in_unit_interval("spend", share) for share in spend)
    if len(planned) != len(levels) or any(np.diff(planned) <= 0):
        raise ValueError(f"`schedule` must ascend, one look for each of {len(levels)} in `spend`, got {planned}")
    if sum(map(Fraction, levels)) > Fraction(level):
        raise ValueError(f"`spend` must add up to at most alpha = {level}, got {math.fsum(levels)!r}")
    taken = [checked_counts(counts, selected) for counts in np.asarray(looks)]
    if not taken or tuple(int(counts.sum()) for counts in taken) != planned[: len(taken)]:
        sums = [int(counts.sum()) for counts in taken]
        raise ValueError(f"`looks` must add up to the first of the schedule {planned}, got {sums}")
    if np.any(np.diff(taken, axis=0) < 0):
        raise ValueError(f"`looks` must hold all votes up to each look, but counts fell: {np.asarray(looks).tolist()}")
    of_counts, used = at_uniform(bound, uniform)
    bounds = 0.0, 1.0
    for counts, share in zip(taken, levels, strict=False):  # the run may have stopped before the last look
        bounds = tighter(bounds, of_counts(counts, selected, share))
    certificate = certificate_from_bounds(
        *bounds, taken[-1], selected, radius=radius, n0=n0, alpha=level, index=index, seed=seed, norm=norm, uniform=used
    )
    every = tuple(tuple(counts.tolist()) for counts in taken)
    return LooksCertificate(**vars(certificate), schedule=planned, spend=levels, looks=every)


def tighter(one: Bounds, other: Bounds) -> Bounds:
    """What two pairs of bounds say together, if both hold."""
    return max(one[0], other[0]), min(one[1], other[1])


def growing(first: int, growth: float, last: int) -> tuple[int, ...]:
    """Whole numbers from `first`, each `growth` times the one before (rounded down, at least 1 more), up to `last`.

    A number that would leave less than half a step (of sqrt(growth)) to `last` gives way to it.
    """
    numbers, number = [], min(first, last)
    while number * math.sqrt(growth) < last:
        numbers.append(number)
        number = max(number + 1, int(number * growth))
    return (*numbers, last)


def spending(alpha: float, looks: int) -> tuple[float, ...]:
    """Shares of alpha for so many looks: 0.7 for the last, the rest evenly for the others; never more than alpha."""
    if looks == 1:
        return (alpha,)
    early = math.nextafter(0.3 * alpha / (looks - 1), 0.0)
    rest = Fraction(alpha) - (looks - 1) * Fraction(early)
    late = float(rest)
    return (*[early] * (looks - 1), late if late <= rest else math.nextafter(late, 0.0))


def prospect(counts: Counts, selected: int, votes: int) -> Counts:
    """The counts after so many votes if those to come bear out the best that these leave plausible for `selected`.

    Its share becomes the highest p at which P(X <= k) is at least 1%, for k of n votes and X ~ Binomial(n, p), but at
    most what unanimous votes to come would make it. This decides only when to give up, which costs power but never
    alpha: SciPy's rounding is good enough.
    """
    k, n = int(counts[selected]), int(counts.sum())
    p = float(betaincinv(k + 1, n - k, 1.0 - _HOPELESS)) if k < n else 1.0
    return scaled(counts, selected, min(math.ceil(p * votes), k + votes - n), votes)


def scaled(counts: Counts, selected: int, hits: int, votes: int) -> Counts:
    """Counts that add up to `votes`, `hits` of them for `selected` and the rest in the other classes' proportions."""
    others = np.where(np.arange(counts.size) == selected, 0, counts)
    result = others * (votes - hits) // max(int(others.sum()), 1)
    result[selected] = hits
    # what rounding leaves over goes to the runner-up
    result[int(np.argmax(np.where(np.arange(counts.size) == selected, -1, counts)))] += votes - int(result.sum())
    return result
