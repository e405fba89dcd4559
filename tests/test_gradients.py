"""Gradients of the smoothed classifier against differences of a float64 network under the same noise."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.smoothed import Draws

SIGMA, SHAPE, CLASSES, SEED = 0.5, (2, 3), 4, 5
X = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
Y = np.array([2, 0, 3])
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[Y]


def network(*more) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, CLASSES), *more)
        with torch.no_grad():
            model[3].weight *= 5  # draws must matter: a mean of softmaxes is then far from a softmax of means
        return model


def smoothed(model=None, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(model or network(), SIGMA, **{"seed": SEED, **options})


def drawn(count: int, call: int = 0) -> torch.Tensor:
    """The noise of one gradient, float64 (m, count, *SHAPE)."""
    chunks = Draws(Gaussian(SIGMA), count, SEED, call).chunks(torch.from_numpy(X), range(len(X)), count)
    return torch.cat([chunk.clone() for chunk in chunks], dim=1).double()


def expected_loss(logits, loss=F.cross_entropy):
    """J.3: the mean over draws of the loss; logits are (m, draws, classes)."""
    return torch.stack([torch.stack([loss(draw[None], y[None]) for draw in row]).mean() for row, y in
                        zip(logits, torch.from_numpy(Y), strict=True)])  # fmt: skip


def smoothadv(logits):
    """Salman et al.: -log of the label's mean softmax probability."""
    return -torch.log(torch.softmax(logits, dim=2).mean(dim=1)[torch.arange(len(Y)), torch.from_numpy(Y)])


OBJECTIVES = {"expected_loss": expected_loss, "smoothadv": smoothadv}


def in_float64(noise: torch.Tensor, model=None):
    """x float64 (m, *SHAPE) -> logits (m, draws, classes) of the network in float64 under this noise."""
    double = copy.deepcopy(model or network()).double().requires_grad_(False)

    def logits(x):
        noisy = torch.from_numpy(x)[:, None] + noise
        return double(noisy.flatten(0, 1)).view(*noise.shape[:2], -1)

    return logits


def differences(value, x, step=1e-5) -> np.ndarray:
    """Central differences of value: x (m, *SHAPE) -> (m, ...), whose row i depends on x[i] alone."""
    columns = []
    for pixel in range(x[0].size):
        shift = np.zeros_like(x)
        shift.reshape(len(x), -1)[:, pixel] = step
        columns.append((value(x + shift) - value(x - shift)) / (2 * step))
    slopes = np.stack(columns, axis=-1)
    return slopes.reshape(*slopes.shape[:-1], *SHAPE)


def assert_close(given, expected, tolerance=1e-3):
    assert given.shape == expected.shape
    assert np.abs(expected).max() > 1e-3
    assert np.abs(given - expected).max() <= tolerance * np.abs(expected).max()


# 64 draws make a block of noise, and chunks end within, at and after it
@pytest.mark.parametrize("count", [1, 32, 64, 100])
@pytest.mark.parametrize("objective", OBJECTIVES)
class TestObjectives:
    def test_value_and_gradient_are_those_of_the_formula(self, objective, count):
        logits = in_float64(drawn(count))
        expected = lambda x: OBJECTIVES[objective](logits(x)).numpy()  # noqa: E731
        options = {"objective": objective, "num_samples": count}
        x = X.astype(np.float64)
        assert_close(smoothed().compute_loss(X, Y, **options), expected(x), 1e-5)
        assert_close(smoothed().loss_gradient(X, Y, **options), differences(expected, x))

    def test_gradient_is_the_slope_of_compute_loss(self, objective, count):
        # the two meet the same noise where they are the same call of estimators of one seed
        options = {"objective": objective, "num_samples": count}
        value = lambda x: smoothed().compute_loss(x.astype(np.float32), Y, **options).astype(np.float64)  # noqa: E731
        slope = differences(value, X.astype(np.float64), step=5e-3)
        assert_close(smoothed().loss_gradient(X, Y, **options), slope, 5e-3)

    @pytest.mark.parametrize("batch_size", [1, 2, 7, 33, 64, 100, 1000])
    def test_do_not_depend_on_the_batch_size(self, objective, count, batch_size):
        options = {"objective": objective, "num_samples": count}
        one = smoothed().loss_gradient(X, Y, **options, batch_size=batch_size)
        assert_close(one, smoothed().loss_gradient(X, Y, **options), 1e-5)
        assert_close(smoothed().compute_loss(X, Y, **options, batch_size=batch_size),
                     smoothed().compute_loss(X, Y, **options), 1e-5)  # fmt: skip


