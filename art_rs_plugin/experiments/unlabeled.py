"""More images to train on, under labels that a teacher gives them (Salman et al. 2019, Section 4.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from art_rs_plugin.core import checks
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.noise import Purpose, derived_seed, stream
from art_rs_plugin.ranks import ALONE, Ranks
from art_rs_plugin.training import loader_batches
from art_rs_plugin.training.loop import Batches

PSEUDO_LABELS = "pseudo-labels.npz"
VOTES = 20  # for a label
_IMAGES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Unlabeled:
    """More images, their teacher, and what they weigh.

    :param images: Their own labels are never looked at.
    :param teacher: Checkpoint folder of a network; a label is the class that most of 20 of its votes name, under the
        noise it was trained with.
    :param weight: Of their loss, against 1 of the labelled images'.
    :raises ValueError: A weight that is not above 0.
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
        return f"{len(self.images)} of {self.images.name} labelled by {about['model_hash']}, weight {self.weight}"

    def check(self, data: DataSet, held_out: int) -> None:
        """ValueError where these images and their teacher do not go with `data`, or hold what is held out of it."""
        if held_out and (self.images.name, self.images.split) == (data.name, data.split):
            raise ValueError(
                f"`held_out` must be 0 where `unlabeled` is of the same images, those of {data.name}: they would be "
                f"trained on, got {held_out}"
            )
        architecture = checkpoints.load_checkpoint(self.teacher)[1]["architecture"]
        taught = tuple(architecture["input_shape"]), architecture["nb_classes"]
        for name, got in (("images", self.images.input_shape), ("teacher", taught[0])):
            if got != data.input_shape:
                raise ValueError(f"`{name}` of `unlabeled` must have shape {data.input_shape}, got {got}")
        if taught[1] != data.nb_classes:
            raise ValueError(f"`teacher` must know the {data.nb_classes} classes of {data.name}, got {taught[1]}")


class _Relabelled(Dataset[tuple[torch.Tensor, int]]):
    """Images of a data set under other labels."""

    def __init__(self, images: Dataset[Any], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index][0], int(self.labels[index])


def with_pseudo_labels(
    labelled: Batches,
    unlabeled: Unlabeled,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    out: Path,
    ranks: Ranks = ALONE,
) -> Batches:
    """Batches of both, in an order that is a function of (seed, epoch), each of one kind and with its weight."""
    images = unlabeled.images
    # rank 0 asks the teacher, the others read what it wrote
    ranks.share("labelled", lambda: len(_pseudo_labels(unlabeled, seed, device, out / PSEUDO_LABELS)))
    labels = _pseudo_labels(unlabeled, seed, device, out / PSEUDO_LABELS)
    order_of_its_own = derived_seed(seed, Purpose.LABELLING)
    relabelled = _Relabelled(images.images, labels)
    more = loader_batches(relabelled, batch_size, order_of_its_own, augment=images.augment, ranks=ranks)

    def batches(epoch: int) -> Iterator[Any]:
        loaders = labelled(epoch), more(epoch)
        sizes = [len(loader) for loader in loaders]  # type: ignore[arg-type]  # a DataLoader has a length
        sources, weights = [iter(loader) for loader in loaders], (1.0, unlabeled.weight)
        order = torch.randperm(sum(sizes), generator=stream(seed, Purpose.SHUFFLING, epoch, 1))
        for kind in (order >= sizes[0]).int().tolist():
            yield (*next(sources[kind]), weights[kind])

    return batches


def _pseudo_labels(unlabeled: Unlabeled, seed: int, device: torch.device | str, path: Path) -> NDArray[np.int64]:
    """The teacher's labels, from the file if it holds those of this teacher, these images and this seed."""
    whose = f"{unlabeled.identity}, seed {seed}"
    if path.exists():
        with np.load(path) as kept:
            if str(kept["whose"]) == whose:
                return np.asarray(kept["labels"], dtype=np.int64)
    teacher, about = checkpoints.load_checkpoint(unlabeled.teacher)
    estimator = RandomizedSmoothingPyTorch(
        teacher,
        about["sigma"],
        seed=derived_seed(seed, Purpose.LABELLING),
        compile=False,
        device_type="cpu" if str(device) == "cpu" else "gpu",
    )
    parts = []
    for start in range(0, len(unlabeled.images), _IMAGES_AT_ONCE):
        names = range(start, min(start + _IMAGES_AT_ONCE, len(unlabeled.images)))
        x, _ = unlabeled.images.arrays(names)
        parts.append(estimator.votes(x, VOTES, indices=list(names)).argmax(1))
    labels = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".partial"), "wb") as file:
        np.savez(file, labels=labels, whose=np.array(whose))
    os.replace(path.with_suffix(".partial"), path)
    return labels
