"""Lipschitz margin: how far a prediction is from changing, by how fast the differences of logits can change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from art_rs_plugin.certifiers.certifier import Certifier, rows
from art_rs_plugin.certifiers.network import Affine, Network, Node, UnsupportedNetwork, classifier
from art_rs_plugin.certifiers.norms import convolution_norm, spectral_norm
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

# margins below this share of the largest logit are rounding, and prove nothing
_ROUNDING = 1e-9
_DOWN = 1.0 - 2.0**-40  # for products and sums of some thousand bounds, each to the last bit
_ROUNDING_OF_ROWS = 2.0**-40  # of what is left of a row's length where another is subtracted
_MOST = 1e6  # radii end here, as where no logit depends on the input
_AT_ONCE = 2**24  # numbers that are propagated together

# maps whose every output is a multiple of one input
_OF_ONE = (
    "BatchNorm1d", "BatchNorm2d", "Flatten", "Unflatten",
    "flatten", "view", "reshape", "contiguous", "add", "sub", "mul", "truediv", "neg",
)  # fmt: skip
_SCALINGS = ("BatchNorm2d", "mul", "truediv")
_MEANS = ("AvgPool2d", "AdaptiveAvgPool2d", "avg_pool2d", "adaptive_avg_pool2d")


class LipschitzMargin(Certifier):
    """Radius: margin over the margin's Lipschitz constant, for the nearest class (Tsuzuku et al. 2018, Proposition 1).

    The constant is bounded from above by the norms of the network's affine maps, all of them upper bounds: an affine
    map multiplies it, a ReLU leaves it, a sum adds those of its terms. For two logits the rows of the last affine map
    are subtracted first, as they do for a last layer that is linear. Affine maps that follow each other are one matrix
    where that is small, whose norm is at most the product of theirs; a convolution with a larger one is bounded by its
    Fourier transform, after a neighbouring scaling of channels, as by batch normalisation, went into its kernel. All is
    computed in float64 and rounded towards a smaller radius, and but once: an input costs a forward pass.

    :param dense: Matrices of at most so many entries are made, to know their norms exactly; more is tighter and slower.
    :ivar pairs: Upper bounds on the Lipschitz constants of the differences of logits, `(classes, classes)`.
    :raises UnsupportedNetwork: Names an operation whose norm is known for a small matrix alone.
    """

    name: ClassVar[str] = "lipschitz-margin"
    certifies: ClassVar[Literal["f", "g"]] = "f"

    @torch.no_grad()
    def __init__(self, network: Network, dense: int = 2**22) -> None:
        self.network = network
        self.dense = checks.whole("dense", dense, minimum=0)
        self.pairs = _Constants(network, self.dense).of_pairs()

    @classmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> LipschitzMargin:
        """See `Certifier.build`."""
        return cls(classifier(model, input_shape, nb_classes), **options)

    @torch.no_grad()
    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """See `Certifier.certify`; labels save no work here, and so change nothing."""
        inputs, _, names = rows(x, self.network.nodes[0].shape, y, indices)
        at_once = max(1, _AT_ONCE // sum(math.prod(node.shape) for node in self.network.nodes))
        logits = torch.cat([self.network(part) for part in torch.split(torch.from_numpy(inputs), at_once)])
        predictions = logits.argmax(1)
        return [
            Certificate(prediction=prediction, radius=radius, index=index, norm=2, certifies="f", alpha=0.0)
            for prediction, radius, index in zip(
                predictions.tolist(), self.radii(logits, predictions).tolist(), names, strict=True
            )
        ]

    def radii(self, logits: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Radii `(m,)` within which the predictions stay, from logits `(m, classes)`."""
        needed = _ROUNDING * logits.abs().amax(1, keepdim=True).clamp_min(1.0)
        margins = logits.gather(1, predictions.unsqueeze(1)) - logits - needed
        radii = torch.where(margins > 0, margins / self.pairs[predictions] * _DOWN, 0.0)
        return radii.scatter(1, predictions.unsqueeze(1), math.inf).amin(1).clamp_max(_MOST)


