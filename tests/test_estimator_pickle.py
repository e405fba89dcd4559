"""Estimators that travel: pickles, copies and saved weights."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from art import config
from torch import nn

import art_rs_plugin
from art_rs_plugin import CertificationError, RandomizedSmoothingPyTorch

SHAPE, CLASSES = (1, 4, 4), 3
X = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
Y = np.arange(6) % CLASSES


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def trained(optimizer="sgd", **options) -> RandomizedSmoothingPyTorch:
    """An estimator half-way: with momentum, statistics, and calls and epochs behind it."""
    model = network()
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.01)}
    options = {"n": 300, "n0": 50, "seed": 3, "preprocessing": (0.5, 0.25), **options}
    estimator = RandomizedSmoothingPyTorch(model, 0.25, optimizer=make[optimizer](model.parameters()), **options)
    estimator.fit(X, Y, batch_size=3, nb_epochs=2)
    estimator.loss_gradient(X, Y)
    return estimator


def trace(estimator) -> list[bytes]:
    """All that the estimator does from here on: answers, gradients under noise, further training."""
    first = [
        repr(estimator.certificates(X)).encode(),
        estimator.predict(X, n=100).tobytes(),
        estimator.loss_gradient(X, Y).tobytes(),
        repr([(epoch["epoch"], epoch["loss"]) for epoch in estimator.fit(X, Y, batch_size=3, nb_epochs=2)]).encode(),
    ]
    return first + [value.numpy().tobytes() for value in estimator.model.state_dict().values()]


def owned(optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


ELSEWHERE = """
import pickle, sys
estimator, x, y, trace = pickle.load(sys.stdin.buffer)
from art import config
import os
assert not os.listdir(config.ART_DATA_PATH), os.listdir(config.ART_DATA_PATH)
scope = {}
exec(trace, scope)
scope.update(X=x, Y=y)
sys.stdout.buffer.write(pickle.dumps(scope["trace"](estimator)))
assert not os.listdir(config.ART_DATA_PATH), os.listdir(config.ART_DATA_PATH)
"""


def test_a_pickle_is_all_that_another_process_needs(tmp_path, monkeypatch):
    import inspect

    here, home, cwd = tmp_path / "here", tmp_path / "home", tmp_path / "cwd"
    for folder in (here, home, cwd):
        folder.mkdir()
    monkeypatch.setattr(config, "ART_DATA_PATH", str(here))
    monkeypatch.chdir(here)
    estimator = trained()
    pickled = pickle.dumps((estimator, X, Y, inspect.getsource(trace)))
    assert list(here.iterdir()) == []
    package = str(Path(art_rs_plugin.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickled,
        cwd=cwd,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": package, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
    )
    assert child.returncode == 0, child.stderr.decode()
    assert list(cwd.iterdir()) == []
    assert pickle.loads(child.stdout) == trace(estimator)


def through_a_pickle(estimator):
    return pickle.loads(pickle.dumps(estimator))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("copied", [through_a_pickle, copy.deepcopy])
class TestCopies:
    def test_go_on_exactly_as_the_original_would(self, copied, optimizer):
        estimator = trained(optimizer)
        assert trace(copied(estimator)) == trace(estimator)

    def test_have_their_own_parameters_and_an_optimizer_of_those(self, copied, optimizer):
        estimator = trained(optimizer)
        before = copy.deepcopy(estimator.model.state_dict())
        other = copied(estimator)
        assert owned(other.optimizer) == [id(parameter) for parameter in other.model.parameters()]
        for mine, its in zip(estimator.model.parameters(), other.model.parameters(), strict=True):
            assert mine is not its
            for name, value in estimator.optimizer.state[mine].items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.optimizer.state[its][name]))
        other.fit(X, Y, nb_epochs=1)
        assert all(torch.equal(before[name], value) for name, value in estimator.model.state_dict().items())

    def test_leave_the_original_as_it_was(self, copied, optimizer):
        estimator, twin = trained(optimizer), trained(optimizer)
        model, parameters = estimator.model, owned(estimator.optimizer)
        copied(estimator)
        assert estimator.model is model
        assert owned(estimator.optimizer) == parameters == [id(parameter) for parameter in model.parameters()]
        assert trace(estimator) == trace(twin)

    def test_keep_modes_and_settings(self, copied, optimizer):
        estimator = trained(optimizer, alpha=0.02, clip_values=(0.0, 1.0))
        estimator.model.train()
        estimator.model[2].eval()
        other = copied(estimator)
        assert [module.training for module in other.model.modules()] == [
            module.training for module in estimator.model.modules()
        ]
        kept = {"alpha", "sigma", "n", "n0", "seed", "input_shape", "nb_classes", "device_type", "channels_first"}
        assert {name: other.get_params()[name] for name in kept} == {
            name: estimator.get_params()[name] for name in kept
        }
        assert np.array_equal(other.clip_values, estimator.clip_values)


def test_an_estimator_that_knows_nothing_yet_travels_too():
    other = through_a_pickle(RandomizedSmoothingPyTorch(nn.Sequential(network(), nn.Identity()), 0.25))
    assert other.get_params()["nb_classes"] is None
    assert other.predict(X, n=20).shape == (6, CLASSES)


def test_a_gpu_estimator_wakes_up_on_the_cpu_where_there_is_no_gpu(monkeypatch):
    estimator = trained()
    state = {**estimator.__getstate__(), "_device_type": "gpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = RandomizedSmoothingPyTorch.__new__(RandomizedSmoothingPyTorch)
    with pytest.warns(UserWarning, match='`device_type` is "gpu" and torch finds none: this estimator runs on the CPU'):
        other.__setstate__(state)
    assert (other.device_type, other.device) == ("cpu", torch.device("cpu"))
    assert trace(other) == trace(estimator)


def test_a_certification_error_travels_with_its_certificates():
    certificates = trained().certificates(X)
    error = through_a_pickle(CertificationError("stopped", certificates))
    assert (str(error), error.certificates) == ("stopped", certificates)


@pytest.mark.parametrize("optimizer", [None, "sgd"])
def test_saved_weights_load_into_a_plain_model(optimizer, tmp_path):
    estimator = trained() if optimizer else RandomizedSmoothingPyTorch(network(), 0.25)
    estimator.save("weights", path=str(tmp_path / "new"))
    names = {"weights.model", "weights.optimizer"} if optimizer else {"weights.model"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    model = network()
    model.load_state_dict(torch.load(tmp_path / "new" / "weights.model", weights_only=True))
    for mine, its in zip(model.state_dict().values(), estimator.model.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_repr_names_class_and_settings_before_and_after_anything_is_known():
    estimator = RandomizedSmoothingPyTorch(nn.Sequential(network(), nn.Identity()), 0.25, alpha=0.02, seed=7)
    for known in ("nb_classes=None, ", f"nb_classes={CLASSES}, "):
        text = repr(estimator)
        assert text.startswith("RandomizedSmoothingPyTorch(model=Sequential(")
        for part in (known, "sigma=0.25", "alpha=0.02", "seed=7", "n0=100", "n=100000"):
            assert part in text
        estimator.predict(X, n=20)
