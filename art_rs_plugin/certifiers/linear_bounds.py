"""Bounds on a ReLU network's values over a ball that are linear in the input, propagated backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import norm as norm_of_rows

from art_rs_plugin.certifiers.network import Network

_AT_ONCE = 2**24  # numbers of coefficients that are propagated together


class LinearBounds:
    """Bounds on a network's margins, in the network's precision; what no ball changes is computed once.

    :param norm: Of the balls, 2 or inf.
    """

    def __init__(self, network: Network, norm: float) -> None:
        self.network = network
        self._dual = 1.0 if norm == math.inf else 2.0  # the order of the dual norm
        affine = _affine_in_input(network)
        before_relus = [node.inputs[0] for node in network.nodes if node.kind == "relu"]
        of_input = {at: _matrix(network, at, 0)[0] for at in before_relus if at in affine}
        norms = {at: norm_of_rows(rows, ord=self._dual, axis=1) for at, rows in of_input.items()}
        self._direct = {at: torch.from_numpy(found) for at, found in norms.items()}
        self._rows = {at: _rows_down(network, at, of_input) for at in before_relus if at not in affine}

    def margin(self, values: list[torch.Tensor], eps: float, prediction: int, adaptive: bool) -> float:
        """A lower bound on logit `prediction` less every other, over the ball of radius `eps`.

        :param values: Of the network at the centre, as `Network.values` gives them.
        :param adaptive: Whether the lower lines of unstable ReLUs are CROWN's; else Fast-Lin's.
        """
        ball = _Ball(self.network, values, eps, self._dual)
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

    def behind(self, coefficients: torch.Tensor, upper: bool, axes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of z, and what is added, that bound those of relu(z) from below or above.

        :param axes: How many stand before those of z.
        """
        bent = coefficients.clamp_min(0.0) if upper else coefficients.clamp_max(0.0)  # what the upper line is for
        added = (bent * self.offset).flatten(axes).sum(axes)
        return torch.addcmul(coefficients * self.low, bent, self.high - self.low), added


def _lines(low: torch.Tensor, high: torch.Tensor, adaptive: bool) -> _Lines:
    active, unstable = low >= 0, (low < 0) & (high > 0)
    slope = torch.where(unstable, high / (high - low).clamp_min(torch.finfo(low.dtype).tiny), active.to(low.dtype))
    below = torch.where(unstable, (high >= -low).to(low.dtype), slope) if adaptive else slope
    return _Lines(below, slope, torch.where(unstable, -slope * low, 0.0))


class _Rows(NamedTuple):
    """A value's entries as linear functions of an earlier one; those that are made of the same entries are a group.

    Rows are filled up with zeros to the longest, groups to the largest.

    :ivar position: Of the earlier value.
    :ivar places: In the flattened value, `(groups, rows)`; its size, which is none of them, where a group is filled up.
    :ivar entries: Places in the flattened earlier value, `(groups, entries)`.
    :ivar coefficients: What they are weighted by, `(groups, rows, entries)`.
    :ivar total: What is added, `(groups, rows)`.
    :ivar through: What the entries are made of before their ReLU, `(groups, entries, inputs)`, each group of inputs of
        its own: if that is affine in the input, and this way the shorter one.
    """

    position: int
    places: torch.Tensor
    entries: torch.Tensor
    coefficients: torch.Tensor
    total: torch.Tensor
    through: torch.Tensor | None


