"""Bounds on a ReLU network's values over a ball that are linear in the input, propagated backwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from art_rs_plugin.certifiers.network import Network

_AT_ONCE = 2**24  # numbers of coefficients that are propagated together


class LinearBounds:
    """Bounds on a network's margins, in the network's precision; what no ball changes is computed once.

    :param norm: Of the balls, 2 or inf.
    """

    def __init__(self, network: Network, norm: float) -> None:
        self.network, self._norm = network, norm
        self._scratch: dict[int, torch.Tensor] = {}
        self._direct = _norms_before_relus(network, norm)
        self._rows = {
            node.inputs[0]: _rows_down(network, node.inputs[0])
            for node in network.nodes
            if node.kind == "relu" and node.inputs[0] not in self._direct
        }

    def margin(self, values: list[torch.Tensor], eps: float, prediction: int, adaptive: bool) -> float:
        """A lower bound on logit `prediction` less every other, over the ball of radius `eps`.

        :param values: Of the network at the centre, as `Network.values` gives them.
        :param adaptive: Whether the lower lines of unstable ReLUs are CROWN's; else Fast-Lin's.
        """
        ball = _Ball(self.network, values, eps, self._norm, self._scratch)
        for position, node in enumerate(self.network.nodes):
            if node.kind == "relu":
                (before,) = node.inputs
                if before in self._direct:
                    low, high = ball.range_of_affine(before, self._direct[before])
                else:
                    low, high = ball.range(before, self._rows[before])
                ball.lines[position] = _lines(low, high, adaptive)
                ball.ranges[position] = low.clamp_min(0.0), high.clamp_min(0.0)
        classes = self.network.nodes[-1].shape[0]
        others = [label for label in range(classes) if label != prediction]
        margins = -torch.eye(classes, dtype=self.network.dtype)[others]
        margins[:, prediction] = 1.0
        return float(ball.bound(len(self.network.nodes) - 1, margins).min())


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
    slope = torch.where(unstable, high / (high - low).clamp_min(torch.finfo(low.dtype).tiny), active.to(low.dtype))
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

    def __init__(
        self,
        network: Network,
        values: list[torch.Tensor],
        eps: float,
        norm: float,
        scratch: dict[int, torch.Tensor],
    ) -> None:
        self._network, self._values, self._eps = network, values, eps
        self._scratch = scratch  # zeros, by the length of a row: fresh ones take longer than what is done with them
        self._dual = 1.0 if norm == math.inf else 2.0
        self.lines: dict[int, _Lines] = {}  # by the ReLU's position
        self.ranges: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of what it makes

    def range_of_affine(self, position: int, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest values of an affine function of the input whose rows have these dual norms."""
        centre = self._values[position][0]
        return centre - self._eps * norms, centre + self._eps * norms

    def range(self, position: int, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds from below and above of every entry of a value, `shape` each, from its rows further down.

        Entries whose sign follows from the ranges of what they are made of keep the bounds that those give: the line
        of a ReLU with a known sign does not depend on more.
        """
        shape = self._network.nodes[position].shape
        low, high = self._interval(rows)
        open_ = ((low < 0) & (high > 0)).nonzero().flatten()
        some = _Rows(rows.position, *(tensor[open_] for tensor in rows[1:]))
        for bounds, upper in ((low, False), (high, True)):
            parts = [self._bound_rows(part, upper) for part in self._parts(some)]
            bounds[open_] = torch.cat(parts) if parts else bounds[open_]
        return low.view(shape), high.view(shape)

    def _interval(self, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of the rows from the ranges of what they are made of; none if that is no ReLU's."""
        if rows.position not in self.ranges:
            return torch.full_like(rows.total, -math.inf), torch.full_like(rows.total, math.inf)
        low, high = (ends.flatten()[rows.entries] for ends in self.ranges[rows.position])
        above, below = rows.coefficients.clamp_min(0.0), rows.coefficients.clamp_max(0.0)
        return rows.total + (above * low + below * high).sum(1), rows.total + (above * high + below * low).sum(1)

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
        size = math.prod(node.shape)
        scratch = self._scratch.get(size)
        if scratch is None or len(scratch) < len(coefficients):
            scratch = self._scratch[size] = coefficients.new_zeros(len(coefficients), size)
        dense = scratch[: len(coefficients)].scatter_(1, rows.entries, coefficients)
        bounds = total + self.bound(before, dense.view(-1, *node.shape), upper)
        dense.scatter_(1, rows.entries, 0.0)
        return bounds

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
        low, high = _Ball(network, zeros, 1.0, norm, {}).range(position, _rows_down(network, position))
        found[position] = (high - low) / 2
    return found
