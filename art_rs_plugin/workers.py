"""Side by side on a CPU: work dealt out to threads, each with its share of torch's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

F = TypeVar("F")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Work(Generic[Piece]):
    """Pieces dealt out to workers, each piece once, `at_once` in a row to the same one."""

    def __init__(self, pieces: Iterator[Piece], at_once: int = 1) -> None:
        self._pieces, self._at_once = pieces, at_once
        self._lock = threading.Lock()
        self.stopped = False

    def __iter__(self) -> Iterator[Piece]:
        while not self.stopped:
            with self._lock:
                some = list(islice(self._pieces, self._at_once))
            if not some:
                return
            yield from some


def side_by_side(functions: Sequence[F], run: Callable[[F], Result], work: Work[Any], threads: int) -> list[Result]:
    """What `run`, which takes pieces of `work`, makes of each function in a thread of its own.

    One alone gets a thread too: what is freed in a thread's arena stays mapped, while in the main one every activation
    is mapped anew, and page faults take up to a third of the time. For the same reason a block just below 32 MiB is
    taken and freed first: it moves glibc's thresholds, above which it maps and trims, to the most that they can be.

    :param threads: Of torch, to be shared by the workers; as many as before go on afterwards.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)

    def begin(function: F) -> Result:
        torch.set_num_threads(max(1, threads // len(functions)))
        try:
            return run(function)
        finally:
            torch.set_num_threads(threads)  # also what threads that start later begin with

    with ThreadPoolExecutor(len(functions), thread_name_prefix="art-rs") as pool:
        try:
            futures = [pool.submit(begin, function) for function in functions]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            work.stopped = True  # an error, or Ctrl-C: the others stop after their piece
    return [future.result() for future in futures]
