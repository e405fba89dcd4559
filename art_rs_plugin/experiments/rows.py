"""Budgets and certificates as a ledger holds them, and rows bounded anew by what their rule of drawing votes allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import RANDOMIZED
from art_rs_plugin.core.budgets import BUDGETS, Fixed, Looks, Pilot, PilotCertificate
from art_rs_plugin.core.certificate import Certificate, VoteCertificate, certify_from_counts
from art_rs_plugin.core.looks import LooksCertificate, certify_from_looks, spending
from art_rs_plugin.core.radii import RADII, FloatArray, near_gaussian
from art_rs_plugin.core.rounded import total_variation

Row = dict[str, Any]
# what a certificate from votes adds to a row, with which it can be bounded anew
VOTE_KEYS = ("counts", "selected", "p_lower", "p_upper", "n0", "n")


def rule_of(budget: Any) -> dict[str, Any]:
    """What a ledger's header says of a budget: its name and its fields.

    :raises TypeError: For a budget that is no dataclass, or has no name or fields that a header can hold.
    """
    name = getattr(budget, "name", None)
    if not is_dataclass(budget) or isinstance(budget, type) or not isinstance(name, str):
        raise TypeError(
            f"`budget` must be a dataclass with a `name`, for the ledger to say what drew its votes, got {budget!r}"
        )
    if BUDGETS.get(name, type(budget)) is not type(budget):
        # a reader of the ledger takes the name for what it says of the votes
        raise TypeError(f"`budget` must have a `name` that is not another budget's, got {budget!r} named {name!r}")
    rule = {"name": name, **asdict(budget)}
    try:
        json.dumps(rule, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`budget` must have fields that JSON can hold, got {budget!r}: {error}") from None
    return rule


def row_of(certificate: Certificate, label: int, seconds: float) -> Row:
    """The ledger's row for one certificate. Floats are written by `repr`, so that they come back exactly.

    Where votes decided how many votes to draw, the row holds what that rule's certificate adds (the looks, the pilot),
    and as `votes` all that were drawn for it.
    """
    row: Row = {
        "index": int(certificate.index),
        "label": int(label),
        "prediction": int(certificate.prediction),
        "radius": float(certificate.radius),
    }
    if isinstance(certificate, VoteCertificate):
        row |= {name: getattr(certificate, name) for name in VOTE_KEYS}
        if certificate.uniform is not None:
            row["uniform"] = float(certificate.uniform)
        common = {field.name for field in fields(VoteCertificate)}
        added = {field.name: getattr(certificate, field.name) for field in fields(certificate)}
        row |= {name: value for name, value in added.items() if name not in common}
        if type(certificate) is not VoteCertificate:
            row["votes"] = int(certificate.votes)
    return row | {"alpha": float(certificate.alpha), "seconds": float(seconds)}


def rebound(
    header: Mapping[str, Any],
    row: Mapping[str, Any],
    *,
    alpha: float | None = None,
    bound: str | None = None,
    radius: str = "cohen",
) -> VoteCertificate:
    """The certificate that this row's votes give for another alpha, bound or radius formula; no forward pass.

    It holds with probability 1 - alpha if alpha and bound were chosen without a look at the votes. Votes that were
    looked at as they came in are bounded by every look and its share of alpha, never as if their number had been fixed:
    that would err about eleven times as often.

    :param alpha: Default: the row's own, spent as the run spent it; another is spent anew by `core.looks.spending`.
    :param bound: A name in `core.bounds.BOUNDS`. Default: the ledger's own.
    :param radius: A name in `core.radii.RADII`; votes of sound mode have no other than "cohen".
    :raises ValueError: For a ledger of predictions, or of noise or a rule that is not known here; for a row that its
        rule cannot have left; and for a bound that needs a number that the run did not draw.
    """
    if header.get("kind") != "certify":
        raise ValueError(f"only a ledger of certificates can be bounded anew, not one of kind {header.get('kind')!r}")
    rule, noise = header["rule"], header["noise"]
    if rule["name"] not in _RULES:
        raise ValueError(
            f"the votes must be drawn by a rule whose bounds are known, {', '.join(map(repr, _RULES))}, "
            f"got {rule['name']!r}: it may stop when the votes look good (optional stopping)"
        )
    if noise["name"] not in _RADIUS_UNDER:
        raise ValueError(f"the noise must be one of {', '.join(map(repr, _RADIUS_UNDER))}, got {noise['name']!r}")
    _check_row(rule["name"], row)
    bound = rule["bound"] if bound is None else bound
    if bound in RANDOMIZED and row.get("uniform") is None:
        raise ValueError(
            f"the bound {bound!r} needs the number `uniform` that is drawn along with the votes, and example "
            f"{row['index']} has none: it was certified by another bound"
        )
    checks.one_of("radius", radius, RADII)
    _, certify = _RULES[rule["name"]]
    return certify(
        rule,
        row,
        alpha,
        radius=_RADIUS_UNDER[noise["name"]](noise, radius),
        n0=row["n0"],
        bound=bound,
        index=row["index"],
        seed=header.get("seed"),
        uniform=row["uniform"] if bound in RANDOMIZED else None,
    )


def _check_row(name: str, row: Mapping[str, Any]) -> None:
    """ValueError for a row that a run by the rule `name` cannot have left."""
    example = f"example {row['index']}"
    missing = [key for key in VOTE_KEYS if key not in row]
    if missing:
        raise ValueError(f"{example} was not certified by votes: its row has no {', '.join(missing)}")
    if sum(row["counts"]) != row["n"]:
        raise ValueError(f"the counts of {example} add up to {sum(row['counts'])}, but `n` is {row['n']}")
    needed, _ = _RULES[name]
    missing = [key for key in needed if key not in row]
    if missing:
        raise ValueError(
            f"the votes of {example} were drawn by the rule {name!r}, but its row has no {', '.join(missing)}: "
            "without, a bound would err far more often than alpha (optional stopping)"
        )
    for other, (keys, _) in _RULES.items():
        if other != name and any(key in row for key in keys):
            raise ValueError(
                f"the votes of {example} were drawn by the rule {other!r}, whose {keys[-1]} its row holds, not by "
                f"{name!r}, whose bound would err far more often than alpha (optional stopping)"
            )


def _fixed(rule: Mapping[str, Any], row: Mapping[str, Any], alpha: float | None, **options: Any) -> VoteCertificate:
    # another number than was planned: some rule must have looked at the votes
    _agree(row, "`n`", row["n"], rule.get("n"))
    return _certify(row, alpha, **options)


def _pilot(rule: Mapping[str, Any], row: Mapping[str, Any], alpha: float | None, **options: Any) -> PilotCertificate:
    _agree(row, "the number of pilot votes", sum(row["pilot"]), rule.get("n_pilot"))
    # given the pilot the number of votes is fixed, and the pilot's own are not among them
    return PilotCertificate(**vars(_certify(row, alpha, **options)), pilot=tuple(row["pilot"]))


def _looks(rule: Mapping[str, Any], row: Mapping[str, Any], alpha: float | None, **options: Any) -> LooksCertificate:
    schedule, looks = list(row["schedule"]), [list(look) for look in row["looks"]]
    _agree(row, "the end of the schedule", schedule[-1:], [rule.get("n_max")])
    if looks[-1:] != [list(row["counts"])]:
        raise ValueError(f"the counts of example {row['index']} are not those of its last look: {looks[-1:]}")
    if alpha is None:
        alpha, spend = row["alpha"], row["spend"]
    else:
        # shares for every look that could be taken: so it holds whatever rule stopped the run
        spend = spending(checks.in_unit_interval("alpha", alpha), len(schedule))
    return certify_from_looks(looks, row["selected"], schedule=schedule, spend=spend, alpha=alpha, **options)


def _certify(row: Mapping[str, Any], alpha: float | None, **options: Any) -> VoteCertificate:
    level = row["alpha"] if alpha is None else alpha
    return certify_from_counts(row["counts"], row["selected"], alpha=level, **options)


def _agree(row: Mapping[str, Any], what: str, here: object, there: object) -> None:
    if here != there:
        raise ValueError(
            f"{what} of example {row['index']} is {here}, but by the ledger's rule it is {there}: "
            "a bound for votes drawn by another rule might not hold (optional stopping)"
        )


def _gaussian(noise: Mapping[str, Any], radius: str) -> Callable[[float, float], FloatArray]:
    return partial(RADII[radius], sigma=noise["sigma"])


def _rounded_gaussian(noise: Mapping[str, Any], radius: str) -> Callable[[float, float], FloatArray]:
    if radius != "cohen":
        raise ValueError(f"`radius` must be 'cohen' for votes of sound mode, got {radius!r}, for Gaussian noise alone")
    distance = total_variation(noise["sigma"], noise["dimension"])
    return partial(near_gaussian, sigma=noise["sigma"], distance=distance)


# by the noise of a ledger: (what its header says of it, name of a formula) -> radius
_RADIUS_UNDER: dict[str, Callable[[Mapping[str, Any], str], Callable[[float, float], FloatArray]]] = {
    "gaussian": _gaussian,
    "rounded-gaussian": _rounded_gaussian,
}

# by the rule that drew the votes: what its rows hold beyond `VOTE_KEYS`, and how they are bounded
_RULES: dict[str, tuple[tuple[str, ...], Callable[..., VoteCertificate]]] = {
    Fixed.name: ((), _fixed),
    Looks.name: (("schedule", "spend", "looks"), _looks),
    Pilot.name: (("pilot",), _pilot),
}
