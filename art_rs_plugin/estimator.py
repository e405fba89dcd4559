"""RandomizedSmoothingPyTorch: a PyTorch model, smoothed, with ART's face."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_rs_plugin.asking import refuse_attacks
from art_rs_plugin.classifier import TorchClassifier
from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import check_votes
from art_rs_plugin.core.rounded import check_sigma
from art_rs_plugin.fitting import Fitting
from art_rs_plugin.inputs import warn_of_units
from art_rs_plugin.migration import settings_of
from art_rs_plugin.noise import NOISES, SOUND, Distribution, NoNoise
from art_rs_plugin.plain import plain_classifier
from art_rs_plugin.randomness import TORCH, check_source
from art_rs_plugin.smoothed import (
    Draws,
    Probe,
    SmoothedLoss,
    expected_loss,
    mean_softmax_gradient,
    smoothadv,
)
from art_rs_plugin.votes import mode
from art_rs_plugin.voting import Voting

_OWN_PARAMS = ["sigma", "n0", "n", "alpha", "seed", "distribution", "sound", "randomness"]
_TAKES_F = "takes the base classifier's model and would attack f, not the smoothed classifier g"

LOSSES: dict[str, Callable[[TorchClassifier], SmoothedLoss]] = {
    "expected_loss": lambda estimator: expected_loss(estimator._loss_per_row),
    "smoothadv": lambda _: smoothadv(),
}


class RandomizedSmoothingPyTorch(Fitting, Voting, TorchClassifier):
    """The smoothed classifier g(x) = argmax over c of P(f(x + N(0, sigma^2 I)) = c) of a PyTorch model f.

    `predict` and `certify` are of g, and so are losses and gradients, which is why ART's white-box attacks attack g.
    Noise is added in input coordinates, before any preprocessing, so sigma and radii are in the unit of `x`. The
    guarantee speaks of a model whose output for an input is a function of that input alone, in evaluation mode.

    :param model: f, from float32 (m, *input_shape) to logits (m, nb_classes).
    :param sigma: Standard deviation of the noise, finite and above 0.
    :param n0: Votes that select the class to certify.
    :param n: Votes that bound its probability.
    :param alpha: Probability that a certificate is wrong, at most; in (0, 1).
    :param seed: A whole number makes votes and certificates repeatable call by call, and gradients and training as a
        run, with fresh noise at every step; None draws a seed from the operating system for every call.
    :param distribution: Name of the noise distribution in `noise.NOISES`.
    :param sound: Whether the guarantee holds in floating point too, whatever f makes of rounding (`docs/soundness.md`):
        for inputs whose every entry is a multiple of 1/255, and against others of that kind. Votes on other inputs are
        refused.
    :param randomness: Where the random bits of votes come from: "torch", or "chacha20", a stream cipher that no network
        is known to see through (package `cryptography`); whoever knows `seed` knows the noise of either.
    :param loss: A torch loss with a `reduction`; cross-entropy if None.
    :param input_shape: Shape of one input; that of the first `x` if None.
    :param nb_classes: Number of classes; from the model's last layer or first forward pass if None.
    :param optimizer: Needed only to fit.
    :param kwargs: All else that ART's PyTorchClassifier takes.
    :raises ValueError, TypeError: Each with name, rule and value.
    """

    estimator_params = TorchClassifier.estimator_params + _OWN_PARAMS

    def __init__(
        self,
        model: torch.nn.Module,
        sigma: float,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int | None = None,
        distribution: str = "gaussian",
        sound: bool = False,
        randomness: str = TORCH,
        loss: Any = None,
        input_shape: tuple[int, ...] | None = None,
        nb_classes: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        self.sigma, self.n0, self.n, self.alpha, self.seed = sigma, n0, n, alpha, seed
        self.distribution, self.sound, self.randomness = distribution, sound, randomness
        self._check_smoothing()
        # Gradient and training noise goes on from call to call: repeatable as a run, fresh at every step.
        self.gradient_calls = 0
        self._epochs = 0
        super().__init__(
            model, loss=loss, input_shape=input_shape, nb_classes=nb_classes, optimizer=optimizer, **kwargs
        )

    @classmethod
    def from_art(cls, art_estimator: PyTorchClassifier, **options: Any) -> RandomizedSmoothingPyTorch:
        """The estimator of the model, loss, optimizer and settings of one of ART's, which it shares with it.

        Of ART's `PyTorchRandomizedSmoothing`, or of a class derived from it, sigma is `scale`, n0 is `sample_size`,
        which is what ART's `certify` selects a class by, and alpha is `alpha`. `docs/migrating.md` says what differs.

        :param art_estimator: A `PyTorchClassifier` of ART.
        :param options: Of the constructor, in place of what ART's estimator says; `sigma` if that does not say it.
        :raises TypeError: `art_estimator` is another thing.
        :raises ValueError: `sigma` is missing, or a setting that ART takes is refused.
        """
        return cls(**settings_of(art_estimator, options))

    @property
    def noise(self) -> Distribution:  # type: ignore[override]
        """The noise distribution, which knows the radius it gives."""
        if self.sound:
            shape = self._input_shape
            dimension = None if shape is None else math.prod(shape)
            return SOUND[self.distribution](self.sigma, dimension, randomness=self.randomness)
        return NOISES[self.distribution](self.sigma, randomness=self.randomness)

    def loss_gradient(
        self,
        x: Any,
        y: Any,
        training_mode: bool = False,
        *,
        num_samples: int = 32,
        objective: str = "expected_loss",
        base: bool = False,
        sampling: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Gradient in `x` of the smoothed classifier's loss, for every input by itself.

        :param x: Inputs (m, *input_shape), array or tensor.
        :param y: Labels, (m,) indices or (m, nb_classes) one-hot, array or tensor.
        :param num_samples: Noise draws per input, fresh at every call.
        :param objective: "expected_loss", the mean loss over the draws (Cohen et al. 2019, Appendix J.3), or
            "smoothadv", -log of the mean softmax probability of the label (Salman et al. 2019).
        :param base: True for the base classifier's gradient, without noise; so does ART's own `sampling=False`.
        :param batch_size: Noisy copies per forward pass; chosen automatically if None.
        :param kwargs: Ignored, as by ART's own classifiers: some attacks pass what only others understand.
        :return: (m, *input_shape), float32: a tensor on the estimator's device if `x` is a tensor, else an array.
        """
        draws = self.draws(num_samples, base=base or not sampling)
        gradient = self.probe(x, y, draws, objective, batch_size, training_mode=training_mode).gradient
        return gradient if isinstance(x, torch.Tensor) else gradient.cpu().numpy()

    def compute_loss(
        self,
        x: Any,
        y: Any,
        reduction: str = "none",
        *,
        num_samples: int = 32,
        objective: str = "expected_loss",
        base: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """Loss of the smoothed classifier, whose gradient `loss_gradient` gives; parameters as there.

        :param reduction: "none" for one value per input, "mean" or "sum".
        :return: (m,) or a scalar; a tensor if `x` is a tensor, else an array. Detached from any graph.
        """
        checks.one_of("reduction", reduction, ("none", "mean", "sum"))
        value = self.probe(x, y, self.draws(num_samples, base=base), objective, batch_size).value
        value = value if reduction == "none" else getattr(value, reduction)()
        return value if isinstance(x, torch.Tensor) else value.cpu().numpy()

    def class_gradient(
        self,
        x: Any,
        label: Any = None,
        training_mode: bool = False,
        *,
        num_samples: int = 32,
        base: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Gradient in `x` of the mean softmax probability over noise draws, class by class.

        :param label: None for all classes, one class for all inputs, or (m,) classes, one an input.
        :return: float32 (m, nb_classes, *input_shape), or (m, 1, *input_shape) with `label`.
        """
        inputs = self._inputs(x).to(self.device)
        if label is None:
            classes = torch.arange(self.nb_classes, device=self.device).expand(len(inputs), -1)
        else:
            label = np.broadcast_to(label, len(inputs)) if np.ndim(label) == 0 else label
            classes = self._labels(label, len(inputs), "label").argmax(dim=1, keepdim=True)
        with mode(self.model, training=training_mode), self._arithmetic.as_is():
            gradient = mean_softmax_gradient(
                self._logits,
                inputs,
                classes,
                self.draws(num_samples, base=base),
                batch_size=self._rows(batch_size, inputs),
            )
        result: np.ndarray[Any, np.dtype[np.float32]] = gradient.cpu().numpy()
        return result

    def probe(
        self,
        x: Any,
        y: Any,
        draws: Draws,
        objective: str = "expected_loss",
        batch_size: int | None = None,
        *,
        training_mode: bool = False,
    ) -> Probe:
        """Loss, gradient and votes on given noise draws: for attacks that keep their draws or count their votes.

        Parameters as in `loss_gradient`; order of the draws' random streams is by the rows of `x`.

        :param draws: From `draws`.
        :return: Tensors on the estimator's device: losses (m,), gradients (m, *input_shape), votes (m, nb_classes).
        """
        inputs = self._inputs(x).to(self.device)
        labels = self._labels(y, len(inputs))
        chosen = LOSSES[checks.one_of("objective", objective, LOSSES)](self)
        with mode(self.model, training=training_mode), self._arithmetic.as_is():
            return chosen.probe(self._logits, inputs, labels, draws, batch_size=self._rows(batch_size, inputs))

    def draws(self, num_samples: int, *, base: bool = False, shared: bool = False) -> Draws:
        """Noise for one gradient, fresh at every call; none for the base classifier.

        With a seed it is named by `gradient_calls`, how many there have been: who sets that back repeats them.

        :param shared: Whether all rows of a batch meet the same draws.
        """
        if base:
            return Draws(NoNoise(), count=1, seed=0)
        call, self.gradient_calls = self.gradient_calls, self.gradient_calls + 1
        return Draws(self.noise, checks.whole("num_samples", num_samples), self._call_seed(), call, shared)

    def smoothed_classifier(
        self,
        num_samples: int = 32,
        *,
        fixed_noise: bool = False,
        probabilities: bool = False,
        batch_size: int | None = None,
    ) -> PyTorchClassifier:
        """A plain ART classifier of g for attacks that want logits or rebuild a classifier from its model.

        Its model is x -> log of the mean softmax over noise draws, differentiable in x. Its predictions promise
        nothing: judge what it helped to find by `evaluate_attack` on this estimator.

        :param num_samples: Noise draws per input and forward pass.
        :param fixed_noise: Whether all inputs and passes meet the same draws, so that the model is one function of x;
            an attack may then fit the draws. Fresh ones for every pass otherwise.
        :param probabilities: Whether the model returns the mean softmax itself, for attacks that demand probabilities.
        :param batch_size: Noisy copies per forward pass; chosen automatically if None.
        :raises ValueError: `input_shape` or `nb_classes` is not known yet.
        """
        return plain_classifier(
            self,
            num_samples,
            fixed_noise=fixed_noise,
            probabilities=probabilities,
            batch_size=self._rows(batch_size, torch.empty(0, *self.input_shape)),
        )

    @property
    def model(self) -> torch.nn.Module:
        """f, a torch module. ART's attacks get none: they would attack f where g was meant."""
        refuse_attacks(_TAKES_F)
        model: torch.nn.Module = super().model
        return model

    def get_activations(self, *args: Any, **kwargs: Any) -> Any:
        """Output of a layer of f for inputs, as ART's; refused to ART's attacks, as `model` is."""
        refuse_attacks(_TAKES_F)
        return super().get_activations(*args, **kwargs)

    def _predict_framework(self, *args: Any, **kwargs: Any) -> Any:
        """Logits of f in torch, as ART's; refused to ART's attacks, as `model` is."""
        refuse_attacks(_TAKES_F)
        return super()._predict_framework(*args, **kwargs)

    def _understand(self, x: torch.Tensor) -> None:
        super()._understand(x)
        warn_of_units(x, self.sigma)

    def _check_params(self) -> None:
        super()._check_params()
        self._check_smoothing()

    def _check_smoothing(self) -> None:
        self.sigma = checks.positive("sigma", self.sigma)
        checks.one_of("distribution", self.distribution, NOISES)
        check_source(self.randomness)
        self.sound = checks.flag("sound", self.sound)
        if self.sound:
            checks.one_of("distribution", self.distribution, SOUND)
            check_sigma(self.sigma)
        self.n0, self.n = checks.whole("n0", self.n0), checks.whole("n", self.n)
        self.alpha = checks.in_unit_interval("alpha", self.alpha)
        check_votes(self.n0, self.n, self.alpha)
        if self.seed is not None:
            self.seed = checks.whole("seed", self.seed, minimum=0)
