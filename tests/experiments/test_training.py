"""A training run and its folder: going on exactly, validating on what it never trained on, more data, other weights."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from made_images import Made, data_of, weights
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch, noise
from art_rs_plugin.experiments import checkpoints, datasets, models, training
from art_rs_plugin.experiments.recipes import Recipe
from art_rs_plugin.experiments.validation import Validation
from art_rs_plugin.training import read_checkpoint

SIGMA = 0.25
LONG = Recipe(
    method="consistency", options={"weight": 2.0}, epochs=4, batch_size=64, schedule="cosine", average=0.9, clip=1.0,
    held_out=60, validate_every=2, precision="bf16",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "train")


def metrics(folder):
    lines = [json.loads(line) for line in (folder / training.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


class Stopped(Exception):
    """Somebody ends the run."""


def test_a_run_that_is_stopped_goes_on_and_leaves_the_same_folder(digits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training.train(digits, "mlp", SIGMA, whole, recipe=LONG, seed=4)

    def stop(epoch):
        if epoch["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        training.train(digits, "mlp", SIGMA, broken, recipe=LONG, seed=4, on_epoch=stop)
    assert not (broken / checkpoints.WEIGHTS).exists()
    training.train(digits, "mlp", SIGMA, broken, recipe=LONG)  # the seed is the run's own
    for folder in ("", training.BEST):
        ours, theirs = weights(broken / folder), weights(whole / folder)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(broken) == metrics(whole)
    assert len(metrics(whole)) == 4


def test_what_is_saved_is_the_average_and_what_validated_best(digits, tmp_path):
    model = training.train(digits, "mlp", SIGMA, tmp_path, recipe=LONG, seed=4)
    saved = weights(tmp_path)
    state = read_checkpoint(tmp_path / training.STATE)
    averaged = {name.removeprefix("module."): value for name, value in state["average"].items()}
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert all(torch.equal(saved[name], value.cpu()) for name, value in model.state_dict().items())
    assert any(not torch.equal(saved[name], state["model"][name]) for name in saved)
    validated = {line["epoch"]: line["validation"] for line in metrics(tmp_path) if "validation" in line}
    assert validated.keys() == {2, 4}
    best = max(validated, key=lambda epoch: validated[epoch]["certified"])
    about = checkpoints.load_checkpoint(tmp_path / training.BEST)[1]
    assert about["training"]["last_epoch"]["epoch"] == best
    assert about["training"]["last_epoch"]["validation"] == validated[best]
    # who judges once more hears the same
    kept, held_out = training._split(digits, 60, 4)
    judge = Validation(*digits.arrays(held_out), SIGMA, 4, LONG.precision)
    again = judge(checkpoints.load_checkpoint(tmp_path / training.BEST)[0])
    assert again == pytest.approx(validated[best])
    assert not set(kept) & set(held_out)
    assert len(kept) + len(held_out) == len(digits)


class TestKills:
    """A process that dies between two writes of an epoch leaves nothing out for long."""

    RECIPE = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=1)

    @pytest.fixture
    def killed(self, tmp_path, monkeypatch):
        """A run whose last epoch has its state on disk, and nothing else of it."""

        def die(self, epoch):
            if epoch["epoch"] == 2:
                raise Stopped
            record(self, epoch)

        record = training._Folder.record
        scores = iter([0.25, 0.75])  # the last epoch is the best
        monkeypatch.setattr(Validation, "__call__", lambda *_: {"certified": next(scores)})
        monkeypatch.setattr(training._Folder, "record", die)
        with pytest.raises(Stopped):
            training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=self.RECIPE, seed=1)
        monkeypatch.setattr(training._Folder, "record", record)
        assert len(metrics(tmp_path)) == 1
        assert checkpoints.load_checkpoint(tmp_path / training.BEST)[1]["training"]["last_epoch"]["epoch"] == 1
        return tmp_path

    def test_the_best_network_and_the_record_are_caught_up_with(self, killed):
        training.train(data_of(Made()), "mlp", SIGMA, killed, recipe=self.RECIPE)
        assert [line["epoch"] for line in metrics(killed)] == [1, 2]
        assert checkpoints.load_checkpoint(killed / training.BEST)[1]["training"]["last_epoch"]["epoch"] == 2
        best, last = weights(killed / training.BEST), weights(killed)
        assert all(torch.equal(best[name], last[name]) for name in last)

    def test_another_run_there_is_refused_and_nothing_is_caught_up_with(self, killed):
        before = (killed / training.BEST / checkpoints.ABOUT).read_text()
        with pytest.raises(ValueError, match="is of another run"):
            training.train(data_of(Made()), "small-cnn", SIGMA, killed, recipe=self.RECIPE)
        assert (killed / training.BEST / checkpoints.ABOUT).read_text() == before


def test_validation_draws_what_no_certificate_draws(monkeypatch):
    """The same seed certifies with other noise than it validated with: that noise has chosen the network."""

    def named(keys):  # trying out a forward pass is nobody's noise
        return {(seed, purpose) for seed, purpose, _ in keys if purpose is not noise.Purpose.INITIALISATION}

    drawn, key = set(), noise._key
    monkeypatch.setattr(noise, "_key", lambda *name: drawn.add(name) or key(*name))
    x, y = torch.rand(3, 1, 4, 4), np.zeros(3, np.int64)
    torch.manual_seed(0)
    model = models.build("mlp", input_shape=(1, 4, 4), nb_classes=3)
    Validation(x, y, SIGMA, 7)(model)
    validating = named(drawn) - {(7, noise.Purpose.VALIDATION)}
    drawn.clear()
    RandomizedSmoothingPyTorch(model, SIGMA, n=100, seed=7).certify(x)
    assert {seed for seed, _ in named(drawn)} == {7}
    assert {purpose for _, purpose in validating} >= {purpose for _, purpose in named(drawn)}
    assert all(seed != 7 for seed, _ in validating)


def test_what_is_held_out_is_never_trained_on_and_only_that_validates(tmp_path):
    images = Made()
    recipe = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=1)
    training.train(data_of(images), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1)
    kept, held_out = training._split(data_of(images), 12, 1)
    assert images.asked[:12] == held_out  # once, to validate
    assert held_out != sorted(held_out)  # where classes come in order, a part of them is of every class
    assert sorted(images.asked[12:]) == sorted(2 * kept)
    assert training._split(data_of(images), 12, 2)[1] != held_out
    with pytest.raises(ValueError, match="`held_out` must be below the 60 images of made, got 60"):
        training.train(data_of(images), "mlp", SIGMA, tmp_path / "x", recipe=Recipe(held_out=60), seed=1)


def test_validation_says_what_a_known_network_deserves():
    """One that always says class 1: every vote is right or wrong, and 300 votes certify all radii up to 1.5 sigma."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x):
            return self.bias.expand(len(x), 3)

    x, y = torch.rand(8, 1, 4, 4), np.array([1, 1, 1, 0, 2, 1, 0, 2])
    said = Validation(x, y, SIGMA, 0)(One())
    radii = (0, 0.125, 0.25, 0.375)
    assert said == {"accuracy": 0.5, "certified": 0.5, **{f"certified at {radius:g}": 0.5 for radius in radii}}


