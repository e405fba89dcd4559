"""MACER: training that enlarges the certified radius itself, without attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import Outcome, Step, correct, log_mean_softmax


@dataclass(frozen=True)
class MACER:
    """-log of the mean softmax at the label + weight times a hinge on the soft radius (Zhai et al. 2020, algorithm 1).

    The hinge of a sample that is classified right is sigma / 2 max(0, gamma - (Phi^-1(p_1) - Phi^-1(p_2))), where
    p_1 > p_2 are the two largest entries of the mean over the draws of softmax(beta logits); 0 for others, and where
    p_1 is 1 or p_2 is 0 in floating point. Its authors take 16 draws, beta 16, gamma 8 and, on
    CIFAR-10, weight 12 at sigma .25, 4 at .5 and 12 at 1, there from the first drop of the learning rate on. On MNIST
    Jeong and Shin 2020 take 16, 16, 6, each from the first drop on.

    :param weight: Of the hinge, at least 0.
    :param draws: Noisy copies a sample.
    :param beta: Sharpens the softmax of the hinge, above 0.
    :param gamma: Where the hinge ends, in units of Phi^-1, above 0.
    :param deferred: Epochs before the hinge comes in.
    """

    name: ClassVar[str] = "macer"

    weight: float = 12.0
    draws: int = 16
    beta: float = 16.0
    gamma: float = 8.0
    deferred: int = 0

    def __post_init__(self) -> None:
        checks.non_negative("weight", self.weight)
        checks.whole("draws", self.draws)
        checks.positive("beta", self.beta)
        checks.positive("gamma", self.gamma)
        checks.whole("deferred", self.deferred, minimum=0)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of `draws` noisy copies, and the number of right answers on them."""
        logits = step.logits(x, step.draw(x, self.draws))
        loss = -log_mean_softmax(logits).gather(1, y.unsqueeze(1)).mean()
        if self.weight and step.epoch > self.deferred:
            hinge = self.hinge(logits, y)
            loss = loss + self.weight * step.noise.sigma / 2 * hinge.mean()
        return Outcome(loss, correct(logits, y))

    def hinge(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """max(0, gamma - (Phi^-1(p_1) - Phi^-1(p_2))) where it counts, else 0: `(n,)` from `(n, draws, classes)`."""
        probabilities = torch.softmax(self.beta * logits, dim=2).mean(1)
        (first, second), named = (part.unbind(1) for part in probabilities.topk(2, dim=1))
        counts = (named[0] == y) & (first < 1) & (second > 0)
        # elsewhere a harmless pair: an infinite Phi^-1 would make the gradient NaN even where it is masked
        first, second = torch.where(counts, first, 0.5), torch.where(counts, second, 0.5)
        hinge = (self.gamma - (torch.special.ndtri(first) - torch.special.ndtri(second))).clamp_min(0.0)
        return torch.where(counts, hinge, 0.0)
