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
MOST_VOTES = 1_000  # of a certificate
IN_SIGMA = (0.0, 0.5, 1.0, 1.5, 2.0)  # radii, in units of sigma; 1 000 unanimous votes reach 2.4

SCORE = "certified"  # by which the best epoch is chosen


class Validation:
    """Judges networks on the same images with the same noise, which nothing else draws.

    :param x: Images (m, *shape); :param y: their labels (m,).
    :param seed: The run's.
    """

    def __init__(self, x: Any, y: Any, sigma: float, seed: int) -> None:
        self.x, self.y, self.sigma = x, np.asarray(y), sigma
        self.seed = derived_seed(seed, Purpose.VALIDATION)
        self.budget = Looks(radii=tuple(share * sigma for share in IN_SIGMA), n_max=MOST_VOTES)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy of single votes, certified accuracy at radii up to 2 sigma, and "certified", their mean."""
        device = next(model.parameters()).device
        estimator = RandomizedSmoothingPyTorch(
            model,
            self.sigma,
            n=MOST_VOTES,
            seed=self.seed,
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
