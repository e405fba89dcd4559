"""Checkpoints: weights as safetensors beside a JSON that says what they are; other people's weights; a model's hash.

Nothing that a file of weights holds is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from art_rs_plugin.core import checks
from art_rs_plugin.experiments import models

WEIGHTS = "model.safetensors"
ABOUT = "checkpoint.json"

Tensors = dict[str, torch.Tensor]

_REQUIRED = ("architecture", "sigma", "data")
_ARCHITECTURE = ("name", "input_shape", "nb_classes", "mean", "std")


def save_checkpoint(folder: str | Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """Write the weights of `model`, and what they are, into `folder`: whole, or not at all.

    Two files cannot be replaced in one step: a crash in the instant between them is noticed when loading.

    :param about: JSON values. `sigma`, `data` and `architecture` are required, the last with the arguments of
        `models.build` (name, input_shape, nb_classes, mean, std); training settings, version and more are kept as they
        are. `model_hash` is added.
    :raises ValueError: A required key is missing.
    :raises OSError: The folder cannot be written, for instance on a full disk; a checkpoint already there stays.
    """
    folder = Path(folder)
    _check_about(about, "`about`")
    text = json.dumps({**about, "model_hash": model_hash(model)}, indent=2) + "\n"
    # copies, since safetensors refuses tied weights
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        files = {WEIGHTS: safetensors.torch.save(tensors), ABOUT: text.encode()}
        for name, data in files.items():
            with open(Path(temporary) / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in files:  # the JSON last: its hash tells whether the weights beside it are those it speaks of
            os.replace(Path(temporary) / name, folder / name)


def load_checkpoint(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in `folder`, on the CPU and in evaluation mode, and what its JSON says about it.

    The architecture is built by `models.build`, so the name "module:factory" imports that module.

    :raises FileNotFoundError: The folder or one of its two files is missing.
    :raises ValueError: The JSON is malformed, lacks a key or describes no known architecture; a tensor does not fit the
        architecture; or the weights are not those whose hash was written.
    """
    folder = Path(folder)
    for path in (folder, folder / ABOUT, folder / WEIGHTS):
        if not path.exists():
            raise FileNotFoundError(f"checkpoint `{folder}`: `{path}` does not exist")
    about = _read_about(folder / ABOUT)
    try:
        model = models.build(**{key: about["architecture"][key] for key in _ARCHITECTURE})
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"`{folder / ABOUT}` describes no architecture that can be built: {error}") from error
    tensors = _read_safetensors(folder / WEIGHTS)
    _check_fit(tensors, model, folder / WEIGHTS)
    # assigned, not copied: the precision of the weights is part of the model's identity
    model.load_state_dict(tensors, strict=False, assign=True)
    found = model_hash(model)
    if found != about["model_hash"]:
        raise ValueError(
            f"`{folder / WEIGHTS}` must have the hash that {ABOUT} names, {about['model_hash']}, got {found}: "
            "it was altered, or saving was interrupted"
        )
    return model.eval(), about


def start_from(source: str | Path, model: nn.Module, architecture: Mapping[str, Any]) -> str:
    """Give `model` the weights in `source`, but its own standardisation and, for other classes, its own head.

    :param source: Checkpoint folder; or a file of weights, which must fit the model as it is, see `load_weights`.
    :param architecture: Of `model`, as `save_checkpoint` keeps it.
    :return: The hash of the network in `source`.
    :raises FileNotFoundError: There is no such folder or file.
    :raises ValueError: That network is of another architecture, or for images of another shape.
    """
    folder = Path(source)
    standardisation = {f"0.{name}": value.clone() for name, value in model[0].named_buffers()}  # type: ignore[index]
    if folder.is_file():
        load_weights(model, folder)
        found = model_hash(model)
        model.load_state_dict(standardisation, strict=False)
        return found
    there, about = load_checkpoint(folder)
    theirs = about["architecture"]
    for key in ("name", "input_shape"):
        if list(theirs[key]) != list(architecture[key]):
            raise ValueError(f"`init` must have the {key} {architecture[key]!r}, got {theirs[key]!r} in {folder}")
    here, weights = model.state_dict(), there.state_dict()
    others = [name for name in here if here[name].shape != weights[name].shape]
    if others and theirs["nb_classes"] == architecture["nb_classes"]:
        raise ValueError(f"`init` must have weights of the same shapes, got others for {', '.join(others)} in {folder}")
    left = {*standardisation, *others}
    model.load_state_dict({name: value for name, value in weights.items() if name not in left}, strict=False)
    return str(about["model_hash"])


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` in place with weights that others saved: .safetensors, or else a pickle (.pth, .th, .pt, .tar).

    A pickle is read with `weights_only=True` and no other way. The state_dict is bare or lies under "state_dict" or
    "model"; of a list there, a cascade as Wong et al. 2018 publish them, it is the first, which sees every image. Names
    are taken without "module.", and with "fc." for "linear.". A file may leave out the `Normalize` of a
    model from `models.build`, which then keeps its own mean and deviation, and may number network and normalisation as
    Cohen et al. do: "1." and, where their file holds them, "0.means" and "0.sds".

    :raises FileNotFoundError: There is no such file.
    :raises ValueError: The file is damaged, holds more than tensors, or they do not fit; `model` stays as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights `{path}`: there is no such file")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors = _rename(tensors, model, path)
    _check_fit(tensors, model, path)
    model.load_state_dict(tensors, strict=False)


def model_hash(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of each parameter and buffer, alike on every device: "sha256:<hex>"."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not _is_counter(name):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _is_counter(name: str) -> bool:
    """Whether it counts the steps of a batch normalisation: old files lack it, and the function is the same without."""
    return name.endswith("num_batches_tracked")


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from error
    _check_about(about, f"`{path}`")
    _check_keys(about, ["model_hash"], f"`{path}`")
    try:
        checks.positive("sigma", about["sigma"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}`: {error}") from None
    return dict(about)


