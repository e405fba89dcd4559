"""The main job on embedded real data: train under noise at two sigmas, certify held-out images, draw the curves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints, datasets, runs, training
from art_rs_plugin.experiments.curve import write_curve
from art_rs_plugin.experiments.logs import read_log
from art_rs_plugin.experiments.recipes import Recipe

SIGMAS = (0.25, 0.5)
MODEL = "small-cnn"
RECIPE = Recipe(epochs=30, batch_size=64)
VOTES = 10_000
EVERY = 6
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 0


def run(
    out: Path,
    *,
    say: Callable[[str], object],
    bar: Callable[[str], AbstractContextManager[runs.Progress]],
) -> tuple[dict[float, Path], list[Path]]:
    """Do it all in the folder `out`; what is there already, of a run that was stopped, is not done again.

    :param say: Called with a line for the user.
    :param bar: Given a title, a context manager whose value is told of each row.
    :return: The ledgers by sigma, and the files with the table and the pictures.
    """
    train_images, test_images = (datasets.load("digits", split) for split in ("train", "test"))
    ledgers = {}
    for sigma in SIGMAS:
        folder = out / f"sigma_{sigma:.2f}"
        if not (folder / checkpoints.ABOUT).exists():
            say(f"Training {MODEL} on {len(train_images)} handwritten digits, noise sigma = {sigma}")
            training.train(train_images, MODEL, sigma, folder, recipe=RECIPE, seed=SEED, device="cpu")
        model, _ = checkpoints.load_checkpoint(folder)
        estimator = RandomizedSmoothingPyTorch(model, sigma, n=VOTES, seed=SEED, device_type="cpu")
        ledgers[sigma] = out / f"sigma_{sigma:.2f}.jsonl"
        with bar(f"certify at sigma {sigma}, {VOTES} votes an image") as on_row:
            runs.certify(estimator, test_images, range(0, len(test_images), EVERY), ledgers[sigma], on_row=on_row)
    logs = {f"σ = {sigma}": read_log(path) for sigma, path in ledgers.items()}
    return ledgers, write_curve(logs, RADII, out)
