"""Lipschitz constants of networks by hand: what norms they are made of, what folding saves, what is refused."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_networks import Wrapped, norm_of, randomised, seeded
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from art_rs_plugin.certifiers import UnsupportedNetwork, get
from art_rs_plugin.certifiers.network import trace
from art_rs_plugin.experiments import models

LIPSCHITZ = get("lipschitz-margin")
INPUT = (2, 7, 6)


def certifier(model, shape=INPUT, classes=3, **options):
    return LIPSCHITZ.build(model, input_shape=shape, nb_classes=classes, **options)


class TestComposition:
    """By hand: what a chain of norms gives, and what folding saves."""

    def test_a_layer_alone(self):
        model = randomised(nn.Linear(6, 3))
        weight = model.weight.detach().numpy()
        assert float(certifier(model, (6,)).pairs[0, 1]) == pytest.approx(np.linalg.norm(weight[0] - weight[1]))

    def test_norms_are_multiplied_and_added(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

            def forward(self, x):
                return self.c(F.relu(x + self.b(F.relu(self.a(x)))))

        model = randomised(Net())
        a, b, c = (layer.weight.detach().numpy() for layer in (model.a, model.b, model.c))
        before = 1 + np.linalg.norm(b, 2) * np.linalg.norm(a, 2)
        for dense in (0, 2**22):
            pairs = certifier(model, (6,), dense=dense).pairs.numpy()
            assert pairs[0, 2] == pytest.approx(np.linalg.norm(c[0] - c[2]) * before, rel=1e-9)

    def test_what_joins_without_a_relu_is_added_first(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 3)

            def forward(self, x):
                return self.c(F.relu(self.b(x - self.a(x))))

        model = randomised(Net())
        a, b, c = (layer.weight.detach().numpy() for layer in (model.a, model.b, model.c))
        pairs = certifier(model, (6,)).pairs.numpy()
        expected = np.linalg.norm(c[1] - c[2]) * np.linalg.norm(b @ (np.eye(6) - a), 2)
        assert pairs[1, 2] == pytest.approx(expected, rel=1e-9)
        apart = np.linalg.norm(c[1] - c[2]) * np.linalg.norm(b, 2) * (1 + np.linalg.norm(a, 2))
        assert certifier(model, (6,), dense=0).pairs.numpy()[1, 2] == pytest.approx(apart, rel=1e-9)

    def test_scalings_of_channels_go_into_a_convolution(self):
        """The bound is that of the scaled kernel, hence at most the product, and here well below it."""
        model = randomised(
            nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
                          nn.Flatten(), nn.Linear(6 * 64, 2))
        )  # fmt: skip
        shape = (4, 8, 8)
        pair = float(certifier(model, shape, 2, dense=0).pairs[0, 1])
        last = np.linalg.norm(np.subtract(*model[5].weight.detach().numpy()))
        exact = norm_of(model[:3], shape)
        apart = norm_of(model[0], shape) * norm_of(model[1], shape) * norm_of(model[2], (6, 8, 8))
        assert exact <= pair / last <= 1.15 * exact < 0.8 * apart
        assert float(certifier(model, shape, 2).pairs[0, 1]) == pytest.approx(exact * last, rel=1e-9)

    @pytest.mark.parametrize(
        "layer",
        [
            nn.AvgPool2d(2), nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(),
            nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 3, 2, padding="same"), nn.Linear(6, 4),
        ],
        ids=str,
    )  # fmt: skip
    def test_of_one_layer(self, layer):
        """Between ReLUs, without a matrix: no less than the norm, and close to it; overlapping pooling is the worst."""
        layer = randomised(layer)
        size = math.prod(layer(torch.zeros(1, *INPUT, dtype=torch.float64)).shape[1:])
        model = randomised(nn.Sequential(nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.Linear(size, 2)), 5)
        last = np.linalg.norm(np.subtract(*model[4].weight.detach().numpy()))
        exact = norm_of(model[1], INPUT)
        bound = float(certifier(model, classes=2, dense=0).pairs[0, 1]) / last
        assert exact * (1 - 1e-12) <= bound <= 1.4 * exact

    def test_a_scaling_between_convolutions_goes_into_one_of_them(self):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(),
                              nn.Linear(18, 2))  # fmt: skip
        model = randomised(model)
        model[1].weight.data /= 100
        last = np.linalg.norm(np.subtract(*model[5].weight.detach().numpy()))
        exact = norm_of(model[:3], INPUT)
        assert exact <= float(certifier(model, classes=2, dense=0).pairs[0, 1]) / last <= 5 * exact

    @pytest.mark.parametrize("after", [False, True])
    def test_a_scaling_of_pixels_goes_into_no_convolution(self, after):
        scales = 1.0 + torch.arange(42.0).view(7, 6)  # the first is the least
        conv = randomised(nn.Conv2d(2, 2, 3, padding=1))
        function = (lambda conv, x: conv(x) * scales) if after else (lambda conv, x: conv(x * scales))
        head = nn.Sequential(nn.ReLU(), nn.Flatten(), randomised(nn.Linear(84, 2)))
        model = Wrapped(lambda parts, x: parts[1](function(parts[0], x)), nn.ModuleList([conv, head]))
        last = np.linalg.norm(np.subtract(*head[2].weight.detach().numpy()))
        exact = norm_of(lambda x: function(conv, x), INPUT)
        assert exact <= float(certifier(model, classes=2, dense=0).pairs[0, 1]) / last <= 2 * exact

    def test_a_kernel_as_wide_as_an_image_less_one_zero(self):
        """Differences of neighbours, with a zero at one end: 2 cos(pi / 15) for 7 pixels, and less on a torus of 7."""
        conv = nn.Conv2d(1, 1, (1, 2), padding="same", bias=False)
        conv.weight.data = torch.tensor([[[[1.0, -1.0]]]])
        model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), randomised(nn.Linear(7, 2)))
        last = np.linalg.norm(np.subtract(*model[3].weight.detach().numpy()))
        bound = float(certifier(model, (1, 1, 7), 2, dense=0).pairs[0, 1]) / last
        assert 2 * math.cos(math.pi / 15) <= bound <= 2 * (1 + 1e-9)

    @pytest.mark.parametrize("dense", [0, 2**22])
    def test_of_layers_that_torch_normalises(self, dense):
        model = nn.Sequential(orthogonal(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
        last = np.linalg.norm(np.subtract(*model[2].weight.detach().numpy()))
        assert float(certifier(model, (6,), 2, dense=dense).pairs[0, 1]) == pytest.approx(last, rel=1e-5)

    @pytest.mark.parametrize(
        ("function", "factor"),
        [
            (lambda x: x / torch.tensor([0.5, 0.25]).view(2, 1, 1), 4.0), (lambda x: 3 - 2 * x, 2.0),
            (lambda x: x + torch.arange(6.0), 1.0), (lambda x: x.view(-1, 3, 28), 1.0),
        ],
    )  # fmt: skip
    def test_of_arithmetic(self, function, factor):
        head = randomised(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(84, 2)))
        last = np.linalg.norm(np.subtract(*head[2].weight.detach().numpy()))
        made = certifier(Wrapped(lambda head, x: head(function(x)), head), classes=2, dense=0)
        assert float(made.pairs[0, 1]) == pytest.approx(factor * last, rel=1e-9)


class TestRefusals:
    def test_an_operation_whose_norm_is_not_known(self):
        """Mirrored borders: a matrix where that is small."""
        layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
        model = randomised(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(84, 2)))
        last = np.linalg.norm(np.subtract(*model[3].weight.detach().numpy()))
        pair = float(certifier(model, classes=2).pairs[0, 1])
        assert pair == pytest.approx(last * norm_of(layer.double(), INPUT), rel=1e-9)
        with pytest.raises(UnsupportedNetwork, match=r"at most `dense` = 100 entries, got `Conv2d` from \(2, 7"):
            certifier(model, classes=2, dense=100)

    def test_a_map_of_somebodys_own_is_known_by_its_matrix_alone(self):
        """A subclass may do anything; torch leaves it in one piece here because of its parametrization."""

        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(orthogonal(Doubled(6, 5)), nn.ReLU(), nn.Linear(5, 2))
        last = np.linalg.norm(np.subtract(*model[2].weight.detach().numpy()))
        assert float(certifier(model, (6,), 2).pairs[0, 1]) == pytest.approx(2 * last, rel=1e-5)
        with pytest.raises(UnsupportedNetwork, match="got `ParametrizedDoubled` from"):
            certifier(model, (6,), 2, dense=0)

    def test_a_constant_that_makes_an_image_larger(self):
        head = nn.Sequential(nn.ReLU(), nn.Flatten(), randomised(nn.Linear(126, 2)))
        model = Wrapped(lambda head, x: head(x * torch.tensor([1.0, 2.0, 2.0]).view(3, 1, 1)), head)
        last = np.linalg.norm(np.subtract(*head[2].weight.detach().numpy()))
        pair = float(certifier(model, (1, 7, 6), 2).pairs[0, 1])
        assert pair == pytest.approx(3 * last, rel=1e-9)
        with_convolution = Wrapped(
            lambda parts, x: parts[1](parts[0](x * torch.ones(3, 1, 1))), nn.ModuleList([nn.Conv2d(3, 3, 1), head])
        )
        for refused in (model, with_convolution):
            with pytest.raises(UnsupportedNetwork, match="got `mul` from"):
                certifier(refused, (1, 7, 6), 2, dense=0)

    def test_other_networks_and_options(self):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(84, 3))
        with pytest.raises(UnsupportedNetwork, match="MaxPool2d"):
            certifier(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)))
        with pytest.raises(UnsupportedNetwork, match=r"by running statistics, lest .*, got `0`"):
            certifier(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), linear))
        with pytest.raises(ValueError, match=re.escape("the model must have 4 logits, got shape (3,) for an input")):
            certifier(linear, classes=4)
        with pytest.raises(ValueError, match="`nb_classes` must be at least 2, got 1"):
            certifier(nn.Sequential(nn.Flatten(), nn.Linear(84, 1)), classes=1)
        with pytest.raises(ValueError, match="`dense` must be at least 0, got -1"):
            certifier(linear, dense=-1)
        with pytest.raises(ValueError, match="`x` must have shape"):
            certifier(linear).certify(np.zeros((1, 84)))


def test_networks_by_name_of_real_size():
    """The small CNN on CIFAR-10's shape has no small matrix but the last: its bound is above slopes that are there."""
    model = models.build("small-cnn", input_shape=(3, 32, 32), nb_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    made = LIPSCHITZ.build(model, input_shape=(3, 32, 32), nb_classes=10)
    network, x = trace(model, (3, 32, 32)), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, x).view(10, -1)
    steep = torch.cdist(jacobian, jacobian)
    assert (steep <= made.pairs).all()
    product = np.prod(list(norms_by_power_iteration(model)))
    assert float(made.pairs.max()) <= 1.2 * product * math.sqrt(2)


def norms_by_power_iteration(model):
    """Norms of the layers, from below: of 1 / std, the convolutions at their sizes, the pooling and the head."""
    yield 4.0
    for layer, shape in ((model[1].conv1, (3, 32, 32)), (model[1].conv2, (32, 16, 16)), (model[1].pool, (64, 16, 16)),
                         (model[1].fc, (1024,))):  # fmt: skip
        x = torch.randn(1, *shape, generator=seeded(0))
        for _ in range(60):
            x = x / x.norm()
            _, product = torch.autograd.functional.vjp(layer, x, layer(x) - layer(torch.zeros_like(x)))
            x, norm = product, product.norm().sqrt()
        yield float(norm)
