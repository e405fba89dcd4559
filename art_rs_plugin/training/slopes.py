"""How steep a network is, by estimates that can be differentiated in its weights: for training, not for certificates.

`certifiers.lipschitz` bounds the same constants from above.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import fx, nn

Map = Callable[[torch.Tensor], torch.Tensor]

_AFFINE = nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten
_NOTHING = nn.Identity, nn.Dropout, nn.Dropout2d  # in evaluation mode
_RESHAPES = "flatten", "view", "reshape", "contiguous"
_MAPS = "linear", "conv2d", "avg_pool2d", "adaptive_avg_pool2d"  # of their first argument
_SUMS = operator.add, operator.iadd, torch.add
_DIFFERENCES = operator.sub, torch.sub
_SCALINGS = operator.mul, operator.truediv, torch.mul, torch.div

_GRAPHS: WeakKeyDictionary[nn.Module, fx.Graph] = WeakKeyDictionary()  # tracing takes longer than a small step


def slopes_of_pairs(
    model: nn.Module, shape: tuple[int, ...], generator: torch.Generator, iterations: int
) -> torch.Tensor:
    """Estimates of the Lipschitz constants, in l2, of the differences of any two logits, `(classes, classes)`.

    What is affine between the input, ReLUs and sums has its norm by power iteration, ReLUs have 1, sums add those of
    their terms, and of what follows the last of these the rows are subtracted (Tsuzuku et al. 2018). Iterations begin
    at random vectors and give less than the norm, the more of them the nearer. The network is taken as it will be in
    evaluation mode, batch normalisation by its running statistics; its state does not change.

    :param shape: Of one input.
    :param generator: Where the random vectors come from, on the model's device.
    :raises ValueError: The model is no graph of affine maps, ReLUs and sums; names the operation.
    """
    if model not in _GRAPHS:
        try:
            _GRAPHS[model] = fx.Tracer().trace(model)
        except Exception as error:
            raise ValueError(
                f"the model must be one that torch.fx can trace, got {type(error).__name__}: {error}"
            ) from error
    parameter = next(model.parameters())
    zero = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    logits = _Walk(model, _GRAPHS[model], generator, iterations).run(_Value(zero, zero.new_ones(()), None, zero))
    if not isinstance(logits, _Value) or logits.like.ndim != 2:
        raise ValueError("the model must return logits (n, classes), and them alone")
    start = logits.base.expand(logits.like.shape[1], *logits.base.shape[1:]).clone().requires_grad_()
    eye = torch.eye(len(start), dtype=start.dtype, device=start.device)
    (rows,) = torch.autograd.grad(logits.of(start), start, eye, create_graph=True)
    # differences one by one: a product of matrices would lose small ones to rounding
    rows = rows.flatten(1)
    distances: torch.Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances * logits.slope


def norm(function: Map, zero: torch.Tensor, generator: torch.Generator, iterations: int) -> torch.Tensor:
    """An estimate, from below, of the norm of an affine map's linear part by power iteration: a scalar.

    Differentiable in what the map is made of: its gradient is the norm's at the vector that was found.

    :param zero: Its input, zeros `(1, *shape)`.
    """
    with torch.no_grad():
        constant = function(zero)
    vector = torch.randn(zero.shape, generator=generator, dtype=zero.dtype, device=zero.device)
    for _ in range(iterations):
        vector = _unit(vector).requires_grad_()
        with torch.enable_grad():
            image = function(vector)
        (vector,) = torch.autograd.grad(image, vector, image.detach() - constant)
    found: torch.Tensor = torch.linalg.vector_norm(function(_unit(vector)) - function(zero))
    return found


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(vector)
    return vector / length.clamp_min(torch.finfo(vector.dtype).tiny)


@dataclass(frozen=True)
class _Value:
    """A value of the network: an affine map of a base, which is the input, a ReLU or a sum.

    :param base: Zeros `(1, *shape of the base)`.
    :param slope: Of the base.
    :param map: None for the identity.
    :param like: Something of the value's own shape, `(1, *shape)`.
    """

    base: torch.Tensor
    slope: torch.Tensor
    map: Map | None
    like: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The value, as a function of its base."""
        return x if self.map is None else self.map(x)

    def then(self, function: Map) -> _Value:
        with torch.no_grad():
            like = function(self.like)
        return _Value(self.base, self.slope, lambda x: function(self.of(x)), like)


