"""ART's own attacks, as they are, against the smoothed classifier."""

import logging

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    BasicIterativeMethod,
    DeepFool,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescent,
    ProjectedGradientDescentNumpy,
    ProjectedGradientDescentPyTorch,
    SquareAttack,
)
from sklearn.datasets import load_digits
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

SIGMA, EPS = 0.25, 1.0
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES / 16).astype(np.float32).reshape(-1, 1, 8, 8)
X, Y = IMAGES[1400:1420], LABELS[1400:1420]


@pytest.fixture(scope="module")
def digits() -> RandomizedSmoothingPyTorch:
    """Real 8x8 scans; about .95 of them are named right under this noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    estimator = RandomizedSmoothingPyTorch(model, SIGMA, seed=0, optimizer=optimizer, clip_values=(0.0, 1.0))
    estimator.fit(IMAGES[:1400], LABELS[:1400], nb_epochs=12)
    return estimator


def accuracy(estimator, x) -> float:
    """Share of right predictions; an abstention, a zero row, is wrong."""
    return float(estimator.predict(x, n=200)[np.arange(len(Y)), Y].mean())


WHITE_BOX = {
    "fgm": lambda g: FastGradientMethod(g, norm=2, eps=EPS),
    "pgd": lambda g: ProjectedGradientDescent(g, norm=2, eps=EPS, eps_step=0.3, max_iter=10, verbose=False),
    "pgd-numpy": lambda g: ProjectedGradientDescentNumpy(g, norm=2, eps=EPS, eps_step=0.3, max_iter=10, verbose=False),
    "pgd-pytorch": lambda g: ProjectedGradientDescentPyTorch(
        g, norm=2, eps=EPS, eps_step=0.3, max_iter=10, num_random_init=1, verbose=False
    ),
    "bim": lambda g: BasicIterativeMethod(g, eps=0.3, eps_step=0.1, max_iter=5, verbose=False),
    "deepfool": lambda g: DeepFool(g, max_iter=10, nb_grads=3, verbose=False),
}


@pytest.mark.parametrize("attack", WHITE_BOX)
def test_white_box_attacks_lower_the_accuracy_of_predict(digits, attack):
    clean = accuracy(digits, X)
    assert clean > 0.85
    generator = WHITE_BOX[attack](digits)
    adversarial = generator.generate(X) if attack == "deepfool" else generator.generate(X, np.eye(10)[Y])
    assert (adversarial.dtype, adversarial.shape) == (np.float32, X.shape)
    assert 0.0 <= adversarial.min() <= adversarial.max() <= 1.0  # clip_values
    if attack in ("pgd", "pgd-numpy", "pgd-pytorch", "fgm"):
        assert np.linalg.norm((adversarial - X).reshape(len(X), -1), axis=1).max() <= EPS + 1e-5
    assert accuracy(digits, adversarial) < clean - 0.3


def test_a_perturbation_of_the_same_size_without_a_gradient_does_much_less(digits):
    direction = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    direction *= EPS / np.linalg.norm(direction.reshape(len(X), -1), axis=1).reshape(-1, 1, 1, 1)
    assert accuracy(digits, np.clip(X + direction, 0, 1)) > 0.8


def test_white_box_attacks_differentiate_through_noise(digits):
    seen = []
    handle = digits.model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    try:
        FastGradientMethod(digits, eps=0.1).generate(X[:4], np.eye(10)[Y[:4]])
    finally:
        handle.remove()
    noisy = torch.cat(seen)
    assert len(noisy) == 4 * 32  # num_samples copies of each input
    deviation = (noisy.reshape(4, 32, -1) - torch.from_numpy(X[:4]).reshape(4, 1, -1)).std()
    assert float(deviation) == pytest.approx(SIGMA, rel=0.05)  # of 8192 values


@pytest.mark.parametrize(
    "make",
    [
        lambda g: SquareAttack(g, eps=0.4, max_iter=10, verbose=False),
        lambda g: HopSkipJump(g, max_iter=2, max_eval=20, init_eval=5, init_size=50, verbose=False),
    ],
    ids=["square", "hop-skip-jump"],
)
def test_black_box_attacks_run_and_do_harm(digits, make, caplog):
    caplog.set_level(logging.CRITICAL)
    np.random.seed(0)  # noqa: NPY002 - where ART's attacks take their randomness from
    adversarial = make(digits).generate(X[:10], np.eye(10)[Y[:10]])
    named = digits.predict(adversarial, n=200)[np.arange(10), Y[:10]]
    clean = digits.predict(X[:10], n=200)[np.arange(10), Y[:10]]
    assert named.sum() < clean.sum()


def test_an_attack_that_takes_an_abstention_for_a_label_warns():
    # ART asks predict for the labels that it is not given; nothing tells the first ten pixels of a black image apart
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(64)[:10])
    estimator, black = RandomizedSmoothingPyTorch(model, SIGMA, seed=0), np.zeros_like(X[:1])
    assert not estimator.predict(black).any()
    with pytest.warns(UserWarning, match="1 of 1 labels name no class, as after an abstention of predict"):
        FastGradientMethod(estimator, eps=0.1).generate(black)
