"""The voting half of the estimator: votes, predictions and certificates of the smoothed classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from art_rs_plugin.asking import attack_asks, refuse_attacks
from art_rs_plugin.casting import Casting
from art_rs_plugin.core import checks
from art_rs_plugin.core.budgets import Budget, Fixed, Steps, Task
from art_rs_plugin.core.certificate import check_prediction_votes, predict_from_counts
from art_rs_plugin.core.records import ABSTAIN, VoteCertificate, check_votes
from art_rs_plugin.inputs import checked_indices
from art_rs_plugin.noise import Purpose, uniform
from art_rs_plugin.votes import NotFiniteError, Request

# Votes counted in one go: examples share forward passes where n is small, and each is a unit of work where n is large.
_VOTES_AT_ONCE = 8192
# Inputs side by side where a budget decides their votes one by one.
_INPUTS_AT_ONCE = 32


class CertificationError(RuntimeError):
    """Certification did not come to its end; `certificates` holds those that were made, `__cause__` says why.

    Where f's logits for an example are not finite, which `__cause__` names, all others have theirs.
    """

    def __init__(self, message: str, certificates: list[VoteCertificate]) -> None:
        super().__init__(message, certificates)  # both, so that it can be pickled
        self.certificates = certificates

    def __str__(self) -> str:
        return str(self.args[0])


class Voting(Casting):
    """Votes, predictions and certificates of g.

    A plain class to be mixed in before ART's: the metaclass of ART's classifiers wraps any `predict` it meets with a
    conversion to arrays, which fails on tensors of a GPU or of a graph.
    """

    n0: int
    alpha: float

    def certify(
        self,
        x: Any,
        n: int | None = None,
        batch_size: int | None = None,
        *,
        budget: Budget | None = None,
        y: Any = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Predict with the smoothed classifier g and certify it (Cohen et al. 2019, CERTIFY and Theorem 1).

        For each input by itself, with probability at least 1 - alpha over the noise: g(x + delta) = prediction for
        every delta of l2 norm below radius.

        :param x: Inputs (m, *input_shape), floating point, array or tensor.
        :param n: Votes for the bound; the estimator's `n` if None.
        :param batch_size: Noisy copies per forward pass; chosen automatically if None, or if f is compiled.
        :param budget: How many votes to draw and when to stop, such as `Looks(radii=(0.25, 0.5))` or `Pilot()`; None is
            the paper's, `Fixed(n0=n0, n=n)`.
        :param y: Labels, (m,) indices or (m, nb_classes) one-hot, known before any vote: that class is certified or
            none, and no votes are drawn to select one. For benchmarks, where only the right class counts.
        :return: Predictions, int64 (m,), and radii, float64 (m,), in the unit of `x`; (-1, 0.0) is an abstention.
        :raises CertificationError: The model failed on the way; carries the certificates made before, or all others if
            its logits for some inputs are not finite.
        :raises ValueError, TypeError: Unfit `x` or `y`, or an `n` that can never certify at this alpha.
        """
        certificates = self.certificates(x, n=n, batch_size=batch_size, budget=budget, y=y)
        return (
            np.array([certificate.prediction for certificate in certificates], dtype=np.int64),
            np.array([certificate.radius for certificate in certificates], dtype=np.float64),
        )

    def certificates(
        self,
        x: Any,
        n: int | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        *,
        budget: Budget | None = None,
        y: Any = None,
    ) -> list[VoteCertificate]:
        """Certify as `certify` does, and return all there is to know of each certificate.

        :param indices: (m,) different whole numbers that name the inputs' noise streams; their positions if None.
            A certificate depends on the seed and on its input and index alone.
        :param budget: As in `certify`, and so is `y`.
        """
        done: list[VoteCertificate] = []
        try:
            for certificate in self.iter_certificates(x, n, indices, batch_size, budget=budget, y=y):
                done.append(certificate)
        except Exception as error:
            if not done:
                raise
            came = "made all others," if isinstance(error, NotFiniteError) else "stopped after"
            message = f"{came} {len(done)} certificates, which `certificates` of this error holds: {error}"
            raise CertificationError(message, done) from error
        return done

    def iter_certificates(
        self,
        x: Any,
        n: int | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        *,
        budget: Budget | None = None,
        y: Any = None,
    ) -> Iterator[VoteCertificate]:
        """Yield what `certificates` returns as it is made and in its order, so that a caller can keep it at once.

        An input for which f's logits are not finite is left out, and named by the `NotFiniteError` at the end.
        """
        x = self._voted_on(x)
        if budget is None:
            budget = Fixed(n0=self.n0, n=self.n if n is None else n)
            check_votes(budget.n0, budget.n, self.alpha)
        elif n is not None:
            raise ValueError(f"`n` must not be given with a `budget`, which has a number of its own, got {n}")
        rows = self._rows(batch_size, x)
        at_once = max(_INPUTS_AT_ONCE, rows // 8)
        if isinstance(budget, Fixed):
            at_once = max(1, max(_VOTES_AT_ONCE, 8 * rows) // (budget.n0 + budget.n))
        names = checked_indices(indices, len(x)).tolist()
        labels = [None] * len(x) if y is None else self._hard_labels(y, len(x), "certify").tolist()
        seed = self._call_seed()
        asked = [
            Task(
                radius=self.noise.radius,
                alpha=self.alpha,
                index=name,
                seed=seed,
                norm=self.noise.norm,
                label=label,
                uniform=uniform(seed, Purpose.BOUND, name),
            )
            for name, label in zip(names, labels, strict=True)
        ]
        if asked:
            self._prepare()
        yield from self._side_by_side(x, asked, budget, at_once, seed, batch_size)

    def _side_by_side(
        self, x: torch.Tensor, tasks: list[Task], budget: Budget, at_once: int, seed: int, batch_size: int | None
    ) -> Iterator[VoteCertificate]:
        """Run the budget at so many inputs at once, their next votes cast in packed passes; others follow those done.

        Certificates come in order, and those that wait for an earlier one would be lost with the process: the first
        input may not lag far behind the last. An input that fails costs no earlier one its certificate: its error is
        raised when its turn comes; or after the last one, if it is that f's logits for it are not finite, which says
        nothing of others.
        """
        spoilt: list[tuple[int, int, int]] = []
        steps: dict[int, Steps] = {}
        wanted: dict[int, tuple[str, int]] = {}
        done: dict[int, VoteCertificate | Exception] = {}
        cast: Counter[tuple[int, str]] = Counter()  # votes so far: a later request goes on where the first stopped
        first = entered = 0
        while first < len(x):
            while entered < min(len(x), first + 2 * at_once) and len(wanted) < at_once:
                steps[entered] = budget.steps(tasks[entered])
                wanted[entered] = next(steps[entered])
                entered += 1
            rows = list(wanted)
            requests = [
                Request(at, tasks[row].index, Purpose(purpose), votes, cast[row, purpose])
                for at, (row, (purpose, votes)) in enumerate(wanted.items())
            ]
            outcomes = self._counts_or_errors(x[rows], requests, seed, batch_size)
            for row, request, outcome in zip(rows, requests, outcomes, strict=True):
                cast[row, request.purpose.value] += request.votes
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    wanted[row] = steps[row].send(outcome)
                except StopIteration as stop:
                    done[row] = stop.value
                except Exception as error:
                    done[row] = error
                if row in done:
                    del wanted[row], steps[row]
            while first in done:
                made = done.pop(first)
                first += 1
                if isinstance(made, NotFiniteError):
                    spoilt += made.examples
                elif isinstance(made, Exception):
                    raise made
                else:
                    yield made
        if spoilt:
            raise NotFiniteError(spoilt)

    def _counts_or_errors(
        self, x: torch.Tensor, requests: list[Request], seed: int, batch_size: int | None
    ) -> list[NDArray[np.int64] | Exception]:
        """Class counts of each request, or why there are none: one by one if they fail together, to lose none."""
        try:
            return list(self._count(x, requests, seed, batch_size))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self._counts_or_errors(x, [request], seed, batch_size)[0] for request in requests]

    def votes(
        self,
        x: Any,
        n: int,
        *,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        purpose: Purpose = Purpose.PREDICTION,
    ) -> NDArray[np.int64]:
        """How often f names each class on `n` noisy copies of each input: the votes that `predict` decides by.

        :param purpose: Whose noise: votes of different purposes share none, whatever seed and indices.
        :return: int64 (m, nb_classes); each row sums to `n`.
        """
        x, n = self._voted_on(x), checks.whole("n", n)
        names = checked_indices(indices, len(x)).tolist()
        requests = [Request(row, name, purpose, n) for row, name in enumerate(names)]
        if requests:
            self._prepare()
        return self._count(x, requests, self._call_seed(), batch_size)

    def _voted_on(self, x: Any) -> torch.Tensor:
        """`x` as inputs that the noise can be added to."""
        inputs = self._inputs(x)
        self.noise.check(inputs)
        return inputs

    def predict(
        self,
        x: Any,
        batch_size: int | None = 128,
        n: int = 1_000,
        is_abstain: bool = True,
        *,
        indices: ArrayLike | None = None,
        training_mode: bool = False,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Predict with the smoothed classifier (Cohen et al. 2019, PREDICT), as ART's one-hot rows.

        With probability at least 1 - alpha, for each input by itself, the row names g's class or is an abstention.

        :param batch_size: Noisy copies per forward pass; chosen automatically if None, or for an attack of ART.
        :param n: Votes per input.
        :param is_abstain: False returns the most voted class instead of abstaining, without the guarantee.
        :param training_mode: False, or ValueError: votes are cast in evaluation mode.
        :param kwargs: Ignored, as by ART's own classifiers: some attacks pass what only others understand.
        :return: float32 (m, nb_classes); an abstention is a zero row, which `argmax` must never see.
        :raises TypeError: An attack of ART asks while it is built: to see whether it gets logits, which it does not.
        """
        refuse_attacks("tries predict for logits while it is built, and predict names classes", building=True)
        if training_mode:
            raise ValueError("`training_mode` must be False, got True: votes are cast in evaluation mode")
        if attack_asks():
            batch_size = None  # an attack counts inputs by it, often one
        if is_abstain:
            check_prediction_votes(n, self.alpha)
        counts = self.votes(x, n, indices=indices, batch_size=batch_size)
        if is_abstain:
            classes = [predict_from_counts(row, self.alpha) for row in counts]
        else:
            classes = list(counts.argmax(axis=1))
        one_hot = np.zeros(counts.shape, dtype=np.float32)
        for row, prediction in zip(one_hot, classes, strict=True):
            if prediction != ABSTAIN:
                row[prediction] = 1.0
        result: NDArray[np.float32] = self._apply_postprocessing(preds=one_hot, fit=False)
        result[one_hot.sum(axis=1) == 0.0] = 0.0  # a postprocessor must not make a class of an abstention
        return result
