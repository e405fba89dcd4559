"""Checks of a user's options: each raises a ValueError or TypeError that gives name, rule and value."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator
from typing import Any, SupportsFloat, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")


def in_unit_interval(name: str, value: SupportsFloat) -> float:
    """`value` as a float, if it lies strictly between 0 and 1; ValueError or TypeError if not."""
    number = _real(name, value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"`{name}` must be in (0, 1), got {value!r}")
    return number


def probability(name: str, value: SupportsFloat) -> float:
    """`value` as a float, if it lies between 0 and 1 or is either; ValueError or TypeError if not."""
    number = _real(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")
    return number


def finite(name: str, value: SupportsFloat) -> float:
    """`value` as a float, if it is finite; ValueError or TypeError if not."""
    number = _real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {value!r}")
    return number


def positive(name: str, value: SupportsFloat) -> float:
    """`value` as a float, if it is finite and above 0; ValueError or TypeError if not."""
    number = _real(name, value)
    if not (number > 0.0 and math.isfinite(number)):
        raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}")
    return number


def non_negative(name: str, value: SupportsFloat) -> float:
    """`value` as a float, if it is finite and at least 0; ValueError or TypeError if not."""
    number = _real(name, value)
    if not (number >= 0.0 and math.isfinite(number)):
        raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}")
    return number


def whole(name: str, value: Any, *, minimum: int = 1) -> int:
    """`value` as an int, if it is a whole number of at least `minimum`; ValueError or TypeError if not."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be a whole number, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}")
    if number < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value!r}")
    return number


def counts(name: str, values: ArrayLike, *, most: int) -> NDArray[np.int64]:
    """`values` as int64, if they are whole numbers from 0 to `most`, any shape; ValueError or TypeError if not."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`{name}` must be whole numbers, got dtype {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() <= most:
        raise ValueError(f"`{name}` must be in [0, {most}], got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def one_of(name: str, value: T, choices: Collection[T]) -> T:
    """`value`, if it is among `choices`; ValueError that lists them if not."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False; TypeError if not: 1 or "no" might not mean what they look like."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}")
    return value


def _real(name: str, value: SupportsFloat) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the largest float
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number, got {value!r}") from None


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ, dicts within dicts: the path, and what is there in either, None standing for nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif one != other:
        yield name, one, other
