"""The runs behind the command line: train a checkpoint; certify or predict a data set into a ledger."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import art_rs_plugin
from art_rs_plugin.core import checks
from art_rs_plugin.core.budgets import Budget, Fixed, Task
from art_rs_plugin.core.certificate import check_prediction_votes, predict_from_counts
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints, models
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.ledger import Ledger, Row, row_of
from art_rs_plugin.experiments.rows import rule_of
from art_rs_plugin.noise import Gaussian, Purpose, fresh_seed, seed_generator
from art_rs_plugin.training import OBJECTIVES, Epoch, loader_batches, read_checkpoint
from art_rs_plugin.training import train as train_loop

TRAINING_STATE = "training.pt"
_IMAGES_AT_ONCE = 256

Progress = Callable[[Row, int, int], object]
"""Called with each row once it is in the ledger, how many are, and how many will be."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: a method of `training.OBJECTIVES`, by SGD with momentum.

    The learning rate is divided by ten after each third of the epochs. The defaults are those of Cohen et al. 2019,
    section 4.
    """

    method: str = "gaussian"
    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4


def train(
    data: DataSet,
    model_name: str,
    sigma: float,
    out: Path,
    *,
    recipe: Recipe,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    on_epoch: Callable[[Epoch], object] | None = None,
    progress: bool = False,
) -> torch.nn.Module:
    """Train the model `model_name` on `data` under Gaussian noise, and save its checkpoint in the folder `out`.

    `out` also keeps the state after every epoch; the same call again goes on from there.

    :raises ValueError: `out` holds another run, or an option is unfit.
    """
    noise = Gaussian(sigma)
    state = out / TRAINING_STATE
    step_size = max(1, -(-checks.whole("epochs", recipe.epochs) // 3))
    if state.exists():
        begun = read_checkpoint(state)
        seed = begun["settings"]["seed"] if seed is None else seed
        if (begun["scheduler"] or {}).get("step_size") != step_size:
            raise ValueError(
                f"`epochs` must be as in the run in {out}, whose learning rates follow them, got {recipe.epochs}"
            )
    seed = fresh_seed() if seed is None else seed
    architecture: dict[str, Any] = {
        "name": model_name,
        "input_shape": list(data.input_shape),
        "nb_classes": data.nb_classes,
        "mean": list(data.mean),
        "std": list(data.std),
    }
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.default_generator, seed, Purpose.INITIALISATION)
        model = models.build(**architecture)
    model.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    history = train_loop(
        model,
        loader_batches(data.images, recipe.batch_size, seed, augment=data.augment, num_workers=num_workers),
        objective=OBJECTIVES[checks.one_of("method", recipe.method, OBJECTIVES)](),
        optimizer=optimizer,
        noise=noise,
        epochs=recipe.epochs,
        seed=seed,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, step_size=step_size),
        checkpoint=state,
        identity={"model": model_name, "data": data.name},
        on_epoch=on_epoch,
        progress=progress,
    )
    about = {
        "architecture": architecture,
        "sigma": sigma,
        "data": {"name": data.name, "split": data.split},
        "training": {"seed": seed, **asdict(recipe), "last_epoch": dict(history[-1])},
        "versions": _versions(),
    }
    checkpoints.save_checkpoint(out, model, about)
    return model


def open_network(path: Path, data: DataSet, model_name: str | None = None) -> tuple[torch.nn.Module, float | None]:
    """The network of a checkpoint folder, with the sigma it was trained at; or somebody's weights in `model_name`.

    :param data: The images it is for: weights from elsewhere get their shape, classes, mean and deviation.
    :raises ValueError: `model_name` is missing for a file of weights, or given for a checkpoint, which says it.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint `{path}` does not exist")
    if path.is_dir():
        if model_name is not None:
            raise ValueError(f"`--model` must not be given for a checkpoint that says it: {path}")
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
        model_name, input_shape=data.input_shape, nb_classes=data.nb_classes, mean=data.mean, std=data.std
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
    on_row: Progress | None = None,
) -> None:
    """Certify the images of `data` at `indices` into the ledger `out`, going on where it stopped.

    A row's `seconds` are those since the row before. Certificates of inputs that are certified side by side come in
    one burst, so that only their sum says what the run took.

    :param budget: How many votes to draw and when to stop; a dataclass with a `name`, so that the ledger can say which.
        None is the paper's, `Fixed` with the estimator's n0 and n.
    :param known_labels: Certify the label's class or none, which takes no votes to select one (benchmarks).
    :raises LedgerMismatch: `out` is the ledger of another run.
    :raises ValueError, TypeError: A budget that can never certify, or that a header cannot name.
    """
    budget = Fixed(n0=estimator.n0, n=estimator.n) if budget is None else budget
    rule = {**rule_of(budget), "alpha": estimator.alpha, **({"known_labels": True} if known_labels else {})}
    # up to its first wish for votes: what is unfit about it should say so before there is a ledger
    task = Task(radius=estimator.noise.radius, alpha=estimator.alpha, label=0 if known_labels else None, uniform=1.0)
    next(budget.steps(task), None)

    def rows(x: Any, y: Any, names: list[int]) -> Iterator[Row]:
        start = time.perf_counter()
        certificates = estimator.iter_certificates(
            x, indices=names, batch_size=batch_size, budget=budget, y=y if known_labels else None
        )
        for certificate, label in zip(certificates, y, strict=True):
            yield row_of(certificate, int(label), round(time.perf_counter() - start, 6))
            start = time.perf_counter()

    fill(estimator, data, indices, out, kind="certify", rule=rule, rows=rows, on_row=on_row)


