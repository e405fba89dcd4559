"""The training half of the estimator: ART's `fit` and `fit_generator`, under the noise it will vote with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from art.data_generators import DataGenerator, PyTorchDataGenerator
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from art_rs_plugin.core import checks
from art_rs_plugin.training.batches import Augment, loader_batches
from art_rs_plugin.training.checkpoint import Epoch, read_checkpoint
from art_rs_plugin.training.gaussian import GaussianAugmentation
from art_rs_plugin.training.loop import train
from art_rs_plugin.training.objectives import Objective

if TYPE_CHECKING:
    from art_rs_plugin.voting import Voting as _Base
else:
    _Base = object


class Fitting(_Base):
    """Training of the base classifier f, with Gaussian augmentation if not told otherwise (Cohen et al. 2019).

    A plain class to be mixed in before ART's, for the reason that `Voting` gives.
    """

    _epochs: int

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: LRScheduler | None = None,
        verbose: bool = False,
        *,
        objective: Objective | None = None,
        augment: Augment | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> list[Epoch]:
        """Fit f to (x, y) under fresh noise for every sample seen, added in input coordinates.

        :param x: Inputs (m, *input_shape), array or tensor.
        :param y: Labels, (m,) indices or (m, nb_classes) one-hot.
        :param training_mode: True, or ValueError.
        :param scheduler: Learning-rate schedule of torch, stepped after each epoch.
        :param verbose: Show a progress bar.
        :param objective: A training method of `training`, such as `SmoothAdv(eps=0.5)`; Gaussian augmentation with the
            estimator's loss if None. Other methods take cross-entropy, and f's outputs for logits.
        :param augment: Random transform of one input, such as torchvision's crop or flip.
        :param checkpoint: File written after every epoch. If it exists the run goes on after its last epoch and ends,
            on a CPU, with the weights of an unbroken run, bit by bit.
        :return: Loss, accuracy under noise, learning rate and seconds of each epoch.
        :raises ValueError: No optimizer, unfit inputs, or a checkpoint of another run.
        :raises FloatingPointError: The loss is not finite; names epoch, step and the last good checkpoint.
        """
        if not training_mode:
            raise ValueError("`training_mode` must be True, got False")
        x = self._inputs(x).cpu()
        labels = self._hard_labels(y, len(x), "fit").cpu()

        def batches(seed: int) -> Callable[[int], Iterable[Any]]:
            return loader_batches((x, labels), batch_size, seed, augment=augment, drop_last=drop_last)

        return self._train(batches, nb_epochs, objective, scheduler=scheduler, verbose=verbose, checkpoint=checkpoint)

    def fit_generator(
        self,
        generator: DataGenerator | DataLoader[Any],
        nb_epochs: int = 20,
        verbose: bool = False,
        *,
        scheduler: LRScheduler | None = None,
        objective: Objective | None = None,
        augment: Augment | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> list[Epoch]:
        """Fit f as `fit` does to the batches of an ART data generator or a torch DataLoader.

        The order of batches is the generator's own, so a resumed run goes on but need not be bit for bit the same.
        """
        if not isinstance(generator, (DataGenerator, DataLoader)):
            raise TypeError(
                f"`generator` must be an ART DataGenerator or a torch DataLoader, got {type(generator).__name__}"
            )

        def batches(_: int) -> Callable[[int], Iterable[Any]]:
            return lambda epoch: self._checked_batches(generator, augment)

        return self._train(batches, nb_epochs, objective, scheduler=scheduler, verbose=verbose, checkpoint=checkpoint)

    def _train(
        self,
        batches: Callable[[int], Callable[[int], Iterable[Any]]],
        nb_epochs: int,
        objective: Objective | None,
        *,
        scheduler: LRScheduler | None,
        verbose: bool,
        checkpoint: str | os.PathLike[str] | None,
    ) -> list[Epoch]:
        if self._optimizer is None:
            raise ValueError("`optimizer` must be given to the estimator in order to fit, got None")
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        if not held & {id(parameter) for parameter in self.model.parameters()}:
            raise ValueError("`optimizer` must hold the model's parameters, got one that holds none of them")
        checks.whole("nb_epochs", nb_epochs)
        if self.seed is None and checkpoint is not None and Path(checkpoint).exists():
            seed = read_checkpoint(checkpoint)["settings"]["seed"]
        else:
            seed = self._call_seed()
        history = train(
            self.model,
            batches(seed),
            objective=self._objective(objective),
            optimizer=self._optimizer,
            noise=self.noise,
            epochs=nb_epochs,
            seed=seed,
            scheduler=scheduler,
            first_epoch=self._epochs + 1,
            forward=partial(self._logits, fit=True),
            checkpoint=checkpoint,
            progress=verbose,
        )
        self._epochs = history[-1]["epoch"]
        return history

    def _objective(self, objective: Objective | None) -> Objective:
        if objective is None:
            return GaussianAugmentation(loss=self._training_loss)
        if isinstance(objective, type) or not callable(objective) or not hasattr(objective, "name"):
            raise TypeError(
                f"`objective` must be a training method with its options, such as `SmoothAdv()`, got {objective!r}"
            )
        if not isinstance(objective, GaussianAugmentation) and not _plain_cross_entropy(self._loss):
            loss = self._loss
            raise ValueError(
                f"`loss` must be plain cross-entropy to train by {objective.name}, which takes it, got {loss}"
            )
        return objective

    def _training_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self._loss_takes_indices:
            labels = torch.nn.functional.one_hot(labels, self.nb_classes).float()
        loss: torch.Tensor = self._loss(logits, labels)
        return loss

    def _checked_batches(
        self, generator: DataGenerator | DataLoader[Any], augment: Augment | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of a generator's batches, as (float32 inputs, int64 labels)."""
        for x, y in _epoch(generator):
            x = self._inputs(x)
            labels = self._hard_labels(y, len(x), "fit")
            yield x if augment is None else torch.stack([augment(image) for image in x]), labels


def _plain_cross_entropy(loss: Any) -> bool:
    """Whether the loss is what every method but Gaussian augmentation takes, whatever the estimator's."""
    return (
        isinstance(loss, torch.nn.CrossEntropyLoss)
        and loss.weight is None
        and not loss.label_smoothing
        and loss.reduction == "mean"
        and loss.ignore_index < 0
    )


def _epoch(generator: DataGenerator | DataLoader[Any]) -> Iterable[Any]:
    """The batches of one epoch of a generator, as far as it tells where one ends."""
    if isinstance(generator, PyTorchDataGenerator):
        batches: Iterable[Any] = generator.iterator
        return batches
    if isinstance(generator, Iterable):
        return generator
    if generator.size is None:
        raise ValueError("`generator` must have a size, so that an epoch has an end, got None")
    return (generator.get_batch() for _ in range(generator.size // generator.batch_size))
