"""GaussianAugmentationTrainer with ART's face: what it takes, what the model meets, and how a run goes on."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator, PyTorchDataGenerator
from art.defences.trainer import Trainer
from scipy.stats import kstest
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import art_rs_plugin
from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch
from art_rs_plugin.training import read_checkpoint

SCRIPT = Path(__file__).with_name("resumable_fit.py")
SPEC = importlib.util.spec_from_file_location("resumable_fit", SCRIPT)
resumable = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(resumable)

SIGMA, SHAPE = 0.25, (3, 8, 8)
MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.5], np.float32)
SAMPLES, BATCH = 120, 40
X, Y = np.full((SAMPLES, *SHAPE), 0.5, np.float32), np.arange(SAMPLES) % 2


def loader(x, y, batch=BATCH) -> DataLoader:
    return DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), batch_size=batch, shuffle=True)


# what a user may train on: each fits (x, y) through the trainer
SOURCES = {
    "arrays": lambda trainer, x, y: trainer.fit(x, y),
    "one-hot": lambda trainer, x, y: trainer.fit(x, np.eye(y.max() + 1)[y]),
    "tensors": lambda trainer, x, y: trainer.fit(torch.from_numpy(x), torch.from_numpy(y)),
    "numpy generator": lambda trainer, x, y: trainer.fit_generator(NumpyDataGenerator(x, y, BATCH, shuffle=True)),
    "one-hot generator": lambda trainer, x, y: trainer.fit_generator(
        NumpyDataGenerator(x.astype(np.float64), np.eye(y.max() + 1)[y], BATCH, shuffle=True)
    ),
    "pytorch generator": lambda trainer, x, y: trainer.fit_generator(PyTorchDataGenerator(loader(x, y), len(x), BATCH)),
    "loader": lambda trainer, x, y: trainer.fit_generator(loader(x, y)),
}


class Recorder(nn.Module):
    """Keeps every training input, in input coordinates; its logits are a parameter, so that it can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.inputs = []

    def forward(self, x):
        if self.training:
            self.inputs.append(
                (x * torch.from_numpy(STD).view(3, 1, 1) + torch.from_numpy(MEAN).view(3, 1, 1)).detach()
            )
        return self.weight.expand(len(x), 2)

    def noise(self) -> np.ndarray:
        """Noise on each sample met, a row each, float64."""
        return (torch.cat(self.inputs) - 0.5).flatten(1).double().numpy()


def recording(seed=3, **options) -> GaussianAugmentationTrainer:
    model = Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    estimator = RandomizedSmoothingPyTorch(model, SIGMA, seed=seed, optimizer=optimizer, preprocessing=(MEAN, STD))
    return GaussianAugmentationTrainer(estimator, **{"nb_epochs": 2, "batch_size": BATCH, **options})


def assert_fresh_gaussian(noise: np.ndarray) -> None:
    """Each row is a new draw of N(0, SIGMA^2 I)."""
    assert kstest(noise.ravel() / SIGMA, "norm").pvalue > 1e-6
    # the largest of the pairs' correlations stays below 7 of their deviations where rows are independent
    correlation = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlation).max() < 7 / np.sqrt(noise.shape[1])


def test_is_a_trainer_of_art():
    trainer = recording()
    assert isinstance(trainer, Trainer)
    assert trainer.classifier is trainer.get_classifier()
    assert isinstance(trainer.classifier, RandomizedSmoothingPyTorch)


@pytest.mark.parametrize("source", SOURCES)
def test_every_sample_meets_fresh_noise_in_input_coordinates_before_preprocessing(source):
    trainer = recording()
    history = SOURCES[source](trainer, X, Y)
    noise = trainer.classifier.model.noise()
    assert len(noise) == 2 * SAMPLES
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert_fresh_gaussian(noise)


@pytest.mark.parametrize("source", SOURCES)
def test_learns_digits_under_noise(source):
    # linear logits reach about .90 on these scans under this noise; .10 is chance
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    model = nn.Linear(64, 10)
    with torch.no_grad():
        model.weight.zero_()
    estimator = RandomizedSmoothingPyTorch(
        model, SIGMA, seed=0, optimizer=torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    )
    trainer = GaussianAugmentationTrainer(estimator, nb_epochs=6, batch_size=BATCH)
    history = SOURCES[source](trainer, x[:1400], labels[:1400])
    assert history[-1]["accuracy"] > 0.8
    assert history[-1]["loss"] < history[0]["loss"]
    right = estimator.predict(x[1400:1500], n=100, is_abstain=False).argmax(axis=1) == labels[1400:1500]
    assert right.mean() > 0.8


@pytest.mark.parametrize("seed", [3, None])
def test_two_fits_in_a_row_and_their_epochs_share_no_noise(seed):
    trainer = recording(seed=seed, nb_epochs=1)
    first = trainer.fit(X[:60], Y[:60])
    second = trainer.fit(X[:60], Y[:60])
    third = trainer.fit_generator(loader(X[:60], Y[:60]))
    assert [history[0]["epoch"] for history in (first, second, third)] == [1, 2, 3]
    assert_fresh_gaussian(trainer.classifier.model.noise())


def test_a_seed_repeats_a_run():
    def noise(seed):
        trainer = recording(seed=seed)
        trainer.fit(X, Y)
        return trainer.classifier.model.noise()

    assert np.array_equal(noise(3), noise(3))
    assert not np.array_equal(noise(3), noise(4))
    assert not np.array_equal(noise(None), noise(None))


