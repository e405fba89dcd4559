"""Attacks on a data set into a ledger, and how tight its certificates are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from art_rs_plugin.attacks import AttackEvaluation, SmoothedDDN, SmoothedPGD, evaluate_attack
from art_rs_plugin.attacks.evaluation import share
from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import ABSTAIN, check_prediction_votes
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments.curve import save_figure, to_markdown
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.ledger import Row, read_ledger
from art_rs_plugin.experiments.logs import read_log, write_atomically
from art_rs_plugin.experiments.runs import Progress, fill, identity
from art_rs_plugin.ranks import ALONE, Ranks

_IMAGES_AT_ONCE = 32  # lost at most when a run is stopped


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An attack of `ATTACKS` and how hard it tries; see `SmoothedPGD`."""

    attack: str = "smoothed-pgd"
    norm: float | str = 2
    max_iter: int = 20
    num_samples: int = 32
    objective: str = "expected_loss"


def _pgd(estimator: RandomizedSmoothingPyTorch, plan: Plan, eps: NDArray[np.float64], rows: int | None) -> Any:
    return SmoothedPGD(
        estimator,
        norm=plan.norm,
        eps=eps,
        max_iter=plan.max_iter,
        num_samples=plan.num_samples,
        objective=plan.objective,
        batch_size=rows,
    )


def _ddn(estimator: RandomizedSmoothingPyTorch, plan: Plan, eps: NDArray[np.float64], rows: int | None) -> Any:
    if plan.norm != 2:
        raise ValueError(f"`norm` must be 2 for smoothed-ddn, got {plan.norm!r}")
    return SmoothedDDN(
        estimator,
        max_iter=plan.max_iter,
        num_samples=plan.num_samples,
        objective=plan.objective,
        init_eps=np.where(eps > 0, eps, 1.0),
        batch_size=rows,
    )


ATTACKS: dict[str, Callable[[RandomizedSmoothingPyTorch, Plan, NDArray[np.float64], int | None], Any]] = {
    "smoothed-pgd": _pgd,
    "smoothed-ddn": _ddn,
}
"""Attacks by name: (estimator, plan, eps of every input, noisy copies per forward pass) -> an attack."""


@dataclass(frozen=True)
class Certified:
    """What a ledger certifies: index -> (class, radius); and which run it is."""

    certificates: dict[int, tuple[int, float]]
    run: dict[str, Any]


def certified(path: Path, estimator: RandomizedSmoothingPyTorch, data: DataSet) -> Certified:
    """The certificates of a ledger, abstentions left out.

    :raises ValueError: It is no ledger of certificates, or one of another network, noise or data set.
    """
    header, rows = read_ledger(path)
    if header["kind"] != "certify":
        raise ValueError(f"{path} must be a ledger of certificates, got one of kind {header['kind']!r}")
    here = identity(estimator, data)
    for name in ("model", "noise", "data"):
        if header[name] != here[name]:
            raise ValueError(f"{path} must hold certificates of this run's `{name}`, {here[name]}, got {header[name]}")
    made = {row["index"]: (row["prediction"], row["radius"]) for row in rows if row["prediction"] != ABSTAIN}
    return Certified(made, {name: header[name] for name in ("seed", "rule", "precision")})


def attack(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    plan: Plan,
    eps: float | None = None,
    certificates: Certified | None = None,
    times_radius: float | None = None,
    n: int = 1_000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    on_row: Progress | None = None,
) -> None:
    """Attack the images of `data` at `indices` into the ledger `out`, going on where it stopped.

    An image is to leave its label, within `eps`; or the class certified for it, within `times_radius` times its
    radius, and then images without a certificate are left out. What is found is judged by PREDICT on `n` fresh votes.
    A row is a function of the seed and its image's index; `ranks` are whom to do it with.

    :raises LedgerMismatch: `out` is the ledger of another run.
    :raises ValueError: Neither or both of `eps` and `certificates`, or an unfit plan.
    """
    if (eps is None) == (certificates is None) or (certificates is None) != (times_radius is None):
        raise ValueError(
            "`eps` must be given, or certificates and `times_radius`, got "
            f"eps={eps!r}, times_radius={times_radius!r} {'without' if certificates is None else 'with'} certificates"
        )
    check_prediction_votes(n, alpha)
    build = ATTACKS[checks.one_of("attack", plan.attack, ATTACKS)]
    if certificates is None:
        within: dict[str, Any] = {"eps": checks.non_negative("eps", float(eps or 0.0))}
    else:
        within = {"times_radius": checks.positive("times_radius", float(times_radius or 0.0)), "of": certificates.run}
        chosen = list(indices)
        indices = [index for index in chosen if index in certificates.certificates]
        if not indices:
            raise ValueError(f"one of the images must be certified, got none among {len(chosen)}")
    build(estimator, plan, np.zeros(1), batch_size)

    def rows(x: Any, y: Any, names: list[int]) -> Iterator[Row]:
        for first in range(0, len(names), _IMAGES_AT_ONCE):
            some = slice(first, first + _IMAGES_AT_ONCE)
            yield from of_some(x[some], np.asarray(y[some]), names[some])

    def of_some(x: Any, y: NDArray[np.int64], names: list[int]) -> Iterator[Row]:
        start = time.perf_counter()
        if certificates is None:
            leaves, lengths = y, np.full(len(names), within["eps"])
        else:
            classes, radii = zip(*(certificates.certificates[name] for name in names), strict=True)
            leaves, lengths = np.array(classes), within["times_radius"] * np.array(radii)
        estimator.gradient_calls = 0  # an image's noise is named by its index
        made = build(estimator, plan, lengths, batch_size).generate(x, leaves, indices=names)
        made = _within(x, made, lengths, plan.norm)
        judged = evaluate_attack(estimator, x, made, leaves, n=n, alpha=alpha, indices=names, batch_size=batch_size)
        seconds = (time.perf_counter() - start) / len(names)
        for row, name in enumerate(names):
            yield {
                "index": name,
                "label": int(y[row]),
                "leaves": int(leaves[row]),
                "clean": int(judged.clean[row]),
                "prediction": int(judged.attacked[row]),
                "counts": judged.counts[row].tolist(),
                "n": n,
                "alpha": alpha,
                "eps": float(lengths[row]),
                "l2": float(judged.l2[row]),
                "linf": float(judged.linf[row]),
                "seconds": round(seconds, 6),
            }

    rule = {"name": "attack", **asdict(plan), **within, "n": n, "alpha": alpha}
    rule["norm"] = str(rule["norm"])  # JSON has no infinity
    calls = estimator.gradient_calls
    try:
        fill(
            estimator, data, indices, out, kind="attack", rule=rule, rows=rows, batch_size=batch_size, ranks=ranks,
            on_row=on_row,
        )  # fmt: skip
    finally:
        estimator.gradient_calls = calls


