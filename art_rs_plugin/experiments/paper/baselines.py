"""Figures 7 and 13 of Cohen et al. 2019 from ledgers of `art-rs compare`: smoothing beside other certifiers."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from art_rs_plugin.experiments import side_by_side
from art_rs_plugin.experiments.crossings import crossing_table, leads
from art_rs_plugin.experiments.curve import grouped, plain
from art_rs_plugin.experiments.paper.drawing import curves, footnote, panels
from art_rs_plugin.experiments.paper.log import Log
from art_rs_plugin.experiments.paper.sources import Logs
from art_rs_plugin.experiments.paper.tables import PIXELS


def compared(logs: Logs, *, norm: float = 2.0, data: str | None = None) -> Figure:
    """Figures 7 and 13: certified accuracy by radius, a curve for each certifier, a panel for each data set.

    What attacks leave is drawn as well, named as an upper bound. A ledger's name is the label of its curve.

    :param norm: 2, or inf; radii of the other norm are converted, see `side_by_side.in_norm`.
    :param data: Only this data set.
    :raises ValueError: There are no ledgers of a comparison (of this data set).
    """
    groups = _by_data(logs, norm, data)
    figure, axes = panels(len(groups))
    lines = max(len(frames) for frames in groups.values())
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)  # for the legends below
    for (name, frames), panel in zip(groups.items(), axes, strict=True):
        most = {len(frame) for frame in frames.values()}
        shown = {_named(label, frame): frame for label, frame in frames.items()}
        curves(panel, shown, f"{name}, {' or '.join(map(str, sorted(most)))} images", where="below")
        if norm == math.inf:
            panel.set_xlabel(r"$\ell_\infty$ radius $r$ (unit of the input)")
    footnote(
        figure,
        "Smoothing certifies the smoothed classifier g, by n votes, wrongly with probability α at most; the others "
        "certify the network f itself, and for certain.",
    )
    return figure


def crossing_points(logs: Logs, *, norm: float = 2.0, data: str | None = None) -> pd.DataFrame:
    """Where the curves of `compared` cross: `data`, `below it`, `beyond it`, `radius`, `certified accuracy`.

    Upper bounds are left out. Parameters and errors as in `compared`.
    """
    parts, never = [], []
    for name, frames in _by_data(logs, norm, data).items():
        certified = {label: frame for label, frame in frames.items() if frame.attrs["header"]["kind"] == "certify"}
        parts.append(crossing_table(certified).assign(data=name))
        never += [f"{name}: {one} is nowhere below {other}." for one, other in leads(certified).itertuples(index=False)]
    table = pd.concat(parts, ignore_index=True)
    table = table[["data", *(column for column in table if column != "data")]]
    table.attrs["caption"] = "Radii at which one certifier's certified accuracy falls below another's."
    table.attrs["notes"] = ["At the radius itself the curve that leads below it still does.", *never]
    return table


def _by_data(logs: Logs, norm: float, data: str | None) -> dict[str, dict[str, pd.DataFrame]]:
    groups: dict[str, dict[str, pd.DataFrame]] = {}
    for log in logs.compared():
        if log.data is None or data not in (None, log.data) or log.header["certifier"]["norm"] == side_by_side.PATCH:
            continue
        frames = groups.setdefault(log.data, {})
        label = log.path.stem if log.path.stem not in frames else str(log.path)
        frames[label] = side_by_side.read(log.path, norm, _pixels(log, norm))
    if not groups:
        raise ValueError(f"ledgers of `art-rs compare` on `{data}` are needed; {logs.looked}")
    return groups


def _pixels(log: Log, norm: float) -> int:
    if float(log.header["certifier"]["norm"]) == norm:
        return 1  # nothing is converted
    if log.data not in PIXELS:
        raise ValueError(f"{log.path} must be of a data set whose number of pixels is known, got {log.data!r}")
    return PIXELS[log.data]


def _named(label: str, frame: pd.DataFrame) -> str:
    label, header = plain(label), frame.attrs["header"]
    if header["kind"] == "distance":
        return f"{label} (upper bound)"
    rule = header.get("rule", {})
    if "alpha" not in rule:
        return f"{label} (of f)"
    votes = rule.get("n", rule.get("n_max"))
    return f"{label} (of g, n {'=' if 'n' in rule else '≤'} {grouped(votes)}, α = {rule['alpha']:g})"