def test_an_epoch_of_a_generator_is_all_that_it_holds():
    x, y = X[:100], Y[:100]
    trainer = recording(nb_epochs=3)
    trainer.fit_generator(NumpyDataGenerator(x, y, BATCH, drop_remainder=False))
    assert [len(batch) for batch in trainer.classifier.model.inputs] == 3 * [40, 40, 20]
    dropping = recording(nb_epochs=3)
    dropping.fit_generator(NumpyDataGenerator(x, y, BATCH, drop_remainder=True))
    assert [len(batch) for batch in dropping.classifier.model.inputs] == 6 * [40]


def test_scheduler_is_stepped_after_every_epoch():
    trainer = recording(nb_epochs=5)
    trainer.scheduler = torch.optim.lr_scheduler.MultiStepLR(trainer.classifier.optimizer, [2, 3], 0.1)
    for fit in (lambda: trainer.fit(X, Y), lambda: trainer.fit_generator(loader(X, Y))):
        trainer.classifier.optimizer.param_groups[0]["lr"] = 0.1
        trainer.scheduler = torch.optim.lr_scheduler.MultiStepLR(trainer.classifier.optimizer, [2, 3], 0.1)
        assert [epoch["lr"] for epoch in fit()] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])


HALVES = np.concatenate([X[..., :4] - 0.5, X[..., :4] + 9.5], axis=3)  # 0 on the left, 10 on the right


@pytest.mark.parametrize("source", ["arrays", "tensors"])
def test_augment_changes_each_sample_before_the_noise(source):
    trainer = recording(augment=v2.RandomHorizontalFlip(0.5))
    SOURCES[source](trainer, HALVES, Y)
    seen = torch.cat(trainer.classifier.model.inputs)
    flipped = seen[..., :4].mean(dim=(1, 2, 3)) > 5
    assert 80 < flipped.sum() < 160  # of 240, six deviations around a half
    straight = torch.where(flipped.view(-1, 1, 1, 1), seen.flip(3), seen) - torch.from_numpy(HALVES[:1])
    assert_fresh_gaussian(straight.flatten(1).double().numpy())


@pytest.mark.parametrize("source", ["numpy generator", "pytorch generator", "loader"])
def test_augment_is_not_forgotten_on_the_batches_of_a_generator(source):
    trainer = recording(augment=v2.RandomHorizontalFlip(1.0))
    SOURCES[source](trainer, HALVES, Y)
    assert (torch.cat(trainer.classifier.model.inputs)[..., :4].mean(dim=(1, 2, 3)) > 5).all()


def test_options_of_fit_replace_those_of_the_constructor_and_arts_own_are_taken(capsys):
    trainer = recording(verbose=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.classifier.optimizer, 0.5)
    history = trainer.fit(
        X[:100], Y[:100], batch_size=30, nb_epochs=3, training_mode=True, drop_last=True, scheduler=scheduler,
        verbose=False,
    )  # fmt: skip
    assert [len(batch) for batch in trainer.classifier.model.inputs] == 9 * [30]
    assert [epoch["lr"] for epoch in history] == pytest.approx([0.1, 0.05, 0.025])
    assert capsys.readouterr().err == ""
    trainer.fit_generator(loader(X, Y), nb_epochs=1)
    assert "epoch 4/4" in capsys.readouterr().err
    estimator = trainer.classifier  # and ART's signature by position
    estimator.fit(X, Y, 60, 1)
    assert [len(batch) for batch in estimator.model.inputs[-2:]] == [60, 60]
    with pytest.raises(TypeError, match="shuffle"):
        trainer.fit(X, Y, shuffle=False)


def test_the_users_mode_and_arrays_are_given_back():
    trainer = recording()
    x, y = X.copy(), Y.copy()
    trainer.classifier.model.eval()
    trainer.fit(x, y)
    assert not trainer.classifier.model.training
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


@pytest.mark.parametrize("seed", [3, None])
def test_a_killed_fit_ends_with_the_weights_of_an_unbroken_one(seed, tmp_path):
    path = tmp_path / "run" / "state.pt"
    package = str(Path(art_rs_plugin.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), str(seed)],
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    broken = read_checkpoint(path)
    assert broken["epoch"] == resumable.BROKEN - 1
    drawn = broken["settings"]["seed"]  # where nobody gave one, the run's own goes on
    assert drawn == seed if seed is not None else drawn >= 0

    resumed, scheduler, history = resumable.run(path, seed)
    unbroken, its_scheduler, its_history = resumable.run(None, drawn)
    assert [epoch["loss"] for epoch in history] == [epoch["loss"] for epoch in its_history]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5, 6]
    assert scheduler.state_dict() == its_scheduler.state_dict()
    for mine, its in zip(resumed.model.state_dict().values(), unbroken.model.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
    assert read_checkpoint(path)["settings"]["seed"] == drawn
    # momentum too: one more epoch makes the same weights again
    x, y = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    for estimator in (resumed, unbroken):
        estimator.set_params(seed=1)
        estimator.fit(x, y, nb_epochs=1)
    for mine, its in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_fit_on_a_generator_goes_on_after_its_last_epoch(tmp_path):
    path = tmp_path / "state.pt"
    recording(seed=None, nb_epochs=2, checkpoint=path).fit_generator(loader(X, Y))
    trainer = recording(seed=None, nb_epochs=5, checkpoint=path)
    history = trainer.fit_generator(loader(X, Y))
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5]
    assert len(trainer.classifier.model.inputs) == 9
    assert_fresh_gaussian(trainer.classifier.model.noise())
