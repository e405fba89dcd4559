"""What the attacks on g have in common: ART's face, noise draws, labels, boxes and masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from numpy.typing import ArrayLike
from tqdm import tqdm

from art_rs_plugin.ascent import Look, Objective
from art_rs_plugin.core import checks
from art_rs_plugin.estimator import LOSSES, RandomizedSmoothingPyTorch
from art_rs_plugin.inputs import as_tensor, checked_indices
from art_rs_plugin.smoothed import Draws

# Inputs that are attacked side by side; noisy copies are bounded by `batch_size`.
_AT_ONCE = 256


@dataclass(frozen=True)
class Batch:
    """Some of the inputs of an attack, on the estimator's device.

    :param x: (m, *shape).
    :param y: int64 (m,), classes to leave or to reach.
    :param rows: Which of all inputs they are.
    :param names: Of their noise streams, (m,).
    :param box: Least and greatest value of every coordinate.
    :param mask: (m, *shape).
    :param on_looks: To be told how many inputs were looked at.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: slice
    names: tuple[int, ...]
    box: tuple[torch.Tensor, torch.Tensor] | None
    mask: torch.Tensor | None
    on_looks: Callable[[int], object]

    def lengths(self, value: Any) -> torch.Tensor:
        """Of one number for all inputs of the attack, or one for each, those of these inputs: float32 (m,)."""
        some = value[self.rows] if np.ndim(value) else np.full(len(self.x), value)
        return torch.as_tensor(some, dtype=torch.float32, device=self.x.device)


