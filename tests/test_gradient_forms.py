"""Gradients of the smoothed classifier are the same in every form of x and y, and right under preprocessing too."""

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.estimator import LOSSES
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.smoothed import Draws

SIGMA, CLASSES, COUNT, SEED = 0.5, 3, 20, 4
X = np.random.default_rng(1).random((4, 2, 2, 3), dtype=np.float32)
Y = np.array([2, 0, 1, 1])
MEAN, STD = np.array([0.3, 0.6], dtype=np.float32).reshape(2, 1, 1), np.array([0.5, 0.2], np.float32).reshape(2, 1, 1)
ARRAYS = {"array": lambda value: value, "tensor": torch.from_numpy}
LABELS = {"index": Y, "one-hot": np.eye(CLASSES, dtype=np.float32)[Y]}
PREPROCESSING = {"none": (0.0, 1.0), "standardised": (MEAN, STD)}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, CLASSES))
        with torch.no_grad():
            model[3].weight *= 4
        return model


def smoothed(preprocessing) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(network(), SIGMA, seed=SEED, preprocessing=PREPROCESSING[preprocessing])


def softmax(x: np.ndarray, preprocessing: str) -> torch.Tensor:
    """Probabilities (m, draws, classes) in float64 of the noisy copies, standardised after the noise."""
    draws = Draws(Gaussian(SIGMA), COUNT, SEED, 0)
    noise = draws.block(torch.zeros(X.shape), range(len(X)), 0).double()
    mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in PREPROCESSING[preprocessing])
    noisy = (torch.from_numpy(x)[:, None] + noise - mean) / std
    with torch.no_grad():
        return torch.softmax(network().double()(noisy.flatten(0, 1)).view(len(x), COUNT, CLASSES), dim=2)


OBJECTIVES = {
    "expected_loss": lambda p: -p[torch.arange(4), :, torch.from_numpy(Y)].log().mean(dim=1).numpy(),
    "smoothadv": lambda p: -p[torch.arange(4), :, torch.from_numpy(Y)].mean(dim=1).log().numpy(),
}


def differences(value, preprocessing: str, step: float = 1e-5) -> np.ndarray:
    """Central differences of value(probabilities) -> (m, ...) in x."""
    columns = []
    for pixel in range(12):
        shift = np.zeros(X.shape)
        shift.reshape(4, -1)[:, pixel] = step
        sides = [value(softmax(X.astype(np.float64) + sign * shift, preprocessing)) for sign in (1, -1)]
        columns.append((sides[0] - sides[1]) / (2 * step))
    slopes = np.stack(columns, axis=-1)
    return slopes.reshape(*slopes.shape[:-1], *X.shape[1:])


def close(given, expected) -> bool:
    return np.abs(np.asarray(given) - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("preprocessing", PREPROCESSING)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", ARRAYS)
class TestForms:
    @pytest.mark.parametrize("objective", LOSSES)
    def test_loss_gradient(self, form, labels, preprocessing, objective):
        make = ARRAYS[form]
        given = smoothed(preprocessing).loss_gradient(
            make(X), make(LABELS[labels]), num_samples=COUNT, objective=objective
        )
        assert isinstance(given, torch.Tensor if form == "tensor" else np.ndarray)
        assert close(given, differences(OBJECTIVES[objective], preprocessing))

    def test_class_gradient(self, form, labels, preprocessing):
        make = ARRAYS[form]
        expected = differences(lambda p: p.mean(dim=1).numpy(), preprocessing)
        given = smoothed(preprocessing).class_gradient(make(X), make(LABELS[labels]), num_samples=COUNT)
        assert close(given, expected[np.arange(4), Y][:, None])
        assert close(smoothed(preprocessing).class_gradient(make(X), num_samples=COUNT), expected)


def test_gradients_are_there_without_grad_mode_too():
    expected = smoothed("none").loss_gradient(X, Y, num_samples=10)
    with torch.no_grad():
        assert np.array_equal(smoothed("none").loss_gradient(X, Y, num_samples=10), expected)
    assert np.abs(expected).max() > 0


def test_the_model_meets_images_with_channels_last():
    seen = []
    estimator = smoothed("none")
    estimator.predict(X, n=20)
    estimator.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    estimator.loss_gradient(X, Y, num_samples=10)
    assert seen == [True]
