"""The Monte-Carlo loop: how often a base classifier names each class on noisy copies of an input.

Every vote is a function of (seed, purpose, example, sample index): noise comes in blocks of `BLOCK` rows, each from a
stream of its own, and forward passes of a fixed number of rows are filled from them across blocks, examples and
requests alike, by as many workers as the CPU lends threads: who casts a vote does not change it. Memory is one block
and one batch a worker, whatever the number of votes; counts stay on the device and are read once per call.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from art_rs_plugin.noise import Distribution, Purpose, seed_generator

_MOST_NAMED = 8

BLOCK = 64
"""Rows of noise in a block. Part of what a seed means, as is their layout (see `_flat`): others give other votes."""

Forward = Callable[[torch.Tensor], torch.Tensor]

Forwards = Callable[[int], Sequence[Forward]]
"""Asked for so many, gives as many functions that may run side by side, or fewer; each maps (rows, *shape) in input
coordinates to logits (rows, nb_classes)."""


class Request(NamedTuple):
    """`votes` votes on `x[row]`, drawn from the stream of (`purpose`, `example`), from sample index `start` on."""

    row: int
    example: int
    purpose: Purpose
    votes: int
    start: int = 0


class ModelOutputError(ValueError):
    """The base classifier returned something that is no vote: logits of another shape, or not finite."""


class NotFiniteError(ModelOutputError):
    """The base classifier returned NaN or infinity for noisy copies of some examples, and so has no votes for them.

    :ivar examples: (index, copies with such logits, votes asked for) of each of them.
    """

    def __init__(self, examples: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(examples)  # what it takes, so that it can be pickled
        self.examples = tuple(examples)

    def __str__(self) -> str:
        (index, spoilt, votes), *rest = self.examples
        others = ", ".join(str(example[0]) for example in rest[:_MOST_NAMED])
        more = f", and of others with {others}{', ...' if len(rest) > _MOST_NAMED else ''}" if rest else ""
        return (
            f"the model must return finite logits, got NaN or infinity in {spoilt} of {votes} noisy copies of the "
            f"example with index {index}{more}"
        )


def count_votes(
    forwards: Forwards,
    x: torch.Tensor,
    requests: Sequence[Request],
    *,
    noise: Distribution,
    nb_classes: int,
    seed: int,
    batch_size: int,
) -> NDArray[np.int64]:
    """Class counts of a classifier under noise, one row per request.

    Every forward pass has `max(2, batch_size)` rows, the last one padded and its surplus votes discarded: kernels
    choose their order of summation by the number of rows, and a single row often takes a path of its own.

    :param x: Clean inputs (m, *shape), float32, on the device that computes.
    :return: int64 of shape (len(requests), nb_classes); row i sums to `requests[i].votes`.
    :raises ModelOutputError: Logits of another shape; `NotFiniteError` if they are not finite, and for which examples.
    """
    rows, flat = max(2, batch_size), _flat(x)
    on_cpu = x.device.type == "cpu"
    passes = -(-sum(request.votes for request in requests) // rows)
    work = _Work(_passes(requests, rows), at_once=-(-BLOCK // rows))
    threads = torch.get_num_threads() if on_cpu else 1
    functions = forwards(max(1, min(threads, passes)))

    def cast(forward: Forward) -> torch.Tensor:
        worker = _Worker(forward, flat, requests, rows, noise=noise, nb_classes=nb_classes, seed=seed)
        with torch.inference_mode():
            for pieces in work:
                worker.vote(pieces)
        return worker.counts

    counts = _side_by_side(cast, functions, threads, work) if on_cpu else cast(functions[0])
    result: NDArray[np.int64] = counts[:-1].cpu().numpy()
    spoilt = np.flatnonzero(result[:, nb_classes])
    if len(spoilt):
        examples = [(requests[i].example, int(result[i, nb_classes]), requests[i].votes) for i in spoilt.tolist()]
        raise NotFiniteError(examples)
    return np.ascontiguousarray(result[:, :nb_classes])


def automatic_batch_size(shape: Sequence[int], device: torch.device) -> int:
    """Rows of a forward pass where the caller names none, from the shape of one input and the kind of device.

    On a CPU one block of 3x32x32 and fewer of larger inputs: beyond that, page faults cost more than rows save.
    """
    size = max(1, math.prod(shape))
    if device.type == "cpu":
        return int(min(BLOCK, max(32, 2**18 // size)))
    return int(min(2048, max(64, 2**23 // size)))


def example_batch(x: torch.Tensor, noise: Distribution, rows: int) -> torch.Tensor:
    """What a forward function is given that takes so many rows: noisy copies, here of `x[0]`."""
    flat = _flat(x[:1])
    batch = flat.new_empty((rows, *flat.shape[1:]))
    generator = seed_generator(noise.generator(x.device), 0, Purpose.INITIALISATION)
    return _image(noise.noisy_(batch, flat[0], generator))


@contextmanager
def mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put `model` into training or evaluation mode, and every one of its modules back as it was afterwards."""
    before = [(module, module.training) for module in model.modules()]
    if any(was_training != training for _, was_training in before):
        model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            if module.training != was_training:  # a module takes long to set
                module.training = was_training


class _Piece(NamedTuple):
    """Rows `first` to `last` of the noise block `block` of `requests[position]`."""

    position: int
    block: int
    first: int
    last: int


