"""Networks as chains of layers: the same function, or refused by the name of what is none."""

import numpy as np
import pytest
import torch
from digit_networks import CLASSES, NETWORKS, SHAPE, random_network, train
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.certifiers import UnsupportedNetwork
from art_rs_plugin.certifiers.chain import chain_of
from art_rs_plugin.certifiers.network import trace


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc2(x + torch.relu(self.fc1(x)))


FLAT = (nn.Flatten, lambda: nn.Linear(64, CLASSES))
REFUSED = {
    "MaxPool2d": (lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(16, CLASSES)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), nn.Flatten, lambda: nn.Linear(16, CLASSES)),
    "Tanh": (*FLAT, nn.Tanh),
    "a residual sum": (Residual,),
    "groups=2": (lambda: nn.Conv2d(1, 2, 1), lambda: nn.Conv2d(2, 2, 1, groups=2), nn.Flatten,
                 lambda: nn.Linear(128, CLASSES)),
    "padding_mode=circular": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), *FLAT),
    "BatchNorm1d.* behind ReLU": (*FLAT, nn.ReLU, lambda: nn.BatchNorm1d(10), lambda: nn.Linear(10, CLASSES)),
    "BatchNorm1d.* behind Conv2d": (lambda: nn.Conv2d(1, 1, 1), nn.Flatten, lambda: nn.BatchNorm1d(64),
                                    lambda: nn.Linear(64, CLASSES)),
    "Conv2d.* behind Linear": (nn.Flatten, lambda: nn.Linear(64, 64), lambda: nn.Unflatten(1, SHAPE),
                               lambda: nn.Conv2d(1, 1, 3, padding=1), *FLAT),
    "end with a Linear, got .*Conv2d": (lambda: nn.Conv2d(1, CLASSES, 8), nn.Flatten),
    "end with a Linear, got none": (nn.Flatten, lambda: nn.BatchNorm1d(64)),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_art_cannot_take_is_refused_by_name(said):
    for name in ("art-deepz", "art-ibp"):
        with pytest.raises(UnsupportedNetwork, match=said):
            certifiers.get(name).build(random_network(*REFUSED[said]), input_shape=SHAPE, nb_classes=CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_chain_is_the_network(name):
    network = train(NETWORKS[name](), epochs=1)
    chain = chain_of(trace(network, SHAPE))
    x = np.random.default_rng(0).normal(size=(8, *SHAPE))
    with torch.no_grad():
        theirs = network.double()(torch.from_numpy(x))
        ours = chain.layers.double()(torch.from_numpy(chain.standardised(x)))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert all(layer.bias is not None for layer in chain.layers if not isinstance(layer, nn.ReLU))
