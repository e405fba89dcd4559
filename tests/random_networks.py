"""Layers and networks with random weights, and the matrices of linear ones."""

import math

import numpy as np
import torch
from torch import nn


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def matrix_of(function, shape):
    """The matrix of the linear part of a map of one input: (outputs, inputs), float64."""
    eye = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return (function(eye) - function(torch.zeros_like(eye))).flatten(1).T.numpy()


def norm_of(function, shape):
    return np.linalg.norm(matrix_of(function, shape), 2)


def randomised(model, seed=0, scale=1.0):
    """`model` in evaluation mode with random weights and statistics of batches, in float64."""
    generator = seeded(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale
                fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 1
                tensor.data = drawn.abs() + 0.3 if name == "running_var" else drawn / math.sqrt(fan_in)
    return model.double().eval()


class Wrapped(nn.Module):
    """function(model, x)."""

    def __init__(self, function, model):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)