def _passes(requests: Sequence[Request], rows: int) -> Iterator[list[_Piece]]:
    """What fills each forward pass, in order: `rows` rows, fewer in the last."""
    pieces, free = list[_Piece](), rows
    for position, request in enumerate(requests):
        done, end = request.start, request.start + request.votes
        while done < end:
            block, first = divmod(done, BLOCK)
            last = min(BLOCK, first + free, first + end - done)
            pieces.append(_Piece(position, block, first, last))
            done, free = done + last - first, free - (last - first)
            if not free:
                yield pieces
                pieces, free = [], rows
    if pieces:
        yield pieces


class _Work:
    """Forward passes dealt out to workers, each pass once; `at_once` in a row, so that a block is drawn by one."""

    def __init__(self, passes: Iterator[list[_Piece]], at_once: int) -> None:
        self._passes, self._at_once = passes, at_once
        self._lock = threading.Lock()
        self.stopped = False

    def __iter__(self) -> Iterator[list[_Piece]]:
        while not self.stopped:
            with self._lock:
                some = list(islice(self._passes, self._at_once))
            if not some:
                return
            yield from some


class _Worker:
    """Casts votes by one forward function, into counts of its own."""

    def __init__(
        self,
        forward: Forward,
        flat: torch.Tensor,
        requests: Sequence[Request],
        rows: int,
        *,
        noise: Distribution,
        nb_classes: int,
        seed: int,
    ) -> None:
        self._forward, self._flat, self._requests = forward, flat, requests
        self._noise, self._nb_classes, self._seed = noise, nb_classes, seed
        self._generator = noise.generator(flat.device)
        self._batch = flat.new_zeros((rows, *flat.shape[1:]))
        self._block = flat.new_empty((BLOCK, *flat.shape[1:]))
        self._drawn: tuple[int, int] | None = None  # position and number of the block in `_block`
        # one request more than asked takes the padding; one class more than there are takes logits that are not finite
        self._owner = torch.full((rows,), len(requests), dtype=torch.int64, device=flat.device)
        self._one = torch.ones_like(self._owner)
        self.counts = torch.zeros((len(requests) + 1, nb_classes + 1), dtype=torch.int64, device=flat.device)

    def vote(self, pieces: list[_Piece]) -> None:
        """One forward pass over these pieces, each named class counted for its request."""
        filled = 0
        for piece in pieces:
            end = filled + piece.last - piece.first
            self._fill(self._batch[filled:end], piece)
            self._owner[filled:end] = piece.position
            filled = end
        self._owner[filled:] = len(self._requests)
        logits = self._forward(_image(self._batch))
        wanted = (len(self._batch), self._nb_classes)
        if logits.shape != wanted:
            raise ModelOutputError(
                f"the model must return logits of shape {wanted} for {wanted[0]} inputs, got {tuple(logits.shape)}"
            )
        named = torch.where(torch.isfinite(logits).all(dim=1), logits.argmax(dim=1), self._nb_classes)
        self.counts.view(-1).scatter_add_(0, self._owner * (self._nb_classes + 1) + named, self._one)

    def _fill(self, out: torch.Tensor, piece: _Piece) -> None:
        """Noisy copies into `out`: the block is drawn right there if all of it is wanted."""
        request = self._requests[piece.position]
        whole = len(out) == BLOCK
        if whole or self._drawn != (piece.position, piece.block):
            block = out if whole else self._block
            stream = request.purpose, request.example, piece.block
            generator = seed_generator(self._generator, self._seed, *stream)
            self._noise.noisy_(block, self._flat[request.row], generator)
            if whole:
                return
            self._drawn = piece.position, piece.block
        out.copy_(self._block[piece.first : piece.last])


def _side_by_side(
    cast: Callable[[Forward], torch.Tensor], functions: Sequence[Forward], threads: int, work: _Work
) -> torch.Tensor:
    """The sum of what each forward function counts in a thread of its own.

    One alone gets a thread too: what is freed in a thread's arena stays mapped, while in the main one every activation
    is mapped anew, and page faults take up to a third of the time. For the same reason a block just below 32 MiB is
    taken and freed first: it moves glibc's thresholds, above which it maps and trims, to the most that they can be.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)

    def run(forward: Forward) -> torch.Tensor:
        torch.get_num_threads()  # a thread's first question sets its number to the latest that any thread has set
        torch.set_num_threads(max(1, threads // len(functions)))
        try:
            return cast(forward)
        finally:
            torch.set_num_threads(threads)  # also what threads that start later begin with

    with ThreadPoolExecutor(len(functions), thread_name_prefix="art-rs-votes") as pool:
        try:
            futures = [pool.submit(run, function) for function in functions]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            work.stopped = True  # an error, or Ctrl-C: the others stop after their forward pass
    return torch.stack([future.result() for future in futures]).sum(dim=0)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Inputs in the layout of their noise: contiguous, images (m, channels, height, width) with channels last.

    Convolutions are fastest so, and the generator is fast in contiguous memory alone.
    """
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x.contiguous()


def _image(flat: torch.Tensor) -> torch.Tensor:
    """A view of what `_flat` made, with the channels where models expect them."""
    return flat.permute(0, 3, 1, 2) if flat.ndim == 4 else flat
