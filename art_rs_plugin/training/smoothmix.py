"""SmoothMix: what is said between a sample and an adversarial example should fade to nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from art_rs_plugin.ascent import Projected
from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import (
    Outcome,
    Step,
    check_bounds,
    correct,
    cross_entropy,
    divergence,
    finite_log,
    log_mean_softmax,
    warmed_up,
)
from art_rs_plugin.training.smoothadv import adversarial


@dataclass(frozen=True)
class SmoothMix:
    """Cross-entropy + weight KL(mixed label || f(mixed sample + e_j)) (Jeong et al. 2021, Section 3).

    An adversarial example x' is sought without bound, by `steps` steps of length `step_size` up -log of the mean
    softmax over the draws e_1, ..., e_m. With lambda uniform in [0, 1/2], the mixed sample is (1 - lambda) x +
    lambda x', its label (1 - lambda) times the mean softmax at x plus lambda times the uniform distribution. The second
    term counts where the mean softmax at x is right, and grows over the first epochs. With `one_step`, x is replaced
    throughout by what the first step makes of it, within a length that grows likewise. The authors take on MNIST
    4 draws, step size 1, weight 5 and 2, 4, 8 steps at sigma .25, .5, 1; on CIFAR-10 2 draws, 4 steps, weight 5 and
    step size .5, 1, 2.

    :param weight: Of the second term (eta), at least 0.
    :param steps: T, steps of the attack.
    :param step_size: Their length in l2 (alpha), in the unit of x.
    :param draws: m, noisy copies a sample.
    :param one_step: Whether to train on one-step adversarial examples instead of x.
    :param warmup: Epochs until the second term has its full weight.
    :param clip_values: Least and greatest value that x' may take, if it is bounded.
    """

    name: ClassVar[str] = "smoothmix"

    weight: float = 5.0
    steps: int = 4
    step_size: float = 1.0
    draws: int = 4
    one_step: bool = False
    warmup: int = 10
    clip_values: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.non_negative("weight", self.weight)
        checks.whole("steps", self.steps)
        checks.positive("step_size", self.step_size)
        checks.whole("draws", self.draws)
        checks.one_of("one_step", self.one_step, (True, False))
        checks.whole("warmup", self.warmup, minimum=0)
        check_bounds(self.clip_values)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of noisy copies of samples and mixed samples, and the number of right answers on the former."""
        noise, strength = step.draw(x, self.draws), warmed_up(step.epoch, self.warmup)
        x_adv = self._move(step, x, y, noise, self.steps, math.inf) if self.weight else x
        if self.one_step:
            x = self._move(step, x, y, noise, 1, strength * self.step_size)
        logits = step.logits(x, noise)
        loss = cross_entropy(logits, y).mean(1)
        if self.weight:
            mean = log_mean_softmax(logits).exp()
            share = x.new_empty(len(x)).uniform_(0.0, 0.5, generator=step.generator)
            mixed, label = mix(x, x_adv, mean, share)
            fades = divergence(finite_log(label).unsqueeze(1), step.logits(mixed, noise)).mean(1)
            loss = loss + self.weight * strength * fades * (mean.argmax(1) == y)
        return Outcome(loss.mean(), correct(logits, y))

    def _move(
        self, step: Step, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor, steps: int, most: float
    ) -> torch.Tensor:
        mover = Projected(2, x.new_full((len(x),), most), x.new_full((len(x),), self.step_size))
        return adversarial(step, x, y, noise, mover, steps=steps, clip_values=self.clip_values)


def mix(
    x: torch.Tensor, x_adv: torch.Tensor, probabilities: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples on the way from `x` to `x_adv`, `share` `(n,)` of it, and their labels `(n, classes)`, that far faded."""
    of_label = share.unsqueeze(1)
    of_image = share.view(-1, *[1] * (x.ndim - 1))
    uniform = torch.full_like(probabilities, 1 / probabilities.shape[1])
    return torch.lerp(x, x_adv, of_image), torch.lerp(probabilities, uniform, of_label)
