"""Figures 5, 8 and 16 of Cohen et al. 2019: radius formulas by themselves, and what they make of certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.core.radii import RADII, cohen, lecuyer_at, li_at
from art_rs_plugin.experiments.curve import grouped, styles, tidy
from art_rs_plugin.experiments.paper.drawing import curves, finish, footnote, panels
from art_rs_plugin.experiments.paper.log import Log
from art_rs_plugin.experiments.paper.sources import Logs
from art_rs_plugin.experiments.projection import accuracy_between, by_formula

NAMES = {"cohen": "Cohen et al. (Theorem 1)", "li": "Li et al.", "lecuyer": "Lecuyer et al."}
VOTES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
ALPHAS = (0.01, 0.001, 0.0001, 0.00001)


def by_probability(*, sigma: float = 1.0, alpha: float = 0.001) -> Figure:
    """Figure 5: left, the radius of each formula by p_A, with p_B = 1 - p_A; right, by n when all n votes agree."""
    figure, (left, right) = panels(2)
    p = np.concatenate([np.linspace(0.5, 0.99, 197), 1 - np.logspace(-2, -4, 60)])
    _lines(left, p, [RADII[name](p, 1 - p, sigma=sigma) for name in NAMES])
    left.set(xlabel=r"probability $p_A$ of the top class, $p_B = 1 - p_A$", xlim=(0.5, 1.0))
    finish(left, list(NAMES.values()), f"certified radius by p_A (σ = {sigma:g}; p_A known, no n or α)", "upper left")
    n = np.unique(np.logspace(1, 6.5, 150).astype(np.int64))
    unanimous = clopper_pearson_lower(n, n, alpha)
    _lines(right, n, [cohen(unanimous, 1 - unanimous, sigma=sigma)])
    right.set(xlabel="number of votes n, all for one class", xscale="log", xlim=(n[0], n[-1]))
    title = f"certified radius by n (σ = {sigma:g}, α = {alpha:g})"
    finish(right, ["largest radius that n votes can certify"], title, "upper left")
    return figure


def by_parameter() -> Figure:
    """Figure 16: the bounds of Lecuyer et al. and Li et al. at several settings of their parameter, and over it."""
    figure, (a, b, c, d) = panels(4, columns=2)
    p = np.concatenate([np.linspace(0.501, 0.99, 150), 1 - np.logspace(-2, -4, 40)])
    for axes, name, at, symbol, settings in (
        (a, "lecuyer", lecuyer_at, "β", (0.1, 0.25, 0.5, 0.75, 1.0)),
        (b, "li", li_at, "a", (0.5, 3.0, 10.0, 50.0)),
    ):
        best = RADII[name](p, 1 - p, sigma=1.0)
        _lines(axes, p, [*(at(p, 1 - p, value, sigma=1.0) for value in settings), best])
        axes.set(xlabel=r"probability $p_A$ of the top class, $p_B = 1 - p_A$", xlim=(0.5, 1.0))
        names = [*(f"{symbol} = {value:g}" for value in settings), "the best for each p_A"]
        finish(axes, names, f"{NAMES[name]} (σ = 1)", "upper left")
    for axes, name, at, symbol, x, (p_a, p_b) in (
        (c, "lecuyer", lecuyer_at, "β", np.linspace(0.005, 1.0, 400), (0.8, 0.2)),
        (d, "li", li_at, "a", np.logspace(-0.5, 2.5, 400), (0.999, 0.0001)),
    ):
        supremum = float(RADII[name](p_a, p_b, sigma=1.0))
        _lines(axes, x, [at(p_a, p_b, x, sigma=1.0), np.full_like(x, supremum)])
        axes.set(xlabel=f"parameter {symbol}", xlim=(x[0], x[-1]))
        title = f"{NAMES[name]}, p_A = {p_a:g}, p_B = {p_b:g} (σ = 1)"
        axes.set_ylim(top=1.3 * supremum)
        finish(axes, [f"radius at {symbol}", "supremum"], title)
    d.set_xscale("log")
    footnote(figure, "Probabilities are known here: neither n nor α enters.")
    return figure


def on_data(logs: Logs, *, data: str, sigma: float, alpha: float = 0.001) -> Figure:
    """Figure 8: certified accuracy by radius formula, projected to other numbers of votes, and at other alpha.

    Left, the formulas on the log's own bounds of p_A. Middle, other n at `alpha`, at the shares of the votes drawn: an
    extrapolation. Right, n as drawn and the votes bounded anew at each alpha.

    :raises ValueError: There is no log at this sigma, or nothing is known of its alpha.
    """
    log = logs.at(data, sigma)
    figure, (left, middle, right) = panels(3)
    frames = {NAMES[name]: frame for name, frame in _formulas(log).items()}
    where = f"{data}, σ = {sigma:g}"
    curves(left, frames, f"{where}: by bound\n{log.setting}")
    if log.fixed:
        votes = {f"n = {grouped(n)}{'' if n == log.n else ' (extrapolated)'}": n for n in VOTES}
        projected, looks = _supposed({name: log.projected(alpha=alpha, n=n) for name, n in votes.items()})
        title = f"{where}: by number of votes, α = {alpha:g}\nextrapolated n certifies nothing"
        curves(middle, projected, title, looks)
    else:
        _say_instead(middle, "The votes decided how many were drawn:\nthere is no n to project from.")
    anew, looks = _supposed({f"α = {level:g}": log.projected(alpha=level) for level in ALPHAS})
    how = f"n = {grouped(log.n)}" if log.fixed else "each look at its share of α"
    curves(right, anew, f"{where}: by α, bounded anew\n{how}", looks)
    if not log.header:
        footnote(
            figure,
            f"The log gives radii, rounded to three digits, and no counts: {log.setting}. Lines are the least that its "
            "radii allow, shades reach to the most; there an abstention may be any count that certifies nothing.",
        )
    return figure


def shares(logs: Logs, *, data: str, radii: Sequence[float]) -> pd.DataFrame:
    """Figure 8 (left) in numbers, at every sigma: the share that each formula certifies from the same votes.

    :return: Columns `sigma`, `bound`, then each radius: the least that printed radii allow.
    :raises ValueError: There are no certification logs, or two at the same sigma.
    """
    rows: list[list[Any]] = []
    widest = 0.0
    for sigma, log in logs.by_sigma(data).items():
        for name, frame in _formulas(log).items():
            least, most = accuracy_between(frame, radii)
            widest = max(widest, float((most - least).max()))
            rows.append([sigma, NAMES[name], *least])
    table = pd.DataFrame(rows, columns=["sigma", "bound", *map(float, radii)])
    table.attrs["caption"] = f"Certified accuracy on {data} by radius in l2, of three bounds on the same votes."
    rounded = f"Radii rounded to three digits leave at most {widest:.3f} open, to the upper side."
    table.attrs["notes"] = [rounded] if widest else []
    return table


def _formulas(log: Log) -> dict[str, pd.DataFrame]:
    if log.header:
        return {name: log.projected(radius=name)[""] for name in NAMES}
    assert log.sigma is not None
    return {name: by_formula(log.frame, sigma=log.sigma, radius=name) for name in NAMES}


def _lines(axes: Axes, x: Any, lines: Sequence[Any]) -> None:
    for values, style in zip(lines, styles(), strict=False):
        axes.plot(x, values, **style)
    axes.set(ylabel=r"certified $\ell_2$ radius (unit of σ)")
    axes.set_ylim(bottom=0)
    tidy(axes)


def _supposed(
    projected: Mapping[str, Mapping[str, pd.DataFrame]],
) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Frames, the alpha that each supposes in its name, and how to draw them: a second alpha's line is thinner."""
    frames, looks = {}, []
    for (name, by), look in zip(projected.items(), styles(), strict=False):
        for place, (supposed, frame) in enumerate(by.items(), 1):
            frames[f"{name}, {supposed}" if supposed else name] = frame
            looks.append(look | {"linewidth": look["linewidth"] / place})
    return frames, looks


def _say_instead(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=9)
    axes.set_axis_off()
