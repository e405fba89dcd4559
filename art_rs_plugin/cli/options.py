"""Options that commands share: their types, and what they stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from art_rs_plugin.core.budgets import Budget
    from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
    from art_rs_plugin.experiments.datasets import DataSet
    from art_rs_plugin.ranks import Ranks


class Device(str, Enum):
    """Where to compute."""

    CPU = "cpu"
    GPU = "gpu"


class Split(str, Enum):
    """Which images."""

    TRAIN = "train"
    TEST = "test"


class Rule(str, Enum):
    """Names in `core.budgets.BUDGETS`; written out, for importing that takes as long as all of --help."""

    FIXED = "fixed"
    LOOKS = "looks"
    PILOT = "pilot"


class Precision(str, Enum):
    """What the base classifier computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Randomness(str, Enum):
    """Where the random bits of votes come from."""

    TORCH = "torch"
    CHACHA20 = "chacha20"


Data = Annotated[str, typer.Option(help="Data set: digits (embedded), mnist, cifar10, svhn, imagenet, imagefolder.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the data sets in torchvision's layout.", envvar="ART_RS_DATA")
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download a missing data set.")]
Seed = Annotated[int | None, typer.Option(help="Makes the run repeatable; from the operating system if not given.")]
Where = Annotated[Device | None, typer.Option(help="Where to compute; a GPU if there is one.")]
Checkpoint = Annotated[
    Path, typer.Option(help="Folder that `art-rs train` wrote, or somebody's weights (.pth, with --model and --sigma).")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        help="small-cnn, lenet, mlp, mlp-7x256, mlp-7x1024, wong-kolter, resnet20, resnet110, resnet50; "
        "your own module:factory."
    ),
]
Most = Annotated[int | None, typer.Option("--max", help="Only so many images.")]
Every = Annotated[int, typer.Option(help="Only every k-th image.")]
BatchSize = Annotated[int | None, typer.Option(help="Noisy copies per forward pass; automatic if not given.")]
Radii = Annotated[str, typer.Option(help="Radii of the table, in the unit of the input.")]
Arithmetic = Annotated[Precision, typer.Option(help="What the network computes in; part of what is certified.")]
Sound = Annotated[
    bool, typer.Option("--sound", help="Hold in floating point too, for images in whole 255ths (docs/soundness.md).")
]
Random = Annotated[
    Randomness,
    typer.Option(help="Where random bits come from: torch's generators, or a cipher that no network sees through."),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the network; where it pays if not given.")
]

DEFAULT_RADII = "0,0.25,0.5,0.75,1.0,1.25,1.5"


def load(name: str, split: Split, root: Path | None, download: bool) -> DataSet:
    """The images."""
    from art_rs_plugin.experiments import datasets

    return datasets.load(name, split.value, root=root, download=download)


def smoothed(
    checkpoint: Path,
    data: DataSet,
    sigma: float | None,
    model_name: str | None,
    device: Device | None,
    precision: Precision,
    compiled: bool | None,
    **options: Any,
) -> RandomizedSmoothingPyTorch:
    """The smoothed network of a checkpoint or of somebody's weights."""
    from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
    from art_rs_plugin.experiments import runs

    model, trained_at = runs.open_network(checkpoint, data, model_name)
    sigma = trained_at if sigma is None else sigma
    if sigma is None:
        raise ValueError(f"`--sigma` must be given for weights that do not say theirs: {checkpoint}")
    return RandomizedSmoothingPyTorch(
        model,
        sigma,
        input_shape=data.input_shape,
        device_type="gpu" if torch_device(device) == "cuda" else "cpu",
        precision=precision.value,
        compile="auto" if compiled is None else compiled,
        **options,
    )


def budget(rule: Rule, radii: list[float], n0: int, n: int, bound: str, cost: float | None) -> Budget:
    """The rule that says how many votes to draw: `n` of them, or at most `n`."""
    from art_rs_plugin.core.budgets import BUDGETS

    if cost is not None and rule is not Rule.PILOT:
        raise ValueError(f"`--cost` must not be given with --budget {rule.value}: pilot weighs votes, got {cost}")
    own: dict[Rule, dict[str, Any]] = {
        Rule.FIXED: {"n": n},
        Rule.LOOKS: {"n_max": n, "radii": tuple(radii)},
        Rule.PILOT: {"n_max": n, **({} if cost is None else {"cost": cost})},
    }
    return BUDGETS[rule.value](n0=n0, bound=bound, **own[rule])


def selection(data: DataSet, most: int | None, every: int) -> range:
    """Indices of the images."""
    from art_rs_plugin.core import checks

    chosen = range(0, len(data), checks.whole("every", every))
    return chosen if most is None else chosen[: checks.whole("max", most)]


def torch_device(device: Device | None) -> str:
    """The device as torch calls it, each rank of a machine its own GPU; ValueError for a GPU that is not there."""
    import torch

    if device is Device.GPU and not torch.cuda.is_available():
        raise ValueError("`--device` gpu needs a GPU that torch finds, and there is none; use --device cpu")
    if device is Device.CPU or not torch.cuda.is_available():
        return "cpu"
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count > 1:  # where there is one, it was given to this rank alone, or all ranks share it
        if local >= count:
            raise ValueError(f"`--nproc-per-node` must be at most the {count} GPUs that torch finds, got more")
        torch.cuda.set_device(local)
    return "cuda"


@contextmanager
def joined() -> Iterator[Ranks]:
    """Whom the work is shared with: the ranks that torchrun started, or nobody."""
    from art_rs_plugin import ranks

    with ranks.joined() as all_of_them:
        yield all_of_them


def numbers(text: str, name: str = "radii") -> list[float]:
    """What --radii or another list of numbers says."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`--{name}` must be numbers separated by commas, got {text!r}") from None
