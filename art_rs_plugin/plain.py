"""g as a plain ART classifier, for attacks that want logits, or a network of their own to work on."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier

from art_rs_plugin.core import checks
from art_rs_plugin.smoothed import Draws, LossOfProbabilities, SmoothedModule

Estimator = Any  # RandomizedSmoothingPyTorch, which stands above


def plain_classifier(
    estimator: Estimator,
    num_samples: int,
    *,
    fixed_noise: bool,
    probabilities: bool,
    batch_size: int,
) -> PyTorchClassifier:
    """What `smoothed_classifier` of the estimator returns; `batch_size` is noisy copies per forward pass."""
    behind = _Behind(estimator)
    if fixed_noise:
        draws = partial(_itself, estimator.draws(num_samples, shared=True))
    else:
        draws = partial(behind.draws, checks.whole("num_samples", num_samples))
    return PyTorchClassifier(
        model=SmoothedModule(estimator.model, behind.logits, draws, batch_size=batch_size, probabilities=probabilities),
        loss=LossOfProbabilities() if probabilities else torch.nn.CrossEntropyLoss(),
        input_shape=estimator.input_shape,
        nb_classes=estimator.nb_classes,
        channels_first=estimator.channels_first,
        clip_values=estimator.clip_values,
        device_type=estimator._device_type,
    )


class _Behind:
    """The estimator as its smoothed module calls it. Copies and pickles go without the optimizer.

    No attack needs that one, and `multiprocess`, by which ART's AutoAttack sends attacks to processes, cannot send it.
    """

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator

    def logits(self, x: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
        logits: torch.Tensor = self.estimator._logits(x, model=model)
        return logits

    def draws(self, count: int) -> Draws:
        draws: Draws = self.estimator.draws(count)
        return draws

    def __getstate__(self) -> dict[str, Any]:
        estimator = copy.copy(self.estimator)
        estimator._optimizer = None
        return {"estimator": estimator}


def _itself(draws: Draws) -> Draws:
    return draws
