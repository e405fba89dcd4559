"""A ledger audited: whether it agrees with itself, with the images it names, and with the network that made it.

A row that was altered and does not agree with itself is always found (`experiments.remade`). One that still agrees with
itself is found by casting its votes again (`experiments.replay`): all of them, or some with the probability of being
among those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.experiments import checkpoints, runs
from art_rs_plugin.experiments import replay as casting
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.ledger import Row, read_ledger
from art_rs_plugin.experiments.origin import images_of
from art_rs_plugin.experiments.remade import UNFIT, Remake, differences, plain, remaker, short
from art_rs_plugin.experiments.runs import Progress

_KINDS = ("certify", "predict")
_LISTED = 5


@dataclass(frozen=True)
class Finding:
    """Something that was checked: it holds (True), it does not (False), or it could not be verified (None)."""

    what: str
    holds: bool | None
    said: str


def audit(
    path: Path,
    *,
    data_root: Path | None = None,
    checkpoint: Path | None = None,
    model_name: str | None = None,
    replay: int | None = 3,
    tolerance: int = 0,
    rows: int | None = None,
    any_images: bool = False,
    chance: Random | None = None,
    on_row: Progress | None = None,
) -> list[Finding]:
    """All that can be said of a ledger, by what is at hand.

    :param data_root: Folder of the data sets, as in `datasets.load`.
    :param checkpoint: The network's folder or weights, the latter with `model_name`.
    :param replay: How many rows to cast anew, chosen by chance; None for all. Takes a checkpoint and the images.
    :param tolerance: Votes of such a row that may fall otherwise: on another machine, or by another torch, the last bit
        of a logit can differ, and with it a vote that was all but tied.
    :param rows: How many rows there must be: that the last ones are missing, a ledger cannot tell.
    :param any_images: Take rows of any images in any order; else they must be every k-th, from the first on.
    :param chance: Chooses the rows; by default the operating system, so that who altered one cannot know.
    :param on_row: Called with each row that was cast anew, how many are, and how many will be.
    :raises ValueError: The ledger cannot be read, is one of attacks or distances, or an option is unfit.
    :raises FileNotFoundError: There is no ledger or no checkpoint.
    """
    header, entries = read_ledger(path)
    if header["kind"] not in _KINDS:
        raise ValueError(f"{path} must be a ledger of certificates or predictions, got one of kind {header['kind']!r}")
    checks.whole("tolerance", tolerance, minimum=0)
    if replay is not None:
        checks.whole("replay", replay, minimum=0)
    data, why = images_of(header, data_root)
    findings = [
        *_torn(path),
        *_agreement(header, entries),
        _order(header, entries, rows, any_images),
        Finding("labels", None, why) if data is None else _labels(header, entries, data),
    ]
    if any(finding.holds is False for finding in findings):
        findings.append(Finding("network", None, "neither weights nor votes were looked at: what is above is at fault"))
    elif checkpoint is None:
        findings.append(Finding("network", None, "no checkpoint was given: neither its weights nor votes were checked"))
    elif data is None or "noise" not in header:
        findings.append(_weights(header, checkpoints.load_checkpoint(checkpoint)[0]))
        findings.append(Finding("votes", None, f"none can be cast again: {why or 'the certifier casts none'}"))
    else:
        estimator = casting.smoothed(header, checkpoint, model_name, data)
        findings += _network(header, estimator, data)
        if any(finding.holds is False for finding in findings):
            findings.append(Finding("votes", None, "none were cast again, for the network is another"))
        elif replay == 0:
            findings.append(Finding("votes", None, "none were cast again: a row altered consistently is not found"))
        else:
            chance = SystemRandom() if chance is None else chance
            findings.append(_votes(header, entries, estimator, data, replay, tolerance, chance, on_row))
    findings.append(Finding("the run", None, "seconds, versions and device are what the run itself says"))
    return findings


def _torn(path: Path) -> Iterator[Finding]:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            yield Finding("last line", None, "it is torn, as by a run that was stopped, and was left out")


def _agreement(header: Row, entries: list[Row]) -> Iterator[Finding]:
    """Whether the header is one that a run writes, and whether the rows follow from their votes."""
    try:
        remake = remaker(header, entries)
    except UNFIT as error:
        yield Finding("header", False, _reason(error))
        return
    noise = f"sigma {header['noise']['sigma']:g}, " if "noise" in header else ""
    yield Finding("header", True, f"{header['kind']}, {noise}seed {header['seed']}, whole")
    if remake is None:
        yield Finding("rows", None, f"radii of the rule {short(header['rule']['name'])} do not follow from its rows")
        return
    problems = [f"line {line} (image {row['index']}): {said}" for line, row in enumerate(entries, 2)
                if (said := _problem(row, remake))]  # fmt: skip
    if problems:
        yield Finding("rows", False, _listed(problems))
    else:
        by = f"the rule {header['rule']['name']}, alpha {header['rule']['alpha']:g}"
        yield Finding("rows", True, f"all {len(entries)} follow from their votes by {by}")


def _problem(row: Row, remake: Remake) -> str:
    """What is wrong with a row; nothing if it is the one that its votes give."""
    try:
        checks.whole("label", row["label"], minimum=0)
        checks.non_negative("seconds", row["seconds"])
        return differences(row, remake(row))
    except UNFIT as error:
        return _reason(error)


def _order(header: Row, entries: list[Row], rows: int | None, any_images: bool) -> Finding:
    """Whether the rows are those of one run: every k-th image, from the first on, in order."""
    indices = [row["index"] for row in entries]
    if rows is not None and rows != len(indices):
        return Finding("images", False, f"there must be {rows} rows, and there are {len(indices)}")
    try:
        images = checks.whole("data.images", header["data"]["images"])
    except UNFIT as error:
        return Finding("images", None, _reason(error))
    if outside := [f"image {index}" for index in indices if index >= images]:
        return Finding("images", False, f"there are {images}, but of rows {_listed(outside)}")
    if any_images:
        return Finding("images", None, f"{len(indices)} of {images}, in any order: whether one is left out, is open")
    step = max(indices[1] - indices[0], 1) if len(indices) > 1 else images
    # what a run was asked for it does not say; this is what `certify`, `predict` and `compare` ask for
    for line, (index, due) in enumerate(zip(indices, range(0, images * step, step), strict=False), 2):
        if index != due:
            problem = f"line {line} is image {index}, where image {due} is due: a row is missing, moved or added"
            return Finding("images", False, problem)
    whole = len(indices) > 1 and indices[-1] + step >= images
    if rows is not None or (whole and step == 1):
        end = "none is missing"
    else:
        doubt = "others between them are missing" if whole else "the last ones are missing"
        end = f"whether {doubt}, is open (--rows says how many there are)"
    which = f", every {step}-th" if len(indices) > 1 and step > 1 else ""
    return Finding("images", True, f"{len(indices)} of {images}{which}, in order; {end}")


def _labels(header: Row, entries: list[Row], data: DataSet) -> Finding:
    if header["data"].get("images") != len(data):
        return Finding("labels", False, f"`data.images` is {short(header['data'].get('images'))}, not {len(data)}")
    inside = [row for row in entries if row["index"] < len(data)]
    problems = []
    for first in range(0, len(inside), 256):
        some = inside[first : first + 256]
        for row, label in zip(some, data.arrays([row["index"] for row in some])[1].tolist(), strict=True):
            if plain(row["label"]) != plain(label):
                problems.append(f"image {row['index']} is of class {label}, not {short(row['label'])}")
            if "counts" in row and len(row["counts"]) != data.nb_classes:
                problems.append(f"image {row['index']} has votes for {len(row['counts'])} classes of {data.nb_classes}")
    if problems:
        return Finding("labels", False, _listed(problems))
    return Finding("labels", True, f"all {len(inside)} are those of {data.name}, {data.split} split")


def _weights(header: Row, model: torch.nn.Module) -> Finding:
    here, named = checkpoints.model_hash(model), header["model"]["hash"]
    if here != named:
        return Finding("weights", False, f"those of the checkpoint have the hash {here}, not the header's {named}")
    return Finding("weights", True, f"those of the checkpoint have the header's hash, {here[:23]}...")


def _network(header: Row, estimator: Any, data: DataSet) -> Iterator[Finding]:
    """Whether a network is the one that a header names: its weights, and the modules they sit in."""
    yield _weights(header, estimator.model)
    if runs.identity(estimator, data)["model"]["structure"] == header["model"].get("structure"):
        yield Finding("modules", True, "those that the weights sit in are the header's")
    elif header["versions"].get("torch") != torch.__version__:
        yield Finding("modules", None, "the header has another torch, which may describe them otherwise")
    else:
        yield Finding("modules", False, "those that the weights sit in are not the header's")


def _votes(
    header: Row,
    entries: list[Row],
    estimator: Any,
    data: DataSet,
    replay: int | None,
    tolerance: int,
    chance: Random,
    on_row: Progress | None,
) -> Finding:
    """Whether the network casts the votes of some rows again."""
    if why := casting.hindrance(header, estimator):
        return Finding("votes", None, f"none can be cast again: {why}")
    total = len(entries)
    chosen = entries if replay is None or replay >= total else chance.sample(entries, replay)
    found = casting.cast_again(header, chosen, estimator, data, tolerance=tolerance, on_row=on_row)
    share = f"{len(chosen)} of {total} rows were cast again"
    if found.problems:
        other = [] if header["versions"].get("torch") == torch.__version__ else [
            f"this is torch {torch.__version__}, the header's {header['versions'].get('torch')}, "
            "by which a vote that was all but tied can fall otherwise (--tolerance)"
        ]  # fmt: skip
        return Finding("votes", False, "; ".join([f"{share}, not alike: {_listed(found.problems)}", *other]))
    apart = f"the same, but for {found.moved} votes" if found.moved else "the same"
    odds = f"; one altered row would have been among them with probability {len(chosen)}/{total}"
    return Finding("votes", True, f"{share}, {apart}{odds if len(chosen) < total else ''}")


def _listed(problems: list[str]) -> str:
    """Problems in words, the first few of many."""
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return "; ".join(problems[:_LISTED]) + more


def _reason(error: Exception) -> str:
    return f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
