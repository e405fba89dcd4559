"""Networks whose smoothed boundary is known in closed form."""

import numpy as np
import torch
from scipy.stats import norm
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

SIGMA = 0.25


class Plane(nn.Module):
    """Logits (0, z), z = w.x + b + A sin(omega v.x) for orthogonal unit vectors w and v; flat without A.

    With omega sigma large the ripple is gone from g, whose boundary is w.x + b = 0: under noise, v.x is all but uniform
    in its phase and independent of w.x, and a sine is as often positive as negative.
    """

    def __init__(self, d: int, offset: float, ripple: float = 0.0, omega: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        directions = np.linalg.qr(np.random.default_rng(0).normal(size=(d, 2)))[0].T
        self.w = nn.Parameter(torch.tensor(directions[0], dtype=torch.float32), requires_grad=False)
        self.v = nn.Parameter(torch.tensor(directions[1], dtype=torch.float32), requires_grad=False)
        self.offset, self.ripple, self.omega, self.scale = offset, ripple, omega, scale

    def forward(self, x):
        flat = x.flatten(1)
        z = flat @ self.w + self.offset + self.ripple * torch.sin(self.omega * (flat @ self.v))
        return torch.stack([torch.zeros_like(z), self.scale * z], dim=1)

    def margin(self, x) -> np.ndarray:
        """Signed distance to the boundary of g."""
        return np.asarray(x, dtype=np.float64).reshape(len(x), -1) @ self.w.double().numpy() + self.offset

    def p(self, x) -> np.ndarray:
        """P(f = 1) under the noise where there is no ripple."""
        return norm.cdf(self.margin(x) / SIGMA)


def plane(margin: float, seed: int | None = 0, clip_values=None, size: int = 32, **options):
    """-> (network, its smoothed estimator) for images 3 x size x size, with x = 0 at that margin in class 1."""
    model = Plane(3 * size * size, margin, **options)
    return model, RandomizedSmoothingPyTorch(
        model, SIGMA, seed=seed, input_shape=(3, size, size), nb_classes=2, device_type="cpu", clip_values=clip_values
    )


def zeros(m: int, size: int = 32) -> np.ndarray:
    return np.zeros((m, 3, size, size), dtype=np.float32)


def cosine(delta, direction) -> np.ndarray:
    flat = np.asarray(delta, dtype=np.float64).reshape(len(delta), -1)
    direction = np.asarray(direction, dtype=np.float64)
    return flat @ direction / np.linalg.norm(flat, axis=1) / np.linalg.norm(direction)
