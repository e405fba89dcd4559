"""The last examples' votes, cast by all ranks: whoever has no example left helps those who have one.

A vote is a function of (seed, purpose, example, sample index), so that an example's votes can be cast in any number of
places and their counts added up: who helps changes nothing. Ranks ask and answer through the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.noise import Purpose
from art_rs_plugin.ranks import Ranks
from art_rs_plugin.votes import BLOCK, ModelOutputError, NotFiniteError, Request

AT_ONCE = 8192
"""Votes that a rank casts before it looks again for others who are idle."""
LEAST = 512
"""Votes that are worth asking for."""
_NAP = 0.02  # seconds between two looks for a question or an answer, at most
_GOLDEN = 0.6180339887  # its multiples are spread evenly over [0, 1)


class Helping:
    """Votes of one run on the images of a data set, shared by its ranks.

    :param seed: Of the run. :param batch_size: Noisy copies per forward pass.
    """

    def __init__(
        self, ranks: Ranks, estimator: RandomizedSmoothingPyTorch, data: DataSet, seed: int, batch_size: int | None
    ) -> None:
        self._ranks, self._estimator, self._data = ranks, estimator, data
        self._seed, self._batch_size = seed, batch_size
        self._looked = ranks.rank

    def count(
        self, x: torch.Tensor, requests: Sequence[Request], seed: int, batch_size: int | None
    ) -> NDArray[np.int64]:
        """Class counts of each request on `x`, images of the data set, with the help of whoever is idle.

        :raises ModelOutputError: As if all were cast here.
        """
        assert (seed, batch_size) == (self._seed, self._batch_size), "helpers cast the votes of this run"
        counts: NDArray[np.int64] | None = None
        left = list(enumerate(requests))
        while left:
            votes = min(AT_ONCE, sum(request.votes for _, request in left))
            helpers = self._helpers() if votes >= 2 * LEAST else 0
            shares = []
            asked, left = _cut(left, AT_ONCE * (helpers + 1))
            share = max(LEAST, -(-sum(request.votes for _, request in asked) // (helpers + 1)))
            while asked:
                some, asked = _cut(asked, share)
                shares.append(some)
            turns = [self._ask(share) for share in shares[1:]]
            answers = [self._cast(x, [request for _, request in shares[0]]), *map(self._answer, turns)]
            for share_, answer in zip(shares, answers, strict=True):
                if counts is None:
                    counts = np.zeros((len(requests), answer.shape[1]), dtype=np.int64)
                np.add.at(counts, [at for at, _ in share_], answer)
        assert counts is not None, "somebody asks for votes"
        return counts

    def help(self, meanwhile: Callable[[], object]) -> None:
        """Cast votes for others until nobody has an example left."""
        if self._ranks.count("idle", 1) == self._ranks.size:
            for _ in range(self._ranks.size):  # each waits for one question more
                self._ranks.put(f"question/{self._ranks.count('asked', 1)}", None)
        while True:
            turn = self._ranks.count("taken", 1)
            question = self._ranks.take(f"question/{turn}", meanwhile, nap=_NAP)
            if question is None:
                return
            names = list(dict.fromkeys(example for example, *_ in question))
            requests = [
                Request(names.index(example), example, Purpose(purpose), votes, start)
                for example, purpose, votes, start in question
            ]
            x = self._estimator._inputs(self._data.arrays(names)[0])
            try:
                answer = {"counts": self._cast(x, requests).tolist()}
            except NotFiniteError as error:
                answer = {"spoilt": error.examples}
            except ModelOutputError as error:
                answer = {"error": str(error)}
            self._ranks.put(f"answer/{turn}", answer)

    def _helpers(self) -> int:
        """How many of those who are idle this rank may ask, if all who are not ask as many; odd ones now and then."""
        idle = self._ranks.count("idle")
        self._looked += 1
        return int(idle / max(1, self._ranks.size - idle) + self._looked * _GOLDEN % 1.0)

    def _ask(self, share: Sequence[tuple[int, Request]]) -> int:
        turn = self._ranks.count("asked", 1)
        question = [(request.example, request.purpose.value, request.votes, request.start) for _, request in share]
        self._ranks.put(f"question/{turn}", question)
        return turn

    def _answer(self, turn: int) -> NDArray[np.int64]:
        answer = self._ranks.take(f"answer/{turn}", nap=_NAP)
        if "spoilt" in answer:
            raise NotFiniteError([tuple(example) for example in answer["spoilt"]])
        if "error" in answer:
            raise ModelOutputError(answer["error"])
        return np.array(answer["counts"], dtype=np.int64)

    def _cast(self, x: torch.Tensor, requests: Sequence[Request]) -> NDArray[np.int64]:
        return self._estimator.count_here(x, requests, self._seed, self._batch_size)


Part = tuple[int, Request]
"""A request, or a part of it, with the position of the whole."""


def _cut(parts: list[Part], votes: int) -> tuple[list[Part], list[Part]]:
    """The first `votes` votes, to the end of a block of noise where a request is cut, and the rest."""
    first: list[Part] = []
    rest = list(parts)
    while rest and votes > 0:
        at, request = rest.pop(0)
        some = min(request.votes, -(-votes // BLOCK) * BLOCK)
        first.append((at, request._replace(votes=some)))
        if some < request.votes:
            rest.insert(0, (at, request._replace(votes=request.votes - some, start=request.start + some)))
        votes -= some
    return first, rest
