"""How an attack is judged: by PREDICT on votes that no attack has seen, with three outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import proportion_confint

from art_rs_plugin.ascent import NORMS
from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import check_prediction_votes, predict_from_counts
from art_rs_plugin.core.records import ABSTAIN
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.noise import Purpose

OUTCOMES = ("right", "wrong", "abstain")


class Share(NamedTuple):
    """A share of the inputs, and its Clopper-Pearson confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(which: NDArray[np.bool_], confidence: float) -> Share:
    """The share of inputs of which something is true, bool (m,); without any, it is unknown."""
    if not len(which):
        return Share(float("nan"), 0.0, 1.0)
    low, high = proportion_confint(int(which.sum()), len(which), alpha=1 - confidence, method="beta")
    return Share(float(which.mean()), float(low), float(high))


@dataclass(frozen=True)
class AttackEvaluation:
    """What PREDICT says of m inputs before and after an attack.

    :param labels: int64 (m,), the true classes.
    :param clean: int64 (m,), predictions at the inputs; -1 is an abstention.
    :param attacked: int64 (m,), predictions at what the attack made of them.
    :param counts: int64 (m, nb_classes), the votes after the attack.
    :param l2: float64 (m,), norms of the perturbations, and `linf` their largest coordinates.
    :param n: Votes of each prediction.
    :param alpha: Probability that a prediction is not g's, at most.
    :param confidence: Of the intervals, which speak of inputs like these.
    """

    labels: NDArray[np.int64]
    clean: NDArray[np.int64]
    attacked: NDArray[np.int64]
    counts: NDArray[np.int64]
    l2: NDArray[np.float64]
    linf: NDArray[np.float64]
    n: int
    alpha: float
    confidence: float

    @property
    def right(self) -> Share:
        """Share of the inputs that are still predicted right: the empirical accuracy under attack."""
        return self._share(self.attacked == self.labels)

    @property
    def wrong(self) -> Share:
        """Share of the inputs that are predicted wrong after the attack."""
        return self._share((self.attacked != self.labels) & (self.attacked != ABSTAIN))

    @property
    def abstain(self) -> Share:
        """Share of the inputs for which PREDICT abstains after the attack."""
        return self._share(self.attacked == ABSTAIN)

    @property
    def clean_right(self) -> Share:
        """Share of the inputs that were predicted right before."""
        return self._share(self.clean == self.labels)

    @property
    def success(self) -> Share:
        """Share that is predicted wrong now, of the inputs that were predicted right before."""
        was = self.clean == self.labels
        return self._share(((self.attacked != self.labels) & (self.attacked != ABSTAIN))[was])

    def _share(self, which: NDArray[np.bool_]) -> Share:
        return share(which, self.confidence)

    def __str__(self) -> str:
        """A table in Markdown."""
        rows = [("right before the attack", self.clean_right)]
        rows += [(f"{name} after it", getattr(self, name)) for name in OUTCOMES]
        rows += [("wrong after it, of those right before", self.success)]
        lines = [f"| of {len(self.labels)} inputs | share [{self.confidence:g} interval] |", "| --- | --- |"]
        lines += [f"| {name} | {share} |" for name, share in rows]
        return "\n".join(lines)


def evaluate_attack(
    estimator: RandomizedSmoothingPyTorch,
    x: Any,
    x_adv: Any,
    y: Any,
    *,
    n: int = 1_000,
    alpha: float = 0.001,
    indices: ArrayLike | None = None,
    clean: ArrayLike | None = None,
    batch_size: int | None = None,
    confidence: float = 0.95,
) -> AttackEvaluation:
    """Judge an attack on g by PREDICT (Cohen et al. 2019) on fresh votes, never by those the attack has seen.

    :param x: Inputs (m, *input_shape), array or tensor.
    :param x_adv: What the attack made of them, of the same shape.
    :param y: True labels, (m,) indices or (m, nb_classes) one-hot.
    :param n: Votes per prediction, of the stream for judging, which nothing else draws from.
    :param alpha: Probability that a prediction is not g's, at most; in (0, 1).
    :param indices: (m,) different whole numbers that name the inputs' noise streams; their positions if None.
    :param clean: (m,) predictions at `x`, where another evaluation of the same inputs made them: its `clean`. If None,
        they are made here, which takes as many votes as those at `x_adv`.
    :param batch_size: Noisy copies per forward pass; chosen automatically if None.
    :param confidence: Of the intervals of shares, in (0, 1).
    :raises ValueError, TypeError: Unfit inputs or labels, `x_adv` outside the estimator's `clip_values` by more than
        1e-5, or an `n` that can never predict at this alpha.
    """
    alpha, confidence = checks.in_unit_interval("alpha", alpha), checks.in_unit_interval("confidence", confidence)
    check_prediction_votes(n, alpha)
    before, after = estimator._inputs(x).cpu(), estimator._inputs(x_adv).cpu()
    if before.shape != after.shape:
        raise ValueError(f"`x_adv` must have the shape of `x`, {tuple(before.shape)}, got {tuple(after.shape)}")
    labels = estimator._hard_labels(y, len(before), "judge an attack").cpu().numpy()
    if estimator.clip_values is not None and len(after):
        low, high = (torch.as_tensor(np.asarray(value), dtype=torch.float32) for value in estimator.clip_values)
        beyond = float(torch.maximum(low - after, after - high).max())
        if beyond > 1e-5:
            raise ValueError(
                f"`x_adv` must lie within the estimator's `clip_values` = {estimator.clip_values}, got values beyond "
                f"them by {beyond:.6g}"
            )

    if clean is not None:
        clean = np.asarray(clean)
        if clean.shape != labels.shape or not np.issubdtype(clean.dtype, np.integer):
            raise ValueError(f"`clean` must be {len(labels)} whole numbers, got {clean.dtype} of shape {clean.shape}")

    def votes(inputs: torch.Tensor) -> NDArray[np.int64]:
        return estimator.votes(inputs, n, indices=indices, batch_size=batch_size, purpose=Purpose.JUDGING)

    def predictions(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([predict_from_counts(row, alpha) for row in counts], dtype=np.int64)

    counts = votes(after)
    delta = after.double() - before.double()
    return AttackEvaluation(
        labels=labels,
        clean=predictions(votes(before)) if clean is None else clean.astype(np.int64),
        attacked=predictions(counts),
        counts=counts,
        l2=NORMS[2].length(delta).numpy(),
        linf=NORMS[float("inf")].length(delta).numpy(),
        n=n,
        alpha=alpha,
        confidence=confidence,
    )
