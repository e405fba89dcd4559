"""Coming from ART: what its estimators become, against the half-space's known margin and ART's own certificates."""

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing, PyTorchSmoothAdv
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

SHAPE = (1, 4, 4)
NORMAL = np.random.default_rng(0).standard_normal(16)
NORMAL /= np.linalg.norm(NORMAL)
MARGINS = np.array([0.2, 0.35, 0.5])
X = (0.5 + MARGINS[:, None] * NORMAL).astype(np.float32).reshape(3, *SHAPE)


def half_space() -> nn.Module:
    """Names class 1 beyond the plane through the centre of the cube: x is on that side by `MARGINS`."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(np.stack([0 * NORMAL, NORMAL])))
        model[1].bias.copy_(torch.tensor([0.0, -0.5 * NORMAL.sum()]))
    return model


def of_art(kind=PyTorchRandomizedSmoothing, **options):
    model = half_space()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=2, optimizer=optimizer,
        clip_values=(0, 1), device_type="cpu", **options,
    )  # fmt: skip


def test_settings_are_taken_over_and_parts_are_shared():
    theirs = of_art(sample_size=64, scale=0.3, alpha=0.01)
    ours = RandomizedSmoothingPyTorch.from_art(theirs, seed=7)
    assert (ours.sigma, ours.n0, ours.alpha, ours.seed) == (0.3, 64, 0.01, 7)
    assert ours.model is theirs.model
    assert ours.optimizer is theirs.optimizer
    assert ours.input_shape == SHAPE
    assert np.array_equal(ours.clip_values, theirs.clip_values)


def test_certificates_are_those_of_art_but_for_the_votes():
    theirs = of_art(scale=0.3)
    np.random.seed(0)  # noqa: NPY002 ART draws from there
    theirs_prediction, theirs_radius = theirs.certify(X, n=5_000)
    prediction, radius = RandomizedSmoothingPyTorch.from_art(theirs, seed=0).certify(X, n=5_000)
    assert prediction.tolist() == theirs_prediction.tolist() == [1, 1, 1]
    assert (radius < MARGINS).all()  # false with probability .001 each, and the seed is fixed
    assert (radius > MARGINS - 0.1).all()
    assert np.abs(radius - theirs_radius).max() < 0.05


def test_a_plain_classifier_needs_a_sigma_and_fits_on():
    plain = of_art(PyTorchClassifier)
    with pytest.raises(ValueError, match="`sigma` must be given: PyTorchClassifier has no `scale`"):
        RandomizedSmoothingPyTorch.from_art(plain)
    ours = RandomizedSmoothingPyTorch.from_art(plain, sigma=0.25)
    before = [parameter.clone() for parameter in plain.model.parameters()]
    ours.fit(X, np.array([0, 1, 1]), nb_epochs=1)
    assert not all(map(torch.equal, before, plain.model.parameters()))


def test_smoothers_with_a_training_method_of_their_own_are_taken_too():
    theirs = of_art(PyTorchSmoothAdv, scale=0.3, epsilon=0.2, num_noise_vec=1)
    assert RandomizedSmoothingPyTorch.from_art(theirs).sigma == 0.3


def test_preprocessing_is_kept_and_what_it_did_to_the_noise_of_training_is_said():
    theirs = of_art(scale=0.3, preprocessing=(0.5, 0.25))
    with pytest.warns(UserWarning, match=r"`scale` = 0\.3 is what ART's certify adds to x.*0\.25 times") as caught:
        ours = RandomizedSmoothingPyTorch.from_art(theirs)
    assert caught[0].filename == __file__
    assert ours.preprocessing.mean == 0.5


def test_what_is_none_of_arts_is_refused():
    with pytest.raises(TypeError, match="`art_estimator` must be a PyTorchClassifier of ART, got Sequential"):
        RandomizedSmoothingPyTorch.from_art(half_space())
