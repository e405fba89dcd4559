"""ART's DeepZ and IBP: closed forms, attacks that must fail, and conversions that must be refused."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from digit_networks import CLASSES, NETWORKS, SHAPE, cnn, digits, global_states, mlp, train
from scipy.optimize import brentq
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.experiments.models import Normalize

NAMES = ("art-deepz", "art-ibp")
TOLERANCE = 1e-3


def build(name, model, input_shape=SHAPE, nb_classes=CLASSES, **options):
    return certifiers.get(name).build(model, input_shape=input_shape, nb_classes=nb_classes, **options)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """Trained, in evaluation mode."""
    return train(NETWORKS[request.param](), epochs=3)


@pytest.fixture(scope="module")
def images():
    return digits("test", 6)


def attacked(model, x, label, radius):
    """Whether an input of [0, 1] within the radius has another label: corners of the ball, then PGD."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(400, *x.shape)).astype(np.float32)
    low, high = np.maximum(x - radius, 0), np.minimum(x + radius, 1)
    tried = [np.where(signs > 0, high, low)]
    point = torch.from_numpy(np.concatenate([x[None].repeat(4, 0), tried[0][:4]]))
    bounds = torch.from_numpy(low.astype(np.float32)), torch.from_numpy(high.astype(np.float32))
    for _ in range(30):
        point.requires_grad_()
        logits = model(point)
        others = logits.index_fill(1, torch.tensor(label), -math.inf)
        (gradient,) = torch.autograd.grad((others.amax(1) - logits[:, label]).sum(), point)
        point = torch.clamp(point.detach() + radius / 6 * gradient.sign(), *bounds)
    tried.append(point.numpy())
    with torch.no_grad():
        return bool((model(torch.from_numpy(np.concatenate(tried)).float()).argmax(1) != label).any())


def test_no_attack_succeeds_within_a_certified_ball(network, images):
    x, _ = images
    radii = {}
    for name in NAMES:
        made = build(name, network).certify(x)
        with torch.no_grad():
            assert [c.prediction for c in made] == network(torch.from_numpy(x)).argmax(1).tolist()
        assert not any(attacked(network, image, c.prediction, c.radius) for image, c in zip(x, made, strict=True))
        radii[name] = np.array([c.radius for c in made])
    assert (radii["art-deepz"] >= radii["art-ibp"] * (1 - TOLERANCE)).all()
    assert radii["art-deepz"].max() > 5e-3
    # the attack is one that finds something
    assert any(attacked(network, image, c.prediction, 0.4) for image, c in zip(x, made, strict=True))


def affine(std=None):
    """One layer of random weights, and, as arrays, its weights and bias in the unit of the data."""
    torch.manual_seed(4)
    layer = nn.Linear(6, 4)
    model = nn.Sequential(layer) if std is None else nn.Sequential(Normalize(2, (0.4, 0.6), std), nn.Flatten(), layer)
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    if std is None:
        return model, (6,), weight, bias
    scale = np.repeat(np.float32(std).astype(float), 3)
    mean = np.repeat(np.float32([0.4, 0.6]).astype(float), 3)
    return model, (2, 1, 3), weight / scale, bias - weight @ (mean / scale)


