"""CROWN and Fast-Lin against a second implementation in NumPy, closed forms, and attacks."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin.certifiers import UnsupportedNetwork, get, linear_bounds
from art_rs_plugin.certifiers.certifier import largest
from art_rs_plugin.certifiers.linear_bounds import LinearBounds
from art_rs_plugin.certifiers.network import trace

NORMS = [2, math.inf]
NAMES = ["fast-lin", "crown"]


def mlp(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def conv(seed=0):
    torch.manual_seed(seed)
    first = (
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
    )
    model = nn.Sequential(*first, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.2, 0.2)
        model[1].running_var.uniform_(0.3, 1)
    return model


def build(name, model, shape, **options):
    return get(name).build(model, input_shape=shape, nb_classes=4, **options)


def dense_margin(weights, biases, x, eps, dual, prediction, adaptive):
    """The bound on the least margin of an MLP, layer by layer with dense matrices: Zhang et al. 2018, Theorem 3.2."""
    lines = []

    def bound(matrix, constant):
        """Lower bounds of `matrix @ (value after so many layers) + constant`."""
        total = constant.copy()
        for weight, bias, (low, high, offset) in zip(
            weights[len(lines) - 1 :: -1] if lines else [],
            biases[len(lines) - 1 :: -1] if lines else [],
            lines[::-1],
            strict=True,
        ):
            total += np.minimum(matrix, 0) @ offset
            matrix = np.maximum(matrix, 0) * low + np.minimum(matrix, 0) * high
            total, matrix = total + matrix @ bias, matrix @ weight
        return total + matrix @ x - eps * np.linalg.norm(matrix, dual, axis=1)

    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        low, high = bound(weight, bias), -bound(-weight, -bias)
        slope = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / (high - low)))
        unstable = (low < 0) & (high > 0)
        below = np.where(unstable, (high >= -low) * 1.0, slope) if adaptive else slope
        lines.append((below, slope, np.where(unstable, -slope * low, 0.0)))
    others = [k for k in range(len(biases[-1])) if k != prediction]
    difference = weights[-1][prediction] - weights[-1][others]
    return bound(difference, biases[-1][prediction] - biases[-1][others]).min()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_margins_are_those_of_a_dense_implementation(norm, adaptive):
    model = mlp(12, 30, 20, 15, 4)
    certifier = build("crown" if adaptive else "fast-lin", model, (3, 4), norm=norm)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights, biases = (
        [getattr(layer, name).detach().double().numpy() for layer in layers] for name in ("weight", "bias")
    )
    x = np.random.default_rng(0).uniform(size=(5, 3, 4)).astype(np.float32)
    for image, eps in itertools.product(x, [0.01, 0.1, 0.5]):
        values = certifier.network.values(torch.from_numpy(image).unsqueeze(0))
        expected = dense_margin(
            weights, biases, image.flatten().astype(float), eps, 1 if norm == math.inf else 2, 1, adaptive
        )
        assert certifier.bounds.margin(values, eps, 1, adaptive) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_short_way_through_two_convolutions_ends_where_the_long_one_does(norm, adaptive, pruned, monkeypatch):
    model = conv()
    model[5] = nn.AvgPool2d(7)
    if pruned:  # rows of all lengths, a channel without any
        with torch.no_grad():
            model[3].weight[torch.rand(model[3].weight.shape) < 0.5] = 0.0
            model[3].weight[2] = 0.0
    network = trace(model, (1, 28, 28))
    short = LinearBounds(network, norm)
    monkeypatch.setattr(linear_bounds, "_AT_ONCE", 0)
    long = LinearBounds(network, norm)
    assert [rows.through is None for rows in short._rows.values()] == [False, True]
    assert [rows.through is None for rows in long._rows.values()] == [True, True]
    for eps in (0.02, 0.2):
        values = network.values(torch.rand(1, 1, 28, 28))
        expected = long.margin(values, eps, 1, adaptive)
        assert short.margin(values, eps, 1, adaptive) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", NORMS)
def test_radius_of_an_affine_classifier_is_the_distance_to_the_boundary(name, norm):
    model = mlp(12, 4)
    x = np.random.default_rng(1).uniform(size=(6, 3, 4)).astype(np.float32)
    weight, bias = model[1].weight.detach().double().numpy(), model[1].bias.detach().double().numpy()
    for image, certificate in zip(x, build(name, model, (3, 4), norm=norm, tolerance=1e-6).certify(x), strict=True):
        logits = weight @ image.flatten().astype(float) + bias
        first = int(logits.argmax())
        distances = [
            (logits[first] - logits[k]) / np.linalg.norm(weight[first] - weight[k], 1 if norm == math.inf else 2)
            for k in range(4)
            if k != first
        ]
        assert certificate.prediction == first
        assert certificate.radius <= min(distances)
        assert certificate.radius == pytest.approx(min(distances), rel=1e-4)
        assert (certificate.norm, certificate.certifies, certificate.alpha) == (norm, "f", 0.0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_point_of_a_plane_inside_the_radius_is_named_otherwise(norm):
    model = mlp(2, 20, 20, 4, seed=3)
    x = np.random.default_rng(2).uniform(-1, 1, size=(20, 1, 2)).astype(np.float32)
    angles = np.linspace(0, 2 * np.pi, 721)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if norm == math.inf:
        ring /= np.abs(ring).max(axis=1, keepdims=True)
    reached = []
    for image, certificate in zip(x, build("crown", model, (1, 2), norm=norm).certify(x), strict=True):
        around = image.reshape(1, 2) + np.linspace(0, 3, 301)[:, None, None] * ring
        named = model(torch.from_numpy(around.reshape(-1, 1, 2)).float()).argmax(1).view(301, 721)
        changed = (named != certificate.prediction).any(1).nonzero().flatten()
        least = float(changed[0]) * 0.01 if len(changed) else 3.0
        assert certificate.radius <= least
        reached.append(certificate.radius / least)
    assert max(reached) > 0.5  # and the test would see a radius that is twice as long


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(64, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(x + self.second(x)).flatten(1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [conv, Residual])
def test_pgd_finds_nothing_inside_the_radius_of_a_convolutional_network(norm, make):
    model = make().eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    certificates = build("crown", model, (1, 8, 8), norm=norm, tolerance=0.05).certify(x.numpy())
    for image, certificate in zip(x, certificates, strict=True):
        assert certificate.radius > 0
        eps, delta = certificate.radius, torch.zeros(20, *image.shape).uniform_(-1e-3, 1e-3)
        for _ in range(30):
            delta.requires_grad_(True)
            logits = model(image + delta)
            own = logits[:, certificate.prediction]
            rest = logits.clone().scatter_(1, torch.full((20, 1), certificate.prediction), -math.inf)
            (gradient,) = torch.autograd.grad((rest.max(1).values - own).sum(), delta)
            with torch.no_grad():
                if norm == 2:
                    delta = delta + eps / 5 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(
                        1e-30
                    )
                    delta = delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
                else:
                    delta = (delta + eps / 5 * gradient.sign()).clamp(-eps, eps)
        assert (model(image + delta).argmax(1) == certificate.prediction).all()


@pytest.mark.parametrize("norm", NORMS)
def test_crown_is_never_below_fast_lin(norm):
    for seed, make, shape in [(0, lambda s: mlp(12, 40, 40, 4, seed=s), (3, 4)), (1, conv, (1, 8, 8))]:
        x = np.random.default_rng(seed).uniform(size=(12, *shape)).astype(np.float32)
        lin, crown = (build(name, make(seed), shape, norm=norm, tolerance=1e-4).certify(x) for name in NAMES)
        assert all(one.radius >= other.radius * (1 - 1e-4) for one, other in zip(crown, lin, strict=True))
        assert np.mean([one.radius for one in crown]) > 1.01 * np.mean([one.radius for one in lin])


def test_each_input_has_its_own_radius_whatever_came_before():
    model = conv()
    x = np.random.default_rng(5).uniform(size=(5, 1, 8, 8)).astype(np.float32)
    together = build("crown", model, (1, 8, 8)).certify(x, indices=[3, 1, 4, 15, 9])
    assert [certificate.index for certificate in together] == [3, 1, 4, 15, 9]
    for image, certificate in zip(x[::-1], together[::-1], strict=True):
        (alone,) = build("crown", model, (1, 8, 8)).certify(image[None])
        assert (alone.prediction, alone.radius) == (certificate.prediction, certificate.radius)


def test_labels_save_the_work_where_the_prediction_is_wrong():
    model = conv()
    x = np.random.default_rng(6).uniform(size=(4, 1, 8, 8)).astype(np.float32)
    certifier = build("fast-lin", model, (1, 8, 8))
    free = certifier.certify(x)
    y = np.array([certificate.prediction for certificate in free])
    y[1:3] = (y[1:3] + 1) % 4
    given = certifier.certify(x, y)
    assert [certificate.prediction for certificate in given] == [certificate.prediction for certificate in free]
    assert [certificate.radius > 0 for certificate in given] == [True, False, False, True]


def test_a_tie_and_a_constant_network():
    model = mlp(12, 4)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    x = np.zeros((1, 3, 4), dtype=np.float32)
    assert build("crown", model, (3, 4)).certify(x)[0].radius == 0.0
    with torch.no_grad():
        model[1].bias[1] = 0.5
    assert build("crown", model, (3, 4)).certify(x)[0].radius == 1e6  # everywhere: the search ends there


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": 1}, r"`norm` must be one of 2, inf, got 1"),
        ({"tolerance": 0}, "`tolerance` must be .*, got 0"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        build("crown", conv(), (1, 8, 8), **options)


@pytest.mark.parametrize(
    ("x", "y", "indices", "said"),
    [
        (np.zeros((2, 8, 8)), None, None, r"`x` must have shape \(m, 1, 8, 8\), got \(2, 8, 8\)"),
        (np.full((2, 1, 8, 8), np.nan), None, None, "`x` must be finite"),
        (np.zeros((2, 1, 8, 8)), [1], None, r"`y` must be class indices of shape \(2,\)"),
        (np.zeros((2, 1, 8, 8)), [0.5, 1.0], None, "`y` must be class indices"),
        (np.zeros((2, 1, 8, 8)), None, [1], "`indices` must name 2 inputs, got 1"),
        (np.zeros((1, 1, 8, 8)), None, [-1], "`indices` must be"),
    ],
)
def test_bad_input_is_named(x, y, indices, said):
    with pytest.raises(ValueError, match=said):
        build("crown", conv(), (1, 8, 8)).certify(x, y, indices=indices)


@pytest.mark.parametrize("name", ["crown", "fast-lin", "wong-kolter", "lipschitz-margin"])
@pytest.mark.parametrize(
    ("nb_classes", "said"), [(4, "must have 4 logits, got shape"), (1, "`nb_classes` must be at least 2")]
)
def test_a_network_of_another_number_of_classes_is_refused(name, nb_classes, said):
    with pytest.raises(ValueError, match=said):
        get(name).build(mlp(12, 8, 1), input_shape=(3, 4), nb_classes=nb_classes)


def test_a_network_with_other_layers_is_refused():
    with pytest.raises(UnsupportedNetwork, match="got `0` = MaxPool2d"):
        build("crown", nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4)), (1, 8, 8))


class TestLargest:
    @pytest.mark.parametrize("true", [1e-4, 0.37, 1.0, 812.0])
    @pytest.mark.parametrize("start", [1e-3, 0.1, 50.0])
    @pytest.mark.parametrize(
        "shape", [lambda r, t: t - r, lambda r, t: math.copysign(1, t - r), lambda r, t: 1 - (r / t) ** 5]
    )
    def test_is_verified_and_as_close_as_told(self, true, start, shape):
        tried = []

        def margin(radius):
            tried.append(radius)
            return shape(radius, true)

        found = largest(margin, start=start, tolerance=1e-3)
        assert found <= true <= found * 1.001 * (1 + 1e-12)
        assert found in tried
        assert len(tried) < 45

    def test_nothing_and_everything(self):
        assert largest(lambda radius: -1.0, start=1.0, tolerance=1e-3) == 0.0
        assert largest(lambda radius: 1.0, start=1.0, tolerance=1e-3, most=100.0) == 100.0
        assert largest(lambda radius: float("nan"), start=1.0, tolerance=1e-3) == 0.0