def test_devices_that_have_a_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`device` must be one of 'cpu', 'cuda', got 'cuda:1'"):
        training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=Recipe(epochs=1), seed=0, device="cuda:1")


def test_scalars_go_to_tensorboard_if_asked(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, epoch):
            written.append((name, epoch))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    recipe = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=2)
    training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1, tensorboard=True)
    assert written[0] == str(tmp_path)
    assert {("loss", 1), ("accuracy", 2), ("lr", 2), ("certified", 2), ("certified at 0.25", 2)} <= set(written[1:])
    assert ("certified", 1) not in written
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="`tensorboard` must be installed to write for it: pip install tensorboard"):
        training.train(data_of(Made()), "mlp", SIGMA, tmp_path / "y", recipe=recipe, seed=1, tensorboard=True)


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path):
    images = Made()
    recipe = Recipe(epochs=3, batch_size=16)

    def spoil(epoch):
        if epoch["epoch"] == 2:
            images.x[7] = float("nan")

    message = r"loss is nan in epoch 3, step \d+; the last good checkpoint is .*training.pt, epoch 2"
    with pytest.raises(FloatingPointError, match=message):
        training.train(data_of(images), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1, on_epoch=spoil)
    assert read_checkpoint(tmp_path / training.STATE)["epoch"] == 2
    assert len(metrics(tmp_path)) == 2
