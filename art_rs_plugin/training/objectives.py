"""What a training method is: an objective, and the draws and counts that objectives share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from art_rs_plugin.noise import Gaussian
from art_rs_plugin.votes import Forward


class Outcome(NamedTuple):
    """What an objective makes of a batch: scalars on the batch's device."""

    loss: torch.Tensor  # to be minimised; mean over the batch
    correct: torch.Tensor  # right answers on noisy samples; where a method draws m copies of each, a mean over copies


class Objective(Protocol):
    """A training method. `name` is its key in `OBJECTIVES`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(
        self, forward: Forward, x: torch.Tensor, y: torch.Tensor, noise: Gaussian, generator: torch.Generator
    ) -> Outcome:
        """Loss of a batch.

        :param forward: x in input coordinates -> logits `(n, classes)`; may be called many times, and differentiated
            with respect to x.
        :param x: `(n, ...)`, clean; :param y: `(n,)`, int64.
        :param generator: All noise comes from it, see `noisy`: a new stream at every step.
        """
        ...


def noisy(x: torch.Tensor, noise: Gaussian, generator: torch.Generator) -> torch.Tensor:
    """One fresh noisy copy of each sample of `x`, in the unit of `x`, never clipped."""
    return noise.fill_(torch.empty_like(x, memory_format=torch.contiguous_format), generator).add_(x)


def correct(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Number of rows of `logits` `(n, classes)` whose largest entry is at the label."""
    return (logits.detach().argmax(1) == y).sum()
