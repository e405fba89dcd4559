"""The smoothed classifier as a plain ART classifier, and who is refused the base classifier."""

import copy
import pickle
import types

import dill
import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    CarliniL2Method,
    DeepFool,
    FeatureAdversariesPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.smoothed import Draws

SIGMA, CLASSES = 0.4, 3
X = np.random.default_rng(0).random((4, 1, 2, 3), dtype=np.float32)
Y = np.array([0, 2, 1, 1])
MEAN, STD = 0.3, 0.5


def network(*more) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, CLASSES), *more)


def smoothed(model=None, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(
        model or network(), SIGMA, seed=3, input_shape=(1, 2, 3), nb_classes=CLASSES, clip_values=(0.0, 1.0),
        preprocessing=(MEAN, STD), device_type="cpu", **options,
    )  # fmt: skip


def log_mean_softmax(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The formula in float64, with noise (m, draws, *shape) added before standardisation."""
    model = copy.deepcopy(network()).double()
    noisy = ((x[:, None] + noise) - MEAN) / STD
    return torch.softmax(model(noisy.flatten(0, 1)).view(*noise.shape[:2], -1), dim=2).mean(dim=1).log()


def drawn(count: int, call: int, shared: bool) -> torch.Tensor:
    draws = Draws(Gaussian(SIGMA), count, 3, call, shared)
    return torch.cat([draws.block(torch.zeros(X.shape), range(len(X)), start) for start in draws.blocks], 1).double()


@pytest.mark.parametrize("batch_size", [None, 1, 7, 64, 1_000])
@pytest.mark.parametrize("count", [1, 32, 100])
@pytest.mark.parametrize("fixed", [False, True])
def test_is_the_log_of_the_mean_softmax_and_so_is_its_gradient(fixed, count, batch_size):
    plain = smoothed().smoothed_classifier(count, fixed_noise=fixed, batch_size=batch_size)
    assert type(plain) is PyTorchClassifier
    for call in range(2):
        noise = drawn(count, 0 if fixed else 2 * call, shared=fixed)
        expected = log_mean_softmax(torch.from_numpy(X).double(), noise).detach().numpy()
        np.testing.assert_allclose(plain.predict(X, batch_size=100), expected, rtol=0, atol=1e-5)
        x = torch.from_numpy(X).double().requires_grad_()
        noise = noise if fixed else drawn(count, 2 * call + 1, shared=False)
        loss = -log_mean_softmax(x, noise)[torch.arange(4), torch.from_numpy(Y)].sum()
        (gradient,) = torch.autograd.grad(loss, x)
        # ART takes the mean over the rows
        np.testing.assert_allclose(
            4 * plain.loss_gradient(X, np.eye(CLASSES, dtype=np.float32)[Y]), gradient.numpy(), rtol=0, atol=1e-5
        )


def test_with_fixed_noise_it_is_one_function_of_one_input():
    plain = smoothed().smoothed_classifier(50, fixed_noise=True)
    whole = plain.predict(X)
    np.testing.assert_allclose(plain.predict(X[::-1].copy())[::-1], whole, atol=1e-6)
    np.testing.assert_allclose(plain.predict(X[2:3])[0], whole[2], atol=1e-6)
    fresh = smoothed().smoothed_classifier(50)
    assert np.abs(fresh.predict(X) - fresh.predict(X)).max() > 1e-3


def test_as_probabilities_it_is_the_exponential_and_its_loss_and_gradient_stay():
    plain, logs = (smoothed().smoothed_classifier(40, fixed_noise=True, probabilities=p) for p in (True, False))
    np.testing.assert_allclose(plain.predict(X), np.exp(logs.predict(X)), rtol=1e-5)
    np.testing.assert_allclose(plain.predict(X).sum(axis=1), 1.0, rtol=1e-5)
    one_hot = np.eye(CLASSES, dtype=np.float32)[Y]
    np.testing.assert_allclose(plain.loss_gradient(X, one_hot), logs.loss_gradient(X, one_hot), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(plain.compute_loss(X, one_hot), logs.compute_loss(X, one_hot), rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_no_pass_has_more_rows_than_asked_for_also_backwards(batch_size):
    rows, model = [], network()
    plain = smoothed(model).smoothed_classifier(70, batch_size=batch_size)
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    plain.loss_gradient(X, np.eye(CLASSES, dtype=np.float32)[Y])
    assert max(rows) <= batch_size
    assert sum(rows) == 2 * 70 * len(X), "once forwards, once more for the gradient"


def test_dropout_never_acts_and_settings_come_back():
    model = network(nn.Dropout(0.9))
    plain = smoothed(model).smoothed_classifier(8, fixed_noise=True)
    model.train()
    one_hot = np.eye(CLASSES, dtype=np.float32)[Y]
    first = plain.loss_gradient(X, one_hot, training_mode=True)
    assert np.array_equal(plain.loss_gradient(X, one_hot, training_mode=True), first)
    assert model.training


def test_copies_and_pickles_with_its_noise():
    for fixed in (True, False):
        plain = smoothed().smoothed_classifier(20, fixed_noise=fixed)
        module = plain.model
        copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
        expected = module(torch.from_numpy(X))
        for other in copies:
            assert torch.equal(other(torch.from_numpy(X)), expected)


def test_copies_go_without_the_optimizer_which_cannot_be_sent_to_other_processes():
    model = network()
    estimator = smoothed(model, optimizer=torch.optim.Adam(model.parameters()))
    plain = estimator.smoothed_classifier(4)
    sent = dill.loads(dill.dumps(plain))
    assert np.array_equal(sent.predict(X), plain.predict(X))
    assert estimator.optimizer.param_groups[0]["params"][0] is model[1].weight


def test_says_what_it_does_not_know():
    unknown = RandomizedSmoothingPyTorch(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), SIGMA, device_type="cpu")
    with pytest.raises(ValueError, match="`input_shape` is not known yet"):
        unknown.smoothed_classifier()
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        smoothed().smoothed_classifier(0)


REFUSED = {
    "apgd": lambda e: AutoProjectedGradientDescent(e, loss_type="cross_entropy", verbose=False),
    "apgd, loss of the estimator": lambda e: AutoProjectedGradientDescent(e, verbose=False),
    "auto-attack": lambda e: AutoAttack(e),
    "features": lambda e: FeatureAdversariesPyTorch(
        e, delta=0.1, layer=0, max_iter=2, batch_size=4, optimizer=torch.optim.Adam
    ).generate(X, X[::-1].copy()),
}


NAMES = {"auto-attack": "AutoAttack", "features": "FeatureAdversariesPyTorch"}


@pytest.mark.parametrize("attack", REFUSED)
@pytest.mark.parametrize("abstains", [False, True])
def test_attacks_that_need_more_than_g_gives_are_refused_by_name_and_told_what_to_take(attack, abstains):
    model = network()
    if abstains:  # Auto-PGD and its kin go by what predict says to an image of ones
        model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    name = NAMES.get(attack, "AutoProjectedGradientDescent")
    with pytest.raises(TypeError, match=rf"^{name} .*give it estimator\.smoothed_classifier\(num_samples=\.\.\.\)"):
        REFUSED[attack](smoothed(model))


def test_users_have_the_model():
    model = network()
    estimator = smoothed(model)
    assert estimator.model is model
    stranger = types.ModuleType("art.attacks.evasion.newcomer")
    exec("class Newcomer:\n    def __init__(self, estimator):\n        self.f = estimator.model\n", stranger.__dict__)
    with pytest.raises(TypeError, match="Newcomer takes the base classifier's model and would attack f"):
        stranger.Newcomer(estimator)


def test_attacks_on_features_take_what_g_returns_and_float64_is_cast():
    plain = smoothed().smoothed_classifier(20, fixed_noise=True)
    expected = plain.predict(X)
    assert np.array_equal(plain.get_activations(X, layer=-1), expected)
    assert np.array_equal(plain.predict(X.astype(np.float64)), expected)
    attack = FeatureAdversariesPyTorch(plain, delta=0.2, step_size=0.05, max_iter=5, verbose=False)
    made = attack.generate(X, X[::-1].copy())
    assert 0.0 < np.abs(made - X).max() <= 0.2 + 1e-6
    before, after = (np.linalg.norm(plain.predict(x) - expected[::-1], axis=1) for x in (X, made))
    assert (after < before).all()


WELCOME = {
    "apgd": lambda c: AutoProjectedGradientDescent(
        c, norm=2, eps=0.8, eps_step=0.2, max_iter=10, nb_random_init=1, loss_type="cross_entropy", verbose=False
    ),
    "deepfool": lambda c: DeepFool(c, max_iter=20, epsilon=0.1, verbose=False),
    "carlini": lambda c: CarliniL2Method(c, max_iter=10, initial_const=1.0, verbose=False),
}


@pytest.mark.parametrize("attack", WELCOME)
@pytest.mark.parametrize("fixed", [False, True])
def test_attacks_on_it_move_g(attack, fixed):
    estimator = smoothed()
    top = estimator.predict(X, n=500, is_abstain=False).argmax(axis=1)
    made = WELCOME[attack](estimator.smoothed_classifier(64, fixed_noise=fixed)).generate(X, np.eye(CLASSES)[top])
    before = estimator.votes(X, 2_000)[np.arange(4), top]
    after = estimator.votes(made, 2_000)[np.arange(4), top]
    assert (after < before - 200).sum() >= 3


def test_an_attacks_batch_size_counts_inputs_and_a_users_noisy_copies():
    rows, model = [], network()
    estimator = smoothed(model)
    estimator.predict(X, n=20)
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    estimator.predict(X[:1], batch_size=5, n=20)
    assert set(rows) == {5}
    rows.clear()
    stranger = types.ModuleType("art.attacks.evasion.newcomer")
    exec("def ask(estimator, x):\n    return estimator.predict(x, batch_size=1, n=20)\n", stranger.__dict__)
    stranger.ask(estimator, X[:1])
    assert set(rows) == {64}
