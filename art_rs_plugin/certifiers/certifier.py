"""What a certifier is, whoever makes it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

Norm = float | Literal["patch"]
Self = TypeVar("Self", bound="Certifier")


class Certifier(ABC):
    """Certifies the predictions of one classifier.

    :cvar name: Under which `certifiers.get` finds it.
    :cvar certifies: "f", the network as it is, or "g", the network smoothed by noise.
    :cvar channels: Its network takes so many times the channels of an image.
    :ivar norm: Of its radii: 2, inf, or "patch" for the side of a square of pixels.
    :ivar alpha: Bounds the probability that a certificate is false; 0.0 for a deterministic certifier.
    """

    name: ClassVar[str]
    certifies: ClassVar[Literal["f", "g"]]
    channels: ClassVar[int] = 1
    norm: Norm = 2.0
    alpha: float = 0.0

    @classmethod
    @abstractmethod
    def build(
        cls: type[Self], model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any
    ) -> Self:
        """The certifier of `model`, x `(m, *input_shape)` in the unit of the data -> logits `(m, nb_classes)`.

        :param options: The certifier's own.
        :raises ValueError: An option is unfit, or the model is none that it can certify; says why.
        :raises ImportError: An optional package is missing; names the extra that installs it.
        """

    @abstractmethod
    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """The prediction at every input of `x` `(m, *input_shape)`, float32, and its radius.

        :param y: Labels `(m,)`, if known: an input that is named otherwise counts as wrong whatever its radius, so that
            a certifier may save itself the work and give it radius 0.
        :param indices: The inputs' places in their data set, for the certificates; 0, 1, ... if None. Noise depends on
            them.
        """


class UpperBound(ABC):
    """Says how far a classifier is from being fooled at most: what an attack found, and no certificate.

    :cvar name: Under which `certifiers.get` finds it.
    :ivar certifies: Which classifier is fooled: "f", or "g", the smoothed one.
    :ivar norm: Of the distances: 2 or inf.
    """

    name: ClassVar[str]
    certifies: Literal["f", "g"]
    norm: float

    @classmethod
    @abstractmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> UpperBound:
        """As `Certifier.build`."""

    @abstractmethod
    def distances(self, x: ArrayLike, y: ArrayLike, *, indices: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Length of the shortest perturbation found that changes the answer from the label, `(m,)`.

        0 where the answer at the input itself is not the label, inf where nothing was found. Parameters as in
        `Certifier.certify`.
        """


def rows(
    x: ArrayLike, input_shape: Sequence[int], y: ArrayLike | None, indices: Sequence[int] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None, list[int]]:
    """`x`, `y` and `indices` of a call of `certify`, checked.

    :raises ValueError: Another shape, a value that is not finite, or as many labels or indices as there are inputs not.
    """
    inputs = np.ascontiguousarray(x, dtype=np.float32)  # torch takes no reversed array
    if inputs.shape[1:] != tuple(input_shape) or inputs.ndim != len(input_shape) + 1:
        raise ValueError(f"`x` must have shape (m, {', '.join(map(str, input_shape))}), got {inputs.shape}")
    if not np.isfinite(inputs).all():
        raise ValueError("`x` must be finite, got NaN or infinity")
    labels = None if y is None else np.asarray(y)
    if labels is not None and (labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"`y` must be class indices of shape ({len(inputs)},), got {labels.dtype} of shape {labels.shape}"
        )
    names = (
        list(range(len(inputs)))
        if indices is None
        else [checks.whole("indices", index, minimum=0) for index in indices]
    )
    if len(names) != len(inputs):
        raise ValueError(f"`indices` must name {len(inputs)} inputs, got {len(names)}")
    return inputs, None if labels is None else labels.astype(np.int64), names


def largest(
    margin: Callable[[float], float], *, start: float, tolerance: float, most: float = 1e6, steps: int = 60
) -> float:
    """The largest radius that is verified, by false position between one that is and one that is not.

    What is returned was itself verified; whether all smaller radii would be is not asked. A margin that says no more
    than its sign makes it bisection.

    :param margin: radius -> above 0 if it is verified.
    :param start: First guess, above 0.
    :param tolerance: The search ends once a radius that failed is at most `1 + tolerance` times one that is verified.
    :param most: Where the search ends if all is verified.
    :return: 0.0 if none of `steps` radii was verified.
    """
    good, bad, radius = 0.0, math.inf, min(start, most)
    above = below = 0.0  # the margins there, the one that stays halved (the Illinois rule)
    last = 0
    for _ in range(steps):
        value = margin(radius)
        if value > 0:
            good, above, below, last = radius, value, below / 2 if last == 1 else below, 1
        else:
            bad, below, above, last = radius, value, above / 2 if last == -1 else above, -1
        if good >= most or bad <= good * (1 + tolerance):
            break
        if bad == math.inf:
            radius = min(2 * good, most)
        elif not good:
            radius = bad / 2
        else:
            share = above / (above - below) if math.isfinite(above - below) and above > below else 0.5
            # a little beyond the zero on its far side, lest one end creeps
            edge = max(0.02, tolerance / 2 * good / (bad - good)) if bad - good > tolerance * good else 0.5
            radius = good + (bad - good) * min(max(share, min(edge, 0.5)), 1 - min(edge, 0.5))
    return good
