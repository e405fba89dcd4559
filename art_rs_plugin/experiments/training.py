"""The run behind `art-rs train`: a data set and a recipe in, a checkpoint folder out, going on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset

from art_rs_plugin.core import checks
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints, models, runs
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.recipes import Recipe
from art_rs_plugin.experiments.validation import SCORE, Validation
from art_rs_plugin.noise import Gaussian, Purpose, fresh_seed, seed_generator, stream
from art_rs_plugin.training import Epoch, loader_batches, read_checkpoint
from art_rs_plugin.training import train as train_loop
from art_rs_plugin.training.loop import Batches

STATE = "training.pt"
METRICS = "metrics.jsonl"
BEST = "best"  # folder inside the checkpoint's, of the epoch that validated best
PSEUDO_LABELS = "pseudo-labels.npy"
PSEUDO_LABEL_VOTES = 20
_IMAGES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Unlabeled:
    """More images to train on, under the labels that a teacher gives them (Salman et al. 2019, Section 4.2).

    :param images: Their own labels are never looked at.
    :param teacher: Checkpoint folder of a network; a label is the class that most of 20 of its votes name, under the
        noise it was trained with.
    :param weight: Of their loss, against 1 of the labelled images'.
    """

    images: DataSet
    teacher: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("weight", self.weight)

    @property
    def identity(self) -> str:
        """What a run must have been told to go on with these."""
        _, about = checkpoints.load_checkpoint(self.teacher)
        return f"{self.images.name} labelled by {about['model_hash']}, weight {self.weight}"


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
    init: Path | None = None,
    unlabeled: Unlabeled | None = None,
    tensorboard: bool = False,
    on_epoch: Callable[[Epoch], object] | None = None,
    progress: bool = False,
) -> torch.nn.Module:
    """Train the model `model_name` on `data` under Gaussian noise, and save its checkpoint in the folder `out`.

    `out` also keeps the state after every epoch, with which the same call goes on; the record of every epoch as a line
    of `metrics.jsonl`; and, where images are held out, the network that validated best in `best`.

    :param init: Checkpoint folder to start from, of the same architecture; for other classes the head is a new one. Or
        somebody's file of weights.
    :param tensorboard: Write scalars for TensorBoard, too.
    :raises ValueError: `out` holds another run, `init` another architecture, or an option is unfit.
    :raises FloatingPointError: The loss or a weight is not finite; names epoch, step and the last good checkpoint.
    :raises ImportError: `tensorboard`, and it is not installed.
    """
    noise, state = Gaussian(sigma), out / STATE
    begun = read_checkpoint(state) if state.exists() else None
    if seed is None:
        seed = fresh_seed() if begun is None else begun["settings"]["seed"]
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
    started_from = None if init is None else checkpoints.start_from(init, model, architecture)
    model.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    average = None
    if recipe.average is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)  # type: ignore[no-untyped-call]
    kept, held_out = _split(data, recipe.held_out, seed)
    told = {name: value for name, value in asdict(recipe).items() if name not in ("data", "model")}
    folder = _Folder(
        out,
        model if average is None else average.module,
        {
            "architecture": architecture,
            "sigma": sigma,
            "data": {"name": data.name, "split": data.split},
            "training": {"seed": seed, **told},
            "versions": runs.versions(),
        },
        Validation(*data.arrays(held_out), sigma, seed) if held_out else None,
        recipe,
        [] if begun is None else begun["history"],
        _scalars(out) if tensorboard else None,
    )

    def after(epoch: Epoch) -> None:
        folder.record(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    images = data.images if not held_out else Subset(data.images, kept)
    batches: Batches = loader_batches(images, recipe.batch_size, seed, augment=data.augment, num_workers=num_workers)
    if unlabeled is not None:
        batches = _with_pseudo_labels(batches, unlabeled, recipe.batch_size, seed, device, out)
    history = train_loop(
        model,
        batches,
        objective=recipe.objective(),
        optimizer=optimizer,
        noise=noise,
        epochs=recipe.epochs,
        seed=seed,
        scheduler=_schedule(optimizer, recipe),
        precision=recipe.precision,
        clip=recipe.clip,
        average=average,
        validate=folder.validate,
        checkpoint=state,
        identity={
            "model": model_name,
            "data": data.name,
            "epochs": recipe.epochs,
            "held_out": recipe.held_out,
            "share kept by the average": recipe.average,
            "init": started_from,
            "unlabeled": None if unlabeled is None else unlabeled.identity,
        },
        on_epoch=after,
        progress=progress,
    )
    folder.save(out, history[-1])
    return folder.model


@dataclass
class _Folder:
    """What a run leaves in its folder beside its state.

    :param model: What is validated and saved.
    :param about: What `checkpoint.json` says, but for the epoch.
    :param history: Epochs that are done.
    """

    out: Path
    model: torch.nn.Module
    about: dict[str, Any]
    validation: Validation | None
    recipe: Recipe
    history: list[Epoch]
    scalars: Callable[[Epoch], object] | None

    def validate(self, epoch: int) -> dict[str, float]:
        """What validation says after this epoch, if it is due; the best network so far is saved."""
        if self.validation is None or (epoch % self.recipe.validate_every and epoch != self.recipe.epochs):
            return {}
        said = self.validation(self.model)
        if said[SCORE] > max((past["validation"][SCORE] for past in self.history if "validation" in past), default=-1):
            self.save(self.out / BEST, {"epoch": epoch, "validation": said})
        return said

    def record(self, epoch: Epoch) -> None:
        """Keep the record of an epoch."""
        self.history.append(epoch)
        partial = self.out / (METRICS + ".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in self.history))
        os.replace(partial, self.out / METRICS)
        if self.scalars is not None:
            self.scalars(epoch)

    def save(self, folder: Path, last_epoch: Any) -> None:
        """Save the network as it is after this epoch."""
        about = {**self.about, "training": {**self.about["training"], "last_epoch": dict(last_epoch)}}
        checkpoints.save_checkpoint(folder, self.model, about)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LRScheduler:
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    return StepLR(optimizer, step_size=max(1, -(-recipe.epochs // 3)))


def _split(data: DataSet, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices that are trained on and that are held out, a function of the seed."""
    if held_out >= len(data):
        raise ValueError(f"`held_out` must be below the {len(data)} images of {data.name}, got {held_out}")
    order = torch.randperm(len(data), generator=stream(seed, Purpose.SPLITTING)).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


