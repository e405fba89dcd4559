"""`art-rs train`."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say

TRAIN_EXAMPLE = "train --data digits --model small-cnn --sigma 0.25 --epochs 6 --lr 0.05 --out runs/digits"


class Schedule(str, Enum):
    """Names in `experiments.recipes.SCHEDULES`."""

    STEP = "step"
    COSINE = "cosine"


class TrainingPrecision(str, Enum):
    """Names in `training.loop.PRECISIONS`."""

    FP32 = "fp32"
    BF16 = "bf16"


def list_methods(asked: bool) -> None:
    """Print the methods with their options, and the recipes, and end."""
    if not asked:
        return
    from art_rs_plugin.experiments import recipes
    from art_rs_plugin.training import OBJECTIVES

    for name, method in OBJECTIVES.items():
        summary = (method.__doc__ or "").split("\n\n")[0]
        say(f"{name}: {' '.join(summary.split())}")
        for option, (kind, default) in recipes.options_of(name).items():
            say(f"  --option {option}={default}  ({kind.__name__})")
    say(f"\nRecipes (--recipe): {', '.join(recipes.available())}, or a TOML file of your own")
    raise typer.Exit


def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; if it holds a run, that run goes on.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise; pixels go from 0 to 1.")],
    data: Annotated[
        str | None, typer.Option(help="Data set: digits (embedded), mnist, cifar10, svhn, imagenet, imagefolder.")
    ] = None,
    model: options.ModelName = None,
    recipe: Annotated[
        str | None, typer.Option(help="What is not given here: a name that --list-methods prints, or a TOML file.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Training method, see --list-methods.", show_default="gaussian")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the method, as name=value; may be given again.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many.", show_default="90")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples a step, of all ranks together.", show_default="256")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.", show_default="0.1")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default="0.0001")] = None,
    schedule: Annotated[
        Schedule | None, typer.Option(help="Divide the rate by ten after each third, or a cosine.", show_default="step")
    ] = None,
    precision: Annotated[TrainingPrecision | None, typer.Option(help="Of the network.", show_default="fp32")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient.")] = None,
    average: Annotated[float | None, typer.Option(help="Average the weights, keeping such a share a step.")] = None,
    held_out: Annotated[int | None, typer.Option(help="Training images held out to validate with.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Epochs between validations.", show_default="5")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint or weights to start from; with other classes, a new head.")
    ] = None,
    unlabeled: Annotated[str | None, typer.Option(help="Data set to train on as well, labelled by --teacher.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Checkpoint that labels --unlabeled.")] = None,
    unlabeled_weight: Annotated[float, typer.Option(help="Of the loss of --unlabeled.")] = 1.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard, too.")] = False,
    num_workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Launch a step's passes whole: for a small network on a GPU.")
    ] = False,
    seed: options.Seed = None,
    device: options.Where = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list-methods", callback=list_methods, is_eager=True, help="Print methods and recipes, and end."
        ),
    ] = False,
) -> None:
    """Train a base classifier under Gaussian noise, with a checkpoint after every epoch."""
    with reported(f"what is finished is in {out}"), options.joined() as ranks:
        from art_rs_plugin.experiments import datasets, recipes, training
        from art_rs_plugin.experiments.unlabeled import Unlabeled

        told = recipes.Recipe() if recipe is None else recipes.load(recipe)
        told = recipes.changed(
            told,
            method=method,
            options=option or (),
            data=data,
            model=model,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            schedule=None if schedule is None else schedule.value,
            precision=None if precision is None else precision.value,
            clip=clip,
            average=average,
            held_out=held_out,
            validate_every=validate_every,
        )
        if told.data is None or told.model is None:
            missing = " and ".join(f"`--{name}`" for name in ("data", "model") if getattr(told, name) is None)
            raise ValueError(f"{missing} must be given, here or by a recipe that says it")
        if (unlabeled is None) != (teacher is None):
            raise ValueError("`--unlabeled` and `--teacher` must be given together, got one of them")
        more = None
        if unlabeled is not None and teacher is not None:
            images = datasets.load(unlabeled, "train", root=data_root, download=download)
            more = Unlabeled(images, teacher, unlabeled_weight)
        training.train(
            datasets.load(told.data, "train", root=data_root, download=download),
            told.model,
            sigma,
            out,
            recipe=told,
            seed=seed,
            device=options.torch_device(device),
            num_workers=num_workers,
            cuda_graphs=cuda_graphs,
            init=init,
            unlabeled=more,
            tensorboard=tensorboard,
            ranks=ranks,
            on_epoch=lambda epoch: say(said_of(epoch, told.epochs)),
            progress=sys.stderr.isatty(),
        )
        if not ranks.first:
            return
        say(
            f"Checkpoint in {out}"
            + (f", the epoch that validated best in {out / training.BEST}" if told.held_out else "")
        )


def said_of(epoch: Any, epochs: int) -> str:
    """An epoch in a line."""
    line = (
        f"epoch {epoch['epoch']}/{epochs}  loss {epoch['loss']:.4f}  accuracy under noise {epoch['accuracy']:.4f}  "
        f"lr {epoch['lr']:g}  {epoch['seconds']:.1f} s"
    )
    if "validation" in epoch:
        line += "\n  held out: " + "  ".join(f"{name} {value:.3f}" for name, value in epoch["validation"].items())
    return line