@pytest.mark.parametrize("count", [1, 32, 100])
def test_class_gradient_is_that_of_the_mean_softmax(count):
    logits = in_float64(drawn(count))
    mean_softmax = lambda x: torch.softmax(logits(x), dim=2).mean(dim=1).numpy()  # noqa: E731
    expected = differences(mean_softmax, X.astype(np.float64))
    for batch_size in (None, 1, 7, 100):
        every = smoothed().class_gradient(X, num_samples=count, batch_size=batch_size)
        assert_close(every, expected)
        one = smoothed().class_gradient(X, label=1, num_samples=count, batch_size=batch_size)
        assert_close(one, expected[:, 1:2])
        own = smoothed().class_gradient(X, label=Y, num_samples=count, batch_size=batch_size)
        assert_close(own, expected[np.arange(3), Y][:, None])
    # probabilities sum to one, so that their gradients cancel
    assert np.abs(every.sum(axis=1)).max() < 1e-6


def autograd(value) -> np.ndarray:
    """Gradient of a float64 function of x (m, *SHAPE) -> (m,)."""
    x = torch.from_numpy(X).double().requires_grad_()
    return torch.autograd.grad(value(x).sum(), x)[0].numpy()


def test_base_is_the_gradient_of_f_and_draws_nothing():
    double = network().double()
    expected = autograd(lambda x: F.cross_entropy(double(x), torch.from_numpy(Y), reduction="none"))
    estimator = smoothed()
    for options in ({"base": True}, {"sampling": False}, {"base": True, "objective": "smoothadv"}):
        assert_close(estimator.loss_gradient(X, Y, **options), expected, 1e-5)
    assert_close(
        estimator.compute_loss(X, Y, base=True),
        F.cross_entropy(double(torch.from_numpy(X).double()), torch.from_numpy(Y), reduction="none").detach().numpy(),
        1e-5,
    )
    for label in range(CLASSES):
        slope = autograd(lambda x, label=label: torch.softmax(double(x), dim=1)[:, label])
        assert_close(estimator.class_gradient(X, base=True)[:, label], slope, 1e-5)
    # the next gradient under noise is still the first: no draw was used up
    assert np.array_equal(estimator.loss_gradient(X, Y), smoothed().loss_gradient(X, Y))


def test_arts_sampling_is_accepted():
    assert np.array_equal(smoothed().loss_gradient(X, Y, sampling=True), smoothed().loss_gradient(X, Y))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_row_has_its_own_gradient_not_divided_by_their_number(objective):
    alone = smoothed().loss_gradient(X[:1], Y[:1], objective=objective)
    assert_close(smoothed().loss_gradient(X, Y, objective=objective)[:1], alone, 1e-5)
    each = smoothed().compute_loss(X, Y, objective=objective)
    assert each.shape == (3,)
    assert smoothed().compute_loss(X, Y, "mean", objective=objective) == pytest.approx(each.mean())
    assert smoothed().compute_loss(X, Y, reduction="sum", objective=objective) == pytest.approx(each.sum())


def test_noise_is_fresh_at_every_call_and_a_run_repeats_itself():
    runs = []
    for _ in range(2):
        estimator = smoothed()
        calls = [estimator.loss_gradient, estimator.class_gradient, estimator.compute_loss]
        runs.append([call(X, Y) for call in calls for _ in range(2)])
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one, other)
    for first, second in zip(runs[0][::2], runs[0][1::2], strict=True):
        assert not np.array_equal(first, second)
    unseeded = [smoothed(seed=None).loss_gradient(X, Y) for _ in range(2)]
    assert not np.array_equal(*unseeded)
    # rows of one input meet different noise
    twice = smoothed().loss_gradient(np.repeat(X[:1], 2, axis=0), Y[[0, 0]])
    assert not np.array_equal(twice[0], twice[1])