def _scalars(out: Path) -> Callable[[Epoch], object]:
    """Writes the numbers of an epoch for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("`tensorboard` must be installed to write for it: pip install tensorboard") from error
    writer = SummaryWriter(str(out))

    def write(epoch: Epoch) -> None:
        numbers = {**epoch, **epoch.get("validation", {})}
        for name, value in numbers.items():
            if name not in ("epoch", "validation"):
                writer.add_scalar(name, value, epoch["epoch"])
        writer.flush()

    return write


class _Relabelled(Dataset[tuple[torch.Tensor, int]]):
    """Images of a data set under other labels."""

    def __init__(self, images: Dataset[Any], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index][0], int(self.labels[index])


def _with_pseudo_labels(
    labelled: Batches, unlabeled: Unlabeled, batch_size: int, seed: int, device: torch.device | str, out: Path
) -> Batches:
    """Batches of both, in an order that is a function of (seed, epoch), each of one kind and with its weight."""
    images = unlabeled.images
    labels = _pseudo_labels(unlabeled, seed, device, out / PSEUDO_LABELS)
    more = loader_batches(_Relabelled(images.images, labels), batch_size, seed + 1, augment=images.augment)

    def batches(epoch: int) -> Iterator[Any]:
        loaders = labelled(epoch), more(epoch)
        sizes = [len(loader) for loader in loaders]  # type: ignore[arg-type]  # a DataLoader has a length
        sources, weights = [iter(loader) for loader in loaders], (1.0, unlabeled.weight)
        order = torch.randperm(sum(sizes), generator=stream(seed, Purpose.SHUFFLING, epoch, 1))
        for kind in (order >= sizes[0]).int().tolist():
            yield (*next(sources[kind]), weights[kind])

    return batches


def _pseudo_labels(unlabeled: Unlabeled, seed: int, device: torch.device | str, path: Path) -> NDArray[np.int64]:
    """The teacher's labels, from the file if they are there."""
    if path.exists():
        labels: NDArray[np.int64] = np.load(path)
        return labels
    teacher, about = checkpoints.load_checkpoint(unlabeled.teacher)
    estimator = RandomizedSmoothingPyTorch(
        teacher, about["sigma"], seed=seed, compile=False, device_type="cpu" if str(device) == "cpu" else "gpu"
    )
    parts = []
    for start in range(0, len(unlabeled.images), _IMAGES_AT_ONCE):
        names = range(start, min(start + _IMAGES_AT_ONCE, len(unlabeled.images)))
        x, _ = unlabeled.images.arrays(names)
        parts.append(estimator.votes(x, PSEUDO_LABEL_VOTES, indices=list(names)).argmax(1))
    labels = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".partial"), "wb") as file:
        np.save(file, labels)
    os.replace(path.with_suffix(".partial"), path)
    return labels
