"""Traced networks: the model's own logits, and transposes that are transposes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from art_rs_plugin.certifiers.network import UnsupportedNetwork, trace
from art_rs_plugin.experiments import models


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(12, 4)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        return self.last(F.avg_pool2d(x, 2).view(x.size(0), -1))


class Arithmetic(nn.Module):
    """What a user may write without layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("scale", torch.linspace(0.5, 2, 8))

    def forward(self, x):
        x = (x.reshape(-1, 8) - 0.3) / self.scale
        hidden = self.layer(x).relu()
        hidden += 2 * hidden
        return 1 - F.pad(hidden - x, (0, 1))[:, 1:]


def residual():
    torch.manual_seed(0)
    return Residual(), (2, 4, 4)


def pooled():
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3, stride=2, padding=1, dilation=1), nn.ReLU(inplace=True), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Identity(), nn.Linear(16, 3)), (1, 7, 7)


def grouped():
    torch.manual_seed(2)
    layers = (
        nn.Conv2d(4, 4, 3, groups=2, padding="same"),
        nn.ReLU(),
        nn.Conv2d(4, 2, 2, padding_mode="circular", padding=1),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * 36, 3)), (4, 5, 5)


def arithmetic():
    torch.manual_seed(3)
    return Arithmetic(), (2, 4)


def resnet():
    torch.manual_seed(4)
    return models.build("resnet20", input_shape=(3, 16, 16), nb_classes=10, mean=[0.4] * 3, std=[0.2, 0.3, 0.1]), (
        3,
        16,
        16,
    )


SUBJECTS = {make.__name__: make for make in (residual, pooled, grouped, arithmetic, resnet)}


@pytest.mark.parametrize("name", SUBJECTS)
class TestTrace:
    def test_gives_the_models_logits_in_evaluation_mode_and_leaves_it_as_it_is(self, name):
        model, shape = SUBJECTS[name]()
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        network = trace(model, shape)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert next(iter(model.parameters())).dtype == torch.float32
        x = torch.rand(3, *shape)
        with torch.no_grad():
            torch.testing.assert_close(network(x).float(), model.eval()(x), rtol=1e-4, atol=1e-4)

    def test_maps_are_affine_and_their_transposes_transposed(self, name):
        model, shape = SUBJECTS[name]()
        network = trace(model, shape)
        generator = torch.Generator().manual_seed(5)
        for node in network.nodes:
            if node.map is None:
                continue
            before = network.nodes[node.inputs[0]].shape
            x = torch.randn(3, *before, generator=generator, dtype=torch.float64)
            c = torch.randn(3, *node.shape, generator=generator, dtype=torch.float64)
            linear = node.map.apply(x) - node.map.constant
            torch.testing.assert_close(node.map.apply(2 * x) - node.map.constant, 2 * linear)
            one, other = (linear * c).flatten(1).sum(1), (x * node.map.transpose(c)).flatten(1).sum(1)
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Tanh(nn.Module):
    def forward(self, x):
        return torch.tanh(x.flatten(1))


class Product(nn.Module):
    def forward(self, x):
        x = x.flatten(1)
        return x * x


class Division(nn.Module):
    def forward(self, x):
        return 1 / x.flatten(1)


class Branches(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Early(nn.Module):
    def forward(self, x):
        first = x.flatten(1)
        F.relu(first)
        return first


class Mixing(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), r"a layer must be one of Linear, .*, got `0` = MaxPool2d"),
        (nn.Sequential(nn.Flatten(), nn.Sigmoid()), r"got `1` = Sigmoid\(\)"),
        (Tanh(), "must be an affine map, a ReLU or a sum, got `tanh`"),
        (Product(), "two values may be added if their shapes agree, got mul"),
        (Division(), "got a division by a value"),
        (Branches(), "one that torch.fx can trace, got TraceError"),
        (Early(), "must return its last value"),
        (Mixing(), "`reshape` must keep the batch dimension"),
        (nn.Sequential(nn.Bilinear(3, 3, 2)), "a layer must be one of"),
    ],
)
def test_what_is_no_relu_network_is_refused_by_name(model, said):
    with pytest.raises(UnsupportedNetwork, match=said):
        trace(model, (1, 4, 4))


def test_a_model_that_is_not_what_was_traced_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1) * self.calls

    with pytest.raises(UnsupportedNetwork, match="must have the model's logits"):
        trace(Counting(), (1, 2, 2))


def test_math_of_the_shapes():
    network = trace(resnet()[0], (3, 16, 16))
    assert network.nodes[0].shape == (3, 16, 16)
    assert network.nodes[-1].shape == (10,)
    assert sum(node.kind == "sum" for node in network.nodes) == 9
    assert all(math.prod(node.shape) > 0 for node in network.nodes)
