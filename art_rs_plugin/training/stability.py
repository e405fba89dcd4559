"""Stability training: what is said of a noisy sample should be what is said of the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import Outcome, Step, correct, cross_entropy, divergence


@dataclass(frozen=True)
class Stability:
    """Cross-entropy + weight KL(f(x) || f(x + e)), e ~ N(0, sigma^2 I) (Li et al. 2018, in its KL form).

    The first term is taken at x + e, so that without weight this is Gaussian augmentation; Zheng et al. 2016, whom Li
    et al. follow, take it at x, and for the second the cross-entropy between f(x) and f(x + e), which is the KL
    divergence and f(x)'s own entropy. Of that form Jeong and Shin 2020 take weight 2 on MNIST at every sigma, and on
    CIFAR-10 2 at sigma .25 and .5, 1 at sigma 1.

    :param weight: Of the second term, at least 0.
    """

    name: ClassVar[str] = "stability"

    weight: float = 2.0

    def __post_init__(self) -> None:
        checks.non_negative("weight", self.weight)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of `x` and one noisy copy of it, and the number of right answers on the copies."""
        logits = step.logits(x, step.draw(x))
        loss = cross_entropy(logits, y)
        if self.weight:
            clean = torch.log_softmax(step.forward(x), dim=1).unsqueeze(1)
            loss = loss + self.weight * divergence(clean, logits)
        return Outcome(loss.mean(), correct(logits, y))
