"""What every trainer shares: ART's face of the estimator's `fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from art.defences.trainer import Trainer
from torch.optim.lr_scheduler import LRScheduler

from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.training.batches import Augment
from art_rs_plugin.training.checkpoint import Epoch
from art_rs_plugin.training.objectives import Objective


class SmoothedTrainer(Trainer):
    """Train the base classifier of a smoothed estimator under its own noise.

    :param estimator: Its sigma is the noise's; it needs an optimizer.
    :param nb_epochs: Epochs of a `fit`.
    :param batch_size: Samples a step, for arrays; generators bring their own.
    :param scheduler: Learning-rate schedule of torch on the estimator's optimizer, stepped after each epoch.
    :param augment: Random transform of one input, such as torchvision's crop or flip, applied before the noise.
    :param checkpoint: File written after every epoch; if it exists, the run goes on where it stopped.
    :param verbose: Show a progress bar.
    :param options: Those of the training method. `clip_values` are the estimator's if not given.
    :raises TypeError, ValueError: An estimator of another kind, or options that the method does not take.
    """

    method: ClassVar[Callable[..., Objective] | None] = None

    def __init__(
        self,
        estimator: RandomizedSmoothingPyTorch,
        *,
        nb_epochs: int = 10,
        batch_size: int = 128,
        scheduler: LRScheduler | None = None,
        augment: Augment | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(estimator, RandomizedSmoothingPyTorch):
            raise TypeError(f"`estimator` must be a RandomizedSmoothingPyTorch, got {type(estimator).__name__}")
        super().__init__(estimator)
        self.nb_epochs = nb_epochs
        self.batch_size = batch_size
        self.scheduler = scheduler
        self.augment = augment
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.objective = self._objective(estimator, options)

    def _objective(self, estimator: RandomizedSmoothingPyTorch, options: dict[str, Any]) -> Objective | None:
        method = type(self).method
        if method is None:
            if options:
                raise TypeError(f"{type(self).__name__} takes no option {', '.join(map(repr, options))}")
            return None
        takes_bounds = "clip_values" in getattr(method, "__dataclass_fields__", ()) and "clip_values" not in options
        if takes_bounds and estimator.clip_values is not None:
            bounds = [np.unique(np.asarray(bound)) for bound in estimator.clip_values]
            if any(bound.size != 1 for bound in bounds):
                raise ValueError(
                    f"`clip_values` must be two numbers for {type(self).__name__}, got arrays of the estimator's; "
                    "pass clip_values=(low, high)"
                )
            options = {**options, "clip_values": (float(bounds[0][0]), float(bounds[1][0]))}
        return method(**options)

    def fit(self, x: Any, y: Any, **kwargs: Any) -> list[Epoch]:
        """Train on (x, y); `kwargs` replace options of the constructor or add others of the estimator's `fit`.

        :param x: Inputs (m, *input_shape), array or tensor.
        :param y: Labels, (m,) indices or (m, nb_classes) one-hot.
        :return: Loss, accuracy under noise, learning rate and seconds of each epoch.
        """
        options = {"batch_size": self.batch_size, **self._options(), **kwargs}
        return self.classifier.fit(x, y, **options)

    def fit_generator(self, generator: Any, **kwargs: Any) -> list[Epoch]:
        """Train on the batches of an ART data generator or a torch DataLoader."""
        return self.classifier.fit_generator(generator, **{**self._options(), **kwargs})

    def _options(self) -> dict[str, Any]:
        return {
            "nb_epochs": self.nb_epochs,
            "scheduler": self.scheduler,
            "objective": self.objective,
            "augment": self.augment,
            "checkpoint": self.checkpoint,
            "verbose": self.verbose,
        }
