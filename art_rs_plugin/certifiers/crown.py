"""CROWN and Fast-Lin: bounds on a network's margins that are linear in the input, propagated backwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers.certifier import Certifier, largest, rows
from art_rs_plugin.certifiers.network import Network, classifier
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

# Margins below this share of the largest value in the network prove nothing: f itself is computed in float32.
_ROUNDING = 1e-6
_STEP = 1e-6  # a small radius
_AT_ONCE = 2**24  # numbers of coefficients that are propagated together


class _LinearBounds(Certifier):
    """Certifies the network's own predictions by linear bounds on the margins, see the certifiers below.

    The ball is not cut at the edges of the data's range. Bounds are computed in float64, and leave room for the
    rounding of a network that is computed in float32.

    :param norm: Of the ball, 2 or inf.
    :param tolerance: The radius is at most so much, as a share, below one at which the bounds prove nothing.
    """

    certifies: ClassVar[Literal["f", "g"]] = "f"
    adaptive: ClassVar[tuple[bool, ...]]  # whether lower lines adapt; of several ways the best counts

    def __init__(self, network: Network, norm: float = 2.0, tolerance: float = 1e-3) -> None:
        self.norm: float = checks.one_of("norm", norm, (2, math.inf))
        self.tolerance = checks.positive("tolerance", tolerance)
        self.network = network
        self._direct = _norms_before_relus(network, float(self.norm))
        self._rows = {
            node.inputs[0]: _rows_down(network, node.inputs[0])
            for node in network.nodes
            if node.kind == "relu" and node.inputs[0] not in self._direct
        }

    @classmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> _LinearBounds:
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

        def beyond(adaptive: bool, eps: float) -> float:
            return self.margin(values, eps, prediction, adaptive) - needed

        # where the margin would end if it fell everywhere as it does at the centre: bounds end somewhat before
        slope = (beyond(True, 0.0) - beyond(True, _STEP)) / _STEP
        start = max(beyond(True, 0.0) / slope / 2, _STEP) if slope > 0 else 1.0
        radius = 0.0
        for adaptive in self.adaptive:
            margin, start = partial(beyond, adaptive), radius * (1 + self.tolerance) or start
            if not radius or margin(start) > 0:
                radius = max(radius, largest(margin, start=start, tolerance=self.tolerance))
        return radius

    def margin(self, values: list[torch.Tensor], eps: float, prediction: int, adaptive: bool) -> float:
        """A lower bound on logit `prediction` less every other, over the ball of radius `eps`.

        :param values: Of the network at the centre, as `Network.values` gives them.
        :param adaptive: Whether the lower lines of unstable ReLUs are CROWN's.
        """
        ball = _Ball(self.network, values, eps, float(self.norm))
        for position, node in enumerate(self.network.nodes):
            if node.kind == "relu":
                (before,) = node.inputs
                if before in self._direct:
                    low, high = ball.range_of_affine(before, self._direct[before])
                else:
                    low, high = ball.range(before, self._rows[before])
                ball.lines[position] = _lines(low, high, adaptive)
        classes = self.network.nodes[-1].shape[0]
        others = [label for label in range(classes) if label != prediction]
        margins = -torch.eye(classes, dtype=self.network.dtype)[others]
        margins[:, prediction] = 1.0
        return float(ball.bound(len(self.network.nodes) - 1, margins).min())


class FastLin(_LinearBounds):
    """Fast-Lin (Weng et al. 2018, Section 3.3): an unstable ReLU lies between two lines of the same slope."""

    name: ClassVar[str] = "fast-lin"
    adaptive: ClassVar[tuple[bool, ...]] = (False,)


class Crown(_LinearBounds):
    """CROWN (Zhang et al. 2018, Section 3.2), with the adaptive lower lines: y = x where u >= -l, else y = 0.

    No line is best everywhere: where Fast-Lin's prove more, its radius is taken.
    """

    name: ClassVar[str] = "crown"
    adaptive: ClassVar[tuple[bool, ...]] = (True, False)


class _Lines(NamedTuple):
    """`low z <= relu(z) <= high z + offset` for every z in the range, elementwise."""

    low: torch.Tensor
    high: torch.Tensor
    offset: torch.Tensor

    def behind(self, coefficients: torch.Tensor, upper: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of z, `(k, *shape)`, and constants `(k,)` that bound those of relu(z) from below or above."""
        bent = coefficients.clamp_min(0.0) if upper else coefficients.clamp_max(0.0)  # what the upper line is for
        added = (bent * self.offset).flatten(1).sum(1)
        return torch.addcmul(coefficients * self.low, bent, self.high - self.low), added


def _lines(low: torch.Tensor, high: torch.Tensor, adaptive: bool) -> _Lines:
    active, unstable = low >= 0, (low < 0) & (high > 0)
    slope = torch.where(unstable, high / (high - low).clamp_min(1e-300), active.to(low.dtype))
    below = torch.where(unstable, (high >= -low).to(low.dtype), slope) if adaptive else slope
    return _Lines(below, slope, torch.where(unstable, -slope * low, 0.0))


