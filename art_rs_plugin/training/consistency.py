"""Consistency regularisation: noisy copies of a sample should agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import Outcome, Step, correct, cross_entropy, divergence, log_mean_softmax


@dataclass(frozen=True)
class Consistency:
    """Cross-entropy + weight mean KL(mean f || f(x + e_j)) + entropy H(mean f) (Jeong and Shin 2020, Section 3).

    `mean f` is the mean softmax over the draws e_1, ..., e_m ~ N(0, sigma^2 I). Its authors take m = 2, entropy .5, and
    as weight on MNIST 10, 5, 5 and on CIFAR-10 20, 10, 10 at sigma .25, .5, 1.

    :param weight: Of the divergence, at least 0.
    :param entropy: Weight of the entropy of the mean, at least 0.
    :param draws: Noisy copies a sample, at least 2.
    """

    name: ClassVar[str] = "consistency"

    weight: float = 10.0
    entropy: float = 0.5
    draws: int = 2

    def __post_init__(self) -> None:
        checks.non_negative("weight", self.weight)
        checks.non_negative("entropy", self.entropy)
        checks.whole("draws", self.draws, minimum=2)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of `draws` noisy copies, and the number of right answers on them."""
        logits = step.logits(x, step.draw(x, self.draws))
        loss = cross_entropy(logits, y).mean(1)
        log_mean = log_mean_softmax(logits)
        loss = loss + self.weight * divergence(log_mean.unsqueeze(1), logits).mean(1)
        loss = loss - self.entropy * (log_mean.exp() * log_mean).sum(1)
        return Outcome(loss.mean(), correct(logits, y))
