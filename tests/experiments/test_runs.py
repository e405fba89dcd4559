"""Runs: a ledger and a checkpoint belong to one f and one data set, and say so when they meet another."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.experiments import datasets, recipes, runs, training
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger
from art_rs_plugin.experiments.logs import read_log


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "test")


def network(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), activation(), nn.Linear(16, 10))


def smoothed(model, **options):
    return RandomizedSmoothingPyTorch(model, 0.25, **{"n0": 10, "n": 50, "seed": 0, "device_type": "cpu", **options})


def certify(estimator, digits, path, indices=range(2)):
    runs.certify(estimator, digits, indices, path)
    return read_ledger(path)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (lambda: smoothed(network(nn.Tanh)), "model.structure"),
        (lambda: smoothed(network(), preprocessing=(0.5, 0.1)), "model.structure"),
        (lambda: smoothed(nn.Sequential(*list(network())[:-1], nn.Linear(16, 10))), "model.hash"),
        (lambda: RandomizedSmoothingPyTorch(network(), 0.5, n0=10, n=50, seed=0), "noise.sigma"),
        (lambda: smoothed(network(), alpha=0.01), "rule.alpha"),
        (lambda: smoothed(network(), seed=1), "seed"),
    ],
    ids=["activation", "preprocessing", "weights", "sigma", "alpha", "seed"],
)
def test_a_ledger_is_not_continued_by_another_f_or_rule(digits, tmp_path, other, field):
    certify(smoothed(network()), digits, tmp_path / "run.jsonl")
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(LedgerMismatch, match=f"`{field}`"):
        certify(other(), digits, tmp_path / "run.jsonl")
    assert (tmp_path / "run.jsonl").read_bytes() == before


def test_a_seed_that_nobody_gave_is_the_ledgers_own_also_after_a_restart(digits, tmp_path):
    estimator = smoothed(network(), seed=None)
    certify(estimator, digits, tmp_path / "run.jsonl", range(3))
    header, rows = certify(smoothed(network(), seed=None), digits, tmp_path / "run.jsonl", range(6))
    assert estimator.seed is None
    _, whole = certify(smoothed(network(), seed=header["seed"]), digits, tmp_path / "whole.jsonl", range(6))
    votes = [[row["counts"] for row in each] for each in (rows, whole)]
    assert votes[0] == votes[1]


def test_an_image_that_a_model_fails_on_costs_no_other_its_row_and_the_run_goes_on(digits, tmp_path):
    class FailsOn(nn.Module):
        def __init__(self, image):
            super().__init__()
            self.inner, self.image = network(), image

        def forward(self, x):
            close = (x - self.image).flatten(1).norm(dim=1) < 2.8 if self.image is not None else torch.zeros(len(x))
            return torch.where(close.bool()[:, None], torch.nan, self.inner(x))

    x, _ = digits.arrays([3])
    failing = FailsOn(torch.from_numpy(x))
    with pytest.raises(ValueError, match="index 3"):
        certify(smoothed(failing), digits, tmp_path / "run.jsonl", [32, 229, 3, 53])
    # noise has a norm of about .25 * 8 = 2: copies of image 3 are within 2.8 of it, those of the others are not
    assert [row["index"] for row in read_ledger(tmp_path / "run.jsonl")[1]] == [32, 229, 53]
    failing.image = None
    _, rows = certify(smoothed(failing), digits, tmp_path / "run.jsonl", [32, 229, 3, 53])
    assert [row["index"] for row in rows] == [32, 229, 53, 3]


def test_numpy_numbers_as_options_reach_the_ledger_as_json(digits, tmp_path):
    estimator = smoothed(network(), n0=np.int64(10), n=np.int32(50), alpha=np.float32(0.125))
    header, rows = certify(estimator, digits, tmp_path / "run.jsonl")
    assert json.loads(json.dumps(rows[0]))["n"] == 50
    assert header["rule"] == {"name": "fixed", "n0": 10, "n": 50, "alpha": 0.125, "bound": "clopper-pearson"}


def test_training_again_under_another_name_is_refused(digits, tmp_path):
    train = datasets.load("digits", "train")
    recipe = recipes.Recipe(epochs=1, batch_size=256)
    training.train(train, "mlp", 0.25, tmp_path, recipe=recipe, seed=0)
    (tmp_path / "twin.py").write_text("from art_rs_plugin.experiments.models import MODELS\nmlp = MODELS['mlp'].make\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match="model is 'mlp' there and 'twin:mlp' here"):
            training.train(train, "twin:mlp", 0.25, tmp_path, recipe=recipe, seed=0)


def test_mnist_end_to_end(data_root, tmp_path):
    """The README's MNIST run in small: two epochs on all of MNIST, a few test images, far better than chance."""
    recipe = recipes.Recipe(epochs=1)
    training.train(datasets.load("mnist", "train", root=data_root), "mlp", 0.25, tmp_path, recipe=recipe, seed=0)
    test = datasets.load("mnist", "test", root=data_root)
    model, sigma = runs.open_network(tmp_path, test)
    estimator = RandomizedSmoothingPyTorch(model, sigma, n=500, seed=0, device_type="cpu")
    runs.certify(estimator, test, range(0, len(test), 200), tmp_path / "run.jsonl")
    log = read_log(tmp_path / "run.jsonl")
    columns = (log[name].to_numpy() for name in ("prediction", "radius", "label"))
    at_0, at_quarter = certified_accuracy(*columns, [0.0, 0.25])
    assert at_0 > 0.85
    assert at_quarter > 0.7
