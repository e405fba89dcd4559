"""ART's deterministic certifiers of l_inf balls: DeepZ, by zonotopes, and interval bound propagation.

Both take a model apart and rebuild it of layers of their own. What they are handed here is a copy that they can take,
and what they make of it must agree with the model at the inputs to be certified.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from art_rs_plugin.certifiers import art_support
from art_rs_plugin.certifiers.certifier import Certifier, largest, rows
from art_rs_plugin.certifiers.chain import Chain, chain_of
from art_rs_plugin.certifiers.network import trace
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

Array = NDArray[np.float64]
Self = TypeVar("Self", bound="_ByConversion")

# ART computes in float32: margins below this share of the largest bound on a logit are rounding, and prove nothing
_ROUNDING = 1e-5
# and so far its network may be from the model, as a share of the largest logit
_AGREES = 1e-4
_START = 0.05  # the first radius that is tried
_MOST = 1e6  # and the last, if all is certified and the data has no range
_ROWS = 256


class _ByConversion(Certifier):
    """Certifies the network's own predictions by a converter of ART's, see the certifiers below.

    Networks are chains of Conv2d, Linear, ReLU and Flatten, with batch normalisation behind the first two, and
    standardisation at the input. The radius is bisected: ART says of one ball whether it is certified.

    :param model: In evaluation mode and float32, on the CPU.
    :param chain: The same network.
    :param clip_values: The ball is cut at this range of the data, as ART cuts it at [0, 1], and speaks of no input
        outside; None: it is not cut.
    :param tolerance: The radius is at most so much, as a share, below one at which ART proves nothing.
    :ivar estimator: ART's.
    """

    certifies: ClassVar[Literal["f", "g"]] = "f"

    def __init__(
        self,
        model: nn.Module,
        chain: Chain,
        *,
        input_shape: Sequence[int],
        nb_classes: int,
        clip_values: Sequence[float] | None = (0.0, 1.0),
        tolerance: float = 1e-3,
    ) -> None:
        self.norm = math.inf
        self.clip_values = art_support.clip_range(clip_values)
        self.tolerance = checks.positive("tolerance", tolerance)
        self.input_shape = tuple(input_shape)
        self.nb_classes = art_support.check_logits(model, input_shape, nb_classes)
        self._model, self._chain = model, chain
        # ART draws the weights of its layers before it sets them, and takes the GPU where there is one
        with art_support.silent(), art_support.seeded(0, 0), _full_precision():
            layers = copy.deepcopy(chain.layers).to("cuda:0" if torch.cuda.is_available() else "cpu")
            self.estimator = self._convert(
                model=layers, loss=nn.CrossEntropyLoss(), input_shape=chain.shape, nb_classes=self.nb_classes,
                device_type="gpu", preprocessing=None,
            )  # fmt: skip

    @classmethod
    def build(
        cls: type[Self], model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any
    ) -> Self:
        """The certifier of `model`, which stays as it is; options as in the class.

        :raises UnsupportedNetwork: ART cannot take a layer; names it.
        """
        with art_support.seeded(0, 0):  # fresh layers draw weights, which nobody uses
            chain = chain_of(trace(model, input_shape))
        own = copy.deepcopy(model).eval().to("cpu", torch.float32)
        return cls(own, chain, input_shape=input_shape, nb_classes=nb_classes, **options)

    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """See `Certifier.certify`.

        :raises ValueError: An input lies outside `clip_values`, or ART's network is not the model there.
        """
        inputs, labels, names = rows(x, self.input_shape, y, indices)
        if self.clip_values and len(inputs):
            low, high = self.clip_values
            if inputs.min() < low or inputs.max() > high:
                raise ValueError(f"`x` must be in {self.clip_values}, got {inputs.min():g} to {inputs.max():g}")
        with torch.no_grad(), art_support.silent(), _full_precision():
            logits = [self._model(torch.from_numpy(inputs[at : at + _ROWS])) for at in range(0, len(inputs), _ROWS)]
            predictions = [int(row.argmax()) for part in logits for row in part]
            differences = self._differences(inputs.astype(np.float64), logits)
            return [
                Certificate(
                    prediction=predictions[at],
                    radius=self._radius(image.astype(np.float64), predictions[at], 2 * differences[at])
                    if labels is None or labels[at] == predictions[at]
                    else 0.0,
                    index=names[at],
                    norm=self.norm,
                    certifies=self.certifies,
                    alpha=self.alpha,
                )
                for at, image in enumerate(inputs)
            ]

    def _differences(self, inputs: Array, logits: list[torch.Tensor]) -> list[float]:
        """By how much each input's logits differ in ART's network."""
        found: list[float] = []
        for part in logits:
            taken = self._chain.standardised(inputs[len(found) : len(found) + len(part)]).astype(np.float32)
            ours = part.numpy().astype(np.float64)
            theirs = [
                self.estimator.model.concrete_forward(taken).cpu().numpy(),
                np.stack([self._at(row) for row in taken]),
            ]
            off = np.max([np.abs(their - ours).max(axis=1) for their in theirs], axis=0)
            allowed = _AGREES * np.abs(ours).max(axis=1)
            bad = np.flatnonzero(~(off <= allowed))
            if len(bad):
                worst = bad[np.argmax(off[bad])]
                raise ValueError(
                    f"ART's network must be the model, but its logits differ by {off[worst]:.3g} at input "
                    f"{len(found) + worst} of `x`: ART has converted it wrongly"
                )
            found += off.tolist()
        return found

    def _radius(self, image: Array, prediction: int, slack: float) -> float:
        def margin(eps: float) -> float:
            low, high = image - eps, image + eps
            if self.clip_values:
                low, high = np.maximum(low, self.clip_values[0]), np.minimum(high, self.clip_values[1])
            ends = self._chain.standardised(np.stack([low, high]))
            return 1.0 if self._verifies(ends.min(axis=0), ends.max(axis=0), prediction, slack) else -1.0

        most = _MOST if self.clip_values is None else self.clip_values[1] - self.clip_values[0]
        return largest(margin, start=min(_START, most), tolerance=self.tolerance, most=most)

    @abstractmethod
    def _convert(self, **options: Any) -> Any:
        """ART's estimator."""

    @abstractmethod
    def _at(self, taken: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(classes,)` that ART's abstract layers make of a ball of radius 0 around what the layers take."""

    @abstractmethod
    def _verifies(self, low: Array, high: Array, prediction: int, slack: float) -> bool:
        """Whether ART certifies `prediction` by a margin above `slack` between two ends of what the layers take."""


class ArtDeepZ(_ByConversion):
    """ART's `PytorchDeepZ`: zonotopes through ReLU networks (Singh et al. 2018).

    Every number of the input is an error term, and so is every ReLU whose sign the ball leaves open: a layer of 32 768
    numbers on CIFAR-10 takes 400 MB for the first kind alone, and ART's layers loop over the second in Python.

    ART passes on unchanged what is at most 0 and reaches 0 exactly, as numbers do that a ball cut at black pixels
    touches; that is unsound. Such numbers are set to 0, as the ReLU sets them, before ART's layer sees them.
    """

    name = "art-deepz"

    def _convert(self, **options: Any) -> Any:
        from art.estimators.certification.deep_z import PytorchDeepZ, ZonoReLU

        made = PytorchDeepZ(**options)
        operations = made.model.ops
        for at, operation in enumerate(operations):
            if isinstance(operation, ZonoReLU):
                operations[at] = _SoundReLU(operation)
        return made

    def _at(self, taken: NDArray[np.float32]) -> NDArray[np.float32]:
        centre, _ = self.estimator.model.abstract_forward(taken[None], np.zeros((0, *taken.shape), np.float32))
        found: NDArray[np.float32] = centre.cpu().numpy()
        return found

    def _verifies(self, low: Array, high: Array, prediction: int, slack: float) -> bool:
        centre = ((low + high) / 2).astype(np.float32)
        width = _up(np.maximum(high - centre, centre - low)).reshape(-1)
        terms = np.diag(width).reshape(-1, *centre.shape)
        self.estimator.certify_via_subtraction = _strictly(type(self.estimator).certify_via_subtraction, slack)
        try:
            return bool(self.estimator.certify(centre[None], terms, prediction))
        finally:
            del self.estimator.certify_via_subtraction


class ArtIBP(_ByConversion):
    """ART's `PyTorchIBPClassifier`: interval bound propagation (Gowal et al. 2018).

    ART makes a matrix of every convolution, of 400 MB for one from a CIFAR-10 image to 32 768 numbers, and of 4 GB for
    the next.
    """

    name = "art-ibp"

    def _convert(self, **options: Any) -> Any:
        from art.estimators.certification.interval import PyTorchIBPClassifier

        return PyTorchIBPClassifier(**options)

    def _at(self, taken: NDArray[np.float32]) -> NDArray[np.float32]:
        bounds = self.estimator.predict_intervals(np.stack([taken, taken])[None], is_interval=True)
        found: NDArray[np.float32] = bounds[0, 0]
        return found

    def _verifies(self, low: Array, high: Array, prediction: int, slack: float) -> bool:
        ends = np.stack([-_up(-low), _up(high)])
        bounds = self.estimator.predict_intervals(ends[None], is_interval=True).astype(np.float64)
        bounds[0, 0, prediction] -= slack + _ROUNDING * np.abs(bounds).max()
        others = np.delete(bounds[0, 1], prediction)
        (by_art,) = self.estimator.certify(bounds, [prediction])
        # ART takes NaN for the largest, and of two equal bounds the first: it must also be above all others
        return bool(by_art) and bool(bounds[0, 0, prediction] > others.max())


class _SoundReLU(nn.Module):
    """ART's ReLU of zonotopes `(1 + terms, *shape)`, behind one that sees to the numbers that are never above 0."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        upper = self.operation.compute_ub(cent=x[0], eps=x[1:])
        made: torch.Tensor = self.operation(torch.where(upper <= 0, 0.0, x))
        return made

    def concrete_forward(self, x: torch.Tensor) -> torch.Tensor:
        """ReLU of numbers."""
        made: torch.Tensor = self.operation.concrete_forward(x)
        return made


def _strictly(certify: Callable[..., bool], slack: float) -> Callable[..., bool]:
    """ART's comparison of two classes, which must hold by more than `slack` and rounding."""

    def compare(*, predicted_class: int, class_to_consider: int, cent: Any, eps: Any) -> bool:
        raised = cent.astype(np.float64)
        raised[class_to_consider] += slack + _ROUNDING * float((np.abs(cent) + np.abs(eps).sum(axis=0)).max())
        return certify(predicted_class=predicted_class, class_to_consider=class_to_consider, cent=raised, eps=eps)

    return compare


def _up(values: Array) -> NDArray[np.float32]:
    """The nearest float32 above, or the same."""
    found = values.astype(np.float32)
    return np.where(found < values, np.nextafter(found, np.float32(np.inf)), found)


def _full_precision() -> Any:
    """A context in which a GPU convolves in float32 as it is."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
