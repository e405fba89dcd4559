"""Certifiers beside each other on the same images: what a comparison is, and how it is run."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.certifiers import Certifier, UpperBound
from art_rs_plugin.certifiers.smoothing import Smoothing
from art_rs_plugin.core import checks
from art_rs_plugin.experiments import checkpoints, datasets, models, runs
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.ledger import Ledger, Row, read_ledger, rebound, row_of
from art_rs_plugin.experiments.rows import rule_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_AT_ONCE = 16  # images: lost at most when a run is stopped
_LABEL = "-_.,= +()"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A certifier and the network that it is given.

    :param certifier: A name in `certifiers.available()`.
    :param checkpoint: Folder that `art-rs train` wrote, or a file of weights with `model`, the name of a network, and
        with `mean` and `std` if they are not the data set's. None: a fresh network `model`, for `fit` to train.
    :param label: In tables, in the legend, and the name of its ledger.
    :param fit: Options of the certifier's own training, such as `{"epochs": 10}`, on the training images; without, the
        network is certified as it is.
    :param options: Of the certifier's `build`. `sigma` and `seed` are the checkpoint's and the comparison's if it takes
        them and they are not given, and so are `radii`.
    """

    certifier: str
    checkpoint: Path | None = None
    model: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    label: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        certifiers.get(self.certifier)
        label = self.label or self.certifier
        if not all(character.isalnum() or character in _LABEL for character in label) or label.startswith("."):
            raise ValueError(f"`label` must be of letters, digits and {_LABEL!r}, for it names a file, got {label!r}")
        object.__setattr__(self, "label", label)
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        elif self.model is None or not self.fit:
            raise ValueError(f"`checkpoint` must be given, or `model` and `fit` for a fresh network; none for {label}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Entries on the same images of a data set.

    :param images: How many, evenly spread over the data set.
    :param radii: Of the table, in the unit of the data and the norm of the comparison.
    :param norm: 2, or inf.
    """

    data: str
    entries: tuple[Entry, ...]
    radii: tuple[float, ...]
    images: int = 100
    split: str = "test"
    norm: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("images", self.images)
        checks.whole("seed", self.seed, minimum=0)
        checks.one_of("norm", self.norm, (2, float("inf")))
        if not self.entries:
            raise ValueError("`entry` must name at least one certifier, got none")
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise ValueError(f"each `label` must be another, got {', '.join(labels)}")
        for radius in self.radii:
            checks.non_negative("radii", radius)

    def indices(self, data: DataSet) -> list[int]:
        """Which images."""
        return list(range(0, len(data), max(1, len(data) // self.images)))[: self.images]


def load(path: Path) -> Comparison:
    """A comparison from a TOML file: the keys of `Comparison`, and a table `[[entry]]` for each entry.

    Checkpoints are relative to the file.

    :raises FileNotFoundError: There is no such file.
    :raises ValueError, TypeError: What is there is no comparison; names the file and what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"comparison `{path}` does not exist")
    try:
        told = tomllib.loads(path.read_text())
        entries = tuple(Entry(**entry) for entry in told.pop("entry", []))
        here = [
            entry if entry.checkpoint is None else replace(entry, checkpoint=path.parent / entry.checkpoint)
            for entry in entries
        ]
        return Comparison(**{**told, "radii": tuple(told.get("radii", ())), "entries": tuple(here)})
    except (ValueError, TypeError) as error:  # TOMLDecodeError is a ValueError
        raise type(error)(f"{path}: {error}") from error


def run(
    comparison: Comparison,
    out: Path,
    *,
    data_root: Path | None = None,
    on_row: Callable[[str, int, int], object] | None = None,
) -> dict[str, Path]:
    """Certify every entry's images into a ledger of its own in the folder `out`, going on where it stopped.

    Smoothing with another radius formula takes the votes of an entry with the same network and options, if one comes
    before it.

    :param on_row: Called with the entry's label, how many images are done, and how many there are.
    :return: The ledgers by label.
    :raises LedgerMismatch: A ledger in `out` is of another run.
    :raises ValueError, ImportError: An entry cannot be built; names it. What is finished stays.
    """
    data = datasets.load(comparison.data, comparison.split, root=data_root)
    indices = comparison.indices(data)
    paths: dict[str, Path] = {}
    votes: dict[str, Path] = {}
    for entry in comparison.entries:
        try:
            certifier, model, options = _built(entry, comparison, data)
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            raise type(error)(f"{entry.label}: {error}") from error
        path = out / f"{entry.label}.jsonl"
        header = _header(entry, certifier, model, options, comparison, data)

        def say(done: int, label: str = entry.label) -> None:
            if on_row is not None:
                on_row(label, done, len(indices))

        drawn = repr((checkpoints.model_hash(model), entry.model, sorted(options.items(), key=str)))
        with Ledger.open(path, header) as ledger:
            missing = [index for index in indices if index not in ledger.done]
            done = len(indices) - len(missing)
            if isinstance(certifier, Smoothing) and drawn in votes:
                of_votes, rows = read_ledger(votes[drawn])
                known = {row["index"]: row for row in rows}
                for index in missing:
                    ledger.append(_reread(of_votes, known[index], certifier.radius))
                missing = []
                say(len(indices))
            if missing and entry.fit:
                _fit(certifier, entry, datasets.load(comparison.data, "train", root=data_root))
            for first in range(0, len(missing), _AT_ONCE):
                names = missing[first : first + _AT_ONCE]
                for row in _rows(certifier, *data.arrays(names), names):
                    ledger.append(row)
                done += len(names)
                say(done)
        if isinstance(certifier, Smoothing):
            votes.setdefault(drawn, path)
        paths[entry.label] = path
    return paths


