"""The smoothed classifier made differentiable: losses over noise draws, their values and gradients in `x`.

Two losses, for inputs x with labels y and noise draws e_1, ..., e_m:

- `expected_loss`: mean of loss(f(x + e_j), y) over j (Cohen et al. 2019, Appendix J.3);
- `smoothadv`: -log of the mean over j of softmax(f(x + e_j))_y (Salman et al. 2019, equation 6).

Draws are taken in chunks, so memory is bounded by `batch_size` whatever m is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from art_rs_plugin.noise import Noise, Purpose, seed_generator
from art_rs_plugin.votes import BLOCK, Forward

PerDraw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (rows, classes), labels (rows, ...)) -> one value per row (rows,)."""


@dataclass(frozen=True)
class Draws:
    """`count` noise draws for each of a batch's rows, a function of (seed, call, row, draw) alone."""

    noise: Noise
    count: int
    seed: int
    call: int = 0

    def chunks(self, x: torch.Tensor, rows: range, most: int) -> Iterator[torch.Tensor]:
        """Noise for `x[rows]`, shape (len(rows), k, *x.shape[1:]) with k at most `most`, until `count` are drawn."""
        generator = torch.Generator(x.device)
        size = min(self.count, BLOCK)
        blocks = torch.empty((len(rows), size, *x.shape[1:]), dtype=x.dtype, device=x.device)
        for start in range(0, self.count, size):
            for row, block in zip(rows, blocks, strict=True):
                self.noise.fill_(block, seed_generator(generator, self.seed, Purpose.GRADIENT, self.call, row, start))
            yield from torch.split(blocks[:, : self.count - start], most, dim=1)


def expected_loss(loss: PerDraw) -> SmoothedLoss:
    """J.3's objective: the mean of `loss` over the draws."""
    return SmoothedLoss(loss, log_mean_exp=False)


def smoothadv() -> SmoothedLoss:
    """Salman et al.'s objective: -log of the mean softmax probability of the label, labels as class distributions."""

    def log_probability(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(torch.log_softmax(logits, dim=1) + target.log(), dim=1)

    return SmoothedLoss(log_probability, log_mean_exp=True)


@dataclass(frozen=True)
class SmoothedLoss:
    """A loss of the smoothed classifier: a value per draw, and how draws are pooled, by mean or as -log mean exp."""

    per_draw: PerDraw
    log_mean_exp: bool

    def value_and_gradient(
        self, forward: Forward, x: torch.Tensor, y: torch.Tensor, draws: Draws, *, batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and gradient for every row of `x`, each row by itself (no division by the number of rows).

        :param x: (m, *shape) in input coordinates; noise is added to it before `forward`.
        :param y: (m, ...) labels as `per_draw` takes them.
        :param batch_size: Noisy copies per forward pass, at most.
        :return: Values (m,) and gradients (m, *shape).
        """
        values, gradients = x.new_zeros(len(x)), torch.zeros_like(x)
        for rows, chunks in _chunked(x, draws, batch_size):
            here = slice(rows.start, rows.stop)
            # pooled so far over the draws of these rows: their sum, or the log of their sum of exponentials
            total = x.new_full((len(rows),), -math.inf if self.log_mean_exp else 0.0)
            gradient = torch.zeros_like(x[here])
            for noise in chunks:
                clean = x[here].detach().requires_grad_(True)
                per_draw = self.per_draw(*_logits_and_labels(forward, clean, y[here], noise)).view(noise.shape[:2])
                part = torch.logsumexp(per_draw, dim=1) if self.log_mean_exp else per_draw.sum(dim=1)
                (part_gradient,) = torch.autograd.grad(part.sum(), clean)
                part = part.detach()
                if self.log_mean_exp:
                    before, total = total, torch.logaddexp(total, part)
                    gradient = _scale(gradient, before - total) + _scale(part_gradient, part - total)
                else:
                    total, gradient = total + part, gradient + part_gradient
            if self.log_mean_exp:
                values[here], gradients[here] = math.log(draws.count) - total, -gradient
            else:
                values[here], gradients[here] = total / draws.count, gradient / draws.count
        return values, gradients


def mean_softmax_gradient(
    forward: Forward, x: torch.Tensor, classes: torch.Tensor, draws: Draws, *, batch_size: int
) -> torch.Tensor:
    """Gradient in `x` of the mean softmax probability over the draws.

    :param x: (m, *shape) in input coordinates.
    :param classes: (m, k) int64, the classes whose probability is differentiated, row by row.
    :return: (m, k, *shape).
    """
    gradients = x.new_zeros((*classes.shape, *x.shape[1:]))
    for rows, chunks in _chunked(x, draws, batch_size):
        here = slice(rows.start, rows.stop)
        for noise in chunks:
            clean = x[here].detach().requires_grad_(True)
            logits, repeated = _logits_and_labels(forward, clean, classes[here], noise)
            probability = torch.softmax(logits, dim=1).gather(1, repeated)
            for k in range(classes.shape[1]):
                (part,) = torch.autograd.grad(probability[:, k].sum(), clean, retain_graph=k + 1 < classes.shape[1])
                gradients[here, k] += part
    return gradients / draws.count


def _chunked(x: torch.Tensor, draws: Draws, batch_size: int) -> Iterator[tuple[range, Iterator[torch.Tensor]]]:
    """Rows of `x` in groups, and the groups' noise in chunks, at most `batch_size` noisy copies at a time."""
    group = max(1, batch_size // min(draws.count, BLOCK))
    for start in range(0, len(x), group):
        rows = range(start, min(start + group, len(x)))
        yield rows, draws.chunks(x, rows, max(1, batch_size // len(rows)))


def _logits_and_labels(
    forward: Forward, clean: torch.Tensor, y: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the noisy copies (rows x draws, classes), and each copy's label."""
    noisy = (clean.unsqueeze(1) + noise).flatten(0, 1)
    return forward(noisy), y.repeat_interleave(noise.shape[1], dim=0)


def _scale(gradient: torch.Tensor, log_weight: torch.Tensor) -> torch.Tensor:
    return gradient * log_weight.exp().view(-1, *[1] * (gradient.ndim - 1))