@pytest.mark.parametrize("batch_size", [2, 1000])
def test_smoothadv_stays_finite_where_probabilities_underflow(batch_size):
    class Far(nn.Module):
        def forward(self, x):
            return 300 * torch.stack([x[:, 0, 0] + 1, x[:, 0, 1] - 1], dim=1)

    x, y = torch.zeros(2, *SHAPE), torch.tensor([1, 0])
    options = {"objective": "smoothadv", "num_samples": 20, "batch_size": batch_size}
    estimator = RandomizedSmoothingPyTorch(Far(), 0.01, seed=SEED)
    gradient = estimator.loss_gradient(x, y, **options)
    # label 1 is some e^-600 likely: -log p = 300 (x0 - x1) + 600 + ..., whose slope is +-300
    assert torch.allclose(gradient[0, 0, :2], torch.tensor([300.0, -300.0]), rtol=1e-5)
    assert gradient[1].abs().max() < 1e-6
    value = RandomizedSmoothingPyTorch(Far(), 0.01, seed=SEED).compute_loss(x, y, **options)
    # noise lowers -log of a mean: its exact value under a Gaussian is 600 - 300^2 sigma^2 = 591, by 20 draws a bit more
    assert 588 < value[0] < 600
    assert 0 <= value[1] < 1e-6


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0])
LOSSES = {
    "mean": (nn.CrossEntropyLoss(), F.cross_entropy),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), F.cross_entropy),
    "none": (nn.CrossEntropyLoss(reduction="none"), F.cross_entropy),
    "smoothed labels": (
        nn.CrossEntropyLoss(label_smoothing=0.2), lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2)
    ),
    # by itself a row is weighted, not divided by the weights of a batch that it is not part of
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), lambda z, y: WEIGHT.double()[y] * F.cross_entropy(z, y)),
    "margin": (nn.MultiMarginLoss(), lambda z, y: F.multi_margin_loss(z, y)),
    "binary": (
        nn.BCEWithLogitsLoss(), lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, CLASSES).double())
    ),
    "squared": (nn.MSELoss(), lambda z, y: F.mse_loss(z, F.one_hot(y, CLASSES).double())),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_other_losses(name):
    given, formula = LOSSES[name]
    logits = in_float64(drawn(8))
    expected = lambda x: expected_loss(logits(x), formula).numpy().reshape(len(X))  # noqa: E731
    for y in (Y, ONE_HOT):
        estimator = smoothed(loss=copy.deepcopy(given))
        assert_close(estimator.compute_loss(X, y, num_samples=8), expected(X.astype(np.float64)), 1e-5)
        gradient = smoothed(loss=copy.deepcopy(given)).loss_gradient(X, y, num_samples=8)
        assert_close(gradient, differences(expected, X.astype(np.float64)))
        assert estimator.loss.reduction == given.reduction


@pytest.mark.parametrize(
    ("loss", "last"),
    [(nn.NLLLoss(), nn.LogSoftmax(dim=1)), (nn.BCELoss(), nn.Sigmoid())],
    ids=["log-softmax", "sigmoid"],
)
def test_losses_of_models_that_do_not_return_logits(loss, last):
    model = network(last)
    logits = in_float64(drawn(8), model)
    formulas = {
        nn.NLLLoss: F.nll_loss,
        nn.BCELoss: lambda p, y: F.binary_cross_entropy(p, F.one_hot(y, CLASSES).double()),
    }
    expected = lambda x: expected_loss(logits(x), formulas[type(loss)]).numpy()  # noqa: E731
    gradient = smoothed(model, loss=loss).loss_gradient(X, Y, num_samples=8)
    assert_close(gradient, differences(expected, X.astype(np.float64)))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.MultiMarginLoss(), nn.CrossEntropyLoss()])
def test_other_losses_train(loss):
    model = network()
    estimator = smoothed(model, loss=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.05))
    history = estimator.fit(X, Y, nb_epochs=30)
    assert history[-1]["loss"] < history[0]["loss"]


SOFT = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0]], dtype=np.float32)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_soft_labels(objective):
    logits, soft = in_float64(drawn(8)), torch.from_numpy(SOFT).double()
    log_p = lambda x: torch.log_softmax(logits(x), dim=2)  # noqa: E731
    formulas = {
        "expected_loss": lambda x: -(soft[:, None] * log_p(x)).sum(dim=2).mean(dim=1).numpy(),
        # the probability of a class drawn from the label
        "smoothadv": lambda x: -(soft[:, None] * log_p(x).exp()).sum(dim=2).mean(dim=1).log().numpy(),
    }
    gradient = smoothed().loss_gradient(X, SOFT, num_samples=8, objective=objective)
    assert_close(gradient, differences(formulas[objective], X.astype(np.float64)))


def test_a_label_that_names_no_class_is_an_abstention_of_predict_and_becomes_uniform():
    logits = in_float64(drawn(8))
    expected = differences(
        lambda x: -torch.log_softmax(logits(x), dim=2).mean(dim=(1, 2)).numpy(), X.astype(np.float64)
    )
    # ART compares a zero row with its maximum, and FastGradientMethod divides the ones by their sum
    for value in (0.0, 1.0, 1 / CLASSES):
        labels = np.full((3, CLASSES), value, dtype=np.float32)
        with pytest.warns(UserWarning, match="3 of 3 labels name no class, .*: a uniform target takes their place"):
            given = smoothed().loss_gradient(X, labels, num_samples=8)
        assert_close(given, expected)
    with pytest.warns(UserWarning, match="1 of 3 labels name no class"):
        smoothed().loss_gradient(X, np.concatenate([ONE_HOT[:2], np.ones((1, CLASSES), np.float32)]))
