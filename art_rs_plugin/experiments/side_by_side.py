"""A comparison's ledgers as one table and one picture, in the manner of Cohen et al. 2019, Figures 7 and 13."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.curves import average_certified_radius, certified_accuracy
from art_rs_plugin.experiments.crossings import crossing_table, leads
from art_rs_plugin.experiments.curve import plot, save_figure, to_markdown
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.experiments.logs import write_atomically

PATCH = "patch"


def in_norm(radius: float, given: float, wanted: float, dimension: int) -> float:
    """The largest radius, rounded down, whose ball in the norm `wanted` lies in that of `radius` in the norm `given`.

    An l_inf ball of radius r holds the l2 ball of radius r; an l2 ball of radius r holds the l_inf ball r / sqrt(d).
    """
    if given == wanted or wanted == 2:
        return radius
    return math.nextafter(radius / math.sqrt(dimension) * (1 - 2**-51), 0.0) if radius else 0.0


def upper_in_norm(distance: float, given: float, wanted: float, dimension: int) -> float:
    """What a perturbation of this length in one norm is at most in the other: an upper bound stays one."""
    return distance * math.sqrt(dimension) * (1 + 2**-51) if given == math.inf and wanted == 2 else distance


def read(path: Path, norm: float, dimension: int) -> pd.DataFrame:
    """A ledger of a comparison: `index, label, prediction, radius, seconds`, its radii in `norm`.

    Of an upper bound, `radius` is the distance at which the answer was changed, inf where it was not, and `prediction`
    the label wherever that distance is above 0; `attrs["tried"]` is the largest at which it was tried.
    `attrs["header"]` is the ledger's. A patch's side stays as it is.

    :raises ValueError: It is no ledger of a comparison.
    """
    header, rows = read_ledger(path)
    if "certifier" not in header:
        raise ValueError(f"{path} must be a ledger that `art-rs compare` wrote, got one of kind {header['kind']!r}")
    given = header["certifier"]["norm"]
    records = []
    for row in rows:
        if header["kind"] == "distance":
            distance = math.inf if row["distance"] is None else row["distance"]
            radius = upper_in_norm(distance, float(given), norm, dimension)
            prediction = row["label"] if distance > 0 else ABSTAIN
        else:
            radius = row["radius"] if given == PATCH else in_norm(row["radius"], float(given), norm, dimension)
            prediction = row["prediction"]
        records.append((row["index"], row["label"], prediction, radius, row["seconds"]))
    frame = pd.DataFrame(records, columns=["index", "label", "prediction", "radius", "seconds"])
    for known in ("n", "votes", "alpha"):  # of certificates by votes, for the legend
        if header["certifier"].get("alpha") and rows and all(known in row for row in rows):
            frame[known] = [row[known] for row in rows]
    frame.attrs["header"] = header
    if header["kind"] == "distance":
        at = header["certifier"].get("radii", [row["distance"] or 0.0 for row in rows])
        frame.attrs["tried"] = upper_in_norm(max(at, default=0.0), float(given), norm, dimension)
    return frame


def table(frames: Mapping[str, pd.DataFrame], radii: Sequence[float], norm: float) -> pd.DataFrame:
    """A row for each certifier: what it certifies, in which norm, with which guarantee, how much, in which time.

    Certified accuracy at each radius counts abstentions and wrong answers as nothing. Of an upper bound it is the share
    that no attack fooled within that radius; it has no average.
    """
    made = []
    for label, frame in frames.items():
        header = frame.attrs["header"]
        upper, given = header["kind"] == "distance", header["certifier"]["norm"]
        prediction, radius, label_of = (frame[name].to_numpy() for name in ("prediction", "radius", "label"))
        alpha = header["certifier"]["alpha"]
        guarantee = "upper bound" if upper else "certain" if not alpha else f"probability {1 - alpha:g}"
        converted = given != PATCH and float(given) != norm
        row: dict[Any, Any] = {
            "certifier": label,
            "certifies": header["certifier"]["certifies"],
            "norm": given if given == PATCH else _name(float(given)) + (f" as {_name(norm)}" if converted else ""),
            "guarantee": guarantee,
        }
        shares = certified_accuracy(prediction, radius, label_of, list(radii)).tolist()
        row |= dict(zip([float(at) for at in radii], shares, strict=True))
        row["average radius"] = math.nan if upper else average_certified_radius(prediction, radius, label_of)
        row["seconds an input"] = float(frame["seconds"].mean())
        made.append(row)
    return pd.DataFrame(made)


def figure(frames: Mapping[str, pd.DataFrame], norm: float) -> Figure:
    """Certified accuracy against radius, a step curve for each, and what attacks leave as curves named so.

    A curve of attacks ends at the largest radius that they tried.
    """
    upper = {label: frame.attrs["header"]["kind"] == "distance" for label, frame in frames.items()}
    made = plot({f"{label} (upper bound)" if upper[label] else label: frame for label, frame in frames.items()})
    made.axes[0].set_xlabel(rf"$\ell_{{{'2' if norm == 2 else chr(92) + 'infty'}}}$ radius $r$ (unit of the input)")
    return made


def write(ledgers: Mapping[str, Path], radii: Sequence[float], norm: float, dimension: int, folder: Path) -> list[Path]:
    """Write `compare.md`, `compare.csv`, `compare.png` and `compare.svg`, and say where they are.

    So too `crossings.md`, where curves of certificates cross and which do not, and `patches.md`, if there are such.
    """
    frames = {label: read(path, norm, dimension) for label, path in ledgers.items()}
    patches = {label: frame for label, frame in frames.items() if frame.attrs["header"]["certifier"]["norm"] == PATCH}
    others = {label: frame for label, frame in frames.items() if label not in patches}
    written = []
    if others:
        of_all = table(others, radii, norm)
        write_atomically(folder / "compare.md", to_markdown(of_all).encode())
        write_atomically(folder / "compare.csv", of_all.to_csv(index=False, lineterminator="\n").encode())
        picture = figure(others, norm)
        for suffix in ("png", "svg"):
            save_figure(picture, folder / f"compare.{suffix}")
        written += [folder / f"compare.{suffix}" for suffix in ("md", "csv", "png", "svg")]
        certified = {label: frame for label, frame in others.items() if frame.attrs["header"]["kind"] == "certify"}
        told = [to_markdown(made(certified)) for made in (crossing_table, leads) if len(made(certified))]
        if told:
            write_atomically(folder / "crossings.md", "\n".join(told).encode())
            written.append(folder / "crossings.md")
    if patches:
        sides = sorted({float(side) for frame in patches.values() for side in frame["radius"]} | {1.0})
        of_patches = table(patches, sides, norm)
        write_atomically(folder / "patches.md", to_markdown(of_patches).encode())
        written.append(folder / "patches.md")
    return written


def _name(norm: float) -> str:
    return "l2" if norm == 2 else "l_inf"
