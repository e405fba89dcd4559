"""Lipschitz-margin training against NumPy's singular values, differences, and the certifier whose radii it is after."""

import gc
import math
import re
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from linear_objectives import CLASSES, SIGMA, D, N, at, make_batch
from random_networks import Wrapped, randomised, seeded
from scipy import special
from torch import nn

from art_rs_plugin.certifiers import get
from art_rs_plugin.experiments import datasets, models
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, loader_batches, slopes, train
from art_rs_plugin.training.slopes import slopes_of_pairs

LMT = OBJECTIVES["lmt"]
MANY = 300  # iterations, after which the estimates are exact


def entropy(logits, y):
    return -np.take_along_axis(special.log_softmax(logits, axis=1), y.numpy()[:, None], 1).mean()


def raised(logits, y, slopes, margin):
    return logits + margin * slopes[y.numpy()]


class TestLoss:
    def test_of_a_linear_network(self):
        """Whose difference of logits c and y changes by |w_c - w_y| per unit of l2 distance."""
        x, y = make_batch()
        model = randomised(nn.Linear(D, CLASSES))
        weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
        distances = np.linalg.norm(weight[:, None] - weight[None], axis=2)
        logits = x.numpy() @ weight.T + bias
        loss, right = LMT(margin=0.7)(at(model), x, y)
        assert loss.item() == pytest.approx(entropy(raised(logits, y, distances, 0.7), y), rel=1e-12)
        assert right.item() == (logits.argmax(1) == y.numpy()).sum()

    def test_of_layers_and_a_sum(self):
        """Norms are multiplied, and added where values are; without a last linear layer it is sqrt(2) L."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(D, CLASSES), nn.Linear(CLASSES, CLASSES)

            def forward(self, x):
                out = F.relu(self.first((x - 0.5) / 0.25))
                return F.relu(out + self.second(out))

        x, y = make_batch()
        model = randomised(Net())
        first, second = (np.linalg.norm(layer.weight.detach().numpy(), 2) for layer in (model.first, model.second))
        pairs = math.sqrt(2) * (1 + second) * first / 0.25 * (1 - np.eye(CLASSES))
        logits = model(x).detach().numpy()
        loss = LMT(margin=0.3, iterations=MANY)(at(model), x, y).loss.item()
        assert loss == pytest.approx(entropy(raised(logits, y, pairs, 0.3), y), rel=1e-9)

    def test_without_margin_is_cross_entropy_and_asks_no_layer(self, monkeypatch):
        monkeypatch.setattr("art_rs_plugin.training.lmt.slopes_of_pairs", None)
        x, y = make_batch()
        model = randomised(nn.Linear(D, CLASSES))
        for options, epoch in (({"margin": 0.0}, 3), ({"margin": 0.2, "warmup": 10}, 0)):
            assert torch.equal(LMT(**options)(at(model, epoch=epoch), x, y).loss, F.cross_entropy(model(x), y))

    def test_grows_to_its_margin(self):
        x, y = make_batch()
        model = randomised(nn.Linear(D, CLASSES))
        half, whole = (LMT(margin=0.4, warmup=10)(at(model, epoch=epoch), x, y).loss.item() for epoch in (5, 10))
        assert half == LMT(margin=0.2)(at(model), x, y).loss.item()
        assert whole == LMT(margin=0.4)(at(model), x, y).loss.item()

    def test_noise_is_added_if_asked_for(self):
        x, y = make_batch()
        model = randomised(nn.Linear(D, CLASSES))
        loss = LMT(margin=0.7, noisy=True)(at(model), x, y).loss
        noisy = x + at(model).draw(x)[:, 0]
        assert loss.item() == pytest.approx(LMT(margin=0.7)(at(model), noisy, y).loss.item(), rel=1e-12)
        assert (noisy - x).std() == pytest.approx(SIGMA, rel=0.4)

    @pytest.mark.parametrize("noisy", [False, True])
    def test_gradients_agree_with_differences(self, noisy):
        x, y = make_batch()
        model = randomised(nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
        objective = LMT(margin=0.5, noisy=noisy, iterations=MANY)
        objective(at(model), x, y).loss.backward()
        for layer, row, column in ((0, 1, 2), (0, 5, 0), (2, 0, 3), (2, 3, 7)):
            weight, losses = model[layer].weight, []
            for change in (1e-6, -2e-6):
                weight.data[row, column] += change
                losses.append(objective(at(model), x, y).loss.item())
            weight.data[row, column] += 1e-6
            assert weight.grad[row, column].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-8)

    def test_gradients_stay_finite_where_weights_are_zero_or_equal(self):
        model = nn.Sequential(nn.Linear(D, 3), nn.ReLU(), nn.Linear(3, CLASSES))
        model[0].weight.data.zero_()
        model[2].weight.data[1] = model[2].weight.data[0]
        x, y = make_batch()
        LMT()(at(model), x.float(), y).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, 1, 1))
        self.conv1, self.bn = nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3)
        self.conv2, self.shortcut = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(2, 3, 1, 2)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(12, 3)

    def forward(self, x):
        x = 2 * (x - self.mean) / 0.5
        out = self.conv2(self.bn(self.conv1(x)).relu())
        out = F.adaptive_avg_pool2d(F.relu(out - self.shortcut(x)), 2)
        return self.fc(self.drop(out).view(out.size(0), -1))


NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2),
        nn.ReLU(), nn.Identity(), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    ),
    "borders that are no zeros": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)
    ),
    "residual": Residual,
}  # fmt: skip


class TestSlopes:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_the_certifiers_after_many_iterations_and_less_after_few(self, name):
        """Two roads to one constant: from below by power iteration, from above by singular values."""
        model = randomised(NETWORKS[name]())
        above = get("lipschitz-margin").build(model, input_shape=(2, 7, 6), nb_classes=3).pairs.numpy()
        model.train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        few, many = (
            slopes_of_pairs(model, (2, 7, 6), seeded(1), iterations).detach().numpy() for iterations in (3, MANY)
        )
        assert many == pytest.approx(above, rel=1e-4, abs=1e-9)
        assert (many <= above).all()
        assert (few <= many * (1 + 1e-9)).all()
        assert (few[0, 1:] > 0.5 * above[0, 1:]).all()
        assert (few.diagonal() == 0).all()
        assert model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_are_those_of_the_weights_as_they_are(self):
        """The graph of a network is kept, its weights are not; nor is the network once nobody else keeps it."""
        model = nn.Sequential(nn.Linear(D, CLASSES)).double()
        before = slopes_of_pairs(model, (D,), seeded(0), 1).detach()
        model[0].weight.data *= 2
        assert torch.allclose(slopes_of_pairs(model, (D,), seeded(0), 1), 2 * before)
        model[0] = nn.Linear(D, CLASSES).double()
        assert not torch.allclose(slopes_of_pairs(model, (D,), seeded(0), 1), 2 * before)
        gone = weakref.ref(model)
        assert gone() in slopes._GRAPHS
        del model
        gc.collect()
        assert gone() is None

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)), "got `0` = MaxPool2d("),
            (nn.Sequential(nn.Flatten(), nn.Linear(84, 3), nn.GELU()), "got `2` = GELU("),
            (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()), "got `0` = BatchNorm2d("),
            (Wrapped(lambda model, x: model(x.flatten(1)) * x.mean(), nn.Linear(84, 3)), "got `mean`"),
            (Wrapped(lambda model, x: torch.sigmoid(model(x.flatten(1))), nn.Linear(84, 3)), "got `sigmoid`"),
            (Wrapped(lambda model, x: 1 / model(x.flatten(1)), nn.Linear(84, 3)), "got `truediv`"),
            (Wrapped(lambda model, x: model(x.view(2, 42)), nn.Linear(42, 3)), "got a shape of (2, 42) for one input"),
            (Wrapped(lambda model, x: model(x) if x.sum() > 0 else x, nn.Linear(6, 3)), "torch.fx can trace, got T"),
            (nn.Conv2d(2, 3, 3), "the model must return logits (n, classes), and them alone"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )  # fmt: skip
    def test_what_is_not_understood_is_refused(self, model, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            slopes_of_pairs(model, (2, 7, 6), seeded(0), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, "`margin` must be a finite number of at least 0, got -0.1"),
        ({"warmup": -1}, "`warmup` must be at least 0, got -1"),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
        ({"noisy": "no"}, "`noisy` must be one of True, False, got 'no'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LMT(**options)


def trained(data, objective, epochs=8, checkpoint=None, seed=0):
    torch.manual_seed(seed)
    model = models.build("small-cnn", input_shape=(1, 8, 8), nb_classes=10, mean=data.mean, std=data.std)
    images, labels = (torch.from_numpy(array) for array in data.arrays())
    options = {"objective": objective, "noise": Gaussian(0.25), "seed": seed, "epochs": epochs}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    train(model, loader_batches((images, labels), 64, seed), optimizer=optimizer, checkpoint=checkpoint, **options)
    return model


def test_digits_are_certified_farther_than_by_plain_training():
    """Mean over held-out digits of the radius where the network is right, by bounds from above."""
    data, (x, y) = datasets.load("digits", "train"), datasets.load("digits", "test").arrays()
    means, accuracies = [], []
    for margin in (0.0, 0.1):
        model = trained(data, LMT(margin=margin, warmup=3))
        certificates = get("lipschitz-margin").build(model, input_shape=(1, 8, 8), nb_classes=10).certify(x)
        right = np.array([certificate.prediction for certificate in certificates]) == y
        means.append((right * [certificate.radius for certificate in certificates]).mean())
        accuracies.append(right.mean())
    assert means[1] > 3 * means[0] > 0
    assert min(accuracies) > 0.8


def test_a_run_in_two_parts_ends_as_one_does(tmp_path):
    data = datasets.load("digits", "train")
    objective = LMT(margin=0.1, warmup=2)
    at_once = trained(data, objective, epochs=2).state_dict()
    trained(data, objective, epochs=1, checkpoint=tmp_path / "state.pt")
    in_two = trained(data, objective, epochs=2, checkpoint=tmp_path / "state.pt").state_dict()
    assert all(torch.equal(value, at_once[name]) for name, value in in_two.items())


def test_the_batch_sees_noise_before_the_iterations_do():
    """So that noisy copies are those of Gaussian augmentation."""
    x, y = make_batch()
    model = randomised(nn.Sequential(nn.Linear(D, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES)))
    seen = []
    step = at(lambda x: seen.append(x) or model(x))
    object.__setattr__(step, "model", model)
    LMT(noisy=True)(step, x, y)
    OBJECTIVES["gaussian"]()(at(lambda x: seen.append(x) or model(x)), x, y)
    assert torch.equal(*seen)
    assert len(seen[0]) == N