class _Constants:
    """Upper bounds on the Lipschitz constants of a network's values, in l2 norms."""

    def __init__(self, network: Network, dense: int) -> None:
        self._nodes, self._dense = network.nodes, dense
        self._found = {0: 1.0}
        self._dtype = network.dtype
        for position, node in enumerate(network.nodes):  # in order, lest recursion is as deep as the network
            if node.kind == "relu":
                self._found[position] = self.of(node.inputs[0])

    def of_pairs(self) -> torch.Tensor:
        """Of the differences of any two entries of the last value, `(entries, entries)`."""
        (classes,) = self._nodes[-1].shape
        found = torch.zeros(classes, classes, dtype=torch.float64)
        for base, coefficients in self._down(len(self._nodes) - 1, torch.eye(classes, dtype=self._dtype)).items():
            # differences one by one: a product of matrices would lose small ones to rounding
            distances = torch.cdist(coefficients, coefficients, compute_mode="donot_use_mm_for_euclid_dist")
            lengths = torch.linalg.vector_norm(coefficients, dim=1)
            rounding = _ROUNDING_OF_ROWS * (lengths.unsqueeze(0) + lengths.unsqueeze(1))
            found += (distances + rounding) * self.of(base)
        return found / _DOWN

    def of(self, position: int) -> float:
        """Of a value."""
        if position not in self._found:
            small = self._small(self._size(position), sum(map(self._size, self._bases(position))))
            self._found[position] = self._of_matrix(position) if small else self._of_parts(position)
        return self._found[position]

    def _of_matrix(self, position: int) -> float:
        """By the matrices that take the values of ReLUs, and the input, to this one."""
        size = self._size(position)
        at_once = max(1, _AT_ONCE // max(math.prod(node.shape) for node in self._nodes[: position + 1]))
        parts = [self._down(position, part) for part in torch.split(torch.eye(size, dtype=self._dtype), at_once)]
        return sum(spectral_norm(torch.cat([part[base] for part in parts])) * self.of(base) for base in parts[0])

    def _of_parts(self, position: int) -> float:
        """By the norms of the affine maps that lead to it one after another."""
        if self._nodes[position].kind == "sum":
            return sum(map(self.of, self._nodes[position].inputs))
        chain = []
        while self._nodes[position].map is not None:
            chain.append(position)
            (position,) = self._nodes[position].inputs
        return math.prod(self._norms(chain)) * self.of(position)

    def _down(self, position: int, coefficients: torch.Tensor) -> dict[int, torch.Tensor]:
        """Linear functions of a value, `(k, size)`, as such of the ReLUs and the input that it is affine in."""
        found = {position: coefficients.reshape(-1, *self._nodes[position].shape)}
        for at in range(position, 0, -1):
            node = self._nodes[at]
            if at in found and node.kind != "relu":
                here = found.pop(at)
                if node.map is not None:
                    here = node.map.transpose(here)
                for before in node.inputs:
                    found[before] = found[before] + here if before in found else here
        return {base: found[base].flatten(1) for base in found}

    def _bases(self, position: int) -> set[int]:
        """Positions of the ReLUs, and the input, that a value is affine in."""
        found = {position}
        for at in range(position, 0, -1):
            if at in found and self._nodes[at].kind != "relu":
                found = found - {at} | set(self._nodes[at].inputs)
        return found

    def _size(self, position: int) -> int:
        return math.prod(self._nodes[position].shape)

    def _small(self, rows: int, columns: int) -> bool:
        """Whether a matrix is one to make, row by row, which takes as many numbers as it has rows each."""
        return rows * max(columns, rows // 16) <= self._dense

    def _norms(self, chain: list[int]) -> list[float]:
        """Norms of affine maps, the last first; one that went into a convolution is left out."""
        found: dict[int, float] = {}
        for place, position in enumerate(chain):
            module = _convolution(self._nodes[position])
            if module is None:
                continue
            weight = module.weight
            after = self._channels(chain[place - 1]) if place and place - 1 not in found else None
            if after is not None:
                weight, found[place - 1] = weight * after.view(-1, 1, 1, 1), 1.0
            before = self._channels(chain[place + 1]) if place + 1 < len(chain) else None
            if before is not None:
                # group by group, its inputs
                scales = before.view(module.groups, 1, -1).expand(-1, len(weight) // module.groups, -1)
                weight, found[place + 1] = weight * scales.reshape(*weight.shape[:2], 1, 1), 1.0
            found[place] = self._of_convolution(module, weight, position)
        return [found[place] if place in found else self._norm(position) for place, position in enumerate(chain)]

    def _channels(self, position: int) -> torch.Tensor | None:
        """What an affine map multiplies the channels of images by, `(channels,)`, if it does."""
        node, before = self._nodes[position], self._nodes[self._nodes[position].inputs[0]].shape
        if node.map is None or not _known(node.map, _SCALINGS) or len(before) != 3 or node.shape != before:
            return None
        scales = _multipliers(node.map, node.shape).flatten(1)
        return scales[:, 0] if bool((scales == scales[:, :1]).all()) else None

    def _of_convolution(self, module: nn.Conv2d, weight: torch.Tensor, position: int) -> float:
        height, width = self._nodes[self._nodes[position].inputs[0]].shape[1:]
        return convolution_norm(
            weight,
            (height, width),
            stride=module.stride,
            padding=_padding(module),
            dilation=module.dilation,
            groups=module.groups,
        )

    def _norm(self, position: int) -> float:
        """Of one affine map."""
        node, (before,) = self._nodes[position], self._nodes[position].inputs
        assert node.map is not None
        module = node.map.module
        if isinstance(module, nn.Linear) and _class(module) is nn.Linear:
            return spectral_norm(module.weight)
        if _known(node.map, _OF_ONE) and self._size(position) == self._size(before):
            return float(_multipliers(node.map, node.shape).abs().max())
        if _known(node.map, _MEANS):
            # weights of one sign: the norm is at most the root of the largest row sum times the largest column sum
            ones = torch.ones(1, *self._nodes[before].shape, dtype=self._dtype)
            row = node.map.apply(ones).abs().max()
            return math.sqrt(float(row * _multipliers(node.map, node.shape).abs().max())) / _DOWN
        if self._small(self._size(position), self._size(before)):
            eye = torch.eye(self._size(position), dtype=self._dtype).view(-1, *node.shape)
            return spectral_norm(node.map.transpose(eye).flatten(1))
        raise UnsupportedNetwork(
            f"the norm of a map must be known, or its matrix have at most `dense` = {self._dense} entries, "
            f"got `{node.map.name}` from {self._nodes[before].shape} to {node.shape}"
        )


def _known(affine: Affine, names: Sequence[str]) -> bool:
    """Whether a map is among `names`: torch's own, for a subclass may do anything."""
    return affine.name in names and (affine.module is None or type(affine.module).__module__.startswith("torch.nn."))


def _class(module: nn.Module | None) -> type:
    """Of a layer; of one that torch gave parametrizations, such as spectral normalisation, what it was before."""
    return type(module).__bases__[0] if module is not None and is_parametrized(module) else type(module)


def _convolution(node: Node) -> nn.Conv2d | None:
    """The convolution of images with zeros around them that a node is, if it is one."""
    module = None if node.map is None else node.map.module
    if not isinstance(module, nn.Conv2d) or _class(module) is not nn.Conv2d or module.padding_mode != "zeros":
        return None
    return module


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Zeros above and beside an image, on the side that has more."""
    if isinstance(module.padding, str):
        kernel, dilation = module.kernel_size, module.dilation
        total = [dilation[i] * (kernel[i] - 1) if module.padding == "same" else 0 for i in (0, 1)]
        return (total[0] + 1) // 2, (total[1] + 1) // 2
    height, width = module.padding
    return height, width


def _multipliers(affine: Affine, shape: Sequence[int]) -> torch.Tensor:
    """The sum of each column of an affine map: where outputs are multiples of one input each, these."""
    return affine.transpose(torch.ones(1, *shape, dtype=affine.constant.dtype))[0]
