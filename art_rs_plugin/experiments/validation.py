"""Validation while training: how the network does under noise, and how much of it certifies, on held-out images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from art_rs_plugin.core.budgets import Looks
from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.noise import Purpose, derived_seed

VOTES = 20  # of the accuracy under noise
MOST_VOTES = 300  # of a certificate: 500 images take about as long as half an epoch of CIFAR-10
IN_SIGMA = (0.0, 0.5, 1.0, 1.5)  # radii, in units of sigma; 300 unanimous votes reach 1.99

SCORE = "certified"  # by which the best epoch is chosen


class Validation:
    """Judges networks on the same images with the same noise, which nothing else draws.

    :param x: Images (m, *shape); :param y: their labels (m,).
    :param seed: The run's. :param precision: The run's, in which votes are cast.
    """

    def __init__(self, x: Any, y: Any, sigma: float, seed: int, precision: str = "fp32") -> None:
        self.x, self.y, self.sigma, self.precision = x, np.asarray(y), sigma, precision
        self.seed = derived_seed(seed, Purpose.VALIDATION)
        self.budget = Looks(radii=tuple(share * sigma for share in IN_SIGMA), n_max=MOST_VOTES)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy of single votes, certified accuracy at radii up to 1.5 sigma, and "certified", their mean."""
        device = next(model.parameters()).device
        estimator = RandomizedSmoothingPyTorch(
            model,
            self.sigma,
            n=MOST_VOTES,
            seed=self.seed,
            precision=self.precision,
            compile=False,
            device_type="cpu" if device.type == "cpu" else "gpu",
        )
        votes = estimator.votes(self.x, VOTES)
        certificates = estimator.certificates(self.x, budget=self.budget)
        accuracy = certified_accuracy(
            [certificate.prediction for certificate in certificates],
            [certificate.radius for certificate in certificates],
            self.y,
            self.budget.radii,
        )
        said = {
            f"certified at {radius:g}": float(share) for radius, share in zip(self.budget.radii, accuracy, strict=True)
        }
        right = votes[np.arange(len(self.y)), self.y].mean() / VOTES
        return {"accuracy": float(right), SCORE: float(np.mean(accuracy)), **said}
