"""`art-rs`: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
    from art_rs_plugin.experiments.datasets import DataSet

app = typer.Typer(
    help="Randomized smoothing for ART: train a base classifier under noise, certify it, draw the curves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Device(str, Enum):
    """Where to compute."""

    CPU = "cpu"
    GPU = "gpu"


class Split(str, Enum):
    """Which images."""

    TRAIN = "train"
    TEST = "test"


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
    typer.Option(help="small-cnn, lenet, mlp, resnet20, resnet110, resnet50, or your own module:factory."),
]
Most = Annotated[int | None, typer.Option("--max", help="Only so many images.")]
Every = Annotated[int, typer.Option(help="Only every k-th image.")]
BatchSize = Annotated[int | None, typer.Option(help="Noisy copies per forward pass; automatic if not given.")]
Radii = Annotated[str, typer.Option(help="Radii of the table, in the unit of the input.")]

DEFAULT_RADII = "0,0.25,0.5,0.75,1.0,1.25,1.5"


@app.command(epilog="Example: art-rs demo --out my-first-certificates")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, ledgers, table and pictures.")] = Path(
        "art-rs-demo"
    ),
) -> None:
    """The main job on embedded real data, in under a minute: train at two sigmas, certify, draw the curves."""
    from art_rs_plugin.experiments import demo as demonstration

    with _reported(f"what is finished is in {out}"):
        ledgers, files = demonstration.run(out, say=_say, bar=_bar)
        _print_table(list(ledgers.values()), list(demonstration.RADII))
        _say(f"\nWritten to {out}: checkpoints, and")
        for path in [*ledgers.values(), *files]:
            _say(f"  {path}")


@app.command(
    epilog="Example: art-rs train --data digits --model small-cnn --sigma 0.25 --epochs 6 --lr 0.05 --out runs/digits"
)
def train(
    data: Data,
    model: Annotated[str, typer.Option(help="small-cnn, lenet, mlp, resnet20, resnet110, resnet50, module:factory.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise; pixels go from 0 to 1.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; if it holds a run, that run goes on.")],
    epochs: Annotated[int, typer.Option(help="The learning rate is divided by ten after each third of them.")] = 90,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 256,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-4,
    num_workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    seed: Seed = None,
    device: Where = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train a base classifier under Gaussian noise, with a checkpoint after every epoch."""
    with _reported(f"what is finished is in {out}"):
        from art_rs_plugin.experiments import datasets, runs

        images = datasets.load(data, "train", root=data_root, download=download)
        recipe = runs.Recipe(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay)
        runs.train(
            images,
            model,
            sigma,
            out,
            recipe=recipe,
            seed=seed,
            device=_torch_device(device),
            num_workers=num_workers,
            on_epoch=lambda epoch: _say(
                f"epoch {epoch['epoch']}/{epochs}  loss {epoch['loss']:.4f}  accuracy under noise "
                f"{epoch['accuracy']:.4f}  lr {epoch['lr']:g}  {epoch['seconds']:.1f} s"
            ),
            progress=sys.stderr.isatty(),
        )
        _say(f"Checkpoint in {out}")


@app.command(
    epilog="Example: art-rs certify --checkpoint runs/digits --data digits --n 10000 --max 20 --out digits.jsonl"
)
def certify(
    checkpoint: Checkpoint,
    data: Data,
    out: Annotated[Path, typer.Option(help="Ledger, a line per image; if it exists, the run goes on.")],
    n: Annotated[int, typer.Option(help="Votes that bound the class probability.")] = 100_000,
    n0: Annotated[int, typer.Option(help="Votes that select the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong, at most.")] = 0.001,
    sigma: Annotated[float | None, typer.Option(help="Noise to certify with, if not the checkpoint's own.")] = None,
    model: ModelName = None,
    split: Split = Split.TEST,
    max_: Most = None,
    every: Every = 1,
    seed: Seed = None,
    batch_size: BatchSize = None,
    device: Where = None,
    data_root: DataRoot = None,
    download: Download = False,
    radii: Radii = DEFAULT_RADII,
) -> None:
    """Certify images: an l2 radius each within which the smoothed classifier's prediction cannot change."""
    with _reported(f"what is finished is in {out}"):
        from art_rs_plugin.experiments import runs

        at = _radii(radii)
        images = _load(data, split, data_root, download)
        estimator = _estimator(checkpoint, images, sigma, model, device, n0=n0, n=n, alpha=alpha, seed=seed)
        with _bar("certify") as on_row:
            runs.certify(estimator, images, _selection(images, max_, every), out, batch_size=batch_size, on_row=on_row)
        _print_table([out], at)
        _say(f"Ledger: {out}")


