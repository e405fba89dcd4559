"""The state of a training run on disk: written whole or not at all, and only continued under the same settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

MOST_NAMED = 8


class _Epoch(TypedDict):
    epoch: int  # counted from 1 at the start of the run
    loss: float  # the objective's
    accuracy: float  # share of right answers on the noisy training samples, while the weights move
    lr: float  # of the first parameter group, during the epoch
    seconds: float


class Epoch(_Epoch, total=False):
    """What one epoch gave: means over its samples."""

    validation: dict[str, float]  # what `validate` said after it, if anything


class _Contents(TypedDict):
    settings: dict[str, Any]  # seed, noise, sigma, objective, optimizer and its options, scheduler, sizes of the data
    epoch: int  # the last finished one
    history: list[Epoch]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None


class Contents(_Contents, total=False):
    """A checkpoint as `read_checkpoint` returns it."""

    average: dict[str, torch.Tensor] | None  # of the weights


@dataclass
class TrainingState:
    """All that a run changes and has to take up again. Random streams follow from seed and epoch instead."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    average: AveragedModel | None = None

    def save(self, path: Path, *, settings: dict[str, Any], history: list[Epoch]) -> None:
        """Put the state after the last epoch of `history` in the place of `path`, atomically.

        :raises OSError: where it cannot be written (a full disk) or could not be read back (a scheduler with objects of
            its own in its state); `path` is then as before.
        """
        contents: Contents = {
            "settings": settings,
            "epoch": history[-1]["epoch"],
            "history": history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())
            # a state that `weights_only` refuses must fail now, not when it is needed; mmap reads no tensor
            torch.load(partial, weights_only=True, mmap=True, map_location="cpu")
            os.replace(partial, path)
        except Exception as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint of epoch {contents['epoch']} could not be written to {path} ({error}); "
                "one of an earlier epoch there is intact"
            ) from error

    def load(self, contents: Contents, settings: dict[str, Any]) -> None:
        """Take up the state in `contents`, if it belongs to a run with these `settings` and a model of this shape.

        :raises ValueError: naming each setting and each parameter that differs; nothing is changed then.
        """
        differences = [
            f"{name} is {contents['settings'][name]!r} there and {value!r} here"
            for name, value in settings.items()
            if name in contents["settings"] and contents["settings"][name] != value
        ]
        there = {name: tuple(tensor.shape) for name, tensor in contents["model"].items()}
        here = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        differences += [
            f"{name} has shape {there.get(name, 'none')} there and {here.get(name, 'none')} here"
            for name in dict.fromkeys([*there, *here])
            if there.get(name) != here.get(name)
        ]
        if differences:
            rest = len(differences) - MOST_NAMED
            named = "; ".join(differences[:MOST_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
            raise ValueError(f"`checkpoint` is of another run: {named}")
        self.model.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(contents["scheduler"] or {})
        if self.average is not None:
            self.average.load_state_dict(contents.get("average") or {})


def read_checkpoint(path: str | os.PathLike[str]) -> Contents:
    """A training checkpoint, on the CPU; read with `weights_only=True`, so that no code in it can run.

    :raises ValueError: where the file is something else.
    """
    try:
        contents = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # torch's reader fails in many ways on bytes that are not its own
        raise ValueError(f"`checkpoint` {path} cannot be read: {error}") from error
    if not isinstance(contents, dict) or not Contents.__required_keys__ <= contents.keys():
        keys = ", ".join(sorted(Contents.__required_keys__))
        raise ValueError(f"`checkpoint` {path} is no training checkpoint: it must hold {keys}")
    return contents  # type: ignore[return-value]  # its keys were checked