def _within(x: NDArray[np.float32], made: NDArray[np.float32], eps: NDArray[np.float64], norm: float | str) -> Any:
    """What an attack of least norm made, where it is no longer than it may be; the image itself elsewhere."""
    order = 2 if norm == 2 else np.inf
    length = np.linalg.norm((made.astype(np.float64) - x).reshape(len(x), -1), ord=order, axis=1)
    short = length <= eps * (1 + 1e-5) + 1e-6
    return np.where(short.reshape(-1, *[1] * (x.ndim - 1)), made, x)


def judged(path: Path, *, confidence: float = 0.95) -> AttackEvaluation:
    """What a ledger of an attack says, of the classes that its images were to leave."""
    log = read_log(path)
    column = {name: log[name].to_numpy() for name in ("leaves", "clean", "prediction", "l2", "linf")}
    return AttackEvaluation(
        labels=column["leaves"],
        clean=column["clean"],
        attacked=column["prediction"],
        counts=np.array(log["counts"].tolist(), dtype=np.int64),
        l2=column["l2"],
        linf=column["linf"],
        n=int(log["n"].max()),
        alpha=float(log["alpha"].max()),
        confidence=confidence,
    )


def tightness_table(ledgers: Mapping[float, Path]) -> pd.DataFrame:
    """The share of certified images with an adversarial example within k times the radius (Cohen et al., section 4).

    An adversarial example is one for which PREDICT names another class than the certified one. One found within a
    smaller multiple counts for the larger ones too; an abstention counts for none.

    :param ledgers: Of attacks at that multiple of the radius, by the multiple.
    :return: A row per multiple: `times`, `images`, `adversarial` (share), its 95% interval `low` and `high`, `abstain`.
    :raises ValueError: No image is in all of the ledgers.
    """
    logs = {times: read_log(path).set_index("index") for times, path in sorted(ledgers.items())}
    common = sorted(set.intersection(*(set(log.index) for log in logs.values())))
    if not common:
        raise ValueError("the ledgers must have images in common, got none: were any certified?")
    found = np.zeros(len(common), dtype=bool)
    rows = []
    for times, log in logs.items():
        here = log.loc[common]
        found = found | ((here["prediction"] != here["leaves"]) & (here["prediction"] != ABSTAIN)).to_numpy()
        abstains = float(((here["prediction"] == ABSTAIN).to_numpy() & ~found).mean())
        rows.append([times, len(common), *share(found, 0.95), abstains])
    return pd.DataFrame(rows, columns=["times", "images", "adversarial", "low", "high", "abstain"])


def tightness_figure(table: pd.DataFrame) -> Figure:
    """Share with an adversarial example against the multiple of the radius, with intervals; no state of pyplot."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = table["adversarial"].to_numpy()
    spread = np.stack([share - table["low"].to_numpy(), table["high"].to_numpy() - share])
    axes.errorbar(table["times"], share, yerr=spread, marker="o", capsize=3, color="#0072B2", linewidth=1.8)
    axes.set(
        xlabel="perturbation / certified radius",
        ylabel="share with an adversarial example",
        xlim=(0, 1.08 * float(table["times"].max())),
        ylim=(0, 1.02),
        title=f"Tightness of {int(table['images'].iloc[0])} certificates",
    )
    axes.axvline(1.0, color="0.6", linestyle=":", linewidth=1.2)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_tightness(ledgers: Mapping[float, Path], folder: Path) -> list[Path]:
    """Write `tightness.md`, `.csv`, `.png` and `.svg` into a folder, and say where they are."""
    table = tightness_table(ledgers)
    figure = tightness_figure(table)
    paths = [folder / f"tightness.{suffix}" for suffix in ("md", "csv", "png", "svg")]
    write_atomically(paths[0], to_markdown(table).encode())
    write_atomically(paths[1], table.to_csv(index=False, lineterminator="\n").encode())
    for path in paths[2:]:
        save_figure(figure, path)
    return paths
