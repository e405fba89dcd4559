"""Certifiers beside each other on the same images: how a comparison is run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.certifiers import Certifier, UpperBound
from art_rs_plugin.certifiers.smoothing import Smoothing
from art_rs_plugin.experiments import checkpoints, datasets, models, runs
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.entries import Comparison as Comparison
from art_rs_plugin.experiments.entries import Entry as Entry
from art_rs_plugin.experiments.entries import crossed as crossed
from art_rs_plugin.experiments.entries import load as load
from art_rs_plugin.experiments.entries import parameters
from art_rs_plugin.experiments.ledger import Ledger, Row, read_ledger, rebound, row_of
from art_rs_plugin.experiments.rows import rule_of

_AT_ONCE = 16  # images: lost at most when a run is stopped


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
            # what reasons about f takes one image after the other, each for seconds or minutes
            at_once = 1 if isinstance(certifier, Certifier) and certifier.certifies == "f" else _AT_ONCE
            for first in range(0, len(missing), at_once):
                names = missing[first : first + at_once]
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
    taken = parameters(kind)
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