def _built(
    entry: Entry, comparison: Comparison, data: DataSet
) -> tuple[Certifier | UpperBound, nn.Module, dict[str, Any]]:
    """The certifier of an entry, its network, and the options that it was built with."""
    kind = certifiers.get(entry.certifier)
    if entry.checkpoint is None:
        model, sigma = _fresh(entry, data, getattr(kind, "channels", 1), comparison.seed), None
    else:
        model, sigma = runs.open_network(entry.checkpoint, data, entry.model, mean=entry.mean, std=entry.std)
    taken = {**inspect.signature(kind.__init__).parameters, **inspect.signature(kind.build).parameters}
    usual = {"sigma": sigma, "seed": comparison.seed, "radii": list(comparison.radii)}
    if issubclass(kind, UpperBound):
        usual.pop("sigma")  # whether g is attacked, or f, is for the entry to say
    options = {name: value for name, value in usual.items() if name in taken} | dict(entry.options)
    if entry.fit and not hasattr(kind, "fit"):
        raise ValueError(f"`fit` must not be given for `{entry.certifier}`, which has no training of its own")
    built = kind.build(model, input_shape=data.input_shape, nb_classes=data.nb_classes, **options)
    return built, model, options


def _fresh(entry: Entry, data: DataSet, times: int, seed: int) -> nn.Module:
    """The network that an entry names, of so many times the channels of an image, its weights drawn from the seed."""
    assert entry.model is not None
    channels, height, width = data.input_shape
    usual = (data.mean, data.std) if times == 1 else (None, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(
            entry.model, input_shape=(times * channels, height, width), nb_classes=data.nb_classes,
            mean=entry.mean or usual[0], std=entry.std or usual[1],
        ).eval()  # fmt: skip


def _header(
    entry: Entry,
    certifier: Certifier | UpperBound,
    model: nn.Module,
    options: dict[str, Any],
    comparison: Comparison,
    data: DataSet,
) -> dict[str, Any]:
    header: dict[str, Any] = {
        "kind": "certify" if isinstance(certifier, Certifier) else "distance",
        "certifier": {
            "name": entry.certifier,
            **({"fit": dict(entry.fit)} if entry.fit else {}),
            "certifies": certifier.certifies,
            "norm": str(certifier.norm),
            "alpha": getattr(certifier, "alpha", 0.0),
            **{
                name: str(value) if value == math.inf else value
                for name, value in options.items()
                if name not in ("norm", "alpha")
            },
        },
        "data": {"name": data.name, "split": data.split, "images": len(data)},
        "seed": comparison.seed,
        "versions": runs.versions(),
    }
    if isinstance(certifier, Smoothing):
        rule = {**rule_of(certifier.budget), "alpha": certifier.alpha}
        return {
            **header,
            **runs.identity(certifier.estimator, data),
            "rule": rule,
            "precision": certifier.estimator.arithmetic,
        }
    return {**header, "model": {"hash": checkpoints.model_hash(model)}, "rule": {"name": entry.certifier}}


def _fit(certifier: Any, entry: Entry, data: DataSet) -> None:
    """Train by the certifier's own method, anew for a run that goes on: with a seed it ends with the same network."""
    certifier.fit(*data.arrays(None), **entry.fit)


def _rows(certifier: Certifier | UpperBound, x: Any, y: Any, names: list[int]) -> list[Row]:
    start = time.perf_counter()
    labels = np.asarray(y)
    if isinstance(certifier, UpperBound):
        distances = certifier.distances(x, labels, indices=names)
        seconds = round((time.perf_counter() - start) / len(names), 6)
        return [
            {
                "index": name,
                "label": int(label),
                "distance": float(length) if np.isfinite(length) else None,
                "seconds": seconds,
            }
            for name, label, length in zip(names, labels, distances, strict=True)
        ]
    made = certifier.certify(x, labels, indices=names)
    seconds = round((time.perf_counter() - start) / len(names), 6)
    return [row_of(certificate, int(label), seconds) for certificate, label in zip(made, labels, strict=True)]


def _reread(header: Row, row: Row, radius: str) -> Row:
    """The row that the same votes give by another radius formula; its seconds are those of the votes."""
    return row_of(rebound(header, row, radius=radius), row["label"], row["seconds"])
