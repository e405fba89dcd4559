"""Projected gradient ascent on the smoothed classifier's loss."""

from __future__ import annotations

from typing import Any

import torch

from art_rs_plugin.ascent import NORMS, Projected, ascend, checked_norm, per_row
from art_rs_plugin.attacks.base import Batch, SmoothedAttack, checked_lengths
from art_rs_plugin.core import checks
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.noise import Purpose, seed_generator


class SmoothedPGD(SmoothedAttack):
    """PGD on the smoothed classifier g: ascent of the mean loss over noise draws, or of -log of the mean softmax.

    Cohen et al. 2019, Appendix J.3: delta <- proj_eps(delta + a g / ||g||), g the mean over fresh noise draws of the
    loss's gradient. `objective="smoothadv"` is Salman et al. 2019, equation 6.

    :param estimator: The smoothed classifier.
    :param norm: 2, or infinity (`numpy.inf` or "inf").
    :param eps: Greatest norm of a perturbation, in the unit of `x`: a number, or (m,) numbers, one for each input.
    :param eps_step: Length of a step, as `eps`; 2.5 eps / max_iter if None (Madry et al. 2018).
    :param max_iter: Steps.
    :param num_samples: Noise draws per input and step.
    :param objective: "expected_loss" or "smoothadv".
    :param fixed_noise: Whether an input meets the same draws at every step; fresh ones otherwise.
    :param targeted: Whether `y` names the classes to reach.
    :param num_random_init: Restarts at random points of the ball, of which the one of highest objective is kept;
        0 starts at `x`.
    :param momentum: Share of the velocity that a step keeps (Dong et al. 2018); 0 for none.
    :param step_decay: Every step is that much shorter than the one before, in (0, 1].
    :param batch_size: Noisy copies per forward pass; chosen automatically if None.
    :param verbose: Show a progress bar.
    :raises ValueError, TypeError: Each with name, rule and value.
    """

    attack_params = [  # noqa: RUF012
        *SmoothedAttack.attack_params,
        "norm",
        "eps",
        "eps_step",
        "num_random_init",
        "momentum",
        "step_decay",
    ]

    def __init__(
        self,
        estimator: RandomizedSmoothingPyTorch,
        *,
        norm: Any = 2,
        eps: Any,
        eps_step: Any = None,
        max_iter: int = 20,
        num_samples: int = 32,
        objective: str = "expected_loss",
        fixed_noise: bool = False,
        targeted: bool = False,
        num_random_init: int = 0,
        momentum: float = 0.0,
        step_decay: float = 1.0,
        batch_size: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.norm, self.eps, self.eps_step = norm, eps, eps_step
        self.num_random_init, self.momentum, self.step_decay = num_random_init, momentum, step_decay
        super().__init__(
            estimator,
            max_iter=max_iter,
            num_samples=num_samples,
            objective=objective,
            fixed_noise=fixed_noise,
            targeted=targeted,
            batch_size=batch_size,
            verbose=verbose,
        )

    @property
    def _steps(self) -> int:
        return max(1, self.num_random_init) * (self.max_iter + (self.num_random_init > 1))

    @property
    def _lengths(self) -> dict[str, Any]:
        return {"eps": self.eps} | ({} if self.eps_step is None else {"eps_step": self.eps_step})

    def _perturb(self, batch: Batch) -> torch.Tensor:
        x, objective = batch.x, self._objective_of(batch)
        eps = batch.lengths(self.eps)
        step = 2.5 * eps / self.max_iter if self.eps_step is None else batch.lengths(self.eps_step)
        best, highest = x, x.new_full((len(x),), -torch.inf)
        for _ in range(max(1, self.num_random_init)):
            start = self._start(batch, eps) if self.num_random_init else None
            mover = Projected(self.norm, eps, step, self.momentum, self.step_decay)
            points = ascend(x, objective, mover, steps=self.max_iter, delta=start, box=batch.box, mask=batch.mask)
            if self.num_random_init <= 1:
                return points
            value = objective(points, self.max_iter).value
            best = torch.where(per_row(value > highest, x), points, best)
            highest = torch.maximum(value, highest)
        return best

    def _start(self, batch: Batch, eps: torch.Tensor) -> torch.Tensor:
        """A random perturbation for every input, from a stream of the next gradient's that no draw has."""
        draws, delta = self.estimator.draws(1), torch.empty_like(batch.x)
        generator, ball = torch.Generator(delta.device), NORMS[self.norm]
        for row, name in enumerate(batch.names):
            seed_generator(generator, draws.seed, Purpose.GRADIENT, draws.call, name)
            delta[row] = ball.sample(delta[row : row + 1], eps[row : row + 1], generator)[0]
        return delta

    def _check_params(self) -> None:
        super()._check_params()
        self.norm = checked_norm(self.norm)
        self.eps = checked_lengths("eps", self.eps, above_zero=False)
        if self.eps_step is not None:
            self.eps_step = checked_lengths("eps_step", self.eps_step, above_zero=True)
        self.num_random_init = checks.whole("num_random_init", self.num_random_init, minimum=0)
        self.momentum = checks.non_negative("momentum", self.momentum)
        if not 0.0 < checks.positive("step_decay", self.step_decay) <= 1.0:
            raise ValueError(f"`step_decay` must be in (0, 1], got {self.step_decay!r}")
