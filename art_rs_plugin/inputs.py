"""What users pass as x and y, as tensors: checked once, where they enter."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


def checked_inputs(x: Any, input_shape: tuple[int, ...] | None) -> torch.Tensor:
    """Inputs as float32 (m, *input_shape), where they lie; float64 is cast once.

    :param x: An array or tensor, floating point.
    :param input_shape: None where it is not known yet.
    :raises TypeError: Not numbers, or whole numbers.
    :raises ValueError: Another shape, or a value that is not finite.
    """
    inputs = as_tensor("x", x)
    if not inputs.is_floating_point():
        raise TypeError(
            f"`x` must be floating point, got {inputs.dtype}: sigma and radius are in the unit of x; "
            "pass x / 255 for pixels from 0 to 255"
        )
    inputs = inputs.to(torch.float32)
    if inputs.ndim < 2 or (input_shape is not None and inputs.shape[1:] != input_shape):
        wanted = "(m, ...)" if input_shape is None else f"(m, {', '.join(map(str, input_shape))})"
        hint = _how_to_reach(input_shape, tuple(inputs.shape))
        raise ValueError(f"`x` must have shape {wanted}, got {tuple(inputs.shape)}{hint}")
    finite = torch.isfinite(inputs).flatten(1).all(dim=1)
    if not finite.all():
        row = int(torch.argmin(finite.to(torch.uint8)))
        raise ValueError(f"`x` must be finite, got NaN or infinity in x[{row}]")
    return inputs


def _how_to_reach(wanted: tuple[int, ...] | None, got: tuple[int, ...]) -> str:
    """What makes the wanted shape of an input of inputs of shape `got`, where that can be told."""
    if got == wanted:
        return "; pass x[None] for a single input"
    if wanted is None or len(wanted) != 3 or len(got) != 4:
        return ""
    orders = {(0, 3, 1, 2): "channels come first", (0, 2, 3, 1): "channels come last"}
    for order, meaning in orders.items():
        if tuple(got[axis] for axis in order[1:]) == wanted:
            return f"; {meaning}: pass numpy.transpose(x, {order})"
    return ""


def class_distributions(name: str, y: Any, m: int, nb_classes: int, device: torch.device) -> torch.Tensor:
    """Labels for `m` inputs as class distributions, float32 (m, nb_classes) on `device`.

    :param name: What the caller calls `y`, for its errors.
    :param y: An array or tensor: indices (m,) or (m, 1), or one row of probabilities a label (m, nb_classes).
    :raises ValueError: Another shape, an index out of range, or a row that is no distribution. A row of equal numbers,
        as ART derives from an abstention, becomes the uniform distribution with a warning.
    """
    y = as_tensor(name, y).to(device)
    y = y if y.is_floating_point() else y.long()
    if y.shape in ((m,), (m, 1)):
        y = y.reshape(m)
        wrong = (y != y.long()) | (y < 0) | (y >= nb_classes)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"`{name}` must hold classes from 0 to {nb_classes - 1}, got {y[row].item()} at {name}[{row}]"
            )
        return torch.nn.functional.one_hot(y.long(), nb_classes).float()
    if y.shape != (m, nb_classes):
        raise ValueError(f"`{name}` must have shape ({m},) or ({m}, {nb_classes}) for {m} inputs, got {tuple(y.shape)}")
    y = y.float()
    total = y.sum(dim=1)
    # ART derives labels from predict where none are given: an abstention is a zero row there, then all ones, then 1/k
    level = y[:, :1]
    known = (level == 0) | (level == 1) | (level == torch.full_like(level, 1.0 / nb_classes))
    abstained = ((y == level) & known).all(dim=1)
    wrong = ~abstained & ((y < 0).any(dim=1) | ~((total - 1).abs() < 1e-3))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"`{name}` must hold class distributions, got a row that sums to {total[row]:.6g} at {name}[{row}]"
        )
    if abstained.any():
        warnings.warn(
            f"{int(abstained.sum())} of {m} labels name no class, as after an abstention of predict: a uniform target "
            f"takes their place; pass the true labels as `{name}`",
            stacklevel=5,
        )
    return torch.where(abstained[:, None], torch.full_like(y, 1.0 / nb_classes), y)


def class_indices(distributions: torch.Tensor, purpose: str) -> torch.Tensor:
    """Class distributions (m, nb_classes) as int64 (m,); ValueError unless each names one class, as `purpose` asks."""
    top, labels = distributions.max(dim=1)
    if (top < 1.0).any():
        row = int(torch.argmin(top))
        raise ValueError(f"`y` must name one class per input to {purpose}, got {top[row]:.6g} of one at y[{row}]")
    return labels


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """An array, or what NumPy makes one of, as a tensor; a tensor as it is, without its graph."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must be an array or tensor of numbers, got dtype {array.dtype}")
    # torch wants native byte order, positive strides and memory it may write to
    return torch.from_numpy(
        np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements=["C", "W"])
    )


def warn_of_units(x: torch.Tensor, sigma: float) -> None:
    """Warn where sigma and the inputs can hardly be meant in one unit: networks meet .12 to 1 times the range of x."""
    low, high = float(x.min()), float(x.max())
    if low >= 0 and 16 < high <= 255 and sigma <= 2:
        warn_user(
            f"`sigma` = {sigma:g} is next to nothing for x, which goes up to {high:g}: sigma is in the unit of x; "
            "pass x / 255 for pixels from 0 to 255, or 255 times the sigma"
        )
    elif low >= 0 and 0 < high <= 1 and sigma >= 4:
        warn_user(
            f"`sigma` = {sigma:g} drowns x, which goes from {low:g} to {high:g}: sigma is in the unit of x; "
            "pass sigma / 255 if it is meant for pixels from 0 to 255"
        )


def warn_user(message: str) -> None:
    """Warn at the line outside of this package, and of ART, that the call came from."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "art_rs_plugin",
        "art",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def checked_indices(indices: ArrayLike | None, m: int) -> NDArray[np.int64]:
    """Names of `m` inputs' noise streams: different whole numbers of at least 0."""
    if indices is None:
        return np.arange(m)
    names = np.asarray(indices)
    if names.shape != (m,) or (m and names.dtype.kind not in "iu"):
        raise ValueError(f"`indices` must be {m} whole numbers, got shape {names.shape} and dtype {names.dtype}")
    if m and not 0 <= int(names.min()) <= int(names.max()) < 2**63:
        raise ValueError(f"`indices` must be in [0, 2^63), got {names.min()} to {names.max()}")
    values, times = np.unique(names, return_counts=True)
    if len(values) < m:
        twice = values[times > 1][0]
        raise ValueError(f"`indices` must differ: inputs of one index would share their noise, got {twice} twice")
    return names.astype(np.int64)