class _Rows(NamedTuple):
    """A value's entries as linear functions of an earlier one, that of a ReLU: the entries of every row that are not 0.

    `entries` are the rows' positions in the flattened earlier value, `(k, most)`, `coefficients` what they are weighted
    by (0 where a row has fewer), `total` `(k,)` is added.
    """

    position: int
    entries: torch.Tensor
    coefficients: torch.Tensor
    total: torch.Tensor


def _rows_down(network: Network, position: int) -> _Rows:
    """Rows of a value, as far down as it is affine: the same for every ball, and most of the work."""
    shape = network.nodes[position].shape
    size = math.prod(shape)
    rows = torch.eye(size, dtype=network.dtype).view(size, *shape)
    total = rows.new_zeros(size)
    while (affine := network.nodes[position].map) is not None:
        total = total + rows.flatten(1) @ affine.constant.flatten()
        rows = affine.transpose(rows)
        (position,) = network.nodes[position].inputs
    rows = rows.flatten(1)
    most = max(1, int((rows != 0).sum(dim=1).max()))
    entries = rows.abs().topk(most, dim=1).indices
    return _Rows(position, entries, rows.gather(1, entries), total)


class _Ball:
    """What linear bounds say of a network's values over a ball around one input."""

    def __init__(self, network: Network, values: list[torch.Tensor], eps: float, norm: float) -> None:
        self._network, self._values, self._eps = network, values, eps
        self._dual = 1.0 if norm == math.inf else 2.0
        self.lines: dict[int, _Lines] = {}  # by the ReLU's position

    def range_of_affine(self, position: int, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest values of an affine function of the input whose rows have these dual norms."""
        centre = self._values[position][0]
        return centre - self._eps * norms, centre + self._eps * norms

    def range(self, position: int, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds from below and above of every entry of a value, `shape` each."""
        shape = self._network.nodes[position].shape
        low, high = (
            torch.cat([self._bound_rows(part, upper) for part in self._parts(rows)]) for upper in (False, True)
        )
        return low.view(shape), high.view(shape)

    def _parts(self, rows: _Rows) -> Iterator[_Rows]:
        most = max(math.prod(node.shape) for node in self._network.nodes[: rows.position + 1])
        count = max(1, _AT_ONCE // most)
        for first in range(0, len(rows.total), count):
            yield _Rows(rows.position, *(tensor[first : first + count] for tensor in rows[1:]))

    def _bound_rows(self, rows: _Rows, upper: bool) -> torch.Tensor:
        node, coefficients, total = self._network.nodes[rows.position], rows.coefficients, rows.total
        before = rows.position
        if node.kind == "relu":
            lines = _Lines(*(line.flatten()[rows.entries] for line in self.lines[rows.position]))
            coefficients, added = lines.behind(coefficients, upper)
            total, before = total + added, node.inputs[0]
        dense = coefficients.new_zeros(len(coefficients), math.prod(node.shape))
        dense.scatter_(1, rows.entries, coefficients)
        return total + self.bound(before, dense.view(-1, *node.shape), upper)

    def bound(self, position: int, coefficients: torch.Tensor, upper: bool = False) -> torch.Tensor:
        """Lower or upper bounds of linear functions of a value, `(k,)` from coefficients `(k, *shape)`."""
        found = {position: coefficients}
        total = coefficients.new_zeros(len(coefficients))
        for at in range(position, 0, -1):
            if at not in found:
                continue
            node, here = self._network.nodes[at], found.pop(at)
            if node.map is not None:
                total = total + here.flatten(1) @ node.map.constant.flatten()
                here = node.map.transpose(here)
            elif node.kind == "relu":
                here, added = self.lines[at].behind(here, upper)
                total = total + added
            for before in node.inputs:
                found[before] = found[before] + here if before in found else here
        of_input = found[0].flatten(1)
        width = self._eps * torch.linalg.vector_norm(of_input, self._dual, dim=1)
        centre: torch.Tensor = total + of_input @ self._values[0].flatten()
        return centre.add(width, alpha=1.0 if upper else -1.0)


def _norms_before_relus(network: Network, norm: float) -> dict[int, torch.Tensor]:
    """Dual norms of the rows of every value that is affine in the input, for the ReLUs that take it."""
    affine = {0}
    for position, node in enumerate(network.nodes):
        if node.kind != "relu" and all(before in affine for before in node.inputs):
            affine.add(position)
    wanted = {node.inputs[0] for node in network.nodes if node.kind == "relu"} & affine
    zeros = [torch.zeros(1, *node.shape, dtype=network.dtype) for node in network.nodes]
    found = {}
    for position in wanted:
        # at the centre 0 and without its constants, what a ball of radius 1 adds is the norm
        low, high = _Ball(network, zeros, 1.0, norm).range(position, _rows_down(network, position))
        found[position] = (high - low) / 2
    return found
