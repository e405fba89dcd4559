"""The one ascent loop: perturbations that raise an objective, and how they move.

`ascend` looks at where it stands and lets a mover choose the next perturbation. `Projected` stays within a ball
(projected gradient ascent, Madry et al. 2018; with momentum Dong et al. 2018); `Decoupled` seeks the least norm that
fools (DDN, Rony et al. 2019). Attacks and training vary objective and mover, and share the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from art_rs_plugin.core import checks


@dataclass(frozen=True)
class Look:
    """What an objective says of m points: its value (m,), its gradient (m, *shape) and whether each fools (m,)."""

    value: torch.Tensor
    gradient: torch.Tensor
    fools: torch.Tensor


Objective = Callable[[torch.Tensor, int], Look]
"""(points (m, *shape), number of the step) -> what they are worth."""


class Mover(Protocol):
    """Chooses the next perturbation."""

    def __call__(self, delta: torch.Tensor, look: Look, step: int) -> torch.Tensor:
        """The perturbation (m, *shape) that follows `delta`, at which `look` was taken."""


def ascend(
    x: torch.Tensor,
    objective: Objective,
    mover: Mover,
    *,
    steps: int,
    delta: torch.Tensor | None = None,
    box: tuple[torch.Tensor, torch.Tensor] | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Perturb `x` in `steps` steps, each from a look at where the last one led.

    :param x: (m, *shape), within `box`.
    :param delta: Where to start; no perturbation if None.
    :param box: Least and greatest value of every coordinate of the perturbed input, broadcast to `x`.
    :param mask: Broadcast to `x`; what is perturbed is multiplied by it.
    :return: x + delta, (m, *shape).
    """
    delta = torch.zeros_like(x) if delta is None else _kept(delta, x, box, mask)
    for step in range(steps):
        look = objective(x + delta, step)
        if mask is not None:
            look = Look(look.value, look.gradient * mask, look.fools)
        delta = _kept(mover(delta, look, step), x, box, mask)
    return x + delta


