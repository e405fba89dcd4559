"""Votes of a ledger cast again, from its own seed, by the network that it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import runs
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.ledger import Row, row_of
from art_rs_plugin.experiments.remade import UNFIT, budget_of, differences, plain
from art_rs_plugin.noise import SOUND
from art_rs_plugin.randomness import TORCH

_AT_ONCE = 64  # images, whose votes share forward passes
_CHOICES = ("selected", "n0", "n")  # what a row says of its votes, and the votes
_VOTES = ("counts", "pilot", "looks")


@dataclass(frozen=True)
class Recast:
    """What came of it: rows whose votes were others, in words, and how many votes of the rest fell otherwise."""

    problems: list[str]
    moved: int


def smoothed(header: Row, checkpoint: Path, model_name: str | None, data: DataSet) -> RandomizedSmoothingPyTorch:
    """The smoothed network of a checkpoint, with the noise, seed, precision and, if there is one, GPU of a header.

    :raises ValueError, FileNotFoundError: There is no such network, or one for other images.
    """
    model, _ = runs.open_network(checkpoint, data, model_name)
    precision, *more = header["precision"].split(", ")
    return RandomizedSmoothingPyTorch(
        model,
        header["noise"]["sigma"],
        alpha=header["rule"]["alpha"],
        seed=header["seed"],
        input_shape=data.input_shape,
        nb_classes=data.nb_classes,
        precision=precision,
        compile="compiled" in more,
        sound=header["noise"]["name"] in {kind.name for kind in SOUND.values()},
        randomness=header["noise"].get("randomness", TORCH),
        device_type="cpu" if _device(header).startswith("cpu") or not torch.cuda.is_available() else "gpu",
    )


def hindrance(header: Row, estimator: RandomizedSmoothingPyTorch) -> str:
    """Why this network cannot cast votes as those of a ledger were cast; empty if it can."""
    if header["kind"] == "certify":
        try:
            budget_of(header)
        except UNFIT as error:
            return f"its rule is none that is known here: {error}"
    here, there = runs.device_name(estimator.device), _device(header)
    if here != there and not (here.startswith("cpu") and there.startswith("cpu")):
        return f"noise on {there} is another than on {here}"
    if estimator.arithmetic != header["precision"]:
        return f"they were cast in {header['precision']}, which would be {estimator.arithmetic} here"
    return ""


def cast_again(
    header: Row,
    rows: list[Row],
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    *,
    tolerance: int = 0,
    on_row: runs.Progress | None = None,
) -> Recast:
    """Cast the votes of these rows again, and compare; parameters as in `audit.audit`."""
    problems, moved, done = [], 0, 0
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        for row, made in zip(some, _made(header, some, estimator, data), strict=True):
            drawn = {name: made[name] for name in (*_CHOICES, *_VOTES) if name in made}
            apart = _apart(row, drawn)
            if apart is None or apart > tolerance:
                problems.append(f"image {row['index']}: {differences({name: row.get(name) for name in drawn}, drawn)}")
            else:
                moved += apart
            done += 1
            if on_row is not None:
                on_row(row, done, len(rows))
    return Recast(problems, moved)


def _made(header: Row, rows: list[Row], estimator: RandomizedSmoothingPyTorch, data: DataSet) -> list[Row]:
    """The rows that the network leaves of the same images, by the same rule and seed."""
    indices = [row["index"] for row in rows]
    x, y = data.arrays(indices)
    if header["kind"] == "predict":
        n = header["rule"]["n"]
        return [{"counts": counts.tolist(), "n": n} for counts in estimator.votes(x, n, indices=indices)]
    budget, known = budget_of(header)
    made = estimator.certificates(x, indices=indices, budget=budget, y=y if known else None)
    return [row_of(certificate, int(label), 0.0) for certificate, label in zip(made, y, strict=True)]


def _apart(row: Row, drawn: Row) -> int | None:
    """How many votes fell otherwise; None where they cannot be compared, for other ones were drawn."""
    if any(plain(row.get(name)) != plain(drawn[name]) for name in _CHOICES if name in drawn):
        return None
    votes = 0
    for name in (name for name in _VOTES if name in drawn):
        here, there = np.asarray(row[name]), np.asarray(drawn[name])
        if here.shape != there.shape:
            return None
        votes = max(votes, int(np.abs(here - there).sum(axis=-1).max() + 1) // 2)
    return votes


def _device(header: Row) -> str:
    return str(header.get("device", "cpu"))  # those of `art-rs compare` do not say
