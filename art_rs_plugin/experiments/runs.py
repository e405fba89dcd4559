"""The runs behind the command line: train a checkpoint; certify or predict a data set into a ledger."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import art_rs_plugin
from art_rs_plugin.core.budgets import Budget, Fixed, Task
from art_rs_plugin.core.certificate import check_prediction_votes, predict_from_counts
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints, dealing, models
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.helping import Helping
from art_rs_plugin.experiments.ledger import Ledger, Row, row_of
from art_rs_plugin.experiments.rows import rule_of
from art_rs_plugin.ranks import ALONE, Ranks
from art_rs_plugin.votes import NotFiniteError

IMAGES_AT_ONCE = 256
_COMPARED = 8  # images, about, that ranks compare

Progress = dealing.Progress
"""Called with each row once it is in the ledger, how many are, and how many will be."""


def open_network(
    path: Path,
    data: DataSet,
    model_name: str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[torch.nn.Module, float | None]:
    """The network of a checkpoint folder, with the sigma it was trained at; or somebody's weights in `model_name`.

    :param data: The images it is for: weights from elsewhere get their shape and classes, and, unless they hold their
        own, `mean` and `std`, which are those of `data` if not given.
    :raises ValueError: `model_name` is missing for a file of weights, or given for a checkpoint, which says it, as are
        `mean` and `std`.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint `{path}` does not exist")
    if path.is_dir():
        for name, given in (("model", model_name), ("mean", mean), ("std", std)):
            if given is not None:
                raise ValueError(f"`{name}` must not be given for a checkpoint that says it, got {given!r} for {path}")
        model, about = checkpoints.load_checkpoint(path)
        theirs = tuple(about["architecture"]["input_shape"]), about["architecture"]["nb_classes"]
        if theirs != (data.input_shape, data.nb_classes):
            raise ValueError(
                f"the network in {path} must be for the images of `{data.name}`, of shape {data.input_shape} in "
                f"{data.nb_classes} classes, got one for shape {theirs[0]} in {theirs[1]} classes"
            )
        return model, float(about["sigma"])
    if model_name is None:
        raise ValueError(f"`--model` must be given for weights that do not say theirs: {path}")
    network = models.build(
        model_name,
        input_shape=data.input_shape,
        nb_classes=data.nb_classes,
        mean=data.mean if mean is None else mean,
        std=data.std if std is None else std,
    )
    checkpoints.load_weights(network, path)
    return network, None


def certify(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    budget: Budget | None = None,
    known_labels: bool = False,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    on_row: Progress | None = None,
) -> None:
    """Certify the images of `data` at `indices` into the ledger `out`, going on where it stopped.

    A row's `seconds` are those since the row before. Certificates of inputs that are certified side by side come in
    one burst, so that only their sum says what the run took.

    :param ranks: Whom to do it with, see `dealing`: the ledger is the same.
    :param budget: How many votes to draw and when to stop; a dataclass with a `name`, so that the ledger can say which.
        None is the paper's, `Fixed` with the estimator's n0 and n.
    :param known_labels: Certify the label's class or none, which takes no votes to select one (benchmarks).
    :raises LedgerMismatch: `out` is the ledger of another run.
    :raises ValueError, TypeError: A budget that can never certify, or that a header cannot name.
    """
    budget = Fixed(n0=estimator.n0, n=estimator.n) if budget is None else budget
    rule = {**rule_of(budget), "alpha": estimator.alpha, **({"known_labels": True} if known_labels else {})}
    _know_shape(estimator, data)
    # up to its first wish for votes: what is unfit about it should say so before there is a ledger
    task = Task(radius=estimator.noise.radius, alpha=estimator.alpha, label=0 if known_labels else None, uniform=1.0)
    next(budget.steps(task), None)

    def rows(x: Any, y: Any, names: list[int]) -> Iterator[Row]:
        start = time.perf_counter()
        certificates = estimator.iter_certificates(
            x, indices=names, batch_size=batch_size, budget=budget, y=y if known_labels else None
        )
        labels = dict(zip(names, y, strict=True))
        for certificate in certificates:  # none of an image for which f's logits are not finite
            yield row_of(certificate, int(labels[certificate.index]), round(time.perf_counter() - start, 6))
            start = time.perf_counter()

    fill(
        estimator, data, indices, out, kind="certify", rule=rule, rows=rows, batch_size=batch_size, ranks=ranks,
        votes_of_images=True, on_row=on_row,
    )  # fmt: skip


