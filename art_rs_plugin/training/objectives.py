"""What a training method is: an objective, and the draws, losses and counts that objectives share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from art_rs_plugin.core import checks
from art_rs_plugin.noise import Distribution
from art_rs_plugin.votes import Forward


class Outcome(NamedTuple):
    """What an objective makes of a batch: scalars on the batch's device."""

    loss: torch.Tensor  # to be minimised; mean over the batch
    correct: torch.Tensor  # right answers on what is trained on, noisy samples; of m copies of each, a mean over copies


@dataclass(frozen=True)
class Step:
    """One step of training, as an objective meets it. The model is in training mode.

    :param forward: x in input coordinates -> logits `(n, classes)`; may be called many times, and differentiated with
        respect to x.
    :param evaluation: A context in which the model is in evaluation mode, as it is when votes are cast: for attacks.
    :param noise: What the smoothed classifier is smoothed by.
    :param generator: All random numbers come from it; a new stream at every step.
    :param epoch: Counted from 1 at the start of the run.
    :param model: What is trained, for what depends on its weights beside its outputs; `forward` may be more than it.
    """

    forward: Forward
    evaluation: Callable[[], AbstractContextManager[None]]
    noise: Distribution
    generator: torch.Generator
    epoch: int
    model: nn.Module

    def draw(self, x: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Fresh noise for each sample of `x` `(n, *shape)`, in its unit: `(n, count, *shape)`, images channels last."""
        shape = (x.shape[2], x.shape[3], x.shape[1]) if x.ndim == 4 else x.shape[1:]
        noise = self.noise.fill_(x.new_empty((len(x), count, *shape)), self.generator)
        return noise.movedim(-1, 2) if x.ndim == 4 else noise

    def logits(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits of the noisy copies of `x`, which are never clipped: `(n, count, classes)`."""
        logits = self.forward((noise + x.unsqueeze(1)).flatten(0, 1))
        return logits.view(*noise.shape[:2], -1)


class Objective(Protocol):
    """A training method. `name` is its key in `OBJECTIVES`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of a batch.

        :param x: `(n, *shape)`, clean; :param y: `(n,)`, int64.
        """
        ...


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every noisy copy, `(n, count)`, from logits `(n, count, classes)`."""
    labels = y.unsqueeze(1).expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(logits.shape[:2])


def divergence(log_target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the softmax from distributions, broadcast to `logits`: `(n, count)`.

    :param log_target: Their logarithms, finite: where a probability is zero in floating point, the gradient in it is
        none, and in its logarithm zero.
    """
    return (log_target.exp() * (log_target - torch.log_softmax(logits, dim=-1))).sum(-1)


def finite_log(probabilities: torch.Tensor) -> torch.Tensor:
    """Logarithms, of zeros that of the least positive number: for `divergence`."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def log_mean_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log of the mean softmax over noisy copies, `(n, classes)`, from logits `(n, count, classes)`."""
    return torch.logsumexp(torch.log_softmax(logits, dim=2), dim=1) - math.log(logits.shape[1])


def correct(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Number of samples whose largest logit `(n, count, classes)` is at the label, as a mean over copies."""
    return (logits.detach().argmax(2) == y.unsqueeze(1)).float().mean(1).sum()


def check_bounds(clip_values: Any) -> None:
    """ValueError or TypeError for what is neither None nor (low, high), two numbers."""
    if clip_values is None:
        return
    if not isinstance(clip_values, tuple) or len(clip_values) != 2:
        raise TypeError(f"`clip_values` must be a pair (low, high) of numbers, got {clip_values!r}")
    low, high = (checks.finite("clip_values", value) for value in clip_values)
    if not low < high:
        raise ValueError(f"`clip_values` must be (low, high) with low below high, got {clip_values!r}")


def warmed_up(epoch: int, epochs: int) -> float:
    """What share of its full strength something has that grows linearly over the first `epochs`; 1 without any."""
    return min(1.0, epoch / epochs) if epochs else 1.0
