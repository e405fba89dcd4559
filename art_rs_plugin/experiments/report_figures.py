"""Figures of a report as SVG inside its page: in the page's own colours and fonts, so that a dark page shows them too.

No text of a user's enters a figure: names stand in the page's legends, where they are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.curves import certified_accuracy, certified_accuracy_lower
from art_rs_plugin.core.population import population_accuracy_lower
from art_rs_plugin.experiments.curve import DASHES

COLOURS = 7
_WIDTH = 1.6

# colours that stand for those of the page; none of them is ever seen
_INK, _GRID, _PAPER = "#010101", "#020202", "#030303"
_SERIES = [f"#0400{number:02x}" for number in range(COLOURS)]
_PLACEHOLDERS = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    _PAPER: "var(--paper)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(_SERIES)},
}
# told apart without colour too: full, hollow, striped
_LOOKS: list[dict[str, Any]] = [
    {"color": _SERIES[2], "edgecolor": _PAPER},
    {"color": "none", "edgecolor": _INK},
    {"color": _SERIES[1], "edgecolor": _PAPER, "hatch": "////"},
]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "hatch.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _GRID,
}
_POINTS = 400  # of a curve: more could not be told apart

Columns = dict[str, NDArray[np.float64]]


def bounds(log: pd.DataFrame, at: Sequence[float] | NDArray[np.float64], alpha: float, confidence: float) -> Columns:
    """Certified accuracy at radii, and what it guarantees of these images and of images like these.

    :param log: Certificates, as `logs.read_log` returns them.
    :return: `certified`, the share that was certified right; `these` (Theorem 6) and `like these` (a one-sided DKW band
        less alpha), below which g's certified accuracy does not lie at any of the radii, each with this confidence.
    """
    prediction, radius, label = (log[name].to_numpy() for name in ("prediction", "radius", "label"))
    share, m, rho = certified_accuracy(prediction, radius, label, at), len(log), 1 - confidence
    counts = np.round(share * m).astype(np.int64)
    return {
        "certified": share,
        "these": certified_accuracy_lower(share, m, alpha, rho=rho),
        "like these": population_accuracy_lower(counts, m, alpha, rho=rho, form="dkw"),
    }


def curves(logs: Sequence[pd.DataFrame], alphas: Sequence[float], confidence: float) -> Markup:
    """Certified accuracy against radius, with what it guarantees shaded down to its lower bounds."""
    with rc_context(_STYLE):
        figure, axes = _panel(4.0, 2.9)
        end = max(float(log["radius"].max()) for log in logs) or 1.0
        for number, (log, alpha) in enumerate(zip(logs, alphas, strict=True)):
            at = _corners(log, end)
            found = bounds(log, at, alpha, confidence)
            colour, dash = _SERIES[number % COLOURS], (0, DASHES[number % len(DASHES)] or None)
            axes.fill_between(
                at, found["like these"], found["certified"], step="pre", color=colour, alpha=0.13, linewidth=0
            )
            axes.step(at, found["these"], where="pre", color=colour, linewidth=0.7)
            axes.step(at, found["certified"], where="pre", color=colour, linewidth=_WIDTH, linestyle=dash)
        axes.set(xlabel="ℓ2 radius r (unit of the input)", ylabel="certified accuracy")
        axes.set(xlim=(0, 1.03 * end), ylim=(0, 1.02))
        return _svg(figure, "Certified accuracy against the radius, one step curve for each ledger")


def class_probabilities(log: pd.DataFrame) -> Markup:
    """How the share of votes for the selected class is distributed, on an axis on which equal steps are equal radii."""
    share = votes_share(log)
    edges = np.arange(-3.0, 4.26, 0.25)
    place = np.clip(ndtri(share), edges[0] + 0.01, edges[-2] - 0.01)
    place[share == 1.0] = edges[-1] - 0.01  # all votes: of which p_A that is, so many votes cannot say
    with rc_context(_STYLE):
        figure, axes = _panel(4.0, 2.2)
        bottom = np.zeros(len(edges) - 1)
        for which, look in zip(outcomes(log), _LOOKS, strict=True):
            heights = np.histogram(place[which], edges)[0] / len(log)
            axes.bar(edges[:-1], heights, width=0.25, align="edge", bottom=bottom, linewidth=0.7, **look)
            bottom += heights
        ticks = [0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        axes.set_xticks([*ndtri(ticks), edges[-2] + 0.125], [*(f"{p:g}".lstrip("0") for p in ticks), "all"])
        axes.axvline(0.0, color=_INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="share of votes for the class (estimate of p_A)", ylabel="share of images")
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.06 * bottom.max()))
        return _svg(figure, "Distribution of the share of votes for the selected class")


def votes(log: pd.DataFrame) -> Markup:
    """How many votes images took."""
    with rc_context(_STYLE):
        figure, axes = _panel(4.0, 1.8)
        spent = log["votes"].to_numpy()
        edges = np.geomspace(max(spent.min(), 1), spent.max() * 1.0001, 31).tolist()
        axes.hist(
            spent, edges, weights=np.full(len(log), 1 / len(log)), color=_SERIES[0], edgecolor=_PAPER, linewidth=0.4
        )
        axes.set_xscale("log")
        axes.set(xlabel="votes of an image", ylabel="share of images")
        return _svg(figure, "Distribution of the number of votes of an image")


def votes_share(log: pd.DataFrame) -> NDArray[np.float64]:
    """The share of the estimation votes that fell to the selected class, of every image."""
    counts = np.array(log["counts"].tolist(), dtype=np.float64)
    return np.asarray(counts[np.arange(len(log)), log["selected"].to_numpy()] / counts.sum(axis=1))


def outcomes(log: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Which images were certified right, which abstained, and which were certified wrong."""
    abstained = (log["prediction"] == ABSTAIN).to_numpy()
    right = (log["prediction"] == log["label"]).to_numpy() & ~abstained
    return [right, abstained, ~right & ~abstained]


def radius_at(p: float, sigma: float) -> float:
    """Theorem 1's radius at a p_A of at least 1/2, with p_B = 1 - p_A."""
    return sigma * float(ndtri(p))


def _corners(log: pd.DataFrame, end: float) -> NDArray[np.float64]:
    right = log["radius"].to_numpy()[(log["prediction"] == log["label"]).to_numpy()]
    corners = np.unique(right)
    if len(corners) > _POINTS:
        corners = np.linspace(0.0, corners[-1], _POINTS)
    return np.concatenate([[0.0], corners, corners[-1:] + 1e-9, [max(end, 1e-6)]])


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, said: str) -> Markup:
    """The figure as an element of a page, of whatever width it is given there."""
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": said}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for placeholder, colour in _PLACEHOLDERS.items():
        text = text.replace(placeholder, colour)
    head, rest = text.split(">", 1)
    (box,) = re.findall(r'viewBox="[0-9. -]+"', head)
    links = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink:" in rest else ""
    return Markup('<svg xmlns="http://www.w3.org/2000/svg"{} {} role="img" aria-label="{}">{}').format(
        Markup(links), Markup(box), said, Markup(rest)
    )
