"""Figures 6, 14 and 15 of Cohen et al. 2019: certified accuracy by sigma, with its guarantee, and by training noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art_rs_plugin.core.curves import DEDUCTIONS, certified_accuracy_lower
from art_rs_plugin.core.population import familywise_alpha, population_accuracy_lower
from art_rs_plugin.core.radii import FloatArray
from art_rs_plugin.experiments import side_by_side
from art_rs_plugin.experiments.curve import plain, steps, styles, tidy
from art_rs_plugin.experiments.paper.drawing import curves, finish, footnote, looks_of, panels
from art_rs_plugin.experiments.paper.log import Log
from art_rs_plugin.experiments.paper.sources import Logs
from art_rs_plugin.experiments.projection import accuracy_between

_INFERRED = (
    "TSV logs say neither n nor α: n is supposed, α is the published level at which all of their radii are attainable."
)


def by_sigma(logs: Logs, data: str | None = None) -> Figure:
    """Figure 6: certified accuracy by radius, a curve for each sigma, a panel for each data set there are logs of.

    Ledgers of an attack on f (`attack-bound` of `art-rs compare`) are drawn as the upper bound on the robust accuracy
    of an undefended network; where the logs hold none, the figure says so.

    :param data: Only this data set.
    :raises ValueError: There are no certification logs, or two at the same sigma.
    """
    names = [data] if data is not None else logs.datasets()
    if not names:
        raise ValueError(f"certification logs are needed; {logs.looked}")
    chosen = {name: logs.by_sigma(name) for name in names}
    figure, axes = panels(len(names))
    for (name, by), panel in zip(chosen.items(), axes, strict=True):
        frames = {f"σ = {sigma:g}, {log.level}": log.frame for sigma, log in by.items()}
        title = f"{name}, {_votes(by)}"
        curves(panel, frames, title, looks_of(by, chosen.values()))
        upper = logs.attacked(name)
        _draw_upper_bounds(panel, upper)
        finish(panel, [*frames, *(f"upper bound: {plain(log.path.stem)} on f" for log in upper)], title)
    without = [name for name in names if not logs.attacked(name)]
    of = "" if len(without) == len(names) else f" of {', '.join(without)}"
    missing = f"No ledger of an attack on the undefended network is among the logs{of}: no upper bound is drawn."
    _note_inference(figure, chosen.values(), missing if without else "")
    return figure


def guaranteed(logs: Logs, *, data: str, sigma: float, alpha: float | None = 0.001, rho: float = 0.001) -> Figure:
    """Figure 14: approximate certified accuracy, and Theorem 6's lower bounds on the true one of this test set.

    Both forms hold with probability 1 - rho for all radii at once; see `core.curves.certified_accuracy_lower`.

    :param alpha: At which the certificates are bounded anew; None for the log's own.
    :raises ValueError: There is no log at this sigma, or nothing is known of its alpha.
    """
    log = logs.at(data, sigma)
    frames = log.projected(alpha=alpha)
    figure, (axes,) = panels(1)
    lines = {}
    for supposed, frame in frames.items():
        radius, share = steps(frame)
        lines[_join("approximate (no guarantee)", supposed)] = radius, share
        for form, name in (("exact", "Theorem 6, exact binomial"), ("bernstein", "Theorem 6, Bernstein")):
            lower = certified_accuracy_lower(share, len(frame), frame.attrs["alpha"], rho=rho, form=form)
            lines[_join(name, supposed)] = radius, lower
    for (radius, values), style in zip(lines.values(), styles(), strict=False):
        axes.step(radius, values, where="pre", **style)
    axes.set(xlabel=r"$\ell_2$ radius $r$ (unit of the input)", ylabel="certified accuracy", ylim=(0, 1.02))
    axes.set_xlim(0, 1.05 * max(float(radius[-1]) for radius, _ in lines.values()) or 1)
    tidy(axes)
    level = "" if alpha is None else f"\nbounded anew at α = {alpha:g}"
    finish(axes, list(lines), f"{data}, σ = {sigma:g}, m = {len(log.frame)}, ρ = {rho:g}\n{log.setting}{level}")
    footnote(
        figure,
        f"Estimand: the share of these {len(log.frame)} images that g classifies correctly everywhere within r; not "
        "the population's. All radii at once.",
    )
    return figure


def confidence(
    logs: Logs, *, data: str, sigma: float, radii: Sequence[float], alpha: float | None = 0.001, rho: float = 0.001
) -> pd.DataFrame:
    """What a log's certificates guarantee, and of what: of this test set, or of the population that it is a sample of.

    :param alpha: At which certificates are bounded anew, to be chosen before the votes are seen; None for the log's.
    :return: Columns `statement`, `of`, `radii` ("all at once" or "each by itself"), `fails at most`, then each radius.
    :raises ValueError: There is no log at this sigma, or nothing is known of its alpha.
    """
    log = logs.at(data, sigma)
    m = len(log.frame)
    rows = []

    def say(statement: str, supposed: str, of: str, when: str, fails: float | None, values: FloatArray) -> None:
        rows.append([_join(statement, supposed), of, when, "" if fails is None else f"{fails:g}", *values])

    for supposed, frame in log.projected(alpha=alpha).items():
        level = frame.attrs["alpha"]
        share, _ = accuracy_between(frame, radii)
        counts = np.rint(share * m).astype(np.int64)
        say(f"approximate, α = {level:g}", supposed, "nothing: no guarantee", "", None, share)
        for form in DEDUCTIONS:
            lower = certified_accuracy_lower(share, m, level, rho=rho, form=form)
            say(f"Theorem 6, {form}", supposed, "this test set", "all at once", rho, lower)
        for form, when in (("binomial", "each by itself"), ("dkw", "all at once")):
            lower = population_accuracy_lower(counts, m, level, rho=rho, form=form)
            say(f"{form} limit less α", supposed, "the population", when, rho, lower)
        strict = log.projected(alpha=familywise_alpha(level, m))[supposed]
        every, _ = accuracy_between(strict, radii)
        say(f"every certificate at α/m = {level:g}/{m}", supposed, "this test set", "all at once", level, every)
    table = pd.DataFrame(rows, columns=["statement", "of", "radii", "fails at most", *map(float, radii)])
    table.attrs["caption"] = f"Certified accuracy on {data} at σ = {sigma:g}, and what is guaranteed of it."
    table.attrs["notes"] = [
        f"m = {m} images, {log.setting}; {log.path}",
        "This test set: the share of these images that g classifies correctly everywhere within r. The population: "
        "the probability that g does so for a fresh image of the same kind. Noise must be independent between images; "
        "α and ρ are to be chosen before the votes are seen.",
    ]
    return table


def by_training(logs: Logs, *, data: Sequence[str] | None = None, sigma: float = 0.5) -> Figure:
    """Figure 15: certified accuracy at one sigma of prediction, a curve for each sigma of training.

    :param data: Data sets, a panel each; default: those there are logs of that say their training noise.
    :raises ValueError: There are no logs at this sigma of networks trained at several.
    """
    if data is None:
        data = [
            name
            for name in logs.datasets()
            if any(log.trained not in (None, log.sigma) for log in logs.certified(name))
        ]
    if not data:
        raise ValueError(
            f"logs of networks trained at another sigma than they are certified at are needed; {logs.looked}"
        )
    chosen = {name: logs.by_training(name, sigma) for name in data}
    figure, axes = panels(len(data))
    for (name, by), panel in zip(chosen.items(), axes, strict=True):
        frames = {f"trained at σ = {trained:g}, {log.level}": log.frame for trained, log in by.items()}
        title = f"{name}, certified at σ = {sigma:g}, {_votes(by)}"
        curves(panel, frames, title, looks_of(by, chosen.values()))
    _note_inference(figure, chosen.values())
    return figure


def _join(name: str, supposed: str) -> str:
    return f"{name}, {supposed}" if supposed else name


def _draw_upper_bounds(axes: Axes, logs: Sequence[Log]) -> None:
    """The share of examples that an attack left as they were at each radius, in black, as far as certificates go."""
    for log in logs:
        # no dimension is needed: these distances are in the norm that they are asked for
        frame = side_by_side.read(log.path, 2.0, 1)
        frame.attrs["tried"] = min(frame.attrs["tried"], axes.get_xlim()[1])
        radius, share = steps(frame)
        axes.step(radius, share, where="pre", color="0", linestyle="--", linewidth=1.2)


def _votes(logs: Mapping[float, Log]) -> str:
    return "; ".join(sorted({log.drawn for log in logs.values()}))


def _note_inference(figure: Figure, groups: Iterable[Mapping[float, Log]], more: str = "") -> None:
    inferred = any(not log.header for group in groups for log in group.values())
    if notes := [note for note in (_INFERRED if inferred else "", more) if note]:
        footnote(figure, " ".join(notes))
