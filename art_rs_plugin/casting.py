"""How the estimator casts votes: by workers on the CPU or one stream on a GPU, in f's precision, compiled or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from art_rs_plugin.arithmetic import replicas
from art_rs_plugin.core import checks
from art_rs_plugin.noise import Distribution, fresh_seed
from art_rs_plugin.preprocessing import preprocessed, side_by_side
from art_rs_plugin.votes import Forward, Request, automatic_batch_size, count_votes, example_batch, mode

if TYPE_CHECKING:
    from art_rs_plugin.classifier import TorchClassifier as _Base
else:
    _Base = object


Count = Callable[[torch.Tensor, Sequence[Request], int, int | None], NDArray[np.int64]]
"""(x, requests, seed, batch size) -> class counts of each request."""


class Casting(_Base):
    """Votes of f under noise; a plain class, for the reason that `Voting` gives."""

    noise: Distribution
    n: int
    seed: int | None
    _most_rows: int | None = None  # what memory has been found to hold
    _counted: Count | None = None

    @property
    def arithmetic(self) -> str:
        """How f is computed for votes, such as "fp32" or "bf16, compiled": part of what f is, as a ledger names it.

        Compiles f if it is to be. ValueError while `input_shape` is not known.
        """
        self._inputs(torch.zeros(1, *self.input_shape))
        self._prepare()
        words = [self.precision]
        if torch.get_float32_matmul_precision() != "highest":
            words.append(f"matmul {torch.get_float32_matmul_precision()}")
        if self._arithmetic.tf32:
            words.append("conv tf32")
        if self._arithmetic.program is not None:
            words.append("compiled")
        return ", ".join(words)

    def _prepare(self) -> None:
        """Compile f if it is to be and is not yet: at the start of every call that casts votes."""

        def example() -> torch.Tensor:
            x = torch.full((1, *self.input_shape), 0.5, device=self.device)
            batch = example_batch(x, self.noise, self._rows(None, x))
            with torch.inference_mode():  # as workers do: a batch made elsewhere would be compiled for by itself
                return preprocessed(self, batch, False)

        with mode(self.model, training=False), self._arithmetic.as_is():
            self._arithmetic.prepare(self.model, example, self.n)

    def _count(
        self, x: torch.Tensor, requests: Sequence[Request], seed: int, batch_size: int | None
    ) -> NDArray[np.int64]:
        """Class counts of each request, int64 (len(requests), nb_classes), cast here or by whom `counted_by` names."""
        if not requests:
            return np.zeros((0, self.nb_classes), dtype=np.int64)
        if self._counted is not None:
            return self._counted(x, requests, seed, batch_size)
        return self.count_here(x, requests, seed, batch_size)

    @contextmanager
    def counted_by(self, count: Count) -> Iterator[None]:
        """Within, `count` says how often f names each class, in the place of `count_here` and as it would."""
        self._counted = count
        try:
            yield
        finally:
            del self._counted

    def count_here(
        self, x: torch.Tensor, requests: Sequence[Request], seed: int, batch_size: int | None
    ) -> NDArray[np.int64]:
        """Class counts of each request, int64 (len(requests), nb_classes), by this process."""
        again = True  # once, if somebody has reset torch's compiler
        while True:
            with mode(self.model, training=False), self._arithmetic.as_is():
                program = self._arithmetic.program
                # a compiled f has rows of its own: another number would be another f, and a minute's work
                rows = self._rows(batch_size if program is None else None, x)
                try:
                    return count_votes(
                        self._forwards,
                        x.to(self.device),
                        requests,
                        noise=self.noise,
                        nb_classes=self.nb_classes,
                        seed=seed,
                        batch_size=rows,
                    )
                except torch.OutOfMemoryError:
                    if rows <= 2:  # no forward pass has fewer
                        raise
                    too_many = True
                except Exception:
                    if program is None or not program.stale or not again:
                        raise
                    again = too_many = False
            if too_many:  # out here, where no traceback holds what memory is to be freed
                self._take_fewer(rows // 2)
            self._prepare()

    def _take_fewer(self, rows: int) -> None:
        """After a forward pass that was too large for the device: no more rows than these from now on.

        The votes are the same ones, as far as f's logits do not depend on the number of rows.
        """
        warnings.warn(
            f"{self.device} ran out of memory: forward passes take at most {rows} noisy copies from here on",
            stacklevel=3,
        )
        self._most_rows = rows
        self._arithmetic.program = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forwards(self, count: int) -> list[Forward]:
        """`count` functions from inputs to logits that may run side by side, see `votes.Forwards`."""
        program, count = self._arithmetic.program, count if side_by_side(self) else 1
        if program is not None:
            return [lambda x: program(preprocessed(self, x, False))] * count
        return [partial(self._logits, model=model) for model in replicas(self.model, count)]

    def _rows(self, batch_size: int | None, x: torch.Tensor) -> int:
        """Noisy copies per forward pass."""
        if batch_size is None:
            rows = automatic_batch_size(x.shape[1:], self.device)
        else:
            rows = checks.whole("batch_size", batch_size)
        return rows if self._most_rows is None else min(rows, self._most_rows)

    def _call_seed(self) -> int:
        """The estimator's seed, or a fresh one for this call."""
        return fresh_seed() if self.seed is None else self.seed
