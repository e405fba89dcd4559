"""What ART's attacks are tried on: a small trained network, inputs in the forms that attacks ask for, tiny settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

SIGMA = 0.25
VOTES = 50  # of each prediction: attacks ask for many
SAMPLES = 8
INPUTS = 3


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real scans, (m, 1, 8, 8) in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels


@cache
def trained() -> nn.Sequential:
    """A network that names about .95 of the digits right under the noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    estimator = RandomizedSmoothingPyTorch(model, SIGMA, seed=0, optimizer=optimizer, device_type="cpu")
    images, labels = digits()
    estimator.fit(images[:1400], labels[:1400], nb_epochs=12)
    return model.eval()


class Front(nn.Module):
    """Makes the digits' (m, 1, 8, 8) of what an attack wants to see."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != {"video": 5, "vector": 2}.get(self.layout, 4):
            raise ValueError(f"the network takes a batch, got {tuple(x.shape)}")
        if self.layout == "channels last":
            x = x.permute(0, 3, 1, 2)
        if self.layout in ("colour", "channels last"):
            x = nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 4)
        if self.layout == "video":
            x = x.mean(dim=1)
        return x.reshape(-1, 1, 8, 8)


@dataclass(frozen=True)
class Case:
    """Inputs and labels in a form that an attack may ask for.

    :param layout: "grey" (1, 8, 8), "colour" (3, 32, 32), "channels last" (32, 32, 3), "video" (2 frames, 8, 8, 1) or
        "vector" (64,).
    :param y: What is passed as `y`: "labels" and "targets" one-hot, "indices", or "guides", which are images.
    """

    layout: str = "grey"
    y_is: str = "labels"
    inputs: int = INPUTS

    def __str__(self) -> str:
        names = {"grey": "1x8x8", "colour": "3x32x32", "channels last": "32x32x3", "video": "2x8x8x1", "vector": "64"}
        shape = "x".join(filter(None, [str(self.inputs) if self.inputs == 1 else "m", names[self.layout]]))
        return f"`x` {shape}" + ("" if self.y_is == "labels" else f", `y` {self.y_is}")

    @property
    def rows(self) -> slice:
        return slice(1400, 1400 + self.inputs)

    @property
    def x(self) -> np.ndarray:
        x = digits()[0][self.rows]
        if self.layout in ("colour", "channels last"):
            x = x.repeat(3, axis=1).repeat(4, axis=2).repeat(4, axis=3)
        if self.layout == "channels last":
            x = x.transpose(0, 2, 3, 1)
        if self.layout == "video":
            x = x.transpose(0, 2, 3, 1)[:, None].repeat(2, axis=1)
        if self.layout == "vector":
            x = x.reshape(-1, 64)
        return np.array(x, order="C")

    @property
    def y(self) -> np.ndarray:
        labels = digits()[1][self.rows]
        one_hot = np.eye(10, dtype=np.float32)
        forms = {"labels": one_hot[labels], "targets": one_hot[(labels + 1) % 10], "indices": labels.copy()}
        return np.clip(1 - self.x, 0, 1) if self.y_is == "guides" else forms[self.y_is]

    @property
    def model(self) -> nn.Sequential:
        return nn.Sequential(Front(self.layout), *trained())

    @property
    def options(self) -> dict[str, Any]:
        return {
            "input_shape": self.x.shape[1:], "nb_classes": 10, "clip_values": (0.0, 1.0), "device_type": "cpu",
            "channels_first": self.layout not in ("channels last", "video"),
        }  # fmt: skip


# in this order: the plainest form in which an attack works is the one it is judged in
CASES = (
    Case(),
    Case(inputs=1),
    Case(y_is="targets"),
    Case("colour"),
    Case("colour", inputs=1),
    Case("colour", "targets", inputs=1),
    Case(y_is="guides", inputs=1),
    Case("channels last"),
    Case("channels last", "indices"),
    Case("video"),
    Case("vector"),
    Case("vector", "targets"),
)


def _softmax(z: np.ndarray) -> np.ndarray:
    exponential = np.exp(z - z.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


ANSWERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logits": lambda z: z,
    "probabilities": _softmax,
    "one-hot": lambda z: np.eye(z.shape[1], dtype=np.float32)[z.argmax(axis=1)],
}


class Answering(PyTorchClassifier):
    """ART's classifier, whose predictions say more or less about the same network."""

    answer = "logits"

    def predict(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return ANSWERS[self.answer](super().predict(*args, **kwargs))


class Cast(nn.Module):
    """Takes float64 too, as some attacks pass it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def plain(case: Case) -> PyTorchClassifier:
    return PyTorchClassifier(case.model, nn.CrossEntropyLoss(), **case.options)


def answering(case: Case, answer: str) -> PyTorchClassifier:
    classifier = Answering(nn.Sequential(Cast(), *case.model), nn.CrossEntropyLoss(), **case.options)
    classifier.answer = answer
    return classifier


def smoothed(case: Case) -> RandomizedSmoothingPyTorch:
    estimator = RandomizedSmoothingPyTorch(case.model, SIGMA, seed=0, compile=False, **case.options)
    estimator.predict(case.x)  # the first call also tries the model on the input
    estimator.predict = partial(estimator.predict, n=VOTES)
    return estimator


def _auto_attack(subject: Any, case: Case) -> list[EvasionAttack]:
    options = {"eps": 0.5, "max_iter": 3, "nb_random_init": 1, "loss_type": "cross_entropy", "verbose": False}
    return [evasion.AutoProjectedGradientDescent(subject, **options)]


def _laser_beam(subject: Any, case: Case) -> Any:
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam

    return LaserBeam.from_array([780.0, 3.14, 32.0, 32.0])


def _laser_generator(subject: Any, case: Case) -> Any:
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator

    return LaserBeamGenerator(LaserBeam.from_array([380.0, 0.0, 1.0, 1.0]), _laser_beam(subject, case))


# Parameters by name, with those of one attack alone as attack.name: few steps, and steps so large that they suffice.
SETTINGS: dict[str, Any] = {
    "batch_size": 64, "binary_search_steps": 2, "conjugate_sinkhorn_max_iter": 5, "eps": 0.5, "es": 1, "init_eval": 5,
    "init_size": 50, "initial_const": 10.0, "iterations": 5, "k": 4, "learning_rate": 0.1, "max_eval": 10,
    "max_iter": 5, "max_rotation": 30.0, "max_translation": 20.0, "n_steps": 5, "nb_parallel": 8,
    "nb_random_init": 1, "nb_steps": 3, "num_boost_queries": 20, "num_rotations": 3, "num_translations": 3,
    "num_trial": 10, "num_xforms": 2, "num_xforms_boost": 2, "num_xforms_mask": 2,
    "projected_sinkhorn_max_iter": 5, "query_limit": 200, "sub_dim": 4, "targeted": False, "use_resize": False,
    "verbose": False,
    "CarliniLInfMethod.largest_const": 15.0,
    "GeoDA.max_iter": 600,  # fewer end in an index error
    "LowProFool.importance": np.full(64, 0.125),
    "NewtonFool.eta": 100.0,
    "SimBA.batch_size": 1,
    "SimBA.max_iter": 64,
    "TargetedUniversalPerturbation.attacker_params": {"targeted": True, "eps": 0.5},
    "Wasserstein.regularization": 100.0,
    "ZooAttack.max_iter": 60,
    "VirtualAdversarialMethod.max_iter": 1,
}  # fmt: skip
# The same for parameters without a default, or whose default is None: made for the subject and the inputs.
NEEDED: dict[str, Callable[[Any, Case], Any]] = {
    "attacker": lambda subject, case: evasion.FastGradientMethod(subject, eps=0.3),
    "attacks": _auto_attack,
    "candidates": lambda subject, case: [torch.zeros(3, 4, 4)],
    "collector": lambda subject, case: lambda *given: [],
    "delta": lambda subject, case: 0.3,
    "embedding_weights": lambda subject, case: np.zeros((257, 8)),
    "eps": lambda subject, case: 0.5,
    "iterations": lambda subject, case: 5,
    "laser_generator": _laser_generator,
    "layer": lambda subject, case: -1,
    "max_laser_beam": _laser_beam,
    "net_size": lambda subject, case: case.x.shape[-2:],
    "noise_size": lambda subject, case: case.x.shape[-2:],
    "num_grid": lambda subject, case: 2,
    "param_dic": lambda subject, case: {"maxlen": 64, "input_dim": 257, "embedding_size": 8},
    "patch_shape": lambda subject, case: case.x.shape[1:],
    "AdversarialPatchPyTorch.patch_shape": lambda subject, case: case.x.shape[1:],
    "step_size": lambda subject, case: 0.1,
    "th": lambda subject, case: 64,
    "threshold": lambda subject, case: 0.5,
}
# What `generate` is told besides x and y.
GENERATE: dict[str, Callable[[Case], dict[str, Any]]] = {
    "FeatureAdversariesNumpy": lambda case: {"maxiter": 1},
    "GRAPHITEBlackbox": lambda case: {"x_tar": case.x[0]},
}


def build(kind: type[EvasionAttack], subject: Any, case: Case) -> EvasionAttack:
    """The attack on the subject, every parameter that has an entry above set to it."""
    given = {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[2:]:
        own = f"{kind.__name__}.{name}"
        if own in NEEDED or (name in NEEDED and parameter.default in (None, inspect.Parameter.empty)):
            given[name] = NEEDED[own if own in NEEDED else name](subject, case)
        elif own in SETTINGS or name in SETTINGS:
            given[name] = SETTINGS.get(own, SETTINGS.get(name))
    return kind(subject, **given)
