"""CROWN and Fast-Lin: the largest ball over which linear bounds prove that a network's answer stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers.certifier import Certifier, largest, rows
from art_rs_plugin.certifiers.linear_bounds import LinearBounds
from art_rs_plugin.certifiers.network import Network, classifier
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

# Margins below this share of the largest value in the network prove nothing: f itself is computed in float32.
_ROUNDING = 1e-6
_STEP = 1e-6  # a small radius


class _ByLinearBounds(Certifier):
    """Certifies the network's own predictions by linear bounds on the margins, see the certifiers below.

    The ball is not cut at the edges of the data's range. Bounds are computed in float64, and leave room for the
    rounding of a network that is computed in float32.

    :param norm: Of the ball, 2 or inf.
    :param tolerance: The radius is at most about so much, as a share, below one at which the bounds prove nothing.
    """

    certifies: ClassVar[Literal["f", "g"]] = "f"
    adaptive: ClassVar[tuple[bool, ...]]  # whether lower lines adapt; of several ways the best counts

    def __init__(self, network: Network, norm: float = 2.0, tolerance: float = 1e-3) -> None:
        self.norm: float = checks.one_of("norm", norm, (2, math.inf))
        self.tolerance = checks.positive("tolerance", tolerance)
        self.network, self.bounds = network, LinearBounds(network, float(norm))

    @classmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> _ByLinearBounds:
        return cls(classifier(model, input_shape, nb_classes), **options)

    @torch.no_grad()
    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        inputs, labels, names = rows(x, self.network.nodes[0].shape, y, indices)
        made, known = [], [None] * len(names) if labels is None else labels.tolist()
        for image, label, index in zip(torch.from_numpy(inputs), known, names, strict=True):
            values = self.network.values(image.unsqueeze(0))
            prediction = int(values[-1].argmax())
            radius = self._radius(values, prediction) if label in (None, prediction) else 0.0
            made.append(
                Certificate(prediction=prediction, radius=radius, index=index, norm=self.norm, certifies="f", alpha=0.0)
            )
        return made

    def _radius(self, values: list[torch.Tensor], prediction: int) -> float:
        needed = _ROUNDING * max(float(value.abs().max()) for value in values)
        first, second = values[-1][0].topk(2).values.tolist()
        if first - second <= needed:
            return 0.0

        def beyond(adaptive: bool, eps: float) -> float:
            return self.bounds.margin(values, eps, prediction, adaptive) - needed

        # bounds end some way before the margin would if it fell everywhere as it does at the centre
        slope = (first - second - beyond(self.adaptive[0], _STEP)) / _STEP
        start = max((first - second) / slope / 6, _STEP) if slope > 0 else 1.0
        radius = 0.0
        for adaptive in self.adaptive:
            margin, at = partial(beyond, adaptive), radius * (1 + self.tolerance) or start
            if not radius or margin(at) > 0:
                radius = max(radius, largest(margin, start=at, tolerance=self.tolerance))
        return radius


class FastLin(_ByLinearBounds):
    """Fast-Lin (Weng et al. 2018, Section 3.3): an unstable ReLU lies between two lines of the same slope."""

    name: ClassVar[str] = "fast-lin"
    adaptive: ClassVar[tuple[bool, ...]] = (False,)


class Crown(_ByLinearBounds):
    """CROWN (Zhang et al. 2018, Section 3.2), with the adaptive lower lines: y = x where u >= -l, else y = 0.

    No line is best everywhere: where Fast-Lin's prove more, its radius is taken.
    """

    name: ClassVar[str] = "crown"
    adaptive: ClassVar[tuple[bool, ...]] = (True, False)
