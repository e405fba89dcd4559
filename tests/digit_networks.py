"""Small networks for the 8 x 8 digits, trained in a second."""

import random

import numpy as np
import torch
from torch import nn

from art_rs_plugin.experiments import datasets
from art_rs_plugin.experiments.models import Normalize

SHAPE, CLASSES = (1, 8, 8), 10


def digits(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images and labels."""
    return datasets.load("digits", split).arrays(range(count))


def cnn(channels: int = 1) -> nn.Sequential:
    """Convolutions without a bias, with batch normalisation and standardisation, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        Normalize(channels, (0.3,) * channels, (0.37,) * channels),
        nn.Conv2d(channels, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, CLASSES),
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def random_network(*layers, seed=1):
    """Layers in a row after a few steps of normalisation, so that its running statistics are some."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(layer() for layer in layers))
    model(torch.rand(32, *SHAPE))
    return model.eval()


class Functional(nn.Module):
    """ReLUs and reshapes that are no modules, which ART by itself drops."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 3, 3), nn.Linear(108, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = torch.relu(self.conv((x - 0.5) / 0.25))
        return self.fc2(nn.functional.relu(self.fc1(x.view(x.size(0), -1))))


NETWORKS = {
    "cnn": cnn,
    "mlp": mlp,
    "functional": lambda: random_network(Functional),
    "dilated, strided, no bias": lambda: random_network(
        lambda: nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), bias=False),
        lambda: nn.BatchNorm2d(4), nn.ReLU, nn.ReLU,
        lambda: nn.Conv2d(4, 3, 3, padding="same"), nn.Flatten, nn.ReLU,
        lambda: nn.Linear(108, 12, bias=False), lambda: nn.BatchNorm1d(12), nn.Dropout, nn.ReLU,
        lambda: nn.Linear(12, CLASSES), nn.Identity,
    ),
    "normalised first": lambda: random_network(
        nn.Flatten, lambda: nn.BatchNorm1d(64), lambda: nn.Unflatten(1, SHAPE), lambda: nn.Conv2d(1, 2, 5),
        nn.Flatten, lambda: nn.Linear(32, CLASSES), nn.ReLU,
    ),
    "relu first": lambda: random_network(
        lambda: Normalize(1, (0.5,), (0.5,)), nn.ReLU, nn.Flatten, lambda: nn.Linear(64, CLASSES)
    ),
}  # fmt: skip


def train(model: nn.Module, epochs: int = 6) -> nn.Module:
    """`model` after plain training, in evaluation mode."""
    x, y = map(torch.from_numpy, digits("train", 1200))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval()


def global_states() -> tuple:
    """Of all generators that ART draws from."""
    legacy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), legacy[1].tobytes(), legacy[2:], torch.get_rng_state().numpy().tobytes()