@app.command(
    epilog="Example: art-rs predict --checkpoint runs/digits --data digits --n 1000 --max 20 --out digits-votes.jsonl"
)
def predict(
    checkpoint: Checkpoint,
    data: Data,
    out: Annotated[Path, typer.Option(help="Ledger, a line per image; if it exists, the run goes on.")],
    n: Annotated[int, typer.Option(help="Votes per image.")] = 1_000,
    alpha: Annotated[float, typer.Option(help="Probability of a class that is not g's, at most.")] = 0.001,
    sigma: Annotated[float | None, typer.Option(help="Noise to predict with, if not the checkpoint's own.")] = None,
    model: ModelName = None,
    split: Split = Split.TEST,
    max_: Most = None,
    every: Every = 1,
    seed: Seed = None,
    batch_size: BatchSize = None,
    device: Where = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Predict images with the smoothed classifier, or abstain."""
    with _reported(f"what is finished is in {out}"):
        from art_rs_plugin.experiments import runs
        from art_rs_plugin.experiments.logs import read_log

        images = _load(data, split, data_root, download)
        estimator = _estimator(checkpoint, images, sigma, model, device, alpha=alpha, seed=seed)
        with _bar("predict") as on_row:
            runs.predict(
                estimator, images, _selection(images, max_, every), out, n=n, batch_size=batch_size, on_row=on_row
            )
        log = read_log(out)
        correct = float((log["prediction"] == log["label"]).mean())
        abstained = float((log["prediction"] == -1).mean())
        _say("| examples | right | wrong | abstained |\n| ---: | ---: | ---: | ---: |")
        _say(f"| {len(log)} | {correct:.3f} | {1 - correct - abstained:.3f} | {abstained:.3f} |")
        _say(f"Ledger: {out}")


@app.command(epilog="Example: art-rs curve digits.jsonl --radii 0,0.25,0.5 --out curves")
def curve(
    logs: Annotated[list[Path], typer.Argument(help="Ledgers, or TSV logs of the authors' code.")],
    radii: Radii = DEFAULT_RADII,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table (Markdown, CSV) and picture (PNG, SVG).")
    ] = None,
) -> None:
    """Certified accuracy of ledgers: a table, and with --out a picture of the curves."""
    with _reported("nothing is half-written"):
        from art_rs_plugin.experiments.curve import write_curve
        from art_rs_plugin.experiments.logs import read_logs

        _print_table(logs, _radii(radii))
        if out is not None:
            for path in write_curve(read_logs(logs), _radii(radii), out):
                _say(f"{path}")


def main() -> None:
    """Entry point of `art-rs`."""
    sys.path.append("")  # for a user's own module:factory in the current folder
    app()


def _load(name: str, split: Split, root: Path | None, download: bool) -> DataSet:
    from art_rs_plugin.experiments import datasets

    return datasets.load(name, split.value, root=root, download=download)


def _estimator(
    checkpoint: Path, data: DataSet, sigma: float | None, model_name: str | None, device: Device | None, **options: Any
) -> RandomizedSmoothingPyTorch:
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
        device_type="gpu" if _torch_device(device) == "cuda" else "cpu",
        **options,
    )


def _selection(data: DataSet, most: int | None, every: int) -> range:
    from art_rs_plugin.core import checks

    chosen = range(0, len(data), checks.whole("every", every))
    return chosen if most is None else chosen[: checks.whole("max", most)]


def _torch_device(device: Device | None) -> str:
    import torch

    if device is Device.GPU and not torch.cuda.is_available():
        raise ValueError("`--device` gpu needs a GPU that torch finds, and there is none; use --device cpu")
    return "cuda" if device is not Device.CPU and torch.cuda.is_available() else "cpu"


def _radii(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`--radii` must be numbers separated by commas, got {text!r}") from None


def _print_table(paths: list[Path], radii: list[float]) -> None:
    from art_rs_plugin.experiments.curve import curve_table, to_markdown
    from art_rs_plugin.experiments.logs import read_logs

    _say(to_markdown(curve_table(read_logs(paths), radii)).rstrip())


def _say(text: str) -> None:
    typer.echo(text)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[dict[str, Any], int, int], None]]:
    """A progress bar with rate and time left, on standard error."""
    from tqdm import tqdm

    with tqdm(desc=title, unit="image", disable=None, smoothing=0.05) as bar:

        def on_row(row: dict[str, Any], done: int, total: int) -> None:
            if bar.total != total:
                bar.reset(total)
                bar.initial = done - 1
                bar.n = done - 1
            bar.update()

        yield on_row


@contextmanager
def _reported(kept: str) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error, and Ctrl-C into a way to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = shlex.join(["art-rs", *sys.argv[1:]])
        typer.echo(f"\nStopped; {kept}. To go on, run the same command again:\n  {again}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        if isinstance(error, (RuntimeError, ArithmeticError)):
            typer.echo(f"Stopped; {kept}. The same command goes on from there.", err=True)
        raise typer.Exit(2) from None
