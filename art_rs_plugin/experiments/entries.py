"""What a comparison of certifiers is: entries, each a certifier and its network, on the same images."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from art_rs_plugin import certifiers
from art_rs_plugin.certifiers import Certifier, UpperBound
from art_rs_plugin.core import checks
from art_rs_plugin.experiments import checkpoints
from art_rs_plugin.experiments.datasets import DataSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LABEL = "-_.,= +()"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A certifier and the network that it is given.

    :param certifier: A name in `certifiers.available()`.
    :param checkpoint: Folder that `art-rs train` wrote, or a file of weights with `model`, the name of a network, and
        with `mean` and `std` if they are not the data set's. None: a fresh network `model`, for `fit` to train.
    :param label: In tables, in the legend, and the name of its ledger.
    :param fit: Options of the certifier's own training, such as `{"epochs": 10}`, on the training images; without, the
        network is certified as it is.
    :param options: Of the certifier's `build`. `sigma` and `seed` are the checkpoint's and the comparison's if it takes
        them and they are not given, and so are `radii`.
    """

    certifier: str
    checkpoint: Path | None = None
    model: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    label: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        certifiers.get(self.certifier)
        label = self.label or self.certifier
        if not all(character.isalnum() or character in _LABEL for character in label) or label.startswith("."):
            raise ValueError(f"`label` must be of letters, digits and {_LABEL!r}, for it names a file, got {label!r}")
        object.__setattr__(self, "label", label)
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        elif self.model is None or not self.fit:
            raise ValueError(f"`checkpoint` must be given, or `model` and `fit` for a fresh network; none for {label}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Entries on the same images of a data set.

    :param images: How many, evenly spread over the data set.
    :param radii: Of the table, in the unit of the data and the norm of the comparison.
    :param norm: 2, or inf.
    """

    data: str
    entries: tuple[Entry, ...]
    radii: tuple[float, ...]
    images: int = 100
    split: str = "test"
    norm: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("images", self.images)
        checks.whole("seed", self.seed, minimum=0)
        checks.one_of("norm", self.norm, (2, float("inf")))
        if not self.entries:
            raise ValueError("`entry` must name at least one certifier, got none")
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise ValueError(f"each `label` must be another, got {', '.join(labels)}")
        for radius in self.radii:
            checks.non_negative("radii", radius)

    def indices(self, data: DataSet) -> list[int]:
        """Which images."""
        return list(range(0, len(data), max(1, len(data) // self.images)))[: self.images]


def load(path: Path) -> Comparison:
    """A comparison from a TOML file: the keys of `Comparison`, and a table `[[entry]]` for each entry.

    Checkpoints are relative to the file.

    :raises FileNotFoundError: There is no such file.
    :raises ValueError, TypeError: What is there is no comparison; names the file and what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"comparison `{path}` does not exist")
    try:
        told = tomllib.loads(path.read_text())
        entries = tuple(Entry(**entry) for entry in told.pop("entry", []))
        here = [
            entry if entry.checkpoint is None else replace(entry, checkpoint=path.parent / entry.checkpoint)
            for entry in entries
        ]
        return Comparison(**{**told, "radii": tuple(told.get("radii", ())), "entries": tuple(here)})
    except (ValueError, TypeError) as error:  # TOMLDecodeError is a ValueError
        raise type(error)(f"{path}: {error}") from error


def crossed(names: Sequence[str], folders: Sequence[Path], sigmas: Sequence[float] = ()) -> tuple[Entry, ...]:
    """An entry of every certifier for every checkpoint, and for each of `sigmas` if it takes one.

    Without `sigmas` each checkpoint's own is taken. Upper bounds are made of whatever the others certify: f, or g with
    each sigma, or both. Labels say in what entries of one name differ.

    :param names: Of certifiers.
    :param folders: That `art-rs train` wrote.
    """
    made = []
    for name, folder in product(names, folders):
        told = [name, *([folder.name] if len(folders) > 1 else [])]
        several = _noise(name, names, folder, sigmas)
        for sigma in several:
            which = [] if len(several) == 1 else ["f" if sigma is None else f"{sigma:g}"]
            options = {} if sigma is None else {"sigma": sigma}
            made.append(Entry(certifier=name, checkpoint=folder, label=", ".join(told + which), options=options))
    return tuple(made)


def _noise(name: str, names: Sequence[str], folder: Path, sigmas: Sequence[float]) -> Sequence[float | None]:
    """Sigmas of the entries of a name; None where it is not to be given."""
    kind = certifiers.get(name)
    if issubclass(kind, Certifier):
        return sigmas if sigmas and "sigma" in parameters(kind) else [None]
    others = [certifiers.get(other) for other in names]
    certified = {other.certifies for other in others if issubclass(other, Certifier)}
    of_f = [None] if certified != {"g"} else []
    return [*of_f, *(sigmas or [checkpoints.load_checkpoint(folder)[1]["sigma"]] if "g" in certified else [])]


def parameters(kind: type[Certifier] | type[UpperBound]) -> set[str]:
    """Names of what a certifier is built with."""
    return {*inspect.signature(kind.__init__).parameters, *inspect.signature(kind.build).parameters}
