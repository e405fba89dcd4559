"""The run behind `art-rs train`: a data set and a recipe in, a checkpoint folder out, going on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Subset

from art_rs_plugin.core import checks
from art_rs_plugin.experiments import checkpoints, models, runs
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.recipes import SCHEDULES, Recipe
from art_rs_plugin.experiments.unlabeled import Unlabeled, with_pseudo_labels
from art_rs_plugin.experiments.validation import SCORE, Validation
from art_rs_plugin.noise import Gaussian, Purpose, fresh_seed, seed_generator, stream
from art_rs_plugin.ranks import ALONE, Ranks
from art_rs_plugin.training import Epoch, loader_batches, read_checkpoint
from art_rs_plugin.training import train as train_loop
from art_rs_plugin.training.checkpoint import Contents
from art_rs_plugin.training.loop import Batches

STATE = "training.pt"
METRICS = "metrics.jsonl"
BEST = "best"  # folder inside the checkpoint's, of the epoch that validated best
VALIDATED = 500  # held-out images, at most: certificates take time


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
    cuda_graphs: bool = False,
    init: Path | None = None,
    unlabeled: Unlabeled | None = None,
    tensorboard: bool = False,
    ranks: Ranks = ALONE,
    on_epoch: Callable[[Epoch], object] | None = None,
    progress: bool = False,
) -> torch.nn.Module:
    """Train the model `model_name` on `data` under Gaussian noise, and save its checkpoint in the folder `out`.

    `out` also keeps the state after every epoch, with which the same call goes on; the record of every epoch as a line
    of `metrics.jsonl`; and, where images are held out, the network that validated best in `best`.

    :param init: Checkpoint folder to start from, of the same architecture; for other classes the head is a new one. Or
        somebody's file of weights.
    :param device: The CPU or the current GPU: "cpu" or "cuda".
    :param cuda_graphs: Launch a step's passes whole, for a small network on a GPU.
    :param tensorboard: Write scalars for TensorBoard, too.
    :param ranks: Whom to train with: batch size and learning rate are those of all together. Rank 0 alone writes into
        `out`, a folder that all must see, and validates; the run goes on with as many ranks as it began with.
    :raises RankError: The ranks do not agree, or one is missing.
    :raises ValueError: `out` holds another run, `init` another architecture, or an option is unfit.
    :raises FloatingPointError: The loss or a weight is not finite; names epoch, step and the last good checkpoint.
    :raises ImportError: `tensorboard`, and it is not installed.
    """
    noise, state, device = Gaussian(sigma), out / STATE, torch.device(device)
    checks.one_of("device", str(device), ("cpu", "cuda"))
    if unlabeled is not None:
        unlabeled.check(data, recipe.held_out)
    ranks = ranks.scope()
    begun = read_checkpoint(state) if state.exists() else None
    given = seed
    if seed is None:
        seed = int(ranks.share("seed", lambda: fresh_seed() if begun is None else begun["settings"]["seed"]))
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
    about = {"name": data.name, "split": data.split}
    if ranks.size > 1:
        ranks.agree(
            {
                "model": {"name": model_name, "hash": checkpoints.model_hash(model)},
                "sigma": sigma,
                "seed": given,
                "training": told(recipe),
                "data": {**about, "images": len(data), "some": runs.fingerprint(data, range(len(data)))},
                "unlabeled": None if unlabeled is None else unlabeled.identity,
                "versions": runs.versions(),
                "device": str(device),
                "last epoch in the folder": None if begun is None else begun["epoch"],
            }
        )
    folder = _Folder(
        out,
        model if average is None else average.module,
        {
            "architecture": architecture,
            "sigma": sigma,
            "data": about,
            "training": {"seed": seed, "ranks": ranks.size, **told(recipe)},
            "versions": runs.versions(),
        },
        Validation(*data.arrays(held_out[:VALIDATED]), sigma, seed, recipe.precision) if held_out else None,
        recipe,
        [],
        _scalars(out) if tensorboard and ranks.first else None,
    )
    if begun is not None and ranks.first:
        folder.take_up(begun)

    def after(epoch: Epoch) -> None:
        folder.record(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    images = data.images if not held_out else Subset(data.images, kept)
    batches: Batches = loader_batches(
        images, recipe.batch_size, seed, augment=data.augment, num_workers=num_workers, ranks=ranks
    )
    if unlabeled is not None:
        batches = with_pseudo_labels(batches, unlabeled, recipe.batch_size, seed, device, out, ranks)
    with ranks.process_group(device):
        history = train_loop(
            model,
            batches,
            objective=recipe.objective(),
            optimizer=optimizer,
            noise=noise,
            epochs=recipe.epochs,
            seed=seed,
            scheduler=SCHEDULES[recipe.schedule](optimizer, recipe.epochs),
            precision=recipe.precision,
            clip=recipe.clip,
            average=average,
            cuda_graphs=cuda_graphs,
            validate=folder.validate,
            checkpoint=state,
            identity={
                "model": model_name,
                "data": data.name,
                "epochs": recipe.epochs,
                "batch_size": recipe.batch_size,
                "images": len(data),
                "held_out": recipe.held_out,
                "share kept by the average": recipe.average,
                "init": started_from,
                "unlabeled": None if unlabeled is None else unlabeled.identity,
            },
            ranks=ranks,
            on_epoch=after,
            progress=progress,
        )
    ranks.share("saved", lambda: folder.finish(history))
    return folder.model


def told(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says of the recipe that it was trained by; data and model stand elsewhere in it."""
    return {name: value for name, value in asdict(recipe).items() if name not in ("data", "model")}


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
        """What validation says after this epoch, if it is due."""
        if self.validation is None or (epoch % self.recipe.validate_every and epoch != self.recipe.epochs):
            return {}
        return self.validation(self.model)

    def record(self, epoch: Epoch) -> None:
        """Keep the record of an epoch, whose state is written, and the network if it is the best so far."""
        self.history.append(epoch)
        self.write_metrics()
        self._keep_best()
        if self.scalars is not None:
            self.scalars(epoch)

    def take_up(self, begun: Contents) -> None:
        """What a run that was killed after it wrote its last state had no time for."""
        self.history = list(begun["history"])
        averaged = {name.removeprefix("module."): value for name, value in (begun.get("average") or {}).items()}
        weights, here = averaged or begun["model"], self.model.state_dict()
        # another run's may differ; the loop will say so
        if all(name in weights and weights[name].shape == value.shape for name, value in here.items()):
            self.model.load_state_dict({name: weights[name] for name in here})
            self._keep_best()

    def _keep_best(self) -> None:
        """Save the network of the last epoch if it is the best of all and not there yet."""
        validated = [epoch for epoch in self.history if "validation" in epoch]
        if not validated or self.validation is None:
            return
        best = max(validated, key=lambda epoch: epoch["validation"][SCORE])  # the first of equals
        if best is not self.history[-1]:
            return
        about = self.out / BEST / checkpoints.ABOUT
        if not about.exists() or json.loads(about.read_text())["training"]["last_epoch"] != dict(best):
            self.save(self.out / BEST, best)

    def finish(self, history: list[Epoch]) -> None:
        """Leave the network as it is after the last epoch, and the record of all."""
        self.history = history
        self.write_metrics()
        self.save(self.out, history[-1])

    def write_metrics(self) -> None:
        """The records of all epochs, in the place of those that are there."""
        partial = self.out / (METRICS + ".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in self.history))
        os.replace(partial, self.out / METRICS)

    def save(self, folder: Path, last_epoch: Any) -> None:
        """Save the network as it is after this epoch."""
        about = {**self.about, "training": {**self.about["training"], "last_epoch": dict(last_epoch)}}
        checkpoints.save_checkpoint(folder, self.model, about)


def _split(data: DataSet, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices that are trained on, and that are held out, these in random order: a function of the seed."""
    if held_out >= len(data):
        raise ValueError(f"`held_out` must be below the {len(data)} images of {data.name}, got {held_out}")
    order = torch.randperm(len(data), generator=stream(seed, Purpose.SPLITTING)).tolist()
    return sorted(order[held_out:]), order[:held_out]


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
