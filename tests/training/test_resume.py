"""Checkpoints: a run broken off ends as an unbroken one; another run's checkpoint is refused; nothing is lost."""

import importlib.util
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import art_rs_plugin
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, loader_batches, read_checkpoint, train

SCRIPT = Path(__file__).with_name("resumable_run.py")
SPEC = importlib.util.spec_from_file_location("resumable_run", SCRIPT)
resumable = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(resumable)


def assert_same(one, other):
    """Two nested states are equal, bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert one == other


def without_seconds(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


@pytest.mark.parametrize(("optimizer", "when"), [("sgd", "in a step"), ("adam", "in a write")])
def test_killed_run_ends_with_the_weights_of_an_unbroken_one(optimizer, when, tmp_path):
    *unbroken, history = resumable.run(optimizer)
    path = tmp_path / "state.pt"
    package = str(Path(art_rs_plugin.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, str(SCRIPT), optimizer, str(path), when],
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert read_checkpoint(path)["epoch"] == resumable.BROKEN - 1

    trained = []
    *resumed, resumed_history = resumable.run(optimizer, path, on_epoch=lambda epoch: trained.append(epoch["epoch"]))
    assert trained == [4, 5, 6]
    assert_same([part.state_dict() for part in resumed], [part.state_dict() for part in unbroken])
    assert without_seconds(resumed_history) == without_seconds(history)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_weights_and_not_only_their_record_come_from_training():
    model, *_ = resumable.run("sgd")
    untrained = resumable.build().state_dict()
    assert all(not torch.equal(value, untrained[name]) for name, value in model.state_dict().items())


def test_more_epochs_continue_a_finished_run(tmp_path):
    path = tmp_path / "made" / "state.pt"
    resumable.run("sgd", path, epochs=2)
    longer = resumable.run("sgd", path, epochs=3)
    at_once = resumable.run("sgd", epochs=3)
    assert_same(longer[0].state_dict(), at_once[0].state_dict())
    # fewer than it holds: nothing to train, and the weights are the checkpoint's
    *fewer, history = resumable.run("sgd", path, epochs=1)
    assert_same(fewer[0].state_dict(), at_once[0].state_dict())
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]


def test_second_call_goes_on_from_first_epoch(tmp_path):
    settings = {"objective": OBJECTIVES["gaussian"](), "noise": Gaussian(0.25), "seed": 1}

    def start():
        model = nn.Linear(3, 2)
        nn.init.eye_(model.weight)
        nn.init.zeros_(model.bias)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    batches = loader_batches((torch.linspace(0, 1, 60).view(20, 3), torch.arange(20) % 2), 8, 1)
    at_once, optimizer = start()
    train(at_once, batches, optimizer=optimizer, epochs=3, **settings)
    in_two, optimizer = start()
    train(in_two, batches, optimizer=optimizer, epochs=1, **settings)
    path = tmp_path / "state.pt"
    history = train(in_two, batches, optimizer=optimizer, epochs=2, first_epoch=2, checkpoint=path, **settings)
    assert_same(in_two.state_dict(), at_once.state_dict())
    assert [epoch["epoch"] for epoch in history] == [2, 3]
    with pytest.raises(ValueError, match=r"`first_epoch` must be at most 4, one after the last epoch of .*, got 5"):
        train(in_two, batches, optimizer=optimizer, epochs=2, first_epoch=5, checkpoint=path, **settings)


def attempt(path, *, sigma=0.25, seed=1, objective="gaussian", samples=20, width=2, lr=0.1, schedule=None, adam=False):
    model = nn.Linear(3, width)
    optimizer = torch.optim.Adam(model.parameters()) if adam else torch.optim.SGD(model.parameters(), lr=lr)
    chosen = OBJECTIVES["gaussian"]()
    if objective != "gaussian":
        chosen = type("Other", (), {"name": objective, "__call__": staticmethod(chosen.__call__)})()
    train(
        model,
        loader_batches((torch.ones(samples, 3), torch.arange(samples) % 2), 8, seed),
        objective=chosen,
        optimizer=optimizer,
        scheduler=schedule and schedule(optimizer),
        noise=Gaussian(sigma),
        epochs=1,
        seed=seed,
        checkpoint=path,
    )
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sigma": 0.5}, "sigma is 0.25 there and 0.5 here"),
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"objective": "other"}, "objective is 'gaussian' there and 'other' here"),
        ({"samples": 21}, "samples is 20 there and 21 here"),
        ({"samples": 30}, "batches is 3 there and 4 here; samples is 20 there and 30 here"),
        (
            {"width": 5},
            r"weight has shape \(2, 3\) there and \(5, 3\) here; bias has shape \(2,\) there and \(5,\) here",
        ),
        ({"lr": 0.2}, r"optimizer.lr is '0.1' there and '0.2' here"),
        ({"adam": True}, "optimizer is 'SGD' there and 'Adam' here"),
        ({"schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)}, "scheduler is None there and 'StepLR' here"),
        ({"seed": 2, "sigma": 1.0}, "seed is 1 there and 2 here; sigma is 0.25 there and 1.0 here"),
    ],
)
def test_another_runs_checkpoint_is_refused_and_kept(change, named, tmp_path):
    path = tmp_path / "state.pt"
    attempt(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"`checkpoint` is of another run: .*{named}"):
        attempt(path, **change)
    assert path.read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="cannot be read"):
        attempt(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="no training checkpoint: it must hold epoch, history, model"):
        attempt(path)
    executed = tmp_path / "executed"
    for content in (Payload(executed), {"model": Payload(executed)}, nn.Linear(1, 1)):
        torch.save(content, path)
        with pytest.raises(ValueError, match="cannot be read"):
            attempt(path)
    assert not executed.exists()
    torch.save(Payload(executed), path)
    torch.load(path, weights_only=False)
    assert executed.exists()  # the payload is a live one


class Payload:
    """What an attacker would put into a pickle: reading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
            [1],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_torch_schedulers_can_be_resumed(schedule, tmp_path):
    first = attempt(tmp_path / "state.pt", schedule=schedule)
    assert read_checkpoint(tmp_path / "state.pt")["scheduler"]["last_epoch"] == 1
    again = attempt(tmp_path / "state.pt", schedule=schedule)  # its one epoch is done: it takes up what was kept
    assert torch.equal(first.weight, again.weight)


def test_full_disk_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "state.pt"
    resumable.run("sgd", path, epochs=1)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write beyond this fails as on a full disk
    try:
        with pytest.raises(
            OSError, match=r"checkpoint of epoch 2 could not be written to .*an earlier epoch there is int"
        ):
            resumable.run("sgd", path, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_state_that_cannot_be_read_back_fails_at_once(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(OSError, match=r"checkpoint of epoch 1 could not be written"):
        attempt(path, schedule=lambda optimizer: WithCode(optimizer, 1))
    assert not list(tmp_path.iterdir())


class WithCode(torch.optim.lr_scheduler.StepLR):
    """A scheduler whose state holds an object of a class of its own."""

    def state_dict(self):
        return {**super().state_dict(), "plan": Path("plan")}
