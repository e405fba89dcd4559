"""What attacks find: for every input a perturbation that fools the classifier, an upper bound on any true radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from art.attacks.evasion import DeepFool, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import ArrayLike, NDArray
from torch import nn

from art_rs_plugin.attacks import SmoothedPGD, evaluate_attack
from art_rs_plugin.certifiers.certifier import UpperBound, rows
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import ABSTAIN
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch

_NEAREST = 10  # classes whose boundaries DeepFool weighs, as its authors do
_WITHIN = 1 - 1e-5  # attacks stay so far within a radius: at it, rounding would decide whether what they find counts


class AttackBound(UpperBound):
    """Projected gradient descent at one radius after the other: `SmoothedPGD` on g, ART's PGD on f.

    On f, in l2, ART's DeepFool (Moosavi-Dezfooli et al. 2016) seeks the nearest boundary first, and of what the two
    find the shorter counts. On g, success is another class than the label by PREDICT on fresh votes; an abstention is
    none.

    :param radii: Of the attacks, in the unit of x; what is longer than the largest counts as not found.
    :param max_iter: Steps of each attack.
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
        self._shape, self._nb_classes = tuple(input_shape), nb_classes
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
        if self._base is not None and self.norm == 2 and self.radii:
            nearest = self._nearest(inputs, labels, names, right)
            found = np.where(right & (nearest <= self.radii[-1]), nearest, found)
        for radius in self.radii:
            left = np.flatnonzero(found > radius)
            if not len(left):
                break
            some, of_some, called = inputs[left], labels[left], [names[row] for row in left]
            made = self._attack(some, of_some, called, radius)
            lengths = self._lengths(some, made, of_some, called)
            found[left] = np.minimum(found[left], lengths)
        return found

    def _lengths(self, x: NDArray[Any], made: NDArray[Any], y: NDArray[Any], names: list[int]) -> NDArray[np.float64]:
        """Of what an attack made, `(m,)`; inf where it fools nobody."""
        lengths = np.linalg.norm((made.astype(np.float64) - x).reshape(len(x), -1), self.norm, axis=1)
        found: NDArray[np.float64] = np.where(self._fooled(x, made, y, names), lengths, np.inf)
        return found

    def _nearest(
        self, x: NDArray[Any], y: NDArray[Any], names: list[int], right: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Lengths by DeepFool where f is right."""
        found = np.full(len(x), np.inf)
        at = np.flatnonzero(right)
        if len(at):
            # of many classes ART weighs those that are likely for any input of a batch
            one_by_one = self._nb_classes > _NEAREST
            attack = DeepFool(
                self._base, max_iter=self.max_iter, nb_grads=min(_NEAREST, self._nb_classes),
                batch_size=1 if one_by_one else len(at), verbose=False,
            )  # fmt: skip
            made = np.asarray(attack.generate(x[at]), dtype=np.float32)
            found[at] = self._lengths(x[at], made, y[at], [names[row] for row in at])
        return found

    def _attack(self, x: NDArray[Any], y: NDArray[Any], names: list[int], radius: float) -> NDArray[np.float32]:
        radius *= _WITHIN
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