class SmoothedAttack(EvasionAttack):
    """An attack that follows the gradient of the smoothed classifier's loss over noise draws.

    :param estimator: The smoothed classifier.
    :param max_iter: Steps.
    :param num_samples: Noise draws per input and step.
    :param objective: "expected_loss" (Cohen et al. 2019, Appendix J.3) or "smoothadv" (Salman et al. 2019).
    :param fixed_noise: Whether an input meets the same draws at every step; fresh ones otherwise.
    :param targeted: Whether `y` names the classes to reach, not those to leave.
    :param batch_size: Noisy copies per forward pass; chosen automatically if None.
    :param verbose: Show a progress bar.
    """

    attack_params = [  # noqa: RUF012
        *EvasionAttack.attack_params,
        "max_iter",
        "num_samples",
        "objective",
        "fixed_noise",
        "targeted",
        "batch_size",
        "verbose",
    ]
    _estimator_requirements = (RandomizedSmoothingPyTorch,)

    def __init__(
        self,
        estimator: RandomizedSmoothingPyTorch,
        *,
        max_iter: int,
        num_samples: int,
        objective: str,
        fixed_noise: bool,
        targeted: bool,
        batch_size: int | None,
        verbose: bool,
    ) -> None:
        super().__init__(estimator=estimator)
        self.max_iter, self.num_samples, self.objective = max_iter, num_samples, objective
        self.fixed_noise, self.targeted, self.batch_size, self.verbose = fixed_noise, targeted, batch_size, verbose
        self._check_params()

    def generate(
        self, x: Any, y: Any = None, *, mask: Any = None, indices: ArrayLike | None = None, **kwargs: Any
    ) -> Any:
        """Perturb `x`.

        :param x: Inputs (m, *input_shape) within the estimator's `clip_values`, array or tensor.
        :param y: Labels, (m,) indices or (m, nb_classes) one-hot: the true classes, or those to reach. If None, the
            most voted ones, which an attack that is to be judged by true labels should not rely on.
        :param mask: Broadcast to `x`: only where it is not zero `x` is perturbed.
        :param indices: (m,) different whole numbers that name the inputs' noise streams; their positions if None. With
            a seed, what becomes of an input follows from it, its index and the estimator's `gradient_calls`.
        :param kwargs: Ignored, as by ART's own attacks.
        :return: float32 (m, *input_shape) within `clip_values`: a tensor if `x` is one, else an array.
        :raises ValueError: No `y` for a targeted attack, `x` outside `clip_values`, or unfit labels, mask or eps.
        """
        inputs = self.estimator._inputs(x)
        m = len(inputs)
        if y is not None:
            labels = self.estimator._hard_labels(y, m, "attack")
        elif self.targeted:
            raise ValueError("`y` must be given to a targeted attack: the classes to reach, got None")
        else:
            labels = torch.from_numpy(self.estimator.predict(inputs, is_abstain=False).argmax(axis=1))
        labels = labels.to(self.estimator.device)
        for name, value in self._lengths.items():
            if np.ndim(value) and len(value) != m:
                raise ValueError(f"`{name}` must be one number, or one for each of the {m} inputs, got {len(value)}")
        box, where, names = self._box(inputs), self._mask(mask, inputs), checked_indices(indices, m)
        calls = self.estimator.gradient_calls
        made = []
        with tqdm(total=m * self._steps, desc=type(self).__name__, disable=not self.verbose, unit="step") as bar:
            for start in range(0, m, _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                self.estimator.gradient_calls = calls  # other inputs: their names keep their noise apart
                batch = Batch(
                    x=inputs[rows].to(self.estimator.device),
                    y=labels[rows],
                    rows=rows,
                    names=tuple(names[rows].tolist()),
                    box=box,
                    mask=None if where is None else where[rows].to(self.estimator.device),
                    on_looks=bar.update,
                )
                perturbed = self._perturb(batch)
                made.append(perturbed if isinstance(x, torch.Tensor) else perturbed.cpu())
        result = torch.cat(made) if made else inputs.clone()
        return result if isinstance(x, torch.Tensor) else result.numpy()

    @property
    def _steps(self) -> int:
        """Looks at an input."""
        return self.max_iter

    @property
    @abstractmethod
    def _lengths(self) -> dict[str, Any]:
        """By name, what may be one number or one for each input."""

    @abstractmethod
    def _perturb(self, batch: Batch) -> torch.Tensor:
        """The batch's inputs, perturbed."""

    def _objective_of(self, batch: Batch) -> Objective:
        """What to ascend."""
        sign = -1.0 if self.targeted else 1.0

        def draw() -> Draws:
            return replace(self.estimator.draws(self.num_samples), names=batch.names)

        kept = draw() if self.fixed_noise else None

        def objective(points: torch.Tensor, step: int) -> Look:
            draws = draw() if kept is None else kept
            value, gradient, votes = self.estimator.probe(points, batch.y, draws, self.objective, self.batch_size)
            batch.on_looks(len(points))
            return Look(sign * value, sign * gradient, self._fooled(votes, batch.y))

        return objective

    def _fooled(self, votes: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Where the most voted class is (targeted) or is not (untargeted) that of `y`, bool (m,)."""
        of_label, most = votes.gather(1, y[:, None])[:, 0], votes.amax(dim=1)
        return of_label == most if self.targeted else of_label < most

    def _box(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The estimator's clip values, for images and never for their noisy copies."""
        if self.estimator.clip_values is None:
            return None
        low, high = (
            torch.as_tensor(np.asarray(value), dtype=torch.float32, device=x.device)
            for value in self.estimator.clip_values
        )
        outside = ((x < low) | (x > high)).flatten(1).any(dim=1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"`x` must lie within the estimator's `clip_values` = {self.estimator.clip_values}, got values from "
                f"{x[row].min():.6g} to {x[row].max():.6g} in x[{row}]"
            )
        return low.to(self.estimator.device), high.to(self.estimator.device)

    @staticmethod
    def _mask(mask: Any, x: torch.Tensor) -> torch.Tensor | None:
        if mask is None:
            return None
        given = as_tensor("mask", mask).to(x.device, torch.float32)
        try:
            return (given != 0).to(torch.float32).expand_as(x)  # a weight would count once a step, and lead out of eps
        except RuntimeError:
            raise ValueError(
                f"`mask` must broadcast to `x` of shape {tuple(x.shape)}, got {tuple(given.shape)}"
            ) from None

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name, with the checks of the constructor: all of them, or none if one is refused."""
        before = self.__dict__.copy()
        try:
            super().set_params(**kwargs)
        except Exception:
            self.__dict__.update(before)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        self.max_iter = checks.whole("max_iter", self.max_iter)
        self.num_samples = checks.whole("num_samples", self.num_samples)
        checks.one_of("objective", self.objective, LOSSES)
        if self.batch_size is not None:
            self.batch_size = checks.whole("batch_size", self.batch_size)
        for name in ("fixed_noise", "targeted", "verbose"):
            checks.one_of(name, getattr(self, name), (True, False))


def checked_lengths(name: str, value: Any, *, above_zero: bool) -> float | np.ndarray[Any, np.dtype[np.float64]]:
    """A length for all inputs, or (m,) lengths, one each: finite, and above 0 or at least that."""
    lengths = np.asarray(as_tensor(name, value).cpu(), dtype=np.float64)
    good = np.isfinite(lengths) & ((lengths > 0) if above_zero else (lengths >= 0))
    if lengths.ndim > 1 or not good.all():
        rule = "above 0" if above_zero else "of at least 0"
        got = f"shape {lengths.shape}" if lengths.ndim > 1 else repr(value if lengths.ndim == 0 else lengths[~good][0])
        raise ValueError(f"`{name}` must be a finite number {rule}, or one for each input, got {got}")
    return float(lengths) if lengths.ndim == 0 else lengths
