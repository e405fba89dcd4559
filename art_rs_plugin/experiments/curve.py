"""Certified accuracy from logs: a table, and a picture of the curves."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.curves import average_certified_radius, certified_accuracy
from art_rs_plugin.experiments.logs import round_down, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECIMALS = 3
# distinct without colour by their dashes, and with it (Okabe & Ito 2008) also to the colour-blind
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
DASHES: list[tuple[float, ...]] = [
    (), (6, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1.5), (8, 2, 1.5, 2, 1.5, 2), (12, 2), (1.5, 4), (3, 1.5, 1.5, 1.5),
]  # fmt: skip
_STYLE: dict[Any, Any] = {"svg.hashsalt": "art-rs", "svg.fonttype": "path", "path.simplify": False}


def curve_table(logs: Mapping[str, pd.DataFrame], radii: Iterable[float]) -> pd.DataFrame:
    """One row per log: `name`, `examples`, `abstained` (share), certified accuracy at each radius, `average radius`.

    Abstentions and errors count as wrong at every radius and as radius 0 in the average (Cohen et al. 2019, Section 4;
    Zhai et al. 2020). The columns of the radii are named by the radii themselves, floats in the unit of `x`.

    :param logs: Frames as `logs.read_log` returns them, by the name to show.
    :raises ValueError: for a log without examples or without radii, or a radius that is negative or not finite.
    """
    at = np.array(sorted({_checked_radius(radius) for radius in radii}), dtype=np.float64)
    rows = []
    for name, log in logs.items():
        _check_log(name, log)
        prediction, radius, label = (log[column].to_numpy() for column in ("prediction", "radius", "label"))
        rows.append(
            [name, len(log), float((prediction == ABSTAIN).mean())]
            + [float(share) for share in certified_accuracy(prediction, radius, label, at)]
            + [float(average_certified_radius(prediction, radius, label))]
        )
    return pd.DataFrame(rows, columns=["name", "examples", "abstained", *map(float, at), "average radius"])


def to_markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, its floats rounded down to three decimals, columns of radii headed "r = 0.25"."""
    heads = [f"r = {column:.12g}" if isinstance(column, float) else str(column) for column in table.columns]
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]
    is_text = [all(isinstance(value, str) for value in table[column]) for column in table.columns]
    widths = [max(map(len, [head, "---", *column])) for head, *column in zip(heads, *rows, strict=True)]

    def line(cells: Iterable[str]) -> str:
        aligned = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(cells, widths, is_text, strict=True)
        )
        return f"| {' | '.join(aligned)} |\n"

    rule = ("-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True))
    return line(heads) + line(rule) + "".join(map(line, rows))


def plot(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Certified accuracy against radius, one exact step curve per log, as in Cohen et al. 2019, Figure 6.

    n and alpha are shown where the logs know them: in the title if all logs share them, else in the legend.
    No global state of pyplot is touched; the figure carries an Agg canvas, and a notebook shows it.

    :raises ValueError: for no logs, or one without examples or without radii.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not logs:
        raise ValueError("`logs` must hold at least one log, got none")
    settings = {name: _setting(log) for name, log in logs.items()}
    shared = settings[next(iter(logs))] if len(set(settings.values())) == 1 else ""
    names = [plain(name) if shared or not said else f"{plain(name)} ({said})" for name, said in settings.items()]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, logs)
    axes.set_title(f"Certified accuracy ({shared})" if shared else "Certified accuracy")
    _add_legend(figure, names)
    return figure


def draw(axes: Axes, logs: Mapping[str, pd.DataFrame], looks: Iterable[Mapping[str, Any]] | None = None) -> None:
    """Draw the step curve of each log on `axes`, in their order, and label the axes; no title, no legend.

    :param looks: How to draw each line; default: `styles`.
    :raises ValueError: for a log without examples or without radii.
    """
    end = 0.0
    for (name, log), look in zip(logs.items(), styles() if looks is None else looks, strict=False):
        _check_log(name, log)
        radius, accuracy = steps(log)
        axes.step(radius, accuracy, where="pre", label="log", **look)
        end = max(end, float(radius[-1]))
    axes.set(
        xlabel=r"$\ell_2$ radius $r$ (unit of the input)",
        ylabel="certified accuracy",
        xlim=(0, 1.05 * end if end else 1),
        ylim=(0, 1.02),
    )
    tidy(axes)


def styles() -> Iterator[dict[str, Any]]:
    """How to draw one line after the other, endlessly: told apart by dashes alone, and by colour."""
    for colour, dashes in zip(cycle(_COLOURS), cycle(DASHES), strict=False):
        yield {"color": colour, "linestyle": (0, dashes) if dashes else "-", "linewidth": 1.8}


def tidy(axes: Axes) -> None:
    """A light grid behind what is drawn, and no frame above and to the right."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Write a figure whole or not at all, in the format of the path's suffix; the same figure gives the same SVG."""
    from matplotlib import rc_context

    path = Path(path)
    suffix = path.suffix.removeprefix(".").lower()
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format=suffix, dpi=dpi, metadata={"Date": None} if suffix == "svg" else None)
    write_atomically(path, buffer.getvalue())


