"""Rows of a ledger made anew from the votes that they hold, by the rule that its header names.

The rule is driven as it was in the run: it must ask for the votes that the row holds, no more and no fewer, and leave
that very row. So a radius, bound, count, alpha or number of votes that does not go with the others is found in any row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from art_rs_plugin import certifiers
from art_rs_plugin.arithmetic import PRECISIONS
from art_rs_plugin.certifiers.smoothing import Smoothing
from art_rs_plugin.core import checks
from art_rs_plugin.core.budgets import BUDGETS, Budget, Draw, Task, drive
from art_rs_plugin.core.certificate import predict_from_counts
from art_rs_plugin.experiments.datasets import SPLITS
from art_rs_plugin.experiments.ledger import Row, rebound, row_of
from art_rs_plugin.experiments.rows import rule_of
from art_rs_plugin.noise import Purpose, distribution, uniform

Remake = Callable[[Row], Row]
"""A row -> the row that the header's rule leaves of the same votes; one of `UNFIT` where it leaves none."""

UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""What a header or row of the wrong kind can raise."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def remaker(header: Row, rows: list[Row]) -> Remake | None:
    """How the rows of a ledger are made anew; None where they do not follow from votes by a rule that is known here.

    :raises ValueError, TypeError, KeyError, AttributeError: The header is none that a run writes: says why.
    """
    by_votes = "noise" in header or any("counts" in row for row in rows)
    needed = ["model", "seed", "data", "rule", "versions", *(["noise", "precision"] if by_votes else ["certifier"])]
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"it has no {', '.join(f'`{name}`' for name in missing)}")
    checks.whole("seed", header["seed"], minimum=0)
    for name, value in {"data.name": header["data"]["name"], "rule.name": header["rule"]["name"]}.items():
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must be a text, got {short(value)}")
    checks.whole("data.images", header["data"]["images"])
    checks.one_of("data.split", header["data"]["split"], SPLITS)
    if not _HASH.fullmatch(header["model"]["hash"]):
        raise ValueError(f"`model.hash` must be sha256: and 64 digits, got {short(header['model']['hash'])}")
    if not by_votes:
        return None
    checks.one_of("precision", header["precision"].split(", ")[0], PRECISIONS)
    distribution(header["noise"])
    return _REMAKES[header["kind"]](header)


def budget_of(header: Mapping[str, Any]) -> tuple[Budget, bool]:
    """The rule that drew a ledger's votes, and whether it was told the labels.

    :raises ValueError, TypeError, KeyError: The header names no such rule.
    """
    told = dict(header["rule"])
    name = checks.one_of("rule.name", told.pop("name"), BUDGETS)
    checks.in_unit_interval("rule.alpha", told.pop("alpha"))
    if not isinstance(known := told.pop("known_labels", False), bool):
        raise ValueError(f"`rule.known_labels` must be true or false, got {short(known)}")
    budget = BUDGETS[name](**told)
    if plain(rule_of(budget)) != plain({"name": name, **told}):
        raise ValueError(f"`rule` must be whole, as a run writes it, {rule_of(budget)}, got {header['rule']}")
    return budget, known


def differences(row: Row, made: Row) -> str:
    """Where a row is not what was made anew, in words; empty where it is."""
    nothing = object()
    pairs = {key: (row.get(key, nothing), made.get(key, nothing)) for key in {**made, **row}}
    return "; ".join(
        f"`{key}` is {'missing' if here is nothing else short(here)}, "
        f"and must be {'left out' if there is nothing else short(there)}"
        for key, (here, there) in pairs.items()
        if here is nothing or there is nothing or plain(here) != plain(there)
    )


def _certificates(header: Row) -> Remake | None:
    if header["rule"]["name"] not in BUDGETS:
        return None  # a user's own rule
    budget, known = budget_of(header)
    noise = distribution(header["noise"])
    seed, alpha = header["seed"], header["rule"]["alpha"]
    of = certifiers.get(header["certifier"]["name"]) if "certifier" in header else Smoothing
    formula = of.radius if issubclass(of, Smoothing) else Smoothing.radius

    def remake(row: Row) -> Row:
        task = Task(
            radius=noise.radius,
            alpha=alpha,
            index=row["index"],
            seed=seed,
            norm=noise.norm,
            label=row["label"] if known else None,
            uniform=uniform(seed, Purpose.BOUND, row["index"]),
        )
        made = row_of(drive(budget.steps(task), _recorded(row)), row["label"], row["seconds"])
        if formula != Smoothing.radius:
            # the same bounds by a formula from before Theorem 1
            made = row_of(rebound(header, json.loads(plain(made)), radius=formula), row["label"], row["seconds"])
        return made

    return remake


def _predictions(header: Row) -> Remake:
    rule = header["rule"]
    n, alpha = checks.whole("rule.n", rule["n"]), checks.in_unit_interval("rule.alpha", rule["alpha"])
    if plain(rule) != plain({"name": "fixed", "n": n, "alpha": alpha}):
        raise ValueError(f"`rule` must be that of a prediction, with name fixed, n and alpha, got {rule}")

    def remake(row: Row) -> Row:
        counts = [checks.whole("counts", count, minimum=0) for count in row["counts"]]
        if sum(counts) != n:
            raise ValueError(f"its counts add up to {sum(counts)}, and its rule draws {n}")
        return {
            "index": row["index"],
            "label": row["label"],
            "prediction": predict_from_counts(counts, alpha),
            "counts": counts,
            "n": n,
            "alpha": alpha,
            "seconds": row["seconds"],
        }

    return remake


_REMAKES: dict[str, Callable[[Row], Remake | None]] = {"certify": _certificates, "predict": _predictions}


def _recorded(row: Row) -> Draw:
    """The votes of a row, given out as they were drawn; of the selection it keeps only who won."""
    every = np.asarray(row.get("looks", [row["counts"]]))
    left = {
        "pilot": [np.asarray(row[name]) for name in ("pilot",) if name in row],
        "estimation": list(np.diff(every, axis=0, prepend=np.zeros_like(every[:1]))),
    }

    def draw(purpose: str, votes: int) -> Any:
        if purpose == "selection":
            winner = checks.whole("selected", row["selected"], minimum=0)
            return np.bincount([winner], minlength=every.shape[1]) * votes
        if not left[purpose]:
            raise ValueError(f"its rule asks for {votes} {purpose} votes more, and it holds none")
        counts = left[purpose].pop(0)
        if counts.sum() != votes:
            raise ValueError(f"its rule asks for {votes} {purpose} votes, and it holds {counts.sum()}")
        return counts

    return draw


def plain(value: Any) -> str:
    """JSON text, by which true is not 1 and 1 not 1.0."""
    return json.dumps(value, sort_keys=True)


def short(value: Any) -> str:
    """JSON text of a length that fits."""
    text = plain(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-16:]}"
