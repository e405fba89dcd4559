"""The Monte-Carlo loop: how often a base classifier names each class on noisy copies of an input.

Every vote is a function of (seed, purpose, example, sample index): noise comes in blocks of `BLOCK` rows, each from a
stream of its own, and forward passes of a fixed number of rows are filled from them across blocks, examples and
requests alike. Memory is one block and one batch, whatever the number of votes; counts stay on the device and are read
once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from art_rs_plugin.noise import Gaussian, Purpose, seed_generator

BLOCK = 64
"""Rows of noise in a block. Part of what a seed means: another value gives other votes."""

Forward = Callable[[torch.Tensor], torch.Tensor]


class Request(NamedTuple):
    """`votes` votes on `x[row]`, drawn from the stream of (`purpose`, `example`), from sample index `start` on."""

    row: int
    example: int
    purpose: Purpose
    votes: int
    start: int = 0


class ModelOutputError(ValueError):
    """The base classifier returned something that is no vote: logits of another shape, or not finite."""


def count_votes(
    forward: Forward,
    x: torch.Tensor,
    requests: Sequence[Request],
    *,
    noise: Gaussian,
    nb_classes: int,
    seed: int,
    batch_size: int,
) -> NDArray[np.int64]:
    """Class counts of `forward` under noise, one row per request.

    Every forward pass has `max(2, batch_size)` rows, the last one padded and its surplus votes discarded: kernels
    choose their order of summation by the number of rows, and a single row often takes a path of its own.

    :param forward: Maps (rows, *shape) in input coordinates to logits (rows, nb_classes).
    :param x: Clean inputs (m, *shape), float32, on the device that computes.
    :return: int64 of shape (len(requests), nb_classes); row i sums to `requests[i].votes`.
    :raises ModelOutputError: Logits of another shape, or not finite, and for which example.
    """
    rows = max(2, batch_size)
    batch = torch.zeros((rows, *x.shape[1:]), dtype=x.dtype, device=x.device)
    # one request more than asked takes the padding; one class more than there are takes logits that are not finite
    nobody, not_a_class = len(requests), nb_classes
    owner = torch.full((rows,), nobody, dtype=torch.int64, device=x.device)
    counts = torch.zeros((len(requests) + 1, nb_classes + 1), dtype=torch.int64, device=x.device)
    one = torch.ones_like(owner)

    def vote() -> None:
        logits = forward(batch)
        if logits.shape != (rows, nb_classes):
            raise ModelOutputError(
                f"the model must return logits of shape {(rows, nb_classes)} for {rows} inputs, "
                f"got {tuple(logits.shape)}"
            )
        named = torch.where(torch.isfinite(logits).all(dim=1), logits.argmax(dim=1), not_a_class)
        counts.view(-1).scatter_add_(0, owner * (nb_classes + 1) + named, one)

    with torch.inference_mode():
        filled = 0
        for position, noisy in _noisy_blocks(x, requests, noise=noise, seed=seed):
            while len(noisy):
                part, noisy = noisy[: rows - filled], noisy[rows - filled :]
                batch[filled : filled + len(part)] = part
                owner[filled : filled + len(part)] = position
                filled += len(part)
                if filled == rows:
                    vote()
                    filled = 0
        if filled:
            owner[filled:] = nobody
            vote()
        result: NDArray[np.int64] = counts[:-1].cpu().numpy()

    spoilt = np.flatnonzero(result[:, not_a_class])
    if len(spoilt):
        request = requests[spoilt[0]]
        raise ModelOutputError(
            f"the model must return finite logits, got NaN or infinity in {result[spoilt[0], not_a_class]} of "
            f"{request.votes} noisy copies of the example with index {request.example}"
        )
    return np.ascontiguousarray(result[:, :nb_classes])


def automatic_batch_size(x: torch.Tensor) -> int:
    """Rows of a forward pass where the caller names none, from the size of one input and the kind of device.

    On a CPU 128 rows of 3x32x32 and fewer of larger inputs: beyond that, page faults cost more than rows save.
    """
    size = max(1, x.shape[1:].numel())
    if x.device.type == "cpu":
        return int(min(128, max(32, 2**19 // size)))
    return int(min(2048, max(64, 2**23 // size)))


@contextmanager
def mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put `model` into training or evaluation mode, and every one of its modules back as it was afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def _noisy_blocks(
    x: torch.Tensor, requests: Sequence[Request], *, noise: Gaussian, seed: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(position in `requests`, up to `BLOCK` noisy copies of its input), block after block; the buffer is reused."""
    generator = torch.Generator(x.device)
    block = torch.empty((BLOCK, *x.shape[1:]), dtype=x.dtype, device=x.device)
    for position, (row, example, purpose, votes, start) in enumerate(requests):
        for number in range(start // BLOCK, -(-(start + votes) // BLOCK)):
            noise.fill_(block, seed_generator(generator, seed, purpose, example, number))
            block += x[row]
            yield position, block[max(0, start - number * BLOCK) : start + votes - number * BLOCK]
