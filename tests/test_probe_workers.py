"""Gradients by workers side by side: the same as by one, on modules of their own."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

X = np.random.default_rng(0).random((9, 6), dtype=np.float32)
Y = np.arange(9) % 3


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Remembers(nn.Module):
    """Keeps its input on itself between two layers, and who called it in a list that its copies share."""

    def __init__(self, callers):
        super().__init__()
        self.first, self.second = nn.Linear(6, 20), nn.Linear(26, 3)
        self.callers = callers

    def forward(self, x):
        self.callers(threading.current_thread().name)
        self.kept = x
        hidden = torch.tanh(self.first(x))
        return self.second(torch.cat([hidden, self.kept], dim=1))


def smoothed(callers=lambda name: None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Remembers(callers)
    return RandomizedSmoothingPyTorch(model, 0.5, seed=1, input_shape=(6,), nb_classes=3, device_type="cpu", **options)


@pytest.mark.parametrize("objective", ["expected_loss", "smoothadv"])
@pytest.mark.parametrize(("count", "batch_size"), [(100, 64), (20, 64), (70, 7)])
def test_two_workers_give_what_one_gives(two_threads, objective, count, batch_size):
    names = set()

    def note(name):
        names.add(name)
        time.sleep(0.005)  # so long that the other worker comes to its turn

    estimator = smoothed(note)
    both = estimator.probe(X, Y, estimator.draws(count), objective, batch_size)
    workers = {name for name in names if name.startswith("art-rs")}
    assert len(workers) == 2
    torch.set_num_threads(1)
    one = smoothed()
    alone = one.probe(X, Y, one.draws(count), objective, batch_size)
    torch.set_num_threads(2)
    for given, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(both.votes.sum(dim=1), torch.full((9,), count))


def test_in_training_mode_one_pass_follows_the_other(two_threads):
    names = []
    estimator = smoothed(names.append)
    estimator.loss_gradient(X, Y, training_mode=True, num_samples=100)
    assert set(names) == {"MainThread"}
    assert len(names) > 2


def test_a_worker_s_error_is_the_callers(two_threads):
    def fail(name):
        if name.startswith("art-rs"):
            raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        smoothed(fail).loss_gradient(X, Y, num_samples=100)


def test_gradients_are_there_without_grad_mode_too(two_threads):
    expected = smoothed().loss_gradient(X, Y, num_samples=10)
    with torch.no_grad():
        assert np.array_equal(smoothed().loss_gradient(X, Y, num_samples=10), expected)
    assert np.abs(expected).max() > 0
