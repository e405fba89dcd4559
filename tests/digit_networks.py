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
