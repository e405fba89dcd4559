"""A log's certificates at another alpha, number of votes, or radius formula: from counts, or from printed radii.

A ledger's counts are bounded anew. A log without counts gives them up to the rounding of its radii, so that each
example has a range of radii, and certified accuracy a lower and an upper value. Another number of votes is an
extrapolation, as in Cohen et al. 2019, Figure 8 (middle): `attrs["extrapolated"]` says so, and it certifies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.core.budgets import Fixed
from art_rs_plugin.core.certificate import ABSTAIN, certify_from_counts
from art_rs_plugin.core.projection import counts_behind, printed_digits, rounding_interval, scaled_counts
from art_rs_plugin.core.radii import RADII, FloatArray
from art_rs_plugin.experiments.ledger import read_ledger, rebound

PAPER_VOTES = 100_000
"""The paper's n, supposed of logs that do not say theirs."""


def from_ledger(path: Path, *, alpha: float | None = None, n: int | None = None, radius: str = "cohen") -> pd.DataFrame:
    """A ledger's certificates at another alpha, radius formula or number of votes, by its counts.

    Votes that were looked at as they came in are bounded by their own spending (`rows.rebound`), and have no number of
    votes to be changed. The columns are `index, label, prediction, radius, radius_high`, the last two the same;
    `attrs` hold `alpha`, `n` and `extrapolated`.

    :param n: Another number of votes, at the same shares: an extrapolation, never a certificate.
    :raises ValueError: The ledger cannot be bounded anew, or `n` is asked of votes whose number was not fixed.
    """
    header, rows = read_ledger(path)
    drawn_by = header.get("rule", {}).get("name")
    if n is not None and drawn_by != Fixed.name:
        raise ValueError(
            f"`n` can be changed only where it was fixed before the votes were drawn, not where the rule {drawn_by!r} "
            f"chose it, as in {path}"
        )
    made = []
    for row in rows:
        certificate = rebound(header, row, alpha=alpha, radius=radius)
        if n is not None:
            certificate = certify_from_counts(
                _scaled(row["counts"], row["selected"], n),
                row["selected"],
                radius=partial(RADII[radius], sigma=header["noise"]["sigma"]),
                n0=row["n0"],
                alpha=certificate.alpha,
                bound=header["rule"]["bound"],
                uniform=row.get("uniform"),
            )
        made.append((row["index"], row["label"], certificate.prediction, certificate.radius, certificate.radius))
    level = alpha if alpha is not None else rows[0]["alpha"] if rows else None
    return _frame(made, alpha=level, n=n if n is not None else header["rule"].get("n"), extrapolated=n is not None)


def from_radii(
    log: pd.DataFrame,
    *,
    sigma: float,
    log_alpha: float,
    log_n: int = PAPER_VOTES,
    alpha: float | None = None,
    n: int | None = None,
    radius: str = "cohen",
) -> pd.DataFrame:
    """The certificates of a log without counts at another alpha, radius formula or number of votes.

    Each printed radius stands for all counts whose radius prints so: `radius` is the least, `radius_high` the largest
    that they give. An abstention stands for every count that certifies nothing: its `radius` is 0, its `radius_high`
    what the largest of these gives, for whatever class. Columns and `attrs` otherwise as in `from_ledger`.

    :param log: As `logs.read_log` returns it, of votes whose number `log_n` was fixed and of certificates at
        `log_alpha`: see `core.projection.inferred_alphas`.
    :raises ValueError: A radius is not attainable at `log_alpha` with `log_n` votes, or an option is out of range.
    """
    formula = RADII[checks.one_of("radius", radius, RADII)]
    radii = log["radius"].to_numpy()
    certified = (log["prediction"] != ABSTAIN).to_numpy() & (radii > 0)
    least, largest = counts_behind(
        np.where(certified, radii, 0.0), sigma=sigma, n=log_n, alpha=log_alpha, digits=printed_digits(radii)
    )
    impossible = least > largest
    if impossible.any():
        raise ValueError(
            f"the radius {radii[impossible][0]} is that of no count out of {log_n} votes at alpha = {log_alpha} "
            f"(sigma = {sigma}): the log was made with another number of votes, or at another level"
        )
    votes, level = log_n if n is None else n, log_alpha if alpha is None else alpha
    ends = []
    for counts, up in ((least, False), (largest, True)):
        distinct, where = np.unique(scaled_counts(counts, log_n, votes, up=up), return_inverse=True)
        # to the last bit where it is a certificate; what certifies nothing need not wait for that
        p = clopper_pearson_lower(distinct, votes, level) if votes == log_n else _estimate(distinct, votes, level)
        ends.append(formula(p, 1.0 - p, sigma=sigma)[where])
    prediction = np.where(certified & (ends[0] > 0), log["prediction"], ABSTAIN)
    rows = list(zip(log["index"], log["label"], prediction, *ends, strict=True))
    return _frame(rows, alpha=level, n=votes, extrapolated=n is not None and n != log_n)


def by_formula(log: pd.DataFrame, *, sigma: float, radius: str) -> pd.DataFrame:
    """What another radius formula makes of the p_A that Theorem 1 turned into the log's radii, with p_B = 1 - p_A.

    Neither counts nor alpha enter: p_A = Phi(R / sigma). Columns and meaning as in `from_radii`.
    """
    formula = RADII[checks.one_of("radius", radius, RADII)]
    radii = log["radius"].to_numpy()
    low, high = rounding_interval(radii, printed_digits(radii))
    ends = [formula(p, 1.0 - p, sigma=sigma) for p in (ndtr(low / sigma), ndtr(high / sigma))]
    rows = list(zip(log["index"], log["label"], log["prediction"], *ends, strict=True))
    return _frame(rows, alpha=None, n=None, extrapolated=False)


def accuracy_between(projected: pd.DataFrame, radii: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Certified accuracy at each radius, the least and the largest that the ranges of radii allow.

    An example that abstained counts as wrong in the least, and as right in the largest as far as its range goes: the
    log does not say which class it was.
    """
    at = np.asarray(radii, dtype=np.float64)
    abstained = (projected["prediction"] == ABSTAIN).to_numpy()
    right = (projected["prediction"] == projected["label"]).to_numpy() & ~abstained
    low, high = (projected[name].to_numpy()[:, None] for name in ("radius", "radius_high"))
    may_be = right | (abstained & (high[:, 0] > 0))
    return (right[:, None] & (low >= at)).mean(axis=0), (may_be[:, None] & (high >= at)).mean(axis=0)


def _scaled(counts: Sequence[int], selected: int, n: int) -> NDArray[np.int64]:
    """The votes by class out of n at the same shares, rounded against the selected class."""
    scaled = scaled_counts(np.array(counts), sum(counts), n)
    largest = max((label for label in range(len(counts)) if label != selected), key=counts.__getitem__)
    scaled[largest] += n - scaled.sum()
    return scaled


def _estimate(counts: NDArray[np.int64], n: int, alpha: float) -> FloatArray:
    """The Clopper-Pearson bound as SciPy has it, off by some ulps and fast also at millions of votes."""
    return np.where(counts > 0, betaincinv(np.maximum(counts, 1), n - counts + 1, alpha), 0.0)


def _frame(rows: list[tuple[Any, ...]], **attrs: Any) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["index", "label", "prediction", "radius", "radius_high"])
    frame.attrs.update(attrs)
    return frame
