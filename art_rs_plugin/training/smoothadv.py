"""SmoothAdv: adversarial training of the smoothed classifier, and the attack that its kin share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from art_rs_plugin.ascent import Decoupled, Look, Mover, Projected, ascend
from art_rs_plugin.core import checks
from art_rs_plugin.smoothed import GivenDraws, SmoothedLoss, log_probability
from art_rs_plugin.training.objectives import Outcome, Step, check_bounds, correct, cross_entropy, warmed_up

ATTACKS: dict[str, Callable[[torch.Tensor, int], Mover]] = {
    "pgd": lambda eps, steps: Projected(2, eps, 2 * eps / steps),
    "ddn": lambda eps, steps: Decoupled(eps, steps, most=eps),
}
"""(largest l2 norms (n,), steps) -> what moves a perturbation."""


@dataclass(frozen=True)
class SmoothAdv:
    """Cross-entropy at x' + e_j, where x' maximises -log of the mean softmax over the same draws e_1, ..., e_m within
    the l2 ball of radius eps (Salman et al. 2019, equation 6 and Section 3.2).

    PGD makes `steps` steps of length 2 eps / steps, each from where the last one led. DDN starts from norm eps and
    never exceeds it; theirs returns the least perturbation that fooled, or none, and here it is where DDN ended. eps
    grows linearly over the first epochs. They try 1 to 10 steps, 1 to 8 draws and eps .25, .5, 1 and 2; Jeong and Shin
    2020 take 10 steps, eps 1 and, on MNIST, 4 draws at every sigma.

    :param eps: Largest l2 norm of the perturbation, in the unit of x, at least 0.
    :param steps: Of the attack.
    :param draws: m, noisy copies a sample.
    :param attack: A name in `ATTACKS`: "pgd" or "ddn".
    :param warmup: Epochs until eps is reached.
    :param all_draws: Whether all m copies of x' are trained on, or the first alone.
    :param clip_values: Least and greatest value that x' may take, if it is bounded.
    """

    name: ClassVar[str] = "smoothadv"

    eps: float = 1.0
    steps: int = 10
    draws: int = 4
    attack: str = "pgd"
    warmup: int = 10
    all_draws: bool = True
    clip_values: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.non_negative("eps", self.eps)
        checks.whole("steps", self.steps)
        checks.whole("draws", self.draws)
        checks.one_of("attack", self.attack, ATTACKS)
        checks.whole("warmup", self.warmup, minimum=0)
        checks.one_of("all_draws", self.all_draws, (True, False))
        check_bounds(self.clip_values)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of noisy copies of adversarial examples, and the number of right answers on them."""
        noise = step.draw(x, self.draws)
        eps = self.eps * warmed_up(step.epoch, self.warmup)
        if eps:
            mover = ATTACKS[self.attack](x.new_full((len(x),), eps), self.steps)
            x = adversarial(step, x, y, noise, mover, steps=self.steps, clip_values=self.clip_values)
        logits = step.logits(x, noise if self.all_draws else noise[:, :1])
        return Outcome(cross_entropy(logits, y).mean(), correct(logits, y))


def adversarial(
    step: Step,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    mover: Mover,
    *,
    steps: int,
    clip_values: tuple[float, float] | None,
) -> torch.Tensor:
    """`x` `(n, *shape)` moved up -log of the mean softmax over the draws `noise` `(n, m, *shape)`, model evaluating.

    :raises ValueError: `x` outside `clip_values`, into which the attack would move it for nothing.
    """
    loss, draws = SmoothedLoss(log_probability, log_mean_exp=True), GivenDraws(noise)

    def look(points: torch.Tensor, _: int) -> Look:
        value, gradient, votes = loss.probe(step.forward, points, y, draws, batch_size=noise.shape[0] * noise.shape[1])
        return Look(value, gradient, votes.argmax(1) != y)

    box = None
    if clip_values is not None:
        box = x.new_tensor(clip_values[0]), x.new_tensor(clip_values[1])
        if ((x < box[0]) | (x > box[1])).any():
            low, high = (float(value) for value in x.aminmax())
            raise ValueError(f"x must lie within `clip_values` = {clip_values}, got values from {low} to {high}")
    with step.evaluation():
        return ascend(x, look, mover, steps=steps, box=box)
