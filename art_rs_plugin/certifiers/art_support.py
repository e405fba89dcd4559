"""What the adapters of ART's estimators share: ART's global random generators, its voice, its training."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers.certifier import Certifier, rows
from art_rs_plugin.core import checks
from art_rs_plugin.noise import Purpose, derived_seed, fresh_seed

Self = TypeVar("Self", bound="TrainedByArt")
Schedule = Callable[[torch.optim.Optimizer], Any]
"""Makes the scheduler of an optimizer; ART steps it after every epoch."""


@contextlib.contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """The global generators of random, numpy and torch, which ART draws from, in a state that (seed, position) names.

    Afterwards they are as they were before.
    """
    words = [int(word) for word in np.random.SeedSequence(seed, spawn_key=(position,)).generate_state(12)]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            random.seed(words[0] << 32 | words[1])
            torch.manual_seed(words[2] << 32 | words[3])
            np.random.seed(words[4:])  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Shows nothing of what ART prints, warns and draws as progress, which no option turns off. Errors are raised."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def device_type(model: nn.Module) -> str:
    """What ART calls the device that a model is on."""
    return "gpu" if any(parameter.is_cuda for parameter in model.parameters()) else "cpu"


def check_logits(model: nn.Module, input_shape: Sequence[int], nb_classes: int) -> int:
    """`nb_classes`, if the model makes that many logits of inputs `(m, *input_shape)`, and at least two.

    :raises ValueError: It does not, or fails.
    """
    classes = checks.whole("nb_classes", nb_classes, minimum=2)
    at = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    shape = tuple(input_shape)
    try:
        with torch.no_grad():
            found = tuple(model(torch.zeros(2, *shape, device=at)).shape)
    except Exception as error:
        raise ValueError(
            f"the model must take inputs (m, {', '.join(map(str, shape))}), got {type(error).__name__}: {error}"
        ) from error
    if found != (2, classes):
        hint = "; give a model of one logit a second" if found in ((2,), (2, 1)) else ""
        raise ValueError(f"the model must make logits (m, {classes}), got {found} for m = 2{hint}")
    return classes


def clip_range(clip_values: Sequence[float] | None) -> tuple[float, float] | None:
    """`clip_values` as two numbers, the lesser first, or None; ValueError or TypeError if they are neither."""
    if clip_values is None:
        return None
    numbers = tuple(checks.finite("clip_values", value) for value in clip_values)
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"`clip_values` must be two numbers, the lesser first, or None, got {clip_values!r}")
    return numbers[0], numbers[1]


class TrainedByArt(Certifier):
    """Certifies a smoothed network by an estimator of ART's, which can also train it.

    :ivar model: The base classifier, in evaluation mode. It is ART's to train and to move.
    :ivar estimator: ART's.
    """

    certifies: ClassVar[Literal["f", "g"]] = "g"

    def __init__(
        self, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, batch_size: int, seed: int | None
    ) -> None:
        self.model = model
        self.input_shape, self.nb_classes = tuple(input_shape), nb_classes
        self.batch_size = checks.whole("batch_size", batch_size)
        self.seed = None if seed is None else checks.whole("seed", seed, minimum=0)
        self._fits = 0
        with silent():
            self.estimator = self._estimator(None)

    @classmethod
    def build(
        cls: type[Self], model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any
    ) -> Self:
        """The certifier of a copy of `model`, options as in the class; to train by `fit`, or as it is."""
        return cls(copy.deepcopy(model).eval(), input_shape=input_shape, nb_classes=nb_classes, **options)

    def fit(
        self: Self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int,
        batch_size: int = 128,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        scheduler: Schedule | None = None,
    ) -> Self:
        """Train the base classifier by ART's own `fit`, by SGD with momentum 0.9; a fresh optimizer for every call.

        :param x: Inputs `(m, *input_shape)`.
        :param y: Labels `(m,)`.
        :param scheduler: Makes the learning rate's scheduler of the optimizer, e.g. `partial(StepLR, step_size=30)`.
        :raises ValueError: An option or a label is out of range, a batch too small, or ART cannot train this network.
        :raises RuntimeError: Training left weights that are not finite.
        """
        self._check_fit()
        inputs, labels, _ = rows(x, self.input_shape, y, None)
        checks.whole("epochs", epochs)
        least = 2 * self._parts
        if min(checks.whole("batch_size", batch_size), len(inputs)) < least:
            raise ValueError(f"a batch must have at least {least} inputs, got {min(batch_size, len(inputs))}")
        if labels is None or labels.min() < 0 or labels.max() >= self.nb_classes:
            raise ValueError(f"`y` must be classes below {self.nb_classes}, got {y!r}")
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=checks.positive("lr", lr),
            momentum=0.9,
            weight_decay=checks.non_negative("weight_decay", weight_decay),
        )
        seed = fresh_seed() if self.seed is None else derived_seed(self.seed, Purpose.TRAINING)
        with silent(), seeded(seed, self._fits):
            self.estimator = self._estimator(optimizer)
            self.estimator.fit(
                inputs,
                labels,
                batch_size=batch_size,
                nb_epochs=epochs,
                # ART fails on a last batch of one input, or of fewer than it cuts a batch into
                drop_last=len(inputs) % batch_size < least,
                scheduler=None if scheduler is None else scheduler(optimizer),
            )
        self._fits += 1
        self.model.eval()
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise RuntimeError("ART's training diverged: not all weights are finite; try a smaller `lr`")
        return self

    @abstractmethod
    def _estimator(self, optimizer: torch.optim.Optimizer | None) -> Any:
        """ART's estimator of the model."""

    def _check_fit(self) -> None:
        """Raise ValueError if ART cannot train this network."""

    @property
    def _parts(self) -> int:
        """Into how many parts ART cuts a batch when it trains."""
        return 1
