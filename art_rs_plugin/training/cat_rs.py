"""CAT-RS: training that is as demanding of a sample as the classifier is confident of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from art_rs_plugin.ascent import Look, Projected, ascend, per_row
from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import Outcome, Step, correct, cross_entropy, divergence, finite_log


@dataclass(frozen=True)
class CatRS:
    """Bottom-K cross-entropy + weight, where K = m, times the worst case of KL (Jeong et al. 2023, Section 3).

    Of the m noisy copies x + e_j a share p is classified right; K is drawn from Binomial(m, p), at least 1. The first
    term is the sum of the K least cross-entropies over m. The second is the largest over j of
    KL(label || f(x + e_j')), where e_j' maximises it within eps of e_j, by `steps` steps of 2 eps / steps; each ends by
    giving it the mean and the deviation of e_j, which may lead a little out of eps. The authors take m = 4, eps 1,
    4 steps and, on CIFAR-10, weight .5, 1, 2 at sigma .25, .5, 1; as labels they take what a smoothed classifier
    trained by Gaussian augmentation says.

    :param weight: Of the second term (lambda), at least 0.
    :param eps: Of the ball around e_j that e_j' is sought in, in the unit of x.
    :param steps: Of the search for e_j'.
    :param draws: m, noisy copies a sample.
    :param teacher: x `(n, *shape)` -> distributions `(n, classes)` that are the labels of the second term; the classes
        themselves if None.
    """

    name: ClassVar[str] = "cat-rs"

    weight: float = 1.0
    eps: float = 1.0
    steps: int = 4
    draws: int = 4
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        checks.non_negative("weight", self.weight)
        checks.positive("eps", self.eps)
        checks.whole("steps", self.steps)
        checks.whole("draws", self.draws)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of noisy copies, and the number of right answers on them before any attack."""
        noise = step.draw(x, self.draws)
        logits = step.logits(x, noise)
        right = (logits.detach().argmax(2) == y.unsqueeze(1)).float().mean(1)
        kept = torch.binomial(torch.full_like(right, self.draws), right, generator=step.generator).clamp_min(1.0)
        loss = bottom(cross_entropy(logits, y), kept)
        if self.weight:
            label = self._labels(x, y, logits.shape[2])
            confident = kept == self.draws
            worst = divergence(finite_log(label), step.logits(x, self._worst(step, x, noise, label))).amax(1)
            loss = loss + self.weight * worst * confident
        return Outcome(loss.mean(), correct(logits, y))

    def _labels(self, x: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
        if self.teacher is None:
            return F.one_hot(y, classes).to(x.dtype).unsqueeze(1)
        with torch.no_grad():
            return self.teacher(x).to(x.dtype).unsqueeze(1)

    def _worst(self, step: Step, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Noise `(n, m, *shape)` within eps of `noise` at which the divergence from `label` is large."""
        clean, labels = (part.repeat_interleave(self.draws, 0) for part in (x, finite_log(label)))

        def look(points: torch.Tensor, _: int) -> Look:
            points = points.detach().requires_grad_(True)
            with torch.enable_grad():
                value = divergence(labels, step.forward(points + clean).unsqueeze(1))[:, 0]
                (gradient,) = torch.autograd.grad(value.sum(), points)
            return Look(value.detach(), gradient, torch.zeros_like(value, dtype=torch.bool))

        start = noise.flatten(0, 1)
        eps = x.new_full((len(start),), self.eps)
        mover = _OfSameMoments(start, Projected(2, eps, 2 * eps / self.steps))
        with step.evaluation():
            return ascend(start, look, mover, steps=self.steps).view_as(noise)


def bottom(losses: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Sum of the `kept` `(n,)` least of the losses `(n, m)`, over m: `(n,)`."""
    rank = torch.arange(losses.shape[1], device=losses.device)
    return (losses.sort(1).values * (rank < kept.unsqueeze(1))).mean(1)


@dataclass
class _OfSameMoments:
    """Moves as `mover` does, then gives the noise the mean and the mean square that it began with.

    :param noise: Where perturbations start from, `(rows, *shape)`.
    """

    noise: torch.Tensor
    mover: Projected

    def __call__(self, delta: torch.Tensor, look: Look, step: int) -> torch.Tensor:
        """The next perturbation."""
        moved = self.noise + self.mover(delta, look, step)
        mean, spread = _moments(moved)
        first_mean, first_spread = _moments(self.noise)
        return (moved - mean) / spread * first_spread + first_mean - self.noise


def _moments(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each row, to be broadcast over it."""
    rows = noise.flatten(1)
    return per_row(rows.mean(1), noise), per_row(rows.std(1, unbiased=False).clamp_min(1e-12), noise)