def predict(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    n: int,
    batch_size: int | None = None,
    on_row: Progress | None = None,
) -> None:
    """Predict the images of `data` at `indices` with `n` votes each into the ledger `out`, as `certify` certifies."""
    alpha = estimator.alpha
    check_prediction_votes(n, alpha)

    def rows(x: Any, y: Any, names: list[int]) -> Iterator[Row]:
        for position, (index, label) in enumerate(zip(names, y, strict=True)):
            start = time.perf_counter()
            (counts,) = estimator.votes(x[position : position + 1], n, indices=[index], batch_size=batch_size)
            yield {
                "index": index,
                "label": int(label),
                "prediction": predict_from_counts(counts, alpha),
                "counts": counts.tolist(),
                "n": n,
                "alpha": alpha,
                "seconds": round(time.perf_counter() - start, 6),
            }

    rule = {"name": "fixed", "n": n, "alpha": alpha}
    fill(estimator, data, indices, out, kind="predict", rule=rule, rows=rows, on_row=on_row)


def fill(
    estimator: RandomizedSmoothingPyTorch,
    data: DataSet,
    indices: Iterable[int],
    out: Path,
    *,
    kind: str,
    rule: dict[str, Any],
    rows: Callable[[Any, Any, list[int]], Iterator[Row]],
    on_row: Progress | None,
) -> None:
    """Open or continue the ledger and append what `rows` makes of the images that are not in it yet.

    :param rows: (images, labels, indices) -> their rows, in order.
    """
    seed = estimator.seed
    if estimator.get_params()["input_shape"] is None:
        estimator.set_params(input_shape=data.input_shape)  # its arithmetic may depend on it
    header = {
        "kind": kind,
        **identity(estimator, data),
        "seed": seed,
        "rule": rule,
        "versions": _versions(),
        "precision": estimator.arithmetic,
        "device": _device_name(estimator.device),
    }
    wanted = list(indices)
    try:
        with Ledger.open(out, header) as ledger:
            # a ledger always has a seed: the noise of every example follows from it, also after a restart
            estimator.set_params(seed=ledger.header["seed"])
            missing = [index for index in wanted if index not in ledger.done]
            done = len(wanted) - len(missing)
            for start in range(0, len(missing), _IMAGES_AT_ONCE):
                names = missing[start : start + _IMAGES_AT_ONCE]
                for row in rows(*data.arrays(names), names):
                    ledger.append(row)
                    done += 1
                    if on_row is not None:
                        on_row(row, done, len(wanted))
    finally:
        estimator.set_params(seed=seed)


def identity(estimator: RandomizedSmoothingPyTorch, data: DataSet) -> dict[str, Any]:
    """What a ledger's header says of f, its noise and the data set."""
    return {
        "model": _model_identity(estimator),
        "noise": {"name": estimator.noise.name, "sigma": estimator.sigma},
        "data": {"name": data.name, "split": data.split, "images": len(data)},
    }


def _versions() -> dict[str, str]:
    return {"art_rs_plugin": art_rs_plugin.__version__, "torch": torch.__version__}


def _model_identity(estimator: RandomizedSmoothingPyTorch) -> dict[str, str]:
    """What f is: its weights, the modules they sit in, and what comes before them."""
    structure = f"{estimator.model!r} {estimator.preprocessing_operations!r}"
    return {
        "hash": checkpoints.model_hash(estimator.model),
        "structure": f"sha256:{hashlib.sha256(structure.encode()).hexdigest()}",
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
