"""Recipes: all that a training run is told, as a small TOML file or from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from art_rs_plugin.core import checks
from art_rs_plugin.training import OBJECTIVES, Objective
from art_rs_plugin.training.loop import PRECISIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "step": lambda optimizer, epochs: StepLR(optimizer, step_size=max(1, -(-epochs // 3))),
    "cosine": lambda optimizer, epochs: CosineAnnealingLR(optimizer, T_max=epochs),
}
"""(optimizer, epochs) -> the schedule of its learning rate, stepped after each."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, by SGD with momentum. The defaults are those of Cohen et al. 2019, section 4.

    :param data: Name of the data set, and `model`, of the network: what the recipe is for, where it says so.
    :param method: A name in `training.OBJECTIVES`.
    :param options: Of the method, by name.
    :param schedule: Of the learning rate: "step" divides it by ten after each third of the epochs, "cosine" lets it
        fall to 0 along a cosine.
    :param clip: Largest l2 norm of a step's gradient, if there is one.
    :param average: Share of the averaged weights that a step keeps, such as .999, if weights are to be averaged; the
        averaged ones are then validated and saved.
    :param precision: "fp32", or "bf16" for torch's autocast.
    :param held_out: Training images that are not trained on and validate instead; they are chosen by the seed.
    :param validate_every: Epochs between two validations of `held_out` images; the last epoch is validated always.
    :raises ValueError, TypeError: Name, rule and value of what is unfit, an unknown option of the method among it.
    """

    data: str | None = None
    model: str | None = None
    method: str = "gaussian"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    clip: float | None = None
    average: float | None = None
    precision: str = "fp32"
    held_out: int = 0
    validate_every: int = 5

    def __post_init__(self) -> None:
        checks.whole("epochs", self.epochs)
        checks.whole("batch_size", self.batch_size)
        checks.positive("lr", self.lr)
        checks.non_negative("momentum", self.momentum)
        checks.non_negative("weight_decay", self.weight_decay)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        for name in ("data", "model"):
            if not isinstance(value := getattr(self, name), (str, NoneType)):
                raise TypeError(f"`{name}` must be a name, got {value!r}")
        if not isinstance(self.options, Mapping):
            raise TypeError(f"`options` must be a table of the method's options, got {self.options!r}")
        if self.clip is not None:
            checks.positive("clip", self.clip)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.whole("held_out", self.held_out, minimum=0)
        checks.whole("validate_every", self.validate_every)
        if self.average is not None:
            checks.in_unit_interval("average", self.average)
        self.objective()

    def objective(self) -> Objective:
        """The method with its options; images stay within [0, 1] where it moves them."""
        method = OBJECTIVES[checks.one_of("method", self.method, OBJECTIVES)]
        known = options_of(self.method)
        for name in self.options:
            checks.one_of(f"option of {self.method}", name, known)
        bounds = {"clip_values": (0.0, 1.0)} if "clip_values" in getattr(method, "__dataclass_fields__", ()) else {}
        return method(**bounds, **self.options)


def options_of(method: str) -> dict[str, tuple[type, Any]]:
    """The options of a method that a recipe can give: name -> (type, default)."""
    objective = OBJECTIVES[method]
    hints = get_type_hints(objective)
    return {
        option.name: (hints[option.name], option.default)
        for option in fields(objective)  # type: ignore[arg-type]  # every method is a dataclass
        if hints[option.name] in (bool, int, float, str)
    }


def parsed(method: str, given: Iterable[str]) -> dict[str, Any]:
    """What "name=value" words say of a method's options.

    :raises ValueError: No such method or option, or a value that is not of its type.
    """
    known, options = options_of(checks.one_of("method", method, OBJECTIVES)), dict[str, Any]()
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"`--option` must be name=value, got {word!r}")
        kind, _ = known[checks.one_of(f"option of {method}", name, known)]
        try:
            options[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise ValueError(f"`{name}` must be of type {kind.__name__}, got {value!r}") from None
    return options


def available() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("art_rs_plugin.experiments") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """A recipe that comes with the package, or one in a file.

    :param name: One of `available()`, or the path of a TOML file with keys of `Recipe`; `options` is a table.
    :raises FileNotFoundError: There is neither.
    :raises ValueError: What is there is no recipe; names the file and what is wrong.
    """
    if name in available():
        text = (resources.files("art_rs_plugin.experiments") / "recipes" / f"{name}.toml").read_text()
    else:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(available())
            raise FileNotFoundError(f"recipe `{name}` must be a file, or one of {known}")
        text = path.read_text()
    try:
        said = tomllib.loads(text)
        for key in said:
            checks.one_of("key of a recipe", key, [entry.name for entry in fields(Recipe)])
        return Recipe(**said)
    except (ValueError, TypeError) as error:  # a TOMLDecodeError is a ValueError
        raise ValueError(f"recipe `{name}`: {error}") from error


def changed(recipe: Recipe, *, method: str | None = None, options: Iterable[str] = (), **given: Any) -> Recipe:
    """`recipe` with what was `given` instead, None standing for what was not; another `method` begins without options.

    :raises ValueError, TypeError: As `Recipe`.
    """
    chosen = recipe.method if method is None else method
    kept = recipe.options if chosen == recipe.method else {}
    words = {name: value for name, value in given.items() if value is not None}
    return replace(recipe, method=chosen, options={**kept, **parsed(chosen, options)}, **words)