def _rows_down(network: Network, position: int, of_input: dict[int, csr_array]) -> _Rows:
    """Rows of a value, as far down as it is affine: the same for every ball, and most of the work."""
    down = position
    while network.nodes[down].map is not None:
        (down,) = network.nodes[down].inputs
    matrix, total = _matrix(network, position, down)
    groups: dict[bytes, list[int]] = {}
    for row, (first, last) in enumerate(pairwise(matrix.indptr)):
        groups.setdefault(matrix.indices[first:last].tobytes(), []).append(row)
    rows = list(groups.values())
    entries = [matrix.indices[matrix.indptr[some[0]] : matrix.indptr[some[0] + 1]] for some in rows]
    weights = [matrix[some][:, of] for some, of in zip(rows, entries, strict=True)]
    before = network.nodes[down].inputs[0]
    return _Rows(
        down,
        _filled([np.array(some) for some in rows], len(total)),
        _filled([of.astype(np.int64) for of in entries], 0),
        _filled([some.toarray() for some in weights], 0.0),
        _filled([total[some] for some in rows], 0.0),
        _through(of_input[before], entries) if network.nodes[down].kind == "relu" and before in of_input else None,
    )


def _through(of_input: csr_array, entries: list[NDArray[np.int32]]) -> torch.Tensor | None:
    """`_Rows.through`; None if it is longer than to go through all of the network."""
    parts = [of_input[of] for of in entries]
    inputs = [np.unique(part.indices) for part in parts]
    size = max(part.shape[0] for part in parts) * max(map(len, inputs))
    if size > of_input.nnz or size * len(parts) > _AT_ONCE:
        return None
    return _filled([part[:, of].toarray() for part, of in zip(parts, inputs, strict=True)], 0.0)


def _filled(arrays: list[NDArray[Any]], value: float) -> torch.Tensor:
    """Arrays of the same number of axes in one, filled up with `value`."""
    most = np.max([array.shape for array in arrays], axis=0)
    filled = np.full((len(arrays), *most), value, arrays[0].dtype)
    for one, array in zip(filled, arrays, strict=True):
        one[tuple(map(slice, array.shape))] = array
    return torch.from_numpy(filled)


def _affine_in_input(network: Network) -> set[int]:
    affine = {0}
    for position, node in enumerate(network.nodes):
        if node.kind != "relu" and all(before in affine for before in node.inputs):
            affine.add(position)
    return affine


