"""Lipschitz-margin training: the label should win by what a perturbation could make up for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from art_rs_plugin.core import checks
from art_rs_plugin.training.objectives import Outcome, Step, correct, warmed_up
from art_rs_plugin.training.slopes import slopes_of_pairs


@dataclass(frozen=True)
class LipschitzMargin:
    """Cross-entropy with margin L_cy added to every logit c but the label's y (Tsuzuku et al. 2018, Algorithm 1).

    L_cy is how steep the difference of logits c and y can be: at a loss near 0 the network's own prediction, without
    noise, stays within l2 distance `margin`, which the certifier "lipschitz-margin" tells. The rows of the last affine
    map are subtracted; sqrt(2) L, without a last layer that is linear, is the same. L is an estimate from below and so
    no certificate, see `slopes`. Its unit is that of what the model is given: standardisation belongs into the model.

    :param margin: The distance that is asked for, at least 0; without it this is cross-entropy.
    :param warmup: Epochs over which the margin grows linearly to its full size: networks are steep at the start.
    :param noisy: Train on noisy copies, as for smoothing, not on the samples.
    :param iterations: Of each norm's power iteration; they begin anew at every step.
    """

    name: ClassVar[str] = "lmt"

    margin: float = 0.1
    warmup: int = 0
    noisy: bool = False
    iterations: int = 5

    def __post_init__(self) -> None:
        checks.non_negative("margin", self.margin)
        checks.whole("warmup", self.warmup, minimum=0)
        checks.one_of("noisy", self.noisy, (True, False))
        checks.whole("iterations", self.iterations)

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> Outcome:
        """Loss of `x`, or of one noisy copy of it, and the number of right answers on that."""
        logits = step.logits(x, step.draw(x)) if self.noisy else step.forward(x).unsqueeze(1)
        raised, margin = logits[:, 0], self.margin * warmed_up(step.epoch, self.warmup)
        if margin:
            slopes = slopes_of_pairs(step.model, tuple(x.shape[1:]), step.generator, self.iterations)
            raised = raised + margin * slopes.to(raised.dtype)[y]  # by 0 at the label
        return Outcome(F.cross_entropy(raised, y), correct(logits, y))