def _check_about(about: Any, where: str) -> None:
    _check_keys(about, _REQUIRED, where)
    _check_keys(about["architecture"], _ARCHITECTURE, f"`architecture` in {where}")


def _check_keys(value: Any, keys: Iterable[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, got {value!r}")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{where} must have the keys {', '.join(map(repr, missing))}, got {sorted(value)}")


def _read_safetensors(path: Path) -> Tensors:
    try:
        # read, not mapped: weights that follow later changes of the file would outlive their hash
        return dict(safetensors.torch.load(path.read_bytes()))
    except OSError:
        raise
    except Exception as error:  # its own error, or torch's of a type that it does not have
        raise ValueError(f"`{path}` is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> Tensors:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's age; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message goes on to recommend the unsafe way, so it is not shown
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to run `{asked[1]}`" if asked else "is damaged or holds more than tensors"
        raise ValueError(f"weights `{path}` must hold tensors only: the file {what}; none of it was executed") from None
    except Exception as error:  # malformed bytes make the unpickler stumble in many ways
        raise ValueError(f"weights `{path}` cannot be read, the file is damaged: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
        elif isinstance(content, Mapping) and isinstance(content.get(key), list) and content[key]:
            content = content[key][0]
    if not isinstance(content, Mapping):
        content = {"file": content}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"weights `{path}` must hold a state_dict (names and tensors), bare or under 'state_dict' or 'model', "
                f"got {type(value).__name__} as {name!r}"
            )
    return dict(content)


def _rename(tensors: Tensors, model: nn.Module, path: Path) -> Tensors:
    """`tensors` under the names of `model`, as far as the known habits of naming explain them."""
    known = model.state_dict()
    stripped = [re.sub(r"(^|\.)module\.", r"\1", name) for name in tensors]
    # the file, the model, both or neither put a normalisation, numbered 0, before the network, numbered 1
    layouts = (stripped, [f"1.{name}" for name in stripped], [name.removeprefix("1.") for name in stripped])
    candidates = [[_alias(name, known) for name in layout] for layout in layouts]
    names = min(candidates, key=lambda names: len(known.keys() ^ set(names)))
    if len(set(names)) < len(names):
        raise ValueError(f"weights `{path}` hold two tensors for one name, got {', '.join(tensors)}")
    fitted = dict(zip(names, tensors.values(), strict=True))
    if isinstance(model, nn.Sequential) and isinstance(next(iter(model), None), models.Normalize):
        for name in ("0.mean", "0.std"):
            if not {"0.mean", "0.std"} & set(names):
                fitted[name] = known[name]
            elif name in fitted and fitted[name].numel() == known[name].numel():
                # elsewhere of shape (channels,) or (1, channels, 1, 1)
                fitted[name] = fitted[name].reshape(known[name].shape)
    return fitted


def _alias(name: str, known: Mapping[str, torch.Tensor]) -> str:
    """What the model calls the tensor `name`; `name` itself if it calls it nothing."""
    authors = {"0.means": "0.mean", "0.sds": "0.std"}
    for alias in (name, authors.get(name, name), re.sub(r"(^|\.)linear\.", r"\1fc.", name)):
        if alias in known:
            return alias
    return name


def _check_fit(tensors: Tensors, model: nn.Module, path: Path) -> None:
    known = model.state_dict()
    faults = {
        "missing": [name for name in known if name not in tensors and not _is_counter(name)],
        "unexpected": sorted(name for name in tensors if name not in known and not _is_counter(name)),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(known[name].shape)}"
            for name in known
            if name in tensors and tensors[name].shape != known[name].shape
        ],
    }
    listed = [
        f"{len(names)} {fault}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if listed:
        raise ValueError(f"the tensors in `{path}` do not fit the model; {'; '.join(listed)}")
