"""Ledgers as one page: an HTML file that holds all it shows, and asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import art_rs_plugin
from art_rs_plugin.core import checks
from art_rs_plugin.core.budgets import Looks
from art_rs_plugin.core.curves import average_certified_radius
from art_rs_plugin.experiments import report_figures as figures
from art_rs_plugin.experiments import report_images as images
from art_rs_plugin.experiments.curve import DASHES
from art_rs_plugin.experiments.logs import read_logs, round_down, write_atomically
from art_rs_plugin.experiments.origin import images_of
from art_rs_plugin.noise import distribution

_PACKAGE = "art_rs_plugin.experiments"
_LEVELS = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Table:
    """A caption, names of columns, and rows of cells as texts."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    radii: Sequence[float],
    data_root: Path | None = None,
    confidence: float = 0.95,
    title: str = "Certified robustness",
) -> list[str]:
    """Write the page `out` about ledgers of certificates from votes, whole or not at all.

    :param radii: Of its tables, in the unit of the input.
    :param data_root: Folder of the data sets, for pictures of inputs, as in `datasets.load`.
    :param confidence: Of the lower bounds on certified accuracy, in (0, 1).
    :return: What could not be shown, and why.
    :raises ValueError: A ledger is of something else, holds no examples or none from votes; names it.
    """
    at = sorted({checks.non_negative("radii", radius) for radius in radii})
    checks.in_unit_interval("confidence", confidence)
    logs = read_logs(paths)
    for name, log in logs.items():
        _check(name, log)
    sections, missing = [], []
    for number, (name, log) in enumerate(logs.items()):
        section, why = _section(name, log, number, data_root)
        sections.append(section)
        if why:
            missing.append(f"no pictures of {name}: {why}")
    script = files(_PACKAGE).joinpath("templates/report.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            version=art_rs_plugin.__version__,
            confidence=f"{confidence:g}",
            ledgers=sections,
            summary=_summary(logs),
            accuracy=_accuracy(logs, at, confidence),
            curves=figures.curves(list(logs.values()), [_alpha(log) for log in logs.values()], confidence),
            stopped=any(log.attrs["header"]["rule"].get("name") == Looks.name for log in logs.values()),
            probabilities=_probabilities(logs),
            spent=_spent(logs),
            script=Markup(script),  # ours, and no part of it a user's
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_atomically(out, page.encode())
    return missing


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(_PACKAGE), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _shown(value: Any) -> Any:
    """Text without what no page can hold or a reader cannot see: control and formatting characters, half characters."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(character if character.isprintable() else "\ufffd" for character in value)


def _check(name: str, log: pd.DataFrame) -> None:
    """ValueError or TypeError for what a page cannot tell of, with its name."""
    header = log.attrs.get("header", {})
    if header.get("kind") != "certify":
        raise ValueError(
            f"a report is of ledgers of certificates, and {name} is one of {header.get('kind', 'no kind')!r}"
        )
    if not len(log):
        raise ValueError(f"{name} has no examples to report of")
    told, rule = header.get("noise"), header.get("rule")
    if "counts" not in log or not isinstance(told, dict) or not isinstance(rule, dict):
        raise ValueError(f"a report is of certificates from votes, and {name} has none: see `art-rs compare`")
    certifier = header.get("certifier", {"name": "smoothing"})  # as `art-rs compare` has it
    if not isinstance(certifier, dict) or certifier.get("name") != "smoothing":
        raise ValueError(f"a report is of the radii of Theorem 1, and {name} has others: see `art-rs compare`")
    try:
        distribution(told)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    checks.whole(f"seed of {name}", header.get("seed"), minimum=0)
    for counts, selected in zip(log["counts"], log["selected"], strict=True):
        if not (len(counts) == len(log["counts"][0]) > selected and sum(counts) > 0):
            raise ValueError(f"votes of {name} must be for the same classes, the selected one among them, got {counts}")


def _section(name: str, log: pd.DataFrame, number: int, root: Path | None) -> tuple[dict[str, Any], str]:
    """What the page says of one ledger, and why it has no pictures, if it has none."""
    header = log.attrs["header"]
    path = Path(log.attrs["source"])
    data, why = images_of(header, root)
    if data is not None and len(data) != (named := header["data"].get("images")):
        why, data = f"there are {len(data)} images, and the header speaks of {named}", None
    settings = [("ledger", str(path)), ("sha256 of the ledger", hashlib.sha256(path.read_bytes()).hexdigest())]
    return {
        "name": name,
        "colour": number % figures.COLOURS,
        "dashes": " ".join(f"{2 * dash:g}" for dash in DASHES[number % len(DASHES)]),
        "sigma": f"{header['noise']['sigma']:g}",
        "probabilities": figures.class_probabilities(log),
        "votes": figures.votes(log) if "votes" in log and log["votes"].nunique() > 1 else "",
        "extremes": {which: images.cards(rows, header, data) for which, rows in images.extremes(log).items()},
        "no_pictures": why,
        "settings": Table("Settings", ["", ""], [[key, text] for key, text in [*settings, *_flat(header)]]),
    }, why


def _summary(logs: Mapping[str, pd.DataFrame]) -> Table:
    rows = []
    for name, log in logs.items():
        right, abstained, wrong = (float(which.mean()) for which in figures.outcomes(log))
        radius = average_certified_radius(log["prediction"], log["radius"], log["label"])
        shares = [round_down(share, 3) for share in (right, wrong, abstained, radius)]
        header = log.attrs["header"]
        rows.append([name, f"{len(log)}", f"{header['noise']['sigma']:g}", f"{_alpha(log):g}", *shares])
    heads = ["ledger", "images", "σ", "α", "right", "wrong", "abstained", "average radius"]
    return Table("What was certified", heads, rows)


def _accuracy(logs: Mapping[str, pd.DataFrame], at: Sequence[float], confidence: float) -> Table:
    said = {
        "certified": "certified right",
        "these": "at least, on these images",
        "like these": "at least, on images like these",
    }
    rows = []
    for name, log in logs.items():
        found = figures.bounds(log, at, _alpha(log), confidence)
        rows += [[name, words, *(round_down(share, 3) for share in found[key])] for key, words in said.items()]
    return Table("Certified accuracy", ["ledger", "share", *(f"r = {radius:.12g}" for radius in at)], rows)


def _probabilities(logs: Mapping[str, pd.DataFrame]) -> Table:
    rows = []
    for name, log in logs.items():
        share, sigma = figures.votes_share(log), log.attrs["header"]["noise"]["sigma"]
        cells = [
            f"{round_down(float((share >= level).mean()), 3)} (r = {figures.radius_at(level, sigma):.3f})"
            for level in _LEVELS
        ]
        rows.append([name, *cells, round_down(float((share == 1).mean()), 3)])
    return Table("Share of images by p_A", ["ledger", *(f"p_A ≥ {level:g}" for level in _LEVELS), "all votes"], rows)


def _spent(logs: Mapping[str, pd.DataFrame]) -> Table:
    rows = []
    for name, log in logs.items():
        votes = log["votes"] if "votes" in log else log["n0"] + log["n"]
        seconds = float(log["seconds"].sum())
        numbers = [votes.sum(), votes.mean(), votes.median(), votes.max()]
        rate = f"{votes.sum() / seconds:,.0f}" if seconds else "-"
        rows.append(
            [name, *(f"{number:,.0f}" for number in numbers), f"{seconds:,.1f}", f"{seconds / len(log):.3g}", rate]
        )
    heads = ["ledger", "votes", "an image", "median", "most", "seconds", "an image", "votes a second"]
    return Table("Votes and time", heads, rows)


def _alpha(log: pd.DataFrame) -> float:
    return float(np.max(log["alpha"]))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a header with its place, as texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
