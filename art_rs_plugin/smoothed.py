"""The smoothed classifier made differentiable: losses over noise draws, their values and gradients in `x`.

Two losses, for inputs x with labels y and noise draws e_1, ..., e_m:

- `expected_loss`: mean of loss(f(x + e_j), y) over j (Cohen et al. 2019, Appendix J.3);
- `smoothadv`: -log of the mean over j of softmax(f(x + e_j))_y (Salman et al. 2019, equation 6).

`SmoothedModule` is x -> log of the mean softmax, for those who want logits. Draws are taken in chunks, so memory is
bounded by `batch_size` whatever m is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from art_rs_plugin.noise import Noise, Purpose, seed_generator
from art_rs_plugin.votes import BLOCK, Forward, mode

PerDraw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (rows, classes), labels (rows, ...)) -> one value per row (rows,)."""


@dataclass(frozen=True)
class Draws:
    """`count` noise draws for each of a batch's rows, a function of (seed, call, row, draw) alone.

    :param shared: Whether all rows meet the same draws, so that what is made of a row does not depend on its place.
    :param names: Numbers that stand for the rows in their streams' names; their places if None.
    """

    noise: Noise
    count: int
    seed: int
    call: int = 0
    shared: bool = False
    names: tuple[int, ...] | None = None

    def chunks(self, x: torch.Tensor, rows: range, most: int) -> Iterator[torch.Tensor]:
        """Noise for `x[rows]`, shape (len(rows), k, *x.shape[1:]) with k at most `most`, until `count` are drawn."""
        for start in self.blocks:
            yield from torch.split(self.block(x, rows, start), most, dim=1)

    @property
    def blocks(self) -> range:
        """Where blocks of draws start: one stream makes a block."""
        return range(0, self.count, BLOCK)

    def block(self, x: torch.Tensor, rows: range, start: int) -> torch.Tensor:
        """The block of draws from `start` on for `x[rows]`, (len(rows), at most BLOCK, *x.shape[1:])."""
        generator = torch.Generator(x.device)
        named: Sequence[int] = rows if self.names is None else [self.names[row] for row in rows]
        named = [0] if self.shared else named
        # images with channels last in memory, as votes have them: convolutions are fastest so
        shape = (x.shape[2], x.shape[3], x.shape[1]) if x.ndim == 4 else x.shape[1:]
        noise = torch.empty((len(named), min(self.count, BLOCK), *shape), dtype=x.dtype, device=x.device)
        for row, of_row in zip(named, noise, strict=True):
            self.noise.fill_(of_row, seed_generator(generator, self.seed, Purpose.GRADIENT, self.call, row, start))
        noise = noise.movedim(-1, 2) if x.ndim == 4 else noise
        return noise[:, : self.count - start].expand(len(rows), *[-1] * x.ndim)


@dataclass(frozen=True)
class GivenDraws:
    """Noise draws that are there already, `noise` (m, count, *shape) for a batch of m rows."""

    noise: torch.Tensor

    @property
    def count(self) -> int:
        """Draws a row."""
        return self.noise.shape[1]

    def chunks(self, x: torch.Tensor, rows: range, most: int) -> Iterator[torch.Tensor]:
        """As those of `Draws`."""
        yield from torch.split(self.noise[rows.start : rows.stop], most, dim=1)


def expected_loss(loss: PerDraw) -> SmoothedLoss:
    """J.3's objective: the mean of `loss` over the draws."""
    return SmoothedLoss(loss, log_mean_exp=False)