@pytest.mark.parametrize("clip_values", [None, (0.0, 1.0)])
@pytest.mark.parametrize("std", [None, (0.25, 3.0)])
@pytest.mark.parametrize("name", NAMES)
def test_an_affine_network_gets_the_radius_of_its_weights(name, std, clip_values):
    model, shape, weight, bias = affine(std)
    x = np.random.default_rng(1).random((5, *shape), dtype=np.float32)
    x[0].flat[:3] = (0.0, 1.0, 0.0)  # where cutting the ball counts
    for certificate, image in zip(build(name, model, shape, 4, clip_values=clip_values).certify(x), x, strict=True):
        flat = image.reshape(-1).astype(float)
        logits = weight @ flat + bias
        top = int(logits.argmax())

        def margin(eps, flat=flat, top=top):
            low, high = (flat - eps, flat + eps) if clip_values is None else np.clip([flat - eps, flat + eps], 0, 1)

            def least(row):
                return np.minimum(row * low, row * high).sum()

            def worst(other):
                if name == "art-deepz":  # exact: of the difference
                    return least(weight[top] - weight[other]) + bias[top] - bias[other]
                return least(weight[top]) + bias[top] + least(-weight[other]) - bias[other]  # of each by itself

            return min(worst(other) for other in range(4) if other != top)

        exact = brentq(margin, 0, 100) if margin(100) < 0 else None
        if clip_values is None:
            norms = np.abs(weight).sum(1)
            by_hand = min(
                (logits[top] - logits[other])
                / (np.abs(weight[top] - weight[other]).sum() if name == "art-deepz" else norms[top] + norms[other])
                for other in range(4) if other != top
            )  # fmt: skip
            assert exact == pytest.approx(by_hand)
        assert certificate.prediction == top
        if exact is None:
            assert certificate.radius == 1.0  # all of the data's range
        else:
            assert exact * (1 - 2 * TOLERANCE) < certificate.radius < exact


def by_hand(layers, low, high, top, zonotope):
    """The least margin of `top` that intervals, or zonotopes, give two layers of weights and biases."""
    centre, terms = (low + high) / 2, np.diag((high - low) / 2)
    for at, (weight, bias) in enumerate(layers):
        if at:
            spread = np.abs(terms).sum(0)
            below, above = centre - spread, centre + spread
            if zonotope:  # the parallelogram around a ReLU of least area (Singh et al. 2018, Theorem 3.1)
                slope = np.where(below >= 0, 1.0, np.where(above <= 0, 0.0, above / np.maximum(above - below, 1e-300)))
                half = np.where((below < 0) & (above > 0), -slope * below / 2, 0.0)
                centre, terms = slope * centre + half, np.concatenate([slope * terms, np.diag(half)])
            else:
                ends = np.maximum(below, 0), np.maximum(above, 0)
                centre, terms = (ends[0] + ends[1]) / 2, np.diag((ends[1] - ends[0]) / 2)
        centre, terms = weight @ centre + bias, terms @ weight.T
        if not zonotope:
            terms = np.diag(np.abs(terms).sum(0))
    others = np.delete(np.arange(len(centre)), top)
    return (centre[top] - centre[others] - np.abs(terms[:, [top]] - terms[:, others]).sum(0)).min()


@pytest.mark.parametrize("name", NAMES)
def test_a_radius_is_that_of_a_second_implementation(name, images):
    x, _ = images
    model = train(mlp())
    layers = [(model[at].weight.detach().double().numpy(), model[at].bias.detach().double().numpy()) for at in (1, 3)]
    for certificate, image in zip(build(name, model).certify(x), x, strict=True):
        flat = image.reshape(-1).astype(float)

        def margin(eps, flat=flat, top=certificate.prediction):
            return by_hand(layers, *np.clip([flat - eps, flat + eps], 0, 1), top, name == "art-deepz")

        exact = brentq(margin, 0, 1)
        assert exact * (1 - 2 * TOLERANCE) < certificate.radius < exact


def test_what_a_certificate_says():
    x, _ = digits("test", 5)
    model = train(mlp(), epochs=2)
    with torch.no_grad():
        predictions = model(torch.from_numpy(x)).argmax(1).numpy()
    for name in NAMES:
        certifier = build(name, model)
        made = certifier.certify(x, indices=range(10, 15))
        assert {(c.norm, c.certifies, c.alpha) for c in made} == {(math.inf, "f", 0.0)}
        assert [c.index for c in made] == [10, 11, 12, 13, 14]
        assert all(c.radius > 0 for c in made)
        assert certifier.certify(x[::-1], indices=range(14, 9, -1)) == made[::-1]
        wrong = predictions.copy()
        wrong[1] = (wrong[1] + 1) % CLASSES
        assert [c.radius > 0 for c in certifier.certify(x, wrong)] == [True, False, True, True, True]
        assert certifier.certify(x[:0]) == []


