"""Two ledgers of the same images beside each other, image by image: which certifies more, and by how sure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.paired import difference_interval, mcnemar_two_sided
from art_rs_plugin.experiments.logs import read_logs, round_down

_AVERAGE = "average radius"


def paired_table(
    paths: Iterable[Path], radii: Iterable[float], *, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Certified accuracy of two ledgers or logs at each radius, and their average radius, compared on their images.

    :param paths: Two, of the same images.
    :param confidence: Of the interval of the last row.
    :param seed: Of the bootstrap.
    :return: A row for each radius, and the last one for the average radius. Columns `at` (a radius in the unit of the
        input, or "average radius"), the value of the `first` ledger and of the `second`, and their `difference`; of a
        radius `only first` and `only second`, how many images one alone certifies rightly there, and `p`, the exact
        two-sided McNemar test, of each radius by itself; of the average radius `low` and `high`, a bootstrap interval
        of the difference. Abstentions and errors count as nothing and as radius 0. `attrs["names"]` are the two.
    :raises ValueError: For what is not two ledgers of certificates in one norm, on the same images with the same
        labels of the same data: names what differs.
    """
    given = list(paths)
    if len({path.resolve() for path in given}) != 2 or len(given) != 2:
        raise ValueError(f"`ledgers` must be two, each another, got {', '.join(map(str, given)) or 'none'}")
    logs = {name: log.set_index("index") for name, log in read_logs(given).items()}
    if differences := list(_differences(logs)):
        raise ValueError(f"ledgers must be of the same images: {'; '.join(differences)}")
    at = sorted({checks.non_negative("radii", radius) for radius in radii})
    first, second = logs.values()
    second = second.loc[first.index]
    reached = [
        np.where((log["prediction"] == log["label"]) & (log["prediction"] != ABSTAIN), log["radius"], -np.inf)
        for log in (first, second)
    ]
    rows: list[dict[str, Any]] = []
    for radius in at:
        ours, theirs = (reach >= radius for reach in reached)
        rows.append(
            {
                "at": radius,
                "first": ours.mean(),
                "second": theirs.mean(),
                "difference": ours.mean() - theirs.mean(),
                "only first": int((ours & ~theirs).sum()),
                "only second": int((theirs & ~ours).sum()),
                "p": mcnemar_two_sided(ours, theirs),
            }
        )
    ours, theirs = (np.maximum(reach, 0.0) for reach in reached)
    low, high = difference_interval(ours, theirs, confidence=confidence, seed=seed)
    means = {"first": ours.mean(), "second": theirs.mean(), "difference": ours.mean() - theirs.mean()}
    table = pd.DataFrame([*rows, {"at": _AVERAGE, **means, "low": low, "high": high}], columns=list(_WRITERS))
    table.attrs["names"] = list(logs)
    return table.astype(dict.fromkeys(("only first", "only second"), "Int64"))  # whole numbers, or none


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `paired_table` to be read: every cell a text, p to two digits and all else to three decimals."""
    shown = {
        name: ["" if pd.isna(value) else write(value) for value in table[name]] for name, write in _WRITERS.items()
    }
    return pd.DataFrame(shown)


def _at(value: float | str) -> str:
    return value if isinstance(value, str) else f"r = {value:.12g}"


_WRITERS: dict[str, Callable[[Any], str]] = {
    "at": _at,
    "first": partial(round_down, decimals=3),
    "second": partial(round_down, decimals=3),
    "difference": "{:+.3f}".format,
    "only first": str,
    "only second": str,
    "p": "{:.2g}".format,
    "low": "{:+.3f}".format,
    "high": "{:+.3f}".format,
}


def _differences(logs: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """What keeps two logs from being compared image by image."""
    (one, first), (other, second) = logs.items()
    for name, log in logs.items():
        if "radius" not in log:
            yield f"{name} has no radii: it is one of predictions, not of certificates"
    data, norms = ([_said(log, key) for log in (first, second)] for key in (("data",), ("certifier", "norm")))
    if None not in data and data[0] != data[1]:
        yield f"{one} is of the data {json.dumps(data[0])}, {other} of {json.dumps(data[1])}"
    if (norms[0] or "2") != (norms[1] or "2"):  # only `art-rs compare` knows others
        yield f"radii of {one} are in the norm {norms[0] or '2'}, of {other} in {norms[1] or '2'}"
    for name, here, there in ((one, first, second), (other, second, first)):
        if len(only := here.index.difference(there.index)):
            yield f"{len(only)} of the {len(here)} images of {name} are in it alone, such as {only[0]}"
    both = first.index.intersection(second.index)
    labels = first.loc[both, "label"] != second.loc[both, "label"]
    if labels.any():
        image = labels.idxmax()
        here, there = first.loc[image, "label"], second.loc[image, "label"]
        yield f"{labels.sum()} labels differ, such as that of image {image}, {here} in {one} and {there} in {other}"


def _said(log: pd.DataFrame, keys: Iterable[str]) -> Any:
    """What a log's header says, None where it has none or does not say it."""
    found: Any = log.attrs.get("header")
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
