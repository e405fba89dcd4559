"""What an estimator of ART's becomes here: its settings by the names that ours have."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin
from art.estimators.classification import PyTorchClassifier

from art_rs_plugin.inputs import warn_user

OURS_BY_THEIRS = {"scale": "sigma", "sample_size": "n0", "alpha": "alpha"}


def settings_of(art_estimator: PyTorchClassifier, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `RandomizedSmoothingPyTorch`; see its `from_art`."""
    if not isinstance(art_estimator, PyTorchClassifier):
        raise TypeError(f"`art_estimator` must be a PyTorchClassifier of ART, got {type(art_estimator).__name__}")
    settings = {name: getattr(art_estimator, name) for name in PyTorchClassifier.estimator_params}
    if isinstance(art_estimator, RandomizedSmoothingMixin):
        settings |= {ours: getattr(art_estimator, theirs) for theirs, ours in OURS_BY_THEIRS.items()}
        _warn_of_training(art_estimator)
    settings |= options
    if "sigma" not in settings:
        raise ValueError(f"`sigma` must be given: {type(art_estimator).__name__} has no `scale` to take it from")
    return settings


def _warn_of_training(smoother: Any) -> None:
    std = np.ones(1) if smoother.preprocessing is None else np.asarray(smoother.preprocessing.std)
    if (std != 1).any():
        warn_user(
            f"`scale` = {smoother.scale:g} is what ART's certify adds to x, and so is sigma, but its fit adds it after "
            f"preprocessing, where it is {np.mean(std):.3g} times that in the unit of x: a network that it trained has "
            "met other noise than it will vote under; fit of this estimator adds sigma to x"
        )
