"""Gaussian data augmentation, the paper's own training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from art_rs_plugin.training.objectives import Outcome, Step, correct


@dataclass(frozen=True)
class GaussianAugmentation:
    """Loss of the classifier at x + N(0, sigma^2 I), one draw a sample (Cohen et al. 2019, Section 3.3).

    :param loss: (logits `(n, classes)`, labels `(n,)`) -> a scalar; cross-entropy by default, which for one draw bounds
        from above -log of the probability that the smoothed classifier gives the label.
    """

    name: ClassVar[str] = "gaussian"

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss and number of right answers on one noisy copy of `x`."""
        logits = step.logits(x, step.draw(x))
        return Outcome(self.loss(logits[:, 0], y), correct(logits, y))