@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_are_not_certified(name):
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight[:] = layer.weight[0].clone()
        layer.bias[:] = 0.0
    for bias, radius in [((0.0, 0.0, 0.0), 0.0), ((0.0, 1.0, 1.0), 0.0)]:
        layer.bias.data[:] = torch.tensor(bias)
        (certificate,) = build(name, nn.Sequential(layer), (3,), 3).certify([[0.2, 0.5, 0.7]])
        assert certificate.radius == radius
    constant = nn.Linear(3, 3)
    torch.nn.init.zeros_(constant.weight)
    torch.nn.init.zeros_(constant.bias)
    (certificate,) = build(name, nn.Sequential(constant), (3,), 3).certify([[0.2, 0.5, 0.7]])
    assert (certificate.prediction, certificate.radius) == (0, 0.0)


def test_what_a_cut_ball_leaves_at_zero_is_no_margin():
    # logits of 0.1 - relu(x) - relu(-x) against 0: at x = 0 the radius is 0.1. Of the ball that is cut at 0, -x reaches
    # 0 and no more, and ART by itself takes -x for relu(-x), so that the two cancel and all is certified
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    for layer, weight, bias in [(first, [[1.0], [-1.0]], [0.0, 0.0]), (last, [[-1.0, -1.0], [0.0, 0.0]], [0.1, 0.0])]:
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    for name in NAMES:
        (certificate,) = build(name, nn.Sequential(first, nn.ReLU(), last), (1,), 2).certify([[0.0]])
        assert certificate.prediction == 0
        assert 0.09 < certificate.radius <= 0.1


def test_bounds_that_are_no_numbers_certify_nothing():
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    for layer, weight, bias in [(first, [[1e30]], [0.0]), (last, [[0.0], [1e30]], [1.0, 0.0])]:
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    for name in NAMES:
        (certificate,) = build(name, nn.Sequential(first, nn.ReLU(), last), (1,), 2, clip_values=None).certify([[0.0]])
        assert (certificate.prediction, certificate.radius) == (0, pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize("name", NAMES)
def test_the_users_model_and_the_global_generators_stay_as_they_are(name, capsys):
    model = cnn()
    before, states = copy.deepcopy(model.state_dict()), global_states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(name, model).certify(digits("test", 1)[0])
    assert global_states() == states
    assert capsys.readouterr() == ("", "")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["concrete and abstract", "abstract"])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_conversion_is_refused(name, kind, images, monkeypatch):
    x, _ = images
    certifier = build(name, train(cnn(), epochs=1))
    right = certifier.certify(x[:2])
    operation = certifier.estimator.model.ops[2]
    weight = operation.conv.weight if name == "art-deepz" else operation.dense_weights
    if kind == "abstract":
        abstract = type(operation).forward
        monkeypatch.setattr(operation, "forward", lambda x: 1.01 * abstract(operation, x))
        monkeypatch.setattr(type(operation), "__call__", lambda self, x: self.forward(x))
    else:
        weight.data[0] += 0.05
    with pytest.raises(ValueError, match=r"its logits differ by \S+ at input \d+ of `x`"):
        certifier.certify(x[:2])
    if kind != "abstract":
        weight.data[0] -= 0.05
        assert [c.prediction for c in certifier.certify(x[:2])] == [c.prediction for c in right]


def test_unfit_options_and_inputs_are_refused():
    for name in NAMES:
        for options, message in [
            ({"clip_values": (1.0,)}, "`clip_values` must be two numbers"),
            ({"tolerance": 0.0}, "`tolerance` must be"),
            ({"nb_classes": 9}, r"logits \(m, 9\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                build(name, mlp(), **options)
        with pytest.raises(ValueError, match=r"`x` must be in \(0.0, 1.0\), got 0 to 1.5"):
            build(name, mlp()).certify(np.linspace(0, 1.5, 64).reshape(1, *SHAPE))