def smoothadv() -> SmoothedLoss:
    """Salman et al.'s objective: -log of the mean softmax probability of the label, labels as class distributions."""

    def log_mean_probability(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if bool((target.amax(dim=1) < 1.0).any()):
            return torch.logsumexp(torch.log_softmax(logits, dim=1) + target.log(), dim=1)
        return log_probability(logits, target.argmax(dim=1))

    return SmoothedLoss(log_mean_probability, log_mean_exp=True)


def log_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log of the softmax probability of `labels` (rows,): -log(1 + sum over other classes c of exp(z_c - z_label)).

    `log_softmax` loses part of the gradient where that sum is below the last bit of 1: in float32 from a margin of 17
    on, which networks reach on easy inputs. Here it stays until exp(-87).
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return -torch.nn.functional.softplus(torch.logsumexp(others - own, dim=1))


class Probe(NamedTuple):
    """What noise draws say of m inputs: the loss (m,), its gradient (m, *shape), and f's votes int64 (m, classes)."""

    value: torch.Tensor
    gradient: torch.Tensor
    votes: torch.Tensor


@dataclass(frozen=True)
class SmoothedLoss:
    """A loss of the smoothed classifier: a value per draw, and how draws are pooled, by mean or as -log mean exp."""

    per_draw: PerDraw
    log_mean_exp: bool

    def probe(
        self, forward: Forward, x: torch.Tensor, y: torch.Tensor, draws: Draws | GivenDraws, *, batch_size: int
    ) -> Probe:
        """Value, gradient and votes for every row of `x`, each row by itself (no division by the number of rows).

        :param x: (m, *shape) in input coordinates; noise is added to it before `forward`.
        :param y: (m, ...) labels as `per_draw` takes them.
        :param batch_size: Noisy copies per forward pass, at most.
        """
        if not len(x):
            return Probe(x.new_zeros(0), torch.zeros_like(x), x.new_zeros((0, 0), dtype=torch.int64))
        parts = []
        for rows, chunks in _chunked(x, draws, batch_size):
            here = slice(rows.start, rows.stop)
            parts.append(self._probe_rows(forward, x[here].detach(), y[here], chunks))
        value, gradient, votes = map(torch.cat, zip(*parts, strict=True))
        if self.log_mean_exp:
            return Probe(math.log(draws.count) - value, -gradient, votes)
        return Probe(value / draws.count, gradient / draws.count, votes)

    def _probe_rows(
        self, forward: Forward, x: torch.Tensor, y: torch.Tensor, chunks: Iterator[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Over all draws: the sum of the losses, or the log of the sum of their exponentials; its gradient; votes."""
        total, gradient = x.new_full((len(x),), -math.inf if self.log_mean_exp else 0.0), torch.zeros_like(x)
        votes = x.new_zeros((len(x), 1), dtype=torch.int64)  # a column a class, once there are logits
        for noise in chunks:
            with torch.enable_grad():
                clean = x.clone().requires_grad_(True)
                logits, labels = _logits_and_labels(forward, clean, y, noise)
                per_draw = self.per_draw(logits, labels).view(noise.shape[:2])
                part = torch.logsumexp(per_draw, dim=1) if self.log_mean_exp else per_draw.sum(dim=1)
                (part_gradient,) = torch.autograd.grad(part.sum(), clean)
            part, named = part.detach(), logits.detach().argmax(dim=1).view(noise.shape[:2])
            votes = votes + torch.nn.functional.one_hot(named, logits.shape[1]).sum(dim=1)
            if self.log_mean_exp:
                before, total = total, torch.logaddexp(total, part)
                gradient = _scale(gradient, before - total) + _scale(part_gradient, part - total)
            else:
                total, gradient = total + part, gradient + part_gradient
        return total, gradient, votes


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


class Logits(Protocol):
    """The base classifier in input coordinates."""

    def __call__(self, x: torch.Tensor, *, model: torch.nn.Module) -> torch.Tensor:
        """Logits (rows, classes) of `model` for `x` (rows, *shape), with all that comes before it."""


class LossOfProbabilities(torch.nn.NLLLoss):
    """-log of the label's probability, for networks that return probabilities (m, classes)."""

    def forward(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """A scalar, or (m,) values, by `reduction`; `labels` int64 (m,)."""
        return super().forward(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), labels)


class SmoothedModule(torch.nn.Module):
    """x (m, *shape) -> log of the mean softmax of f over noise draws, (m, classes): g as a module, differentiable in x.

    It is in evaluation mode whatever it is told, as votes are. A gradient costs a forward pass more where there are
    more draws than one pass takes: what it needs is computed once more instead of kept.
    Its last layer, which attacks on features take, is what it returns; layers of f see noisy copies.

    :param model: f's module, whose parameters are this module's.
    :param logits: What f is around it.
    :param draws: Gives the draws of the next forward pass.
    :param batch_size: Noisy copies per forward pass, at most.
    :param probabilities: Whether to return the mean softmax itself.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        logits: Logits,
        draws: Callable[[], Draws],
        *,
        batch_size: int,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.logits, self.draws, self.batch_size = model, logits, draws, batch_size
        self.probabilities, self.output = probabilities, torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log probabilities or probabilities (m, classes), in float32: float64, as some attacks pass it, is cast."""
        x = x.to(torch.float32)
        draws = self.draws()
        most = min(self.batch_size, BLOCK, draws.count)
        group = max(1, self.batch_size // most)
        in_one = len(x) * draws.count <= self.batch_size
        made = []
        for first in range(0, max(1, len(x)), group):
            rows = range(first, min(first + group, len(x)))
            total: torch.Tensor | None = None
            for start in draws.blocks:
                for piece in range(0, min(BLOCK, draws.count - start), most):
                    of_piece = x[first : rows.stop], draws, rows, start, slice(piece, piece + most)
                    part: torch.Tensor = (
                        self._log_sum(*of_piece)
                        if in_one
                        else checkpoint(self._log_sum, *of_piece, use_reentrant=False)
                    )
                    total = part if total is None else torch.logaddexp(total, part)
            assert total is not None
            made.append(total - math.log(draws.count))
        log_probability = torch.cat(made)
        result: torch.Tensor = self.output(log_probability.exp() if self.probabilities else log_probability)
        return result

    def _log_sum(self, x: torch.Tensor, draws: Draws, rows: range, start: int, piece: slice) -> torch.Tensor:
        """Log of the sum over a piece of a block of draws of the softmax, (len(rows), classes)."""
        noise = draws.block(x.detach(), rows, start)[:, piece]
        with mode(self.base, training=False):  # here, for it runs once more when the gradient is taken
            logits = self.logits(_noisy(x, noise), model=self.base)
        return torch.logsumexp(torch.log_softmax(logits, dim=1).view(*noise.shape[:2], -1), dim=1)


def _chunked(
    x: torch.Tensor, draws: Draws | GivenDraws, batch_size: int
) -> Iterator[tuple[range, Iterator[torch.Tensor]]]:
    """Rows of `x` in groups, and the groups' noise in chunks, at most `batch_size` noisy copies at a time."""
    group = max(1, batch_size // min(draws.count, BLOCK))
    for start in range(0, len(x), group):
        rows = range(start, min(start + group, len(x)))
        yield rows, draws.chunks(x, rows, max(1, batch_size // len(rows)))


def _logits_and_labels(
    forward: Forward, clean: torch.Tensor, y: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the noisy copies (rows x draws, classes), and each copy's label."""
    return forward(_noisy(clean, noise)), y.repeat_interleave(noise.shape[1], dim=0)


def _noisy(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Noisy copies (rows x draws, *shape), in the layout of the noise, which is why it comes first."""
    return (noise + clean.unsqueeze(1)).flatten(0, 1)


def _scale(gradient: torch.Tensor, log_weight: torch.Tensor) -> torch.Tensor:
    return gradient * log_weight.exp().view(-1, *[1] * (gradient.ndim - 1))
