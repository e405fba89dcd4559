"""What an epoch's steps add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from art_rs_plugin.training.objectives import Outcome


@dataclass
class Tally:
    """Sums over an epoch. Outcomes stay on their device until a look, which finds the first bad loss and its step."""

    epoch: int
    steps_per_look: int
    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0
    steps: int = 0
    waiting: list[tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=list)

    def add(self, outcome: Outcome, samples: int) -> bool:
        """Take in a step's outcome; whether the sums were brought up to date."""
        if outcome.loss.ndim:
            raise ValueError(f"the objective's loss must be a scalar, got shape {tuple(outcome.loss.shape)}")
        self.waiting.append((outcome.loss.detach(), outcome.correct, samples))
        if len(self.waiting) < self.steps_per_look:
            return False
        self.look()
        return True

    def look(self) -> None:
        """Bring the sums up to date.

        :raises FloatingPointError: A loss is not finite; names epoch and step.
        """
        if not self.waiting:
            return
        losses, corrects, samples = zip(*self.waiting, strict=True)
        self.waiting.clear()
        for loss, number in zip(torch.stack(losses).tolist(), samples, strict=True):
            self.steps += 1
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in epoch {self.epoch}, step {self.steps}")
            self.loss += loss * number
        self.correct += float(torch.stack(corrects).sum())
        self.samples += sum(samples)