def _kept(
    delta: torch.Tensor,
    x: torch.Tensor,
    box: tuple[torch.Tensor, torch.Tensor] | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`delta` where it may be: x lies in the box, so that a step back into it never makes a perturbation larger."""
    delta = delta if mask is None else delta * mask
    return delta if box is None else torch.clamp(x + delta, *box) - x


@dataclass
class Projected:
    """Steps of given length along the steepest direction, back into the ball of radius `eps` after each.

    :param norm: A norm of `NORMS`: 2 or infinity.
    :param eps: (m,) radii.
    :param eps_step: (m,) lengths of the first step.
    :param momentum: Share of the velocity that a step keeps (Dong et al. 2018); gradients enter it by their l1 norm.
    :param decay: Every step is that much shorter than the one before, in (0, 1].
    """

    norm: float
    eps: torch.Tensor
    eps_step: torch.Tensor
    momentum: float = 0.0
    decay: float = 1.0
    _velocity: torch.Tensor | None = field(default=None, init=False, repr=False)

    def __call__(self, delta: torch.Tensor, look: Look, step: int) -> torch.Tensor:
        """The next perturbation."""
        ball, gradient = NORMS[self.norm], look.gradient
        if self.momentum:
            gradient = _scaled(gradient)
            # at least 1 after scaling, or a zero that stays one
            gradient = gradient / per_row(gradient.abs().flatten(1).sum(dim=1).clamp_min(1.0), gradient)
            gradient = gradient if self._velocity is None else self.momentum * self._velocity + gradient
            self._velocity = gradient
        length = per_row(self.eps_step * self.decay**step, delta)
        return ball.project(delta + length * ball.steepest(gradient), self.eps)


@dataclass
class Decoupled:
    """Decoupled direction and norm (Rony et al. 2019, algorithm 1): the least l2 norm that fools, from both sides.

    Every step goes along the gradient, its length falling from `eps` to a hundredth of it by a cosine; then the
    perturbation is given the norm of the moment, which shrinks where it fooled and grows where it did not.

    :param eps: (m,) norms to begin with.
    :param steps: How many will be taken.
    :param gamma: By what share a step changes the norm, in (0, 1).
    :param most: (m,) norms that are never exceeded, if there are any.
    """

    eps: torch.Tensor
    steps: int
    gamma: float = 0.05
    most: torch.Tensor | None = None
    _norm: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._norm = self.eps

    def __call__(self, delta: torch.Tensor, look: Look, step: int) -> torch.Tensor:
        """The next perturbation."""
        length = self.eps * (0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2)
        self._norm = torch.where(look.fools, (1 - self.gamma) * self._norm, (1 + self.gamma) * self._norm)
        self._norm = self._norm if self.most is None else torch.minimum(self._norm, self.most)
        moved = delta + per_row(length, delta) * NORMS[2].steepest(look.gradient)
        return NORMS[2].steepest(moved) * per_row(self._norm, delta)


class Ball(Protocol):
    """The geometry of a norm. Rows of (m, *shape) are vectors of their own."""

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The vector of norm 1 along which each row's linear function rises fastest; zero where there is none."""

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """The nearest vectors of norm at most `eps` (m,)."""

    def sample(self, delta: torch.Tensor, eps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Vectors like `delta`, uniform in the balls of radius `eps` (m,)."""

    def length(self, delta: torch.Tensor) -> torch.Tensor:
        """Norms (m,) in float64."""


class L2:
    """Euclidean norm."""

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient itself, at length 1."""
        gradient = _scaled(gradient)
        return gradient / per_row(gradient.flatten(1).norm(dim=1).clamp_min(1.0), gradient)  # 1 or more, or zero

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Rows that are too long, shortened."""
        length = delta.flatten(1).norm(dim=1)
        return delta * per_row((eps / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0), delta)

    def sample(self, delta: torch.Tensor, eps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A uniform direction, and a length whose power d is uniform."""
        direction = self.steepest(torch.empty_like(delta).normal_(generator=generator))
        share = torch.empty_like(eps).uniform_(generator=generator) ** (1.0 / delta[0].numel())
        return direction * per_row(eps * share, delta)

    def length(self, delta: torch.Tensor) -> torch.Tensor:
        """Euclidean norms."""
        length: torch.Tensor = delta.double().flatten(1).norm(dim=1)
        return length


class LInf:
    """The largest coordinate."""

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient's signs."""
        return gradient.sign()

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Coordinates that are too large, cut."""
        eps = per_row(eps, delta)
        return torch.clamp(delta, -eps, eps)

    def sample(self, delta: torch.Tensor, eps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Every coordinate by itself."""
        return torch.empty_like(delta).uniform_(-1.0, 1.0, generator=generator) * per_row(eps, delta)

    def length(self, delta: torch.Tensor) -> torch.Tensor:
        """Largest absolute values."""
        return delta.double().flatten(1).abs().amax(dim=1)


NORMS: dict[float, Ball] = {2: L2(), math.inf: LInf()}
"""Norms by their order."""


def checked_norm(norm: Any) -> float:
    """A norm as `NORMS` names it; ART writes "inf" too. ValueError for others."""
    return float(checks.one_of("norm", math.inf if norm == "inf" else norm, NORMS))


def _scaled(gradient: torch.Tensor) -> torch.Tensor:
    """Rows divided by their largest coordinate: squares of a gradient near zero would vanish; a zero row stays zero."""
    largest = gradient.flatten(1).abs().amax(dim=1)
    return gradient / per_row(torch.where(largest > 0, largest, torch.ones_like(largest)), gradient)


def per_row(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A number or truth a row (m,), to be broadcast over the rows of `like` (m, *shape)."""
    value = value.to(like.dtype) if value.is_floating_point() else value
    return value.view(-1, *[1] * (like.ndim - 1))
