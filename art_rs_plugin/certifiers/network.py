"""A ReLU network as a graph of affine maps, ReLUs and sums, which is what deterministic certifiers can reason about.

`trace` makes it from a module by torch.fx: Linear, Conv2d, ReLU, Flatten, reshapes, batch normalisation in evaluation
mode, average pooling, residual sums, and arithmetic with constants such as standardisation.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from art_rs_plugin.core import checks

Map = Callable[[torch.Tensor], torch.Tensor]

_AFFINE = (
    nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten,
)  # fmt: skip
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode
_RESHAPES = ("flatten", "view", "reshape", "contiguous")
_LINEAR = ("avg_pool2d", "adaptive_avg_pool2d", "pad", "getitem", "mean", "sum")
_ARITHMETIC = {
    operator.add: operator.add, operator.sub: operator.sub, operator.mul: operator.mul,
    operator.truediv: operator.truediv, torch.add: operator.add, torch.sub: operator.sub, torch.mul: operator.mul,
    torch.div: operator.truediv, operator.iadd: operator.add,
}  # fmt: skip
_MODULES = ", ".join(module.__name__ for module in (*_AFFINE, nn.ReLU, *_NOTHING))


class UnsupportedNetwork(ValueError):
    """A model that is no graph of affine maps and ReLUs, as far as `trace` can tell."""


@dataclass(frozen=True)
class Affine:
    """An affine map of one value.

    :ivar apply: Values `(m, *shape before)` -> `(m, *shape)`.
    :ivar transpose: Of its linear part: coefficients `(m, *shape)` -> `(m, *shape before)`.
    :ivar constant: What it makes of zero, `shape`.
    :ivar module: The layer, if it is one.
    :ivar name: Of the layer's class, or of the operation, as in "add" or "flatten".
    """

    apply: Map
    transpose: Map
    constant: torch.Tensor
    module: nn.Module | None
    name: str


@dataclass(frozen=True)
class Node:
    """A value of the network: what it is of the values before it.

    :ivar kind: "input"; "affine", of one value; "relu", of one; or "sum", of two.
    :ivar inputs: Positions in `Network.nodes`.
    :ivar shape: Of the value at one input of the network.
    :ivar map: Which affine map.
    """

    kind: Literal["input", "affine", "relu", "sum"]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    map: Affine | None = None


@dataclass(frozen=True)
class Network:
    """Values in order of computation: the input first, the logits last."""

    nodes: tuple[Node, ...]
    dtype: torch.dtype

    def values(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every node's value at inputs `(m, *shape)`."""
        values: list[torch.Tensor] = []
        for node in self.nodes:
            before = [values[position] for position in node.inputs]
            if node.kind == "input":
                value = x.to(self.dtype)
            elif node.map is not None:
                value = node.map.apply(before[0])
            else:
                value = F.relu(before[0]) if node.kind == "relu" else before[0] + before[1]
            values.append(value)
        return values

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(m, classes)`."""
        return self.values(x)[-1]


def classifier(model: nn.Module, input_shape: Sequence[int], nb_classes: int) -> Network:
    """`trace(model, input_shape)`, if it has so many logits, and at least two; ValueError if not."""
    classes = checks.whole("nb_classes", nb_classes, minimum=2)
    network = trace(model, input_shape)
    if network.nodes[-1].shape != (classes,):
        raise ValueError(f"the model must have {classes} logits, got shape {network.nodes[-1].shape} for an input")
    return network


def trace(model: nn.Module, input_shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Network:
    """`model` in evaluation mode as a network, in `dtype` and on the CPU; a copy: the model stays as it is.

    :raises UnsupportedNetwork: Names the operation that is no affine map, ReLU or sum; or the network's logits differ
        from the model's.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", dtype)
    shape = tuple(input_shape)
    try:
        # into a layer that stands alone torch.fx would look
        graph = fx.symbolic_trace(nn.Sequential(copied) if isinstance(copied, _AFFINE) else copied)
    except Exception as error:
        raise UnsupportedNetwork(
            f"the model must be one that torch.fx can trace, got {type(error).__name__}: {error}"
        ) from error
    with torch.no_grad():
        network = Network(_Tracer(graph, shape, dtype).nodes(), dtype)
        x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        theirs, ours = copied(x), network(x)
    if ours.ndim != 2 or theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-5):
        raise UnsupportedNetwork(f"the traced network must have the model's logits, got others for {model}")
    return network


class _Tracer:
    """Turns the nodes of a torch.fx graph into ours; a constant is a tensor or a number, a value a position."""

    def __init__(self, graph: fx.GraphModule, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._graph, self._dtype = graph, dtype
        self._made = [Node("input", (), shape)]
        self._found: dict[fx.Node, Any] = {}

    def nodes(self) -> tuple[Node, ...]:
        modules = dict(self._graph.named_modules())
        for node in self._graph.graph.nodes:
            match node.op:
                case "placeholder":
                    if self._found:
                        raise UnsupportedNetwork(f"the model must take one input, got a second, `{node.name}`")
                    self._found[node] = _Value(0)
                case "get_attr":
                    self._found[node] = operator.attrgetter(node.target)(self._graph)
                case "call_module":
                    self._found[node] = self._layer(modules[node.target], self._argument(node.args[0]), node.target)
                case "call_function" | "call_method":
                    self._found[node] = self._call(node)
                case "output":
                    if self._argument(node.args[0]) != _Value(len(self._made) - 1):
                        raise UnsupportedNetwork("the model must return its last value, and that alone")
        return tuple(self._made)

    def _argument(self, argument: Any) -> Any:
        """A value, a constant, or a tuple of such."""
        if isinstance(argument, fx.Node):
            return self._found[argument]
        return tuple(map(self._argument, argument)) if isinstance(argument, (tuple, list)) else argument

    def _layer(self, module: nn.Module, value: Any, name: str) -> _Value:
        if isinstance(module, _NOTHING) and isinstance(value, _Value):
            return value
        if isinstance(module, nn.ReLU) and isinstance(value, _Value):
            return self._add(Node("relu", (value.position,), self._shape(value)))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
            raise UnsupportedNetwork(
                f"batch normalisation must be by running statistics, lest inputs depend on each other, got `{name}`"
            )
        if isinstance(module, _AFFINE) and isinstance(value, _Value):
            return self._affine(value, module, type(module).__name__, module)
        raise UnsupportedNetwork(f"a layer must be one of {_MODULES}, got `{name}` = {module}")

    def _call(self, node: fx.Node) -> Any:
        arguments = [self._argument(argument) for argument in node.args]
        options = {name: self._argument(argument) for name, argument in node.kwargs.items()}
        values = [argument for argument in arguments if isinstance(argument, _Value)]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if not values:  # arithmetic of constants
            return self._constant(node, arguments, options)
        if name in ("relu", "relu_"):
            return self._add(Node("relu", (values[0].position,), self._shape(values[0])))
        if name in ("size", "__len__", "len") or (node.target is getattr and arguments[1] == "shape"):
            return _batch_of(self._shape(values[0]), arguments[1:] if name == "size" else [])
        if name in _RESHAPES:
            return self._affine(values[0], _reshape(name, arguments[1:], options), name)
        if name == "dropout":
            return values[0]
        if name in _LINEAR:
            function, rest = node.target, arguments[1:]
            return self._affine(
                values[0],
                lambda x: function(x, *rest, **options) if callable(function) else getattr(x, name)(*rest, **options),
                name,
            )
        if node.target in _ARITHMETIC and len(arguments) == 2 and not options:
            return self._arithmetic(_ARITHMETIC[node.target], *arguments)
        raise UnsupportedNetwork(f"an operation must be an affine map, a ReLU or a sum, got `{name}` ({node})")

    def _constant(self, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        assert callable(node.target)
        return node.target(*arguments, **options)

    def _arithmetic(self, function: Callable[[Any, Any], Any], first: Any, second: Any) -> _Value:
        if isinstance(first, _Value) and isinstance(second, _Value):
            if function is operator.sub:
                second, function = self._affine(second, lambda x: -x, "neg"), operator.add
            if function is not operator.add or self._shape(first) != self._shape(second):
                raise UnsupportedNetwork(f"two values may be added if their shapes agree, got {function.__name__}")
            return self._add(Node("sum", (first.position, second.position), self._shape(first)))
        if isinstance(first, _Value):
            return self._affine(first, lambda x: function(x, second), function.__name__)
        if function is operator.truediv:
            raise UnsupportedNetwork("an operation must be an affine map, a ReLU or a sum, got a division by a value")
        return self._affine(second, lambda x: function(first, x), function.__name__)

    def _affine(self, value: _Value, function: Map, name: str, module: nn.Module | None = None) -> _Value:
        before = self._shape(value)
        zero = torch.zeros(1, *before, dtype=self._dtype)
        constant = function(zero)
        if constant.shape[:1] != (1,):
            raise UnsupportedNetwork(
                f"a value must keep its batch dimension, got {tuple(constant.shape)} for one input"
            )
        transpose = _transpose(function, module, before)
        shape = tuple(constant.shape[1:])
        affine = Affine(function, transpose, constant[0], module, name)
        return self._add(Node("affine", (value.position,), shape, affine))

    def _add(self, node: Node) -> _Value:
        self._made.append(node)
        return _Value(len(self._made) - 1)

    def _shape(self, value: _Value) -> tuple[int, ...]:
        return self._made[value.position].shape


@dataclass(frozen=True)
class _Value:
    """A value of the network, by its position."""

    position: int


class _Batch(int):
    """Size of a batch, as models read it from their input to reshape with: any."""


def _batch_of(shape: tuple[int, ...], dimension: list[Any]) -> Any:
    sizes = (_Batch(-1), *shape)
    return sizes[dimension[0]] if dimension else sizes


def _reshape(name: str, arguments: list[Any], options: dict[str, Any]) -> Map:
    if name == "contiguous":
        return lambda x: x
    if name == "flatten":
        return lambda x: torch.flatten(x, *arguments, **options)
    sizes = tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], tuple) else tuple(arguments)
    if sizes and isinstance(sizes[0], _Batch):
        rest = sizes[1:]
        return lambda x: x.reshape(len(x), *rest)
    if len(sizes) > 1 and sizes[0] == -1:  # the batch is what is left
        return lambda x: x.reshape(-1, *sizes[1:])
    raise UnsupportedNetwork(f"`{name}` must keep the batch dimension as -1 or by its size, got {sizes}")


def _transpose(function: Map, module: nn.Module | None, before: tuple[int, ...]) -> Map:
    """The transpose of the linear part of an affine map."""
    if type(module) is nn.Linear:
        weight = module.weight
        return lambda coefficients: coefficients @ weight
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        given = module.stride, module.padding, module.dilation, False, (0, 0), module.groups, (True, False, False)
        filters = module.weight

        def transposed(coefficients: torch.Tensor) -> torch.Tensor:
            like = coefficients.new_empty(1).expand(len(coefficients), *before)  # its shape is all that matters
            result: torch.Tensor = torch.ops.aten.convolution_backward(coefficients, like, filters, None, *given)[0]
            return result

        return transposed

    def by_autograd(coefficients: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            zero = coefficients.new_zeros((len(coefficients), *before), requires_grad=True)
            result: torch.Tensor = torch.autograd.grad(function(zero), zero, coefficients)[0]
        return result

    return by_autograd
