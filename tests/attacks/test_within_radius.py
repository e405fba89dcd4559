"""Within the radius: what is attacked at .99 times its radius stays in its class, as often as was promised."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.datasets import load_digits
from torch import nn

from art_rs_plugin import ABSTAIN, RandomizedSmoothingPyTorch, SmoothedPGD
from art_rs_plugin.core.certificate import predict_from_counts
from art_rs_plugin.noise import Purpose

SIGMA, M, ALPHA, STRICT = 0.25, 1_000, 0.001, 1e-6
ROWS = 2_048  # noisy copies of so small a network's forward pass


def limit(m: int) -> int:
    """At .99 R a wrong PREDICT needs a wrong certificate (probability ALPHA) or to err itself (STRICT): of m, 1e-6."""
    return int(binom.isf(1e-6, m, ALPHA + STRICT))


def wrong_within(estimator, x, share_of_radius: float) -> tuple[int, int]:
    """How many of the certified are called by another class at that share of their radius, of how many."""
    prediction, radius = estimator.certify(x, n=10_000, batch_size=ROWS)
    some = prediction != ABSTAIN
    attack = SmoothedPGD(estimator, eps=share_of_radius * radius[some], max_iter=10, num_samples=16)
    made = attack.generate(x[some], prediction[some])
    moved = np.linalg.norm((made - x[some]).reshape(len(made), -1).astype(np.float64), axis=1)
    np.testing.assert_allclose(moved, share_of_radius * radius[some], rtol=1e-4, atol=1e-6)
    counts = estimator.votes(made, 100_000, batch_size=ROWS, purpose=Purpose.JUDGING)
    named = np.array([predict_from_counts(row, STRICT) for row in counts])
    return int(((named != prediction[some]) & (named != ABSTAIN)).sum()), int(some.sum())


@pytest.fixture
def digits():
    """An MLP with 64 hidden units trained on all of scikit-learn's digits under noise, and the first 1 000 of them."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # no clip values: the attack is to use all of its norm
    estimator = RandomizedSmoothingPyTorch(model, SIGMA, alpha=ALPHA, seed=0, optimizer=optimizer, device_type="cpu")
    estimator.fit(images, labels, nb_epochs=15)
    return estimator, images[:M]


class HalfSpace(nn.Module):
    """Two logits whose difference is the distance to a plane."""

    def forward(self, x):
        z = x.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(z), z], dim=1)


@pytest.mark.slow
def test_no_more_certificates_fail_an_attack_than_alpha_allows(digits):
    """False alarm below 1e-6 (binomial, M inputs submitted to CERTIFY)."""
    estimator, x = digits
    assert limit(M) == 9
    wrong, certified = wrong_within(estimator, x, 0.99)
    assert certified > 0.8 * M
    assert wrong <= limit(M)


@pytest.mark.slow
def test_the_same_test_catches_a_radius_that_is_ten_percent_too_long():
    estimator = RandomizedSmoothingPyTorch(HalfSpace(), SIGMA, alpha=ALPHA, seed=0, device_type="cpu")
    m = 200
    x = np.zeros((m, 4), dtype=np.float32)
    x[:, 0] = np.random.default_rng(0).uniform(0.5 * SIGMA, 2.5 * SIGMA, m)
    honest, certified = wrong_within(estimator, x, 0.99)
    assert certified > 0.99 * m
    assert honest <= limit(m)
    inflated, _ = wrong_within(estimator, x, 0.99 * 1.1)
    assert inflated > 10 * limit(m)