def _matrix(network: Network, position: int, down: int) -> tuple[csr_array, NDArray[np.float64]]:
    """A value as an affine function of an earlier one, both flattened: rows, and what is added to each."""
    shape, parts, totals = network.nodes[position].shape, [], []
    size = math.prod(shape)
    count = max(1, _AT_ONCE // max(math.prod(node.shape) for node in network.nodes[down : position + 1]))
    for first in range(0, size, count):
        rows = torch.from_numpy(np.eye(min(count, size - first), size, first)).to(network.dtype)
        found, total = _backwards(network, position, rows.view(-1, *shape), down)
        parts.append(csr_array(found.flatten(1).numpy()))
        totals.append(total.numpy())
    return csr_array(vstack(parts)), np.concatenate(totals)


def _backwards(
    network: Network,
    position: int,
    coefficients: torch.Tensor,
    down: int,
    relu: Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear functions of a value, `(k, *shape)`, as such of the value `down`, and what is added, `(k,)`.

    :param relu: (position, coefficients of what a ReLU makes) -> of what it takes, and what is added.
    """
    found = {position: coefficients}
    total = coefficients.new_zeros(len(coefficients))
    for at in range(position, down, -1):
        if at not in found:
            continue
        node, here = network.nodes[at], found.pop(at)
        if node.map is not None:
            total = total + here.flatten(1) @ node.map.constant.flatten()
            here = node.map.transpose(here)
        elif node.kind == "relu":
            assert relu is not None, "none on the way"
            here, added = relu(at, here)
            total = total + added
        for before in node.inputs:
            found[before] = found[before] + here if before in found else here
    return found[down], total


class _Ball:
    """What linear bounds say of a network's values over a ball around one input."""

    def __init__(self, network: Network, values: list[torch.Tensor], eps: float, dual: float) -> None:
        self._network, self._values, self._eps, self._dual = network, values, eps, dual
        self.lines: dict[int, _Lines] = {}  # by the ReLU's position
        self.ranges: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of what it makes

    def range_of_affine(self, position: int, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest values of an affine function of the input whose rows have these dual norms."""
        centre = self._values[position][0]
        width = self._eps * norms.view(centre.shape)
        return centre - width, centre + width

    def range(self, position: int, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds from below and above of every entry of a value, `shape` each, from its rows further down.

        Entries whose sign follows from the ranges of what they are made of keep the bounds that those give: the line
        of a ReLU with a known sign does not depend on more.
        """
        shape = self._network.nodes[position].shape
        least, greatest = self._interval(rows)
        open_ = (least < 0) & (greatest > 0)
        bounded = self._through(rows, rows.through) if rows.through is not None else self._all_the_way(rows, open_)
        made = []
        for known, bound in zip((least, greatest), bounded, strict=True):
            flat = known.new_zeros(math.prod(shape) + 1)  # one more for what fills groups up
            flat[rows.places] = torch.where(open_, bound, known)
            made.append(flat[:-1].view(shape))
        return made[0], made[1]

    def _interval(self, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of the rows from the ranges of what they are made of; none if that is no ReLU's."""
        if rows.position not in self.ranges:
            return torch.full_like(rows.total, -math.inf), torch.full_like(rows.total, math.inf)
        low, high = (ends.flatten()[rows.entries].unsqueeze(2) for ends in self.ranges[rows.position])
        above, below = rows.coefficients.clamp_min(0.0), rows.coefficients.clamp_max(0.0)
        least, greatest = above @ low + below @ high, above @ high + below @ low
        return rows.total + least.squeeze(2), rows.total + greatest.squeeze(2)

    def _through(self, rows: _Rows, through: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of the rows, one ReLU above values that are affine in the input."""
        lines = _Lines(*(line.flatten()[rows.entries].unsqueeze(1) for line in self.lines[rows.position]))
        centre = self._values[self._network.nodes[rows.position].inputs[0]].flatten()[rows.entries].unsqueeze(2)
        bounds = []
        for upper in (False, True):
            coefficients, added = lines.behind(rows.coefficients, upper, axes=2)
            width = self._eps * torch.linalg.vector_norm(coefficients @ through, self._dual, dim=2)
            total = rows.total + added + (coefficients @ centre).squeeze(2)
            bounds.append(total.add(width, alpha=1.0 if upper else -1.0))
        return bounds[0], bounds[1]

    def _all_the_way(self, rows: _Rows, open_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of the rows that are open, by way of the whole network; zeros for others."""
        shape = self._network.nodes[rows.position].shape
        group, row = open_.nonzero(as_tuple=True)
        low, high = torch.zeros_like(rows.total), torch.zeros_like(rows.total)
        count = max(1, _AT_ONCE // max(math.prod(node.shape) for node in self._network.nodes[: rows.position + 1]))
        for some in zip(torch.split(group, count), torch.split(row, count), strict=True):
            dense = rows.total.new_zeros(len(some[0]), math.prod(shape))
            dense.scatter_add_(1, rows.entries[some[0]], rows.coefficients[some])
            for bounds, upper in ((low, False), (high, True)):
                bounds[some] = rows.total[some] + self.bound(rows.position, dense.view(-1, *shape), upper)
        return low, high

    def bound(self, position: int, coefficients: torch.Tensor, upper: bool = False) -> torch.Tensor:
        """Lower or upper bounds of linear functions of a value, `(k,)` from coefficients `(k, *shape)`."""
        of_input, total = _backwards(
            self._network, position, coefficients, 0, lambda at, here: self.lines[at].behind(here, upper)
        )
        rows = of_input.flatten(1)
        width = self._eps * torch.linalg.vector_norm(rows, self._dual, dim=1)
        centre: torch.Tensor = total + rows @ self._values[0].flatten()
        return centre.add(width, alpha=1.0 if upper else -1.0)