class _Walk(fx.Interpreter):
    """Walks the graph of a module with `_Value`s in the place of tensors."""

    def __init__(self, model: nn.Module, graph: fx.Graph, generator: torch.Generator, iterations: int) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # it would be added to our messages
        self._generator, self._iterations = generator, iterations

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, value = self.fetch_attr(target), args[0]
        if isinstance(value, _Value):
            if isinstance(module, _NOTHING):
                return value
            if isinstance(module, nn.ReLU):
                return self._settled(value)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_var is not None:
                return value.then(_in_evaluation(module))
            if isinstance(module, _AFFINE):
                return value.then(module)
        raise _unknown(f"`{target}` = {module}")

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = [argument for argument in args if isinstance(argument, _Value)]
        name = getattr(target, "__name__", str(target))
        if not values:  # of constants, and of shapes
            return target(*args, **kwargs)
        if target is getattr and args[1] == "shape":
            return values[0].like.shape
        if name in ("relu", "relu_"):
            return self._settled(values[0])
        if name == "dropout":
            return values[0]
        if name in _RESHAPES:
            return _reshaped(values[0], target(values[0].like, *args[1:], **kwargs).shape)
        if name in _MAPS and len(values) == 1:
            return values[0].then(lambda x: target(x, *args[1:], **kwargs))
        if len(args) == 2 and not kwargs:
            return self._arithmetic(target, *args)
        raise _unknown(f"`{name}`")

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value, *rest = args
        if not isinstance(value, _Value):
            return super().call_method(target, args, kwargs)
        if target == "size":
            return value.like.size(*rest)
        if target in ("relu", "relu_"):
            return self._settled(value)
        if target in _RESHAPES:
            return _reshaped(value, getattr(value.like, target)(*rest, **kwargs).shape)
        raise _unknown(f"`{target}`")

    def _arithmetic(self, target: Any, first: Any, second: Any) -> Any:
        both = isinstance(first, _Value) and isinstance(second, _Value)
        if both and target in (*_SUMS, *_DIFFERENCES) and first.like.shape == second.like.shape:
            first, second = self._settled(first), self._settled(second)
            return _Value(first.base, first.slope + second.slope, None, first.like)
        if not both and target in (*_SUMS, *_DIFFERENCES, *_SCALINGS):
            if isinstance(first, _Value):
                return first.then(lambda x: target(x, second))
            if target not in (operator.truediv, torch.div):
                return second.then(lambda x: target(first, x))
        raise _unknown(f"`{getattr(target, '__name__', target)}`")

    def _settled(self, value: _Value) -> _Value:
        """The value as a base."""
        slope, zero = value.slope, torch.zeros_like(value.like)
        if value.map is not None:
            slope = slope * norm(value.map, value.base, self._generator, self._iterations)
        return _Value(zero, slope, None, zero)


def _reshaped(value: _Value, shape: torch.Size) -> _Value:
    if shape[0] != 1:
        raise _unknown(f"a shape of {tuple(shape)} for one input")
    return value.then(lambda x: x.reshape(len(x), *shape[1:]))


def _in_evaluation(module: nn.BatchNorm1d | nn.BatchNorm2d) -> Map:
    """Batch normalisation as it is in evaluation mode."""
    return lambda x: F.batch_norm(
        x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
    )


def _unknown(what: str) -> ValueError:
    return ValueError(f"an operation must be an affine map, a ReLU or a sum to know how steep it is, got {what}")
