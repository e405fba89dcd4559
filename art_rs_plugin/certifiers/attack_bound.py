"""What attacks find: for every input a perturbation that fools the classifier, an upper bound on any true radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import ArrayLike, NDArray
from torch import nn

from art_rs_plugin.attacks import SmoothedPGD, evaluate_attack
from art_rs_plugin.certifiers.certifier import UpperBound, rows
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import ABSTAIN
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch


class AttackBound(UpperBound):
    """Projected gradient descent at one radius after the other: `SmoothedPGD` on g, ART's PGD on f.

    On g, success is another class than the label by PREDICT on fresh votes; an abstention is none.

    :param radii: Of the attacks, ascending, in the unit of x.
    :param n: Votes that judge what was found on g; each is wrong with probability `alpha` at most.
    """

    name: ClassVar[str] = "attack-bound"

    def __init__(
        self,
        model: nn.Module,
        *,
        input_shape: Sequence[int],
        nb_classes: int,
        radii: Sequence[float],
        sigma: float | None = None,
        norm: float = 2.0,
        max_iter: int = 20,
        num_samples: int = 16,
        n: int = 1_000,
        alpha: float = 0.001,
        seed: int | None = None,
        clip_values: tuple[float, float] | None = (0.0, 1.0),
        device_type: str = "cpu",
    ) -> None:
        self.norm = checks.one_of("norm", norm, (2, math.inf))
        self.radii = sorted(checks.positive("radii", float(radius)) for radius in radii if radius != 0)
        self.certifies = "f" if sigma is None else "g"
        self.max_iter, self.num_samples, self.n, self.alpha = max_iter, num_samples, n, alpha
        self._shape = tuple(input_shape)
        common: dict[str, Any] = {"input_shape": self._shape, "nb_classes": nb_classes, "clip_values": clip_values}
        self._base: PyTorchClassifier | None = None
        self._smoothed: RandomizedSmoothingPyTorch | None = None
        if sigma is None:
            self._base = PyTorchClassifier(model.eval(), loss=nn.CrossEntropyLoss(), device_type=device_type, **common)
        else:
            self._smoothed = RandomizedSmoothingPyTorch(
                model, sigma, seed=seed, alpha=alpha, device_type=device_type, **common
            )

    @classmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> AttackBound:
        """As `Certifier.build`; options as above, `sigma` for g."""
        return cls(model, input_shape=input_shape, nb_classes=nb_classes, **options)

    def distances(self, x: ArrayLike, y: ArrayLike, *, indices: Sequence[int] | None = None) -> NDArray[np.float64]:
        """As `UpperBound.distances`; what is found on g follows from the seed, the input and its index."""
        inputs, labels, names = rows(x, self._shape, y, indices)
        if labels is None:
            raise ValueError("`y` must be given: an attack leads away from a label; got None")
        right = ~self._fooled(inputs, inputs, labels, names, clean=True)
        found = np.where(right, np.inf, 0.0)
        for radius in self.radii:
            left = np.flatnonzero(np.isinf(found))
            if not len(left):
                break
            some, of_some, called = inputs[left], labels[left], [names[row] for row in left]
            made = self._attack(some, of_some, called, radius)
            lengths = np.linalg.norm((made.astype(np.float64) - some).reshape(len(some), -1), self.norm, axis=1)
            fooled = self._fooled(some, made, of_some, called)
            found[left[fooled]] = lengths[fooled]
        return found

    def _attack(self, x: NDArray[Any], y: NDArray[Any], names: list[int], radius: float) -> NDArray[np.float32]:
        steps: dict[str, Any] = {"norm": self.norm, "eps": radius, "max_iter": self.max_iter, "verbose": False}
        if self._smoothed is not None:
            self._smoothed.gradient_calls = 0  # an input's noise is named by its index
            made = SmoothedPGD(self._smoothed, num_samples=self.num_samples, **steps).generate(x, y, indices=names)
        else:
            # ART draws its random start from NumPy's global generator
            state = np.random.get_state()  # noqa: NPY002
            try:
                made = ProjectedGradientDescentPyTorch(
                    self._base, eps_step=2.5 * radius / self.max_iter, num_random_init=0, **steps
                ).generate(x, y)
            finally:
                np.random.set_state(state)  # noqa: NPY002
        return np.asarray(made, dtype=np.float32)

    def _fooled(
        self, x: NDArray[Any], made: NDArray[Any], y: NDArray[Any], names: list[int], clean: bool = False
    ) -> NDArray[np.bool_]:
        """Where the classifier names another class than `y` at `made`."""
        if self._smoothed is None:
            assert self._base is not None
            return np.asarray(self._base.predict(made).argmax(axis=1) != y)
        judged = evaluate_attack(
            self._smoothed, x, made, y, n=self.n, alpha=self.alpha, indices=names, clean=np.full(len(y), ABSTAIN)
        )
        # at the input itself an abstention is no right answer; after an attack it is no success
        fooled: NDArray[np.bool_] = (judged.attacked != y) & (clean | (judged.attacked != ABSTAIN))
        return fooled
