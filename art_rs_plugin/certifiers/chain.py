"""A traced network as Conv2d, ReLU and Linear one after the other: all that some certifiers take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from art_rs_plugin.certifiers.network import Affine, Network, UnsupportedNetwork

_TAKEN = "Conv2d, Linear, ReLU, Flatten, BatchNorm behind a Conv2d or Linear, and standardisation at the input"


class Plain(nn.Sequential):
    """Conv2d, ReLU and Linear layers in a row, flattened before the first Linear without a layer that says so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(m, classes)`."""
        for layer in self:
            x = layer(x.flatten(1) if isinstance(layer, nn.Linear) else x)
        return x


@dataclass(frozen=True)
class Chain:
    """A network as layers behind an elementwise affine map of its input.

    :ivar scale: Of the map, in the input's shape, float64; likewise `shift`.
    :ivar shape: In which the layers take what the map makes, `(channels, height, width)` or `(numbers,)`.
    :ivar layers: In float32, on the CPU, every one with a bias: copies.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    shape: tuple[int, ...]
    layers: Plain

    def standardised(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the layers take, `(m, *shape)`, of inputs `(m, *input_shape)`."""
        return (x * self.scale + self.shift).reshape(len(x), *self.shape)


def chain_of(network: Network) -> Chain:
    """The network as a chain: a copy, with normalisation folded into the layer before it.

    :raises UnsupportedNetwork: It has another layer, or layers in another order; names the first.
    """
    shape = network.nodes[0].shape
    builder = _Builder(shape)
    for position, node in enumerate(network.nodes[1:], 1):
        if node.inputs != (position - 1,):
            found = "a residual sum" if node.kind == "sum" else f"one ({node.kind}) of an earlier value"
            raise UnsupportedNetwork(f"layers must follow one another, got {found}")
        if node.map is None:
            builder.relu()
        else:
            builder.affine(node.map, network.nodes[position - 1].shape, node.shape)
    return builder.chain(network.nodes[-1].shape)


class _Builder:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._scale = torch.ones(shape, dtype=torch.float64)
        self._shift = torch.zeros(shape, dtype=torch.float64)
        self._layers: list[nn.Module] = []
        self._entry: tuple[int, ...] = (math.prod(shape),)  # of the first layer's input, unless a convolution needs it
        self._made: tuple[int, ...] | None = None  # the shape that the layers have here; None: whichever is asked for

    def relu(self) -> None:
        if not (self._layers and isinstance(self._layers[-1], nn.ReLU)):  # ART flattens behind one, not behind two
            self._layers.append(nn.ReLU())

    def affine(self, affine: Affine, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        module = affine.module
        if type(module) is nn.Linear and len(before) == 1:
            self._layers.append(_with_bias(module, nn.Linear(module.in_features, module.out_features)))
            self._made = after
        elif type(module) is nn.Conv2d and self._fits(module, before):
            if self._made is None:
                self._entry = before
            self._layers.append(_with_bias(module, _like(module)))
            self._made = after
        elif not _reshapes(affine, before, after):
            self._elementwise(affine, before, after)

    def _fits(self, module: nn.Conv2d, before: tuple[int, ...]) -> bool:
        if module.groups != 1 or module.padding_mode != "zeros":
            raise UnsupportedNetwork(f"convolutions must be of one group and padded by zeros, got {module}")
        return self._made in (None, before) and len(before) == 3

    def _elementwise(self, affine: Affine, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        """Fold a map of each entry on its own into what comes before it."""
        found = _diagonal(affine, before) if before == after else None
        if found is not None and not self._layers:
            scale, shift = (value.reshape(self._scale.shape) for value in found)
            self._scale, self._shift = self._scale * scale, self._shift * scale + shift
            return
        layer = self._layers[-1] if self._layers else None
        if found is None or not isinstance(layer, (nn.Linear, nn.Conv2d)) or self._made is None:
            named = affine.module if affine.module is not None else f"an operation {before} -> {after}"
            raise UnsupportedNetwork(f"a layer must be one of {_TAKEN}, got {named} behind {layer or 'the input'}")
        scale, shift = (value.reshape(self._made[0], -1) for value in found)
        if not all(torch.equal(value, value[:, :1].expand_as(value)) for value in (scale, shift)):
            raise UnsupportedNetwork(f"normalisation must be by channels, got {affine.module} behind {layer}")
        assert layer.bias is not None
        layer.weight *= scale[:, 0].view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.mul_(scale[:, 0]).add_(shift[:, 0])

    def chain(self, last: tuple[int, ...]) -> Chain:
        if self._made is None or self._made != last:
            raise UnsupportedNetwork(f"the network must end with a Linear, got {self._layers[-1:] or 'none'}")
        return Chain(self._scale.numpy(), self._shift.numpy(), self._entry, Plain(*self._layers).float())


def _with_bias(module: nn.Linear | nn.Conv2d, fresh: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """`fresh` with the weights of `module`: ART gives a layer without a bias a random one, or fails."""
    fresh.double().requires_grad_(False)
    fresh.weight.copy_(module.weight)
    assert fresh.bias is not None
    fresh.bias.zero_()
    if module.bias is not None:
        fresh.bias.copy_(module.bias)
    return fresh


def _like(module: nn.Conv2d) -> nn.Conv2d:
    return nn.Conv2d(
        module.in_channels, module.out_channels, module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride, padding=module.padding, dilation=module.dilation,  # type: ignore[arg-type]
    )  # fmt: skip


def _probe(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _reshapes(affine: Affine, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a map leaves every number as it is, in its order."""
    x = _probe(before)
    return math.prod(before) == math.prod(after) and torch.equal(affine.apply(x).flatten(), x.flatten())


def _diagonal(affine: Affine, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of a map of each entry on its own, `shape`; None if it is another."""
    x = _probe(shape)
    scale = affine.apply(torch.ones_like(x))[0] - affine.constant
    if not torch.allclose(affine.apply(x)[0], scale * x[0] + affine.constant, rtol=1e-12, atol=1e-12):
        return None
    return scale, affine.constant
