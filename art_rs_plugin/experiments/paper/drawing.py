"""What the figures share: panels side by side, legends inside them, and a line that says how to read them.

Figures are matplotlib's own, without the state of pyplot; each carries an Agg canvas, and a notebook shows it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from art_rs_plugin.experiments.curve import draw, styles
from art_rs_plugin.experiments.projection import accuracy_between

Place = Literal["upper right", "upper left", "below"]
T = TypeVar("T", float, str)

PANEL = (5.2, 4.2)
"""Inches that a panel is wide and high."""


def panels(count: int, *, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def curves(
    axes: Axes,
    frames: Mapping[str, pd.DataFrame],
    title: str,
    looks: Iterable[Mapping[str, Any]] | None = None,
    where: Place = "upper right",
) -> None:
    """Certified accuracy of each frame, named in a legend; where radii are ranges, its lower value, the rest shaded."""
    draw(axes, frames, looks)
    for frame, line in zip(frames.values(), axes.get_lines(), strict=True):
        if "radius_high" in frame and (frame["radius_high"] > frame["radius"]).any():
            end = float(frame["radius_high"].max())
            axes.set_xlim(right=max(axes.get_xlim()[1], 1.05 * end))
            at = np.linspace(0, end, 801)
            axes.fill_between(at, *accuracy_between(frame, at), color=line.get_color(), alpha=0.25, linewidth=0)
    finish(axes, list(frames), title, where)


def looks_of(keys: Iterable[T], groups: Iterable[Iterable[T]]) -> list[dict[str, Any]]:
    """How to draw the line of each key, the same in every panel: the panels' keys, in ascending order, share styles."""
    known = dict(zip(sorted({key for group in groups for key in group}), styles(), strict=False))
    return [known[key] for key in keys]


def finish(axes: Axes, names: Sequence[str], title: str, where: Place = "upper right") -> None:
    """Name the lines on `axes`, in their order, in a legend there; and the panel."""
    whole = title.replace(" = ", "\u00a0=\u00a0")  # no line ends within "n = 100"
    lines = (line for part in whole.split("\n") for line in textwrap.wrap(part, 62))
    axes.set_title("\n".join(lines).replace("\u00a0", " "), fontsize=10, parse_math=False)
    style: dict[str, Any] = {"fontsize": 8, "handlelength": 3.6, "framealpha": 0.85}
    if where == "below":
        style |= {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
    else:
        style |= {"loc": where}
    legend = axes.legend(axes.get_lines(), ["line"] * len(names), **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a file's name may hold dollar signs, and begin with an underscore
        text.set_text(name)


def footnote(figure: Figure, text: str) -> None:
    """What a reader must know of the figure, below it."""
    width = int(figure.get_figwidth() * 16)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=8, parse_math=False)