def write_curve(logs: Mapping[str, pd.DataFrame], radii: Iterable[float], folder: str | os.PathLike[str]) -> list[Path]:
    """Write `curve.md`, `curve.csv`, `curve.png` and `curve.svg` into a folder, and say where they are.

    The Markdown is rounded down to three decimals; the CSV holds every digit.
    """
    folder = Path(folder)
    table, figure = curve_table(logs, radii), plot(logs)
    paths = [folder / f"curve.{suffix}" for suffix in ("md", "csv", "png", "svg")]
    write_atomically(paths[0], _encoded(to_markdown(table)))
    write_atomically(paths[1], _encoded(table.to_csv(index=False, lineterminator="\n")))
    for path in paths[2:]:
        save_figure(figure, path)
    return paths


def steps(log: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners of the curve: `accuracy[i]` holds on (radius[i-1], radius[i]], and drops to 0 at the end.

    Nothing is known of an upper bound beyond the largest radius `attrs["tried"]`: its curve ends there, and not at 0.
    """
    tried = log.attrs.get("tried")
    if tried is not None:
        log = log.assign(radius=log["radius"].clip(upper=tried))
    right = (log["prediction"] == log["label"]) & (log["prediction"] != ABSTAIN)
    certified = np.sort(log["radius"].to_numpy()[right.to_numpy()])
    corners, first = np.unique(certified, return_index=True)
    at_least = (len(certified) - first) / len(log)  # share of all examples with a radius of at least the corner
    start = len(certified) / len(log)
    radius, share = np.concatenate([[0.0], corners]), np.concatenate([[start], at_least])
    if tried is not None and radius[-1] >= tried:
        return radius, share
    return np.append(radius, radius[-1]), np.append(share, 0.0)


def _add_legend(figure: Figure, names: list[str]) -> None:
    """Name the lines below the axes, where no curve can run, however high; the figure grows to hold the names."""
    columns = max(1, min(4, len(names), 76 // (max(map(len, names)) + 10)))
    figure.set_figheight(figure.get_figheight() + 0.25 * math.ceil(len(names) / columns))
    # long dashes need a long sample line to be told apart
    legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=3.6)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a file's name may hold dollar signs
        text.set_text(name)


def _setting(log: pd.DataFrame) -> str:
    """What a log says of n and alpha, as far as it has one of each; of votes that chose n, how many they were."""
    known = []
    if "votes" in log:
        known.append(f"{grouped(round(log['votes'].mean()))} votes on average")
        log = log.drop(columns="n", errors="ignore")  # where all are the same, it is by chance
    for column, sign in (("n", "n"), ("alpha", "α")):
        values = log[column].unique() if column in log else []
        if len(values) == 1:
            number = grouped(values[0]) if column == "n" else f"{values[0]:g}"
            known.append(f"{sign} = {number}")
    return ", ".join(known)


def grouped(number: int) -> str:
    """A whole number for a picture, its thousands apart."""
    return f"{number:,}".replace(",", "\u2009")


def _checked_radius(radius: float) -> float:
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"`radii` must be finite numbers of at least 0, got {radius!r}")
    return float(radius)


def _check_log(name: str, log: pd.DataFrame) -> None:
    if "radius" not in log:
        raise ValueError(f"log {name!r} has no radii: it is one of predictions, not of certificates")
    if not len(log):
        raise ValueError(f"log {name!r} has no examples")


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # a file's name need not be Unicode


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else round_down(value, DECIMALS)
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def plain(text: str) -> str:
    """A log's name on a picture: one line of printable characters, of a length that fits."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= 60 else f"{printable[:28]} … {printable[-28:]}"
