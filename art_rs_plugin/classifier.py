"""ART's PyTorchClassifier as its users expect it: needs a model alone, takes what it is given, pickles anywhere.

Everything here is about the base classifier f and ART's plumbing; nothing is about smoothing. What differs from ART's
own class: the loss defaults to cross-entropy; `input_shape` and `nb_classes` are inferred; inputs and labels are
checked and may be arrays or tensors; parameters round-trip; pickles hold all they need and load without the first
device.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

from art_rs_plugin.arithmetic import Arithmetic
from art_rs_plugin.core import checks
from art_rs_plugin.independence import check_independent, check_normalisation
from art_rs_plugin.inputs import checked_inputs, class_distributions, class_indices, warn_user
from art_rs_plugin.layout import tried
from art_rs_plugin.preprocessing import preprocessed
from art_rs_plugin.smoothed import log_probability
from art_rs_plugin.votes import ModelOutputError, mode

_ONE_LOGIT = "a model with one output z names no class; give it one logit a class, such as (0, z)"


class TorchClassifier(PyTorchClassifier):
    """ART's PyTorchClassifier with everything but the model optional.

    :param model: Maps float32 (m, *input_shape) to logits (m, nb_classes), at least two of them.
    :param loss: A torch loss with a `reduction`; cross-entropy if None.
    :param input_shape: Shape of one input without the batch dimension; that of the first `x` if None.
    :param nb_classes: Number of classes; from the last linear layer or the first forward pass if None.
    :param optimizer: Needed only to fit.
    :param precision: "fp32", "bf16" or "fp16": what f computes in but for training, see `arithmetic`.
    :param compile: Whether torch compiles f for votes: True, False or "auto", see `arithmetic`.
    :param check_coupling: Whether a model is refused that answers otherwise for the first `x` beside other inputs.
    :param kwargs: All else that ART's PyTorchClassifier takes. `device_type` defaults to "gpu" where there is one.
    :raises ValueError, TypeError: Each with name, rule and value.
    """

    estimator_params = [*PyTorchClassifier.estimator_params, "precision", "compile", "check_coupling"]  # noqa: RUF012

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        loss: Any = None,
        input_shape: tuple[int, ...] | None = None,
        nb_classes: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        device_type: str | None = None,
        precision: str = "fp32",
        compile: bool | str = "auto",
        check_coupling: bool = True,
        **kwargs: Any,
    ) -> None:
        loss = torch.nn.CrossEntropyLoss() if loss is None else loss
        self.precision, self.compile = precision, compile
        self.check_coupling = checks.flag("check_coupling", check_coupling)
        _check_parts(model, loss, optimizer)
        super().__init__(
            model=model,
            loss=loss,
            input_shape=None if input_shape is None else tuple(input_shape),
            nb_classes=nb_classes,
            optimizer=optimizer,
            device_type=_device_type(device_type),
            **kwargs,
        )
        self._understood = False  # whether a forward pass has confirmed `input_shape` and `nb_classes`
        self._needs_channels_first = False  # whether the model needs images so
        self._nb_classes_guessed = nb_classes is None
        if nb_classes is None:
            self.nb_classes = _width_of_last_layer(model)
        self._place(self._device_type)  # ART moves the model alone

    @property
    def nb_classes(self) -> int:
        """Number of classes; ValueError while nobody has said and nothing tells."""
        if self._nb_classes is None:
            raise ValueError(
                "`nb_classes` is not known yet: the model's last layer does not tell, and no x was seen; "
                "pass nb_classes=... or call predict or certify first"
            )
        return self._nb_classes

    @nb_classes.setter
    def nb_classes(self, nb_classes: int | None) -> None:
        if nb_classes is not None and checks.whole("nb_classes", nb_classes) < 2:
            raise ValueError(f"`nb_classes` must be at least 2, got {nb_classes}: {_ONE_LOGIT}")
        self._nb_classes: int | None = None if nb_classes is None else int(nb_classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension; ValueError before the first `x` if nobody has said."""
        if self._input_shape is None:
            raise ValueError(
                "`input_shape` is not known yet: no x was seen; pass input_shape=... or call predict or certify first"
            )
        return self._input_shape

    def get_params(self) -> dict[str, Any]:
        """All of `estimator_params` and their values; None for what is not known yet."""
        unknown = {"nb_classes": self._nb_classes, "input_shape": self._input_shape}
        return {name: unknown[name] if name in unknown else getattr(self, name) for name in self.estimator_params}

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name, with the checks of the constructor: all of them, or none if one is refused."""
        before, given = self.__dict__.copy(), set(kwargs)
        try:
            model = kwargs.pop("model", self.model)
            _check_parts(model, kwargs.get("loss", self._loss), kwargs.get("optimizer", self._optimizer))
            if model is not self.model:
                self._model = self._make_model_wrapper(model)
            if isinstance(kwargs.get("preprocessing"), tuple):
                mean, std = kwargs["preprocessing"]
                kwargs["preprocessing"] = StandardisationMeanStdPyTorch(mean=mean, std=std)
            device_type = _device_type(kwargs.pop("device_type", self._device_type))
            if given & {"model", "precision", "compile", "preprocessing"}:
                self.__dict__.pop("_arithmetic", None)  # what was compiled may be another f
            checks.flag("check_coupling", kwargs.get("check_coupling", self.check_coupling))
            super().set_params(**kwargs)
            self._place(device_type)
            if "nb_classes" in kwargs:
                self._nb_classes_guessed = kwargs["nb_classes"] is None
            self._understood = False
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            self._update_preprocessing_operations()
            raise

    def clone_for_refitting(self) -> TorchClassifier:
        """A new estimator of the same settings and architecture, and a fresh optimizer if there is one.

        Its weights are drawn anew, where a module has a `reset_parameters` to do so, as in ART.
        """
        params = self.get_params()
        if self._nb_classes_guessed and not self._understood:
            params["nb_classes"] = None
        model = copy.deepcopy(params.pop("model"))
        optimizer = params.pop("optimizer")
        if optimizer is not None:
            # an optimizer may keep defaults that its constructor does not take
            taken = inspect.signature(type(optimizer)).parameters
            defaults = {name: value for name, value in optimizer.defaults.items() if name in taken}
            optimizer = type(optimizer)(model.parameters(), **defaults)
        clone = type(self)(model, optimizer=optimizer, **params)
        clone.reset()
        return clone

    def get_activations(
        self, x: Any, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> Any:
        """Output of a layer of f for `x`, as ART's; but the hook that reads it does not stay on the user's model."""
        before = [(module, set(module._forward_hooks)) for module in self.model.modules()]
        if not isinstance(x, torch.Tensor):
            x = self._inputs(x).numpy()
        try:
            return super().get_activations(x, layer, batch_size, framework)
        finally:
            for module, hooks in before:
                for hook in set(module._forward_hooks) - hooks:
                    del module._forward_hooks[hook]
            self.__dict__.pop("_features", None)

    def __getstate__(self) -> dict[str, Any]:
        """Everything, on the CPU, in the pickle itself; model and optimizer keep sharing their parameters."""
        left_out = ("_model_wrapper", "_device", "_features", "_arithmetic")
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        state["_model"] = self.model
        state = copy.deepcopy(state)
        _move(state["_model"], state, torch.device("cpu"))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Back onto the kind of device it was on, or the CPU, with a warning, where there is none."""
        self.__dict__.update(state)
        self._model = self._make_model_wrapper(state["_model"])
        self._place(_device_type(self._device_type))

    def _place(self, device_type: str) -> None:
        """Move model, loss, optimizer and preprocessing to a device of that type."""
        device = torch.device("cpu" if device_type == "cpu" else f"cuda:{torch.cuda.current_device()}")
        arithmetic = Arithmetic(self.precision, self.compile, device)
        if arithmetic != self.__dict__.get("_arithmetic"):  # else what was compiled stays
            self._arithmetic = arithmetic
        self._device_type, self._device = device_type, device
        _move(self.model, self.__dict__, device)

    def __repr__(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({params})"

    def _inputs(self, x: Any) -> torch.Tensor:
        """`x` as float32 (m, *input_shape) where it lies, checked; the first one also says what the model is."""
        x = checked_inputs(x, self._input_shape)
        if not self._understood and len(x):
            self._understand(x[:2])
        return x

    def _labels(self, y: Any, m: int, name: str = "y") -> torch.Tensor:
        """Labels for `m` inputs as class distributions: float32 (m, nb_classes), on the estimator's device."""
        return class_distributions(name, y, m, self.nb_classes, self._device)

    def _hard_labels(self, y: Any, m: int, purpose: str) -> torch.Tensor:
        """Labels of `m` inputs as class indices, int64 (m,): one class each, which `purpose` asks for."""
        return class_indices(self._labels(y, m), purpose)

    def _understand(self, x: torch.Tensor) -> None:
        """Try the model on one or two inputs: is it a classifier of such inputs, and of how many classes?"""
        check_normalisation(self.model)
        x = x.to(self._device)
        try:
            self._needs_channels_first = False
            with mode(self.model, training=False):
                logits, self._needs_channels_first = tried(self._logits, torch.cat([x, x])[:2])
        except Exception as error:
            channels = (1, 3, 4)  # grey, RGB, RGBA
            last = x.ndim == 4 and x.shape[3] in channels and x.shape[1] not in channels
            hint = "; if channels come last, pass numpy.transpose(x, (0, 3, 1, 2))" if last else ""
            raise ValueError(
                f"the model must accept x of shape {tuple(x.shape)} and dtype float32, got {type(error).__name__}: "
                f"{error}{hint}"
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            hint = f"; {_ONE_LOGIT}" if got == (2,) else ""
            raise ModelOutputError(
                f"the model must return logits of shape (m, nb_classes) for m inputs, got {got}{hint}"
            )
        if self._nb_classes_guessed:
            self.nb_classes = logits.shape[1]
        elif logits.shape[1] != self._nb_classes:
            raise ModelOutputError(
                f"the model must return `nb_classes` = {self._nb_classes} logits, got {logits.shape[1]}"
                + (f": {_ONE_LOGIT}" if logits.shape[1] == 1 else "")
            )
        if self.check_coupling:
            with mode(self.model, training=False):
                check_independent(self._logits, x)
        self._input_shape = tuple(x.shape[1:])
        self._understood = True

    def _logits(self, x: torch.Tensor, fit: bool = False, model: torch.nn.Module | None = None) -> torch.Tensor:
        """Logits of f in input coordinates: preprocessing, then the model (or one like it); differentiable in `x`."""
        x, model = preprocessed(self, x, fit), self.model if model is None else model
        logits: torch.Tensor = model(x) if fit else self._arithmetic.apply(model, x)
        return logits

    def _loss_per_row(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The estimator's loss for every row by itself, whatever its `reduction`; `target` as from `_labels`."""
        loss = self._loss
        soft = isinstance(loss, torch.nn.CrossEntropyLoss) and bool((target.amax(dim=1) < 1.0).any())
        if type(loss) is torch.nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing and not soft:
            labels = target.argmax(dim=1)
            return -log_probability(logits, labels).masked_fill(labels == loss.ignore_index, 0.0)
        loss = copy.copy(loss)
        loss.reduction = "none"
        value: torch.Tensor = loss(logits, target.argmax(dim=1) if self._loss_takes_indices and not soft else target)
        return value.flatten(1).mean(dim=1) if value.ndim > 1 else value

    @property
    def _loss_takes_indices(self) -> bool:
        return isinstance(self._loss, (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss, torch.nn.MultiMarginLoss))


def _check_parts(model: Any, loss: Any, optimizer: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss) or not hasattr(loss, "reduction"):
        raise TypeError(f"`loss` must have a `reduction`, as torch's losses do, got {type(loss).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}")


def _device_type(device_type: str | None) -> str:
    if device_type is None:
        return "gpu" if torch.cuda.is_available() else "cpu"
    checks.one_of("device_type", device_type, ("gpu", "cpu"))
    if device_type == "gpu" and not torch.cuda.is_available():
        warn_user(
            '`device_type` is "gpu" and torch finds none: this estimator runs on the CPU; pass device_type="cpu", or '
            "install a torch that is built for the GPU"
        )
        return "cpu"
    return device_type


def _width_of_last_layer(model: torch.nn.Module) -> int | None:
    """Outputs of the last layer if it is linear: a first guess, which the first forward pass confirms or corrects."""
    last = list(model.modules())[-1]
    return last.out_features if isinstance(last, torch.nn.Linear) and last.out_features > 1 else None


def _move(model: torch.nn.Module, attributes: dict[str, Any], device: torch.device) -> None:
    """Move `model` and what belongs to it among an estimator's `attributes`."""
    model.to(device)
    if isinstance(attributes["_loss"], torch.nn.Module):
        attributes["_loss"].to(device)
    if attributes["_optimizer"] is not None:
        # loading its own state moves it to where the parameters now are
        attributes["_optimizer"].load_state_dict(attributes["_optimizer"].state_dict())
    for operation in attributes["preprocessing_operations"]:
        if hasattr(operation, "_device"):
            operation._device = device
