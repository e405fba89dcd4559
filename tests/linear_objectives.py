"""A linear classifier to try objectives on, and what they make of it written down once more in NumPy and SciPy."""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from scipy import special

from art_rs_plugin.noise import Gaussian, Purpose, stream
from art_rs_plugin.training import Step

SIGMA, N, D, CLASSES = 0.5, 12, 6, 4


class Linear:
    """x -> W x + b in float64, and the points at which it was asked."""

    def __init__(self, scale=1.0):
        generator = torch.Generator().manual_seed(3)
        self.weight = scale * torch.randn(CLASSES, D, generator=generator, dtype=torch.float64)
        self.asked, self.evaluating, self.modes = [], False, []

    def __call__(self, x):
        self.asked.append(x.detach().clone())
        self.modes.append(self.evaluating)
        return x @ self.weight.T

    @contextmanager
    def evaluation(self):
        self.evaluating = True
        yield
        self.evaluating = False


def at(model, *, epoch=100, seed=1, evaluation=None):
    """A step of training, with the same random numbers whenever it is made."""
    chosen = evaluation or getattr(model, "evaluation", nullcontext)
    return Step(model, chosen, Gaussian(SIGMA), stream(seed, Purpose.TRAINING, 1), epoch, model)


def make_batch():
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(N, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def drawn(model, x, count):
    """The noise of such a step, and the logits of the copies (n, count, classes)."""
    noise = at(model).draw(x, count).numpy()
    return noise, (x.numpy()[:, None] + noise) @ model.weight.numpy().T


def entropies(logits, y):
    """Cross-entropies (n, count)."""
    return -np.take_along_axis(special.log_softmax(logits, axis=2), y.numpy()[:, None, None], 2)[..., 0]


def kl(target, logits):
    """KL(target || softmax) over the last axis, the textbook's sum."""
    return special.rel_entr(target, special.softmax(logits, axis=-1)).sum(-1)
