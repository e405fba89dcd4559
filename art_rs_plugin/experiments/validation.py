"""Validation while training: how the network does under noise, and how much of it certifies, on held-out images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from art_rs_plugin.core.budgets import Looks
from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch

VOTES = 20  # of the accuracy under noise
MOST_VOTES = 1_000  # of a certificate
MOST_IMAGES = 500
IN_SIGMA = (0.0, 0.5, 1.0, 1.5, 2.0)  # radii, in units of sigma; 1 000 unanimous votes reach 2.4

SCORE = "certified"  # by which the best epoch is chosen


class Validation:
    """Judges networks on the same images with the same noise.

    :param x: Images (m, *shape), of which at most 500 are used; :param y: their labels (m,).
    """

    def __init__(self, x: Any, y: Any, sigma: float, seed: int) -> None:
        self.x, self.y, self.sigma, self.seed = x[:MOST_IMAGES], np.asarray(y[:MOST_IMAGES]), sigma, seed
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
