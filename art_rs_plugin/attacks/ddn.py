"""Decoupled direction and norm: the least perturbation that fools the smoothed classifier."""

from __future__ import annotations

from typing import Any

import torch

from art_rs_plugin.ascent import NORMS, Decoupled, Look, ascend, per_row
from art_rs_plugin.attacks.base import Batch, SmoothedAttack, checked_lengths
from art_rs_plugin.core import checks
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch

_DOUBLINGS, _HALVINGS = 5, 12


class SmoothedDDN(SmoothedAttack):
    """DDN (Rony et al. 2019) on the smoothed classifier g: a perturbation of small l2 norm whose class is another.

    Every step follows the gradient and gives the perturbation a norm that shrinks where the draws' votes were fooled
    and grows where they were not. The votes of a few draws err, and the best of many looks would be the one that erred
    most: so the length along the direction found is settled by bisection on `num_votes` votes.

    :param estimator: The smoothed classifier.
    :param max_iter: Steps.
    :param num_samples: Noise draws per input and step.
    :param init_eps: Norm to begin with, and length of the first step, in the unit of `x`: a number, or (m,) numbers,
        one for each input.
    :param gamma: By what share a step changes the norm, in (0, 1).
    :param num_votes: Votes that settle the length.
    :param overshoot: How much longer than where the most voted class changes the perturbation is made, as a share: at
        the boundary itself PREDICT abstains.
    :param objective: "smoothadv" or "expected_loss".
    :param fixed_noise: Whether an input meets the same draws at every step; fresh ones otherwise.
    :param targeted: Whether `y` names the classes to reach.
    :param batch_size: Noisy copies per forward pass; chosen automatically if None.
    :param verbose: Show a progress bar.
    :raises ValueError, TypeError: Each with name, rule and value.
    """

    attack_params = [  # noqa: RUF012
        *SmoothedAttack.attack_params,
        "init_eps",
        "gamma",
        "num_votes",
        "overshoot",
    ]

    def __init__(
        self,
        estimator: RandomizedSmoothingPyTorch,
        *,
        max_iter: int = 50,
        num_samples: int = 32,
        init_eps: Any = 1.0,
        gamma: float = 0.05,
        num_votes: int = 1_000,
        overshoot: float = 0.02,
        objective: str = "smoothadv",
        fixed_noise: bool = False,
        targeted: bool = False,
        batch_size: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.init_eps, self.gamma, self.num_votes, self.overshoot = init_eps, gamma, num_votes, overshoot
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
    def _lengths(self) -> dict[str, Any]:
        return {"init_eps": self.init_eps}

    def _perturb(self, batch: Batch) -> torch.Tensor:
        x, objective = batch.x, self._objective_of(batch)
        best, least = x, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

        def remembering(points: torch.Tensor, step: int) -> Look:
            nonlocal best, least
            look = objective(points, step)
            norm = NORMS[2].length(points - x)
            better = look.fools & (norm < least) & (norm > 0)
            best = torch.where(per_row(better, x), points, best)
            least = torch.where(better, norm, least)
            return look

        eps = batch.lengths(self.init_eps)
        mover = Decoupled(eps, self.max_iter, self.gamma)
        last = ascend(x, remembering, mover, steps=self.max_iter, box=batch.box, mask=batch.mask)
        return self._shortest(batch, torch.where(per_row(least < torch.inf, x), best, last) - x)

    def _shortest(self, batch: Batch, direction: torch.Tensor) -> torch.Tensor:
        """The inputs moved along `direction` as far as it takes to fool the votes; or not at all."""

        def at(length: torch.Tensor) -> torch.Tensor:
            points = batch.x + per_row(length, batch.x) * direction
            return points if batch.box is None else torch.clamp(points, *batch.box)

        def fools(length: torch.Tensor) -> torch.Tensor:
            votes = self.estimator.votes(at(length), self.num_votes, indices=batch.names, batch_size=self.batch_size)
            return self._fooled(torch.from_numpy(votes).to(batch.y.device), batch.y)

        low, high = batch.x.new_zeros(len(batch.x)), batch.x.new_ones(len(batch.x))
        at_once, fooled = fools(low), fools(high)
        for _ in range(_DOUBLINGS):
            if fooled.all():
                break
            low, high = torch.where(fooled, low, high), torch.where(fooled, high, 2 * high)
            fooled = fools(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            so_far = fools(middle)
            low, high = torch.where(so_far, low, middle), torch.where(so_far, middle, high)
        return at(torch.where(fooled & ~at_once, (1 + self.overshoot) * high, torch.zeros_like(high)))

    def _check_params(self) -> None:
        super()._check_params()
        self.init_eps = checked_lengths("init_eps", self.init_eps, above_zero=True)
        self.gamma = checks.in_unit_interval("gamma", self.gamma)
        self.num_votes = checks.whole("num_votes", self.num_votes)
        self.overshoot = checks.non_negative("overshoot", self.overshoot)
