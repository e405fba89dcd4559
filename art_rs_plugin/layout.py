"""Where channels lie in memory: last, which convolutions are fastest with, unless the model needs them first.

A model that takes a `view` of its activations, such as `x.view(len(x), -1)` before a linear layer, needs them first:
with channels last there is no such view, and torch says so. Torch's `contiguous` and `is_contiguous` see no difference
where there is one channel; its convolutions, which go by strides, do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from art_rs_plugin.votes import Forward


def tried(forward: Forward, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """`forward(x)`, without gradients, and whether images (m, channels, height, width) must have channels first for it.

    What it raises for images with channels first it raises here.
    """
    with torch.no_grad():
        if x.ndim != 4:
            return forward(x), False
        try:
            return forward(x.to(memory_format=torch.channels_last)), False
        except RuntimeError:
            return forward(with_channels_first(x)), True


def with_channels_first(x: torch.Tensor) -> torch.Tensor:
    """Images with channels first, a copy where they are not."""
    return x.flatten(1).view(x.shape)


@contextmanager
def weights_with_channels_last(model: torch.nn.Module) -> Iterator[None]:
    """Convolutions have weights with channels last, and then as they were again; values stay."""
    before = [(parameter, parameter.stride()) for parameter in model.parameters() if parameter.ndim == 4]
    for parameter, _ in before:
        parameter.data = parameter.data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, stride in before:
            if parameter.stride() != stride:
                parameter.data = torch.empty_strided(
                    parameter.shape, stride, dtype=parameter.dtype, device=parameter.device
                ).copy_(parameter.data)