def predict(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    n: int,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    on_row: Progress | None = None,
) -> None:
    """Predict the images of `data` at `indices` with `n` votes each into the ledger `out`, as `certify` certifies."""
    alpha = estimator.alpha
    check_prediction_votes(n, alpha)

    def rows(x: Any, y: Any, names: list[int]) -> Iterator[Row]:
        spoilt: list[tuple[int, int, int]] = []
        for position, (index, label) in enumerate(zip(names, y, strict=True)):
            start = time.perf_counter()
            try:
                (counts,) = estimator.votes(x[position : position + 1], n, indices=[index], batch_size=batch_size)
            except NotFiniteError as error:
                spoilt += error.examples
                continue
            yield {
                "index": index,
                "label": int(label),
                "prediction": predict_from_counts(counts, alpha),
                "counts": counts.tolist(),
                "n": n,
                "alpha": alpha,
                "seconds": round(time.perf_counter() - start, 6),
            }
        if spoilt:
            raise NotFiniteError(spoilt)

    rule = {"name": "fixed", "n": n, "alpha": alpha}
    fill(
        estimator, data, indices, out, kind="predict", rule=rule, rows=rows, batch_size=batch_size, ranks=ranks,
        votes_of_images=True, on_row=on_row,
    )  # fmt: skip


def fill(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    kind: str,
    rule: dict[str, Any],
    rows: Callable[[Any, Any, list[int]], Iterator[Row]],
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
    votes_of_images: bool = False,
    on_row: Progress | None,
) -> None:
    """Open or continue the ledger and append what `rows` makes of the images that are not in it yet.

    :param rows: (images, labels, indices) -> their rows, in order.
    :param ranks: Whom to do it with.
    :param votes_of_images: All votes are cast on images as they are in `data`, so that any rank can cast them.
    :raises NotFiniteError: f's logits for some images are not finite; all others are in the ledger.
    """
    given = estimator.seed
    _know_shape(estimator, data)
    header = {
        "kind": kind,
        **identity(estimator, data),
        "seed": given,
        "rule": rule,
        "versions": versions(),
        "precision": estimator.arithmetic,
        "device": device_name(estimator.device),
    }
    wanted = list(indices)
    if wanted:
        # an image that no vote can be cast on should say so before there is a ledger
        estimator.noise.check(estimator._inputs(data.arrays(wanted[:1])[0]))

    def make(seed: int, names: list[int]) -> Iterator[Row]:
        # a ledger always has a seed: the noise of every example follows from it, also after a restart
        if estimator.seed != seed:
            estimator.set_params(seed=seed)
        return rows(*data.arrays(names), names)

    @contextmanager
    def helping(ranks: Ranks, seed: int) -> Iterator[dealing.Help]:
        votes = Helping(ranks, estimator, data, seed, batch_size)
        with estimator.counted_by(votes.count):
            yield votes.help

    try:
        # a run of many ranks that was stopped, and goes on with one, has parts
        if ranks.size > 1 or dealing.folder_of(out).exists():
            about = {"images": fingerprint(data, wanted), "batch_size": batch_size}
            dealing.fill(
                ranks, out, header, wanted, about, make, at_once=IMAGES_AT_ONCE,
                helping=helping if votes_of_images and ranks.size > 1 else None, on_row=on_row,
            )  # fmt: skip
            return
        with Ledger.open(out, header) as ledger:
            missing = [index for index in wanted if index not in ledger.done]
            done = len(wanted) - len(missing)
            spoilt: list[tuple[int, int, int]] = []
            for start in range(0, len(missing), IMAGES_AT_ONCE):
                try:
                    for row in make(ledger.header["seed"], missing[start : start + IMAGES_AT_ONCE]):
                        ledger.append(row)
                        done += 1
                        if on_row is not None:
                            on_row(row, done, len(wanted))
                except NotFiniteError as error:
                    spoilt += error.examples
            if spoilt:
                raise NotFiniteError(spoilt)
    finally:
        estimator.set_params(seed=given)


def fingerprint(data: DataSet, indices: Sequence[int]) -> str:
    """A hash of which images these are and of some of them, by which ranks tell whether they have the same data."""
    some = list(indices)[:: max(1, len(indices) // _COMPARED)]
    digest = hashlib.sha256(repr(list(indices)).encode())
    for values in data.arrays(some):
        digest.update(values.tobytes())
    return f"sha256:{digest.hexdigest()}"


def identity(estimator: RandomizedSmoothingPyTorch, data: DataSet) -> dict[str, Any]:
    """What a ledger's header says of f, its noise and the data set."""
    _know_shape(estimator, data)
    return {
        "model": _model_identity(estimator),
        "noise": estimator.noise.about(),
        "data": {"name": data.name, "split": data.split, "images": len(data)},
    }


def _know_shape(estimator: RandomizedSmoothingPyTorch, data: DataSet) -> None:
    """Tell the estimator the shape of one input, if nobody has: its arithmetic and its noise may depend on it."""
    if estimator.get_params()["input_shape"] is None:
        estimator.set_params(input_shape=data.input_shape)


def versions() -> dict[str, str]:
    """What made a file, for its header."""
    return {"art_rs_plugin": art_rs_plugin.__version__, "torch": torch.__version__}


def _model_identity(estimator: RandomizedSmoothingPyTorch) -> dict[str, str]:
    """What f is: its weights, the modules they sit in, and what comes before them."""
    structure = f"{estimator.model!r} {estimator.preprocessing_operations!r}"
    return {
        "hash": checkpoints.model_hash(estimator.model),
        "structure": f"sha256:{hashlib.sha256(structure.encode()).hexdigest()}",
    }


def device_name(device: torch.device) -> str:
    """What a ledger's header calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
