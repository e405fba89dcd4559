"""The one training loop. What a method does with a batch is its objective; everything else is here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from art_rs_plugin.core import checks
from art_rs_plugin.layout import weights_with_channels_last
from art_rs_plugin.noise import Distribution, Purpose, seed_generator
from art_rs_plugin.ranks import ALONE, Ranks
from art_rs_plugin.training import across
from art_rs_plugin.training.checked import Checked
from art_rs_plugin.training.checkpoint import Epoch, TrainingState, read_checkpoint
from art_rs_plugin.training.graphs import Graphed, check_graphs
from art_rs_plugin.training.objectives import Objective, Step
from art_rs_plugin.training.tally import Tally
from art_rs_plugin.votes import Forward, mode

Batches = Callable[[int], Iterable[Any]]

# steps between two looks at the losses: a look makes a GPU wait, and costs nothing on a CPU
STEPS_PER_LOOK = {"cpu": 1}
STEPS_PER_LOOK_ELSEWHERE = 50

# float16 is not among them: its gradients vanish without a scaler
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def train(
    model: nn.Module,
    batches: Batches,
    *,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    noise: Distribution,
    epochs: int,
    seed: int,
    scheduler: LRScheduler | None = None,
    first_epoch: int = 1,
    forward: Forward | None = None,
    precision: str = "fp32",
    clip: float | None = None,
    average: AveragedModel | None = None,
    cuda_graphs: bool = False,
    validate: Callable[[int], Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    identity: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
    on_epoch: Callable[[Epoch], object] | None = None,
    progress: bool = False,
) -> list[Epoch]:
    """Train `model` in place, on the device it is on, and return what each epoch of the run gave.

    Noise is drawn in input coordinates from the stream (seed, training, epoch, step): fresh for every sample at every
    step, and the same whenever that step is done again. Dropout, crops and flips draw from torch's global generators,
    which are seeded for each epoch and given back as they were. So a run on a CPU that is killed and resumed ends with
    the weights of an unbroken one, bit by bit, as long as `batches`, the number of threads and torch are the same.

    :param batches: epoch -> batches (x floating `(n, ...)`, y int64 `(n,)`), or (x, y, weight of the loss), a function
        of its argument alone, as `loader_batches` gives; with a checkpoint it is called once more, for its sizes. With
        a DataLoader or generator of another make (`lambda epoch: loader`) the order has its own history, and an exact
        resume cannot be promised.
    :param epochs: How many to train, from `first_epoch` on.
    :param seed: Whole number of at least 0.
    :param scheduler: Of `torch.optim.lr_scheduler`, stepped after each epoch.
    :param first_epoch: Number of the first epoch, counted from 1 at the start of the run. A second call that goes on
        with the same seed passes the number after the last one, for noise that is fresh.
    :param forward: x in input coordinates -> logits, where that is more than `model`: normalisation.
    :param precision: "fp32", or "bf16" for torch's autocast in the forward pass; losses are computed in float32.
    :param clip: Largest l2 norm of a step's gradient, to which longer ones are scaled down.
    :param average: Of the weights of `model`, updated after each step (`torch.optim.swa_utils`) and kept by the
        checkpoint.
    :param cuda_graphs: Launch a step's passes whole (see `Graphed`), for a small network on a GPU, which else waits for
        Python. For one process that trains the model itself, all of which must run on the GPU without waiting for it.
    :param validate: Called with the number of each epoch, before its checkpoint is written; what it returns joins the
        epoch's record. It draws from generators of its own.
    :param checkpoint: File written after each epoch. If it exists, the run goes on after its last epoch, up to the one
        asked for: the file may hold more epochs than that, and then nothing is trained. Optimizer and scheduler take up
        its state, a scheduler's options included (CosineAnnealingLR keeps its T_max).
    :param identity: Whatever else makes this run this run, such as the names of data and architecture: plain values
        that a checkpoint keeps, and whose change a resume refuses. Options of the objective are among them, but for
        functions: that a loss or a teacher is the same is for the caller to see to.
    :param ranks: Whom to train with, each rank on its own share of every batch and with noise of its own, within their
        `process_group`: gradients are means over all of them, so that batch and learning rate are those of them
        together. Rank 0 alone validates, writes the checkpoint and calls `on_epoch`; all take it up. As exact as one
        process is, with the same number of ranks.
    :param on_epoch: Called with the record of each epoch, after its checkpoint is written.
    :param progress: Show a bar for each epoch.
    :raises ValueError, TypeError: for bad options, batches or labels, or a checkpoint of another run.
    :raises FloatingPointError: where the loss or, after an epoch, a weight is NaN or infinite. The checkpoint then
        holds the epoch before; the model in memory may be spoiled.
    :raises OSError: where a checkpoint cannot be written.
    """
    checks.whole("epochs", epochs)
    checks.whole("seed", seed, minimum=0)
    checks.whole("first_epoch", first_epoch)
    last_epoch = first_epoch + epochs - 1
    clip = None if clip is None else checks.positive("clip", clip)
    if forward is not None and ranks.size > 1:
        raise ValueError(f"`forward` must be None for {ranks.size} ranks, which train the model itself, got {forward}")
    run = _Run(model, objective, optimizer, noise, seed, Checked(forward or model), precision, clip, average, ranks)
    if cuda_graphs:
        check_graphs(run.device, forward, ranks)
        run.graphs = run.forward.forward = Graphed(model, run.forward.dtype)
    state = TrainingState(model, optimizer, scheduler, average)
    history: list[Epoch] = []
    path = None if checkpoint is None else Path(checkpoint)
    with mode(model, training=True), run.layout:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _own_randomness(seed, first_epoch, run.device, ranks):
                settings = {**_settings(run, scheduler, batches(first_epoch)), **(identity or {})}
        if path is not None and path.exists():
            contents = read_checkpoint(path)
            if contents["epoch"] < first_epoch - 1:
                raise ValueError(
                    f"`first_epoch` must be at most {contents['epoch'] + 1}, one after the last epoch of {path}, "
                    f"got {first_epoch}"
                )
            state.load(contents, settings)
            history = contents["history"]
        for epoch in range(history[-1]["epoch"] + 1 if history else first_epoch, last_epoch + 1):
            try:
                with _own_randomness(seed, epoch, run.device, ranks):
                    record = run.epoch(epoch, batches(epoch), f"epoch {epoch}/{last_epoch}", progress and ranks.first)
                _refuse_spoiled(model, epoch)
            except FloatingPointError as error:
                good = f"the last good checkpoint is {path}, epoch {history[-1]['epoch']}" if path and history else ""
                raise FloatingPointError(f"{error}; {good or 'there is no checkpoint to go back to'}") from None
            if scheduler is not None:
                scheduler.step()
            history.append(record)
            if not ranks.first:
                continue
            if validate is not None and (said := dict(validate(epoch))):
                record["validation"] = said
            if path is not None:
                state.save(path, settings=settings, history=history)
            if on_epoch is not None:
                on_epoch(record)
    return history


@dataclass
class _Run:
    """What stays the same from epoch to epoch."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    noise: Distribution
    seed: int
    forward: Checked
    precision: str
    clip: float | None
    average: AveragedModel | None
    ranks: Ranks = ALONE
    graphs: Graphed | None = None
    layout: ExitStack = field(default_factory=ExitStack)
    laid_out: bool = False

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, PRECISIONS)
        parameter = next(self.model.parameters(), None)
        if parameter is None:
            raise ValueError("`model` must have parameters to train, got none")
        self.device = parameter.device
        self.generator = torch.Generator(self.device)
        self.forward.dtype = PRECISIONS[self.precision]
        self.stream = (self.ranks.rank,) if self.ranks.size > 1 else ()  # of this rank, after epoch and step

    def at_hand(self, epoch: int) -> Step:
        evaluation = partial(mode, self.model, training=False)
        return Step(self.forward, evaluation, self.noise, self.generator, epoch, self.model)

    def lay_out(self, x: torch.Tensor) -> None:
        """Lay out weights with channels last until the run ends, if there are convolutions and the model runs so."""
        self.laid_out = True
        if all(parameter.ndim != 4 for parameter in self.model.parameters()):
            self.forward.channels_first = x.ndim == 4
            return
        devices = [self.device.index] if self.device.type == "cuda" else []
        with mode(self.model, training=False), torch.random.fork_rng(devices), torch.no_grad():
            try:
                with weights_with_channels_last(self.model):
                    self.forward(x[:2].to(memory_format=torch.channels_last))
            except RuntimeError:  # see `layout`
                self.forward.channels_first = True
                return
        self.layout.enter_context(weights_with_channels_last(self.model))

    def epoch(self, number: int, batches: Iterable[Any], title: str, progress: bool) -> Epoch:
        from tqdm import tqdm

        tally = Tally(number, STEPS_PER_LOOK.get(self.device.type, STEPS_PER_LOOK_ELSEWHERE))
        lr = float(self.optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        self.model.train()
        with tqdm(batches, desc=title, unit="step", disable=not progress) as bar, ExitStack() as together:
            for step, (x, y, *weight) in enumerate(bar, start=1):
                self.forward.expect(x, y, f"epoch {number}, step {step}", tuple(weight))
                if self.graphs is not None:
                    self.graphs.next_step()
                x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
                if not self.laid_out:
                    self.lay_out(x)
                if step == 1:  # after weights were laid out, which its buffers follow
                    together.enter_context(across.averaged_gradients(self.model, self.forward, self.ranks))
                seed_generator(self.generator, self.seed, Purpose.TRAINING, number, step, *self.stream)
                outcome = self.objective(self.at_hand(number), x, y)
                # before the step: on a CPU the weights are those that gave the bad loss
                if tally.add(outcome, len(y)):
                    bar.set_postfix(loss=tally.loss / tally.samples, accuracy=tally.correct / tally.samples)
                self.optimizer.zero_grad(set_to_none=True)
                loss = outcome.loss * weight[0] if weight else outcome.loss
                loss.backward()
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                self.optimizer.step()
                across.share_buffers(self.model, self.ranks)
                if self.average is not None:
                    self.average.update_parameters(self.model)
        tally.look()
        if not tally.samples:
            raise ValueError(f"`batches` must give at least one batch an epoch, got none in epoch {number}")
        loss, correct, samples = across.totals([tally.loss, tally.correct, tally.samples], self.device, self.ranks)
        return Epoch(
            epoch=number,
            loss=loss / samples,
            accuracy=correct / samples,
            lr=lr,
            seconds=time.perf_counter() - start,
        )


def _settings(run: _Run, scheduler: LRScheduler | None, batches: Iterable[Any]) -> dict[str, Any]:
    """What makes a run this run: a checkpoint is only continued where all of these are the same."""
    return {
        "seed": run.seed,
        "ranks": run.ranks.size,
        "precision": run.precision,
        "clip": run.clip,
        "average": run.average is not None,
        "noise": run.noise.name,
        "sigma": run.noise.sigma,
        "objective": run.objective.name,
        **{f"objective.{name}": value for name, value in options_of(run.objective).items()},
        "optimizer": type(run.optimizer).__name__,
        **{f"optimizer.{name}": repr(value) for name, value in run.optimizer.defaults.items()},
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "batches": _length(batches),
        "samples": _length(getattr(batches, "dataset", None)),
        "batch_size": getattr(batches, "batch_size", None),
    }


def options_of(objective: Objective) -> dict[str, Any]:
    """The options of an objective that is a dataclass, as far as they are plain values."""
    options = {name: getattr(objective, name) for name in getattr(objective, "__dataclass_fields__", ())}
    return {name: value for name, value in options.items() if isinstance(value, (bool, int, float, str, tuple))}


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except TypeError:  # it has none, or cannot tell (a DataLoader over an iterable data set)
        return None


def _refuse_spoiled(model: nn.Module, epoch: int) -> None:
    # the last step's loss may be finite and its gradient not: such weights must not replace a good checkpoint
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"{name} holds NaN or infinite values after epoch {epoch}")


@contextmanager
def _own_randomness(seed: int, epoch: int, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Seed torch's global generators, of the CPU and of a CUDA `device`, for `epoch`; give them back as they were."""
    position = (epoch,) if ranks.size == 1 else (epoch, 0, ranks.rank)  # steps, which draw noise, begin at 1
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for generator in [torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)]:
            seed_generator(generator, seed, Purpose.TRAINING, *position)
        yield
