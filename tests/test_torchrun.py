"""The command line under torchrun itself: the same ledgers, the same weights, whatever is killed on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import company
import pytest
import torch
from made_images import weights
from typer.testing import CliRunner

from art_rs_plugin.cli import app
from art_rs_plugin.experiments import dealing
from art_rs_plugin.experiments.ledger import read_ledger

OTHERS = ("demo", "curve", "compare", "paper", "paired", "audit", "report", "version", "plan")


def alone(*arguments):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def certified(path):
    header, rows = read_ledger(path)
    return header, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("command", OTHERS)
def test_what_ranks_do_not_share_is_refused_before_any_work(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    needed = {"curve": ["x"], "paper": ["list"], "paired": ["x", "y"], "audit": ["x"], "report": ["x", "--out", "y"]}
    needed |= {"compare": ["--data", "digits", "--out", "y"]}
    needed |= {"plan": ["--data", "digits", "--model", "mlp", "--sigma", "0.5"]}
    result = CliRunner().invoke(app, [command, *needed.get(command, [])])
    assert result.exit_code == 2
    assert f"rank 1: error: `art-rs {command}` is work for one process: start it without torchrun" in result.output
    assert list(tmp_path.iterdir()) == []


def test_half_of_what_torchrun_sets_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = CliRunner().invoke(app, ["certify", "--checkpoint", "x", "--data", "digits", "--out", str(tmp_path / "y")])
    assert result.exit_code == 2
    assert "error: MASTER_ADDR and MASTER_PORT must be set" in result.output


def test_every_command_is_either_shared_or_refused():
    from art_rs_plugin.cli import IN_COMPANY

    assert {command.callback.__name__ for command in app.registered_commands} == {*IN_COMPANY, *OTHERS}


@pytest.mark.slow
def test_cifar10_by_one_to_four_ranks_is_one_ledger(reference, data_root, tmp_path):
    network = reference / "checkpoints" / "akamaster_resnet_cifar10" / "resnet20-12fca82f.th"
    job = (
        f"certify --checkpoint {network} --model resnet20 --sigma 0.1 --data cifar10 --every 400 --seed 3 --device cpu "
        f"--data-root {data_root} --budget looks --radii 0,0.1 --n 2000 --no-compile"
    ).split()
    alone(*job, "--out", tmp_path / "one.jsonl")
    assert len(read_ledger(tmp_path / "one.jsonl")[1]) == 25
    for size in (1, 2, 3, 4):
        done = company.torchrun(*job, "--out", tmp_path / f"{size}.jsonl", size=size)
        assert done.returncode == 0, done.stderr
        assert certified(tmp_path / f"{size}.jsonl") == certified(tmp_path / "one.jsonl")
        assert done.stdout.count("| average radius |") == 1  # rank 0 speaks for all
        assert not dealing.folder_of(tmp_path / f"{size}.jsonl").exists()


# a network that counts its forward passes, and takes its time where it is told to
SLOW = """
import os, time
from torch import nn
from art_rs_plugin.experiments.models import MODELS

class Slow(nn.Sequential):
    passes = 0

    def forward(self, x):
        with open(os.environ["PASSES"], "ab", buffering=0) as file:
            file.write(b".")
        Slow.passes += 1
        if Slow.passes % 32 == 0:
            time.sleep(float(os.environ.get("CRAWL", "0")))
        return super().forward(x)

def slow(input_shape, nb_classes):
    return Slow(MODELS["mlp"].make(input_shape=input_shape, nb_classes=nb_classes))
"""
VOTES, IMAGES, KILLS = 4_100, 80, 10  # so many votes that an image is certified by itself
PASSES_AN_IMAGE = -(-(100 + VOTES) // 64) + 2  # selection and estimation, each with a last one that is not full


def lines_of(folder):
    """Whole lines of all parts but their headers."""
    found = []
    for path in folder.glob("rank-*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        found += [line for line in lines[1:] if line.endswith(b"\n")]
    return found


def ranks_of(launcher):
    """Process numbers of the ranks that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children if b"art_rs_plugin" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_a_rank_that_is_killed_ten_times_costs_only_the_examples_under_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PASSES", str(tmp_path / "passes"))
    (tmp_path / "crawling.py").write_text(SLOW)
    train = "train --data digits --model crawling:slow --sigma 0.25 --epochs 1 --lr 0.05 --seed 0 --out runs"
    alone(*train.split(), "--batch-size", 256)
    job = (
        f"certify --checkpoint runs --data digits --n {VOTES} --max {IMAGES} --seed 0 --device cpu --no-compile".split()
    )
    (tmp_path / "passes").unlink()
    alone(*job, "--out", "one.jsonl")
    undisturbed = (tmp_path / "passes").stat().st_size
    assert undisturbed <= IMAGES * PASSES_AN_IMAGE + 2
    (tmp_path / "passes").unlink()
    monkeypatch.setenv("CRAWL", "0.1")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "30",
         "-m", "--", "art_rs_plugin", *job, "--out", "many.jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    chance, folder, kept = random.Random(1), dealing.folder_of(tmp_path / "many.jsonl"), []
    try:
        for _ in range(KILLS):
            before, until = len(kept), time.monotonic() + company.SECONDS
            while len(lines_of(folder)) <= before:  # whoever is killed has done something first
                assert launcher.poll() is None, launcher.stdout.read()
                assert time.monotonic() < until, "nothing is certified any more"
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.3))
            victims = ranks_of(launcher.pid)
            assert victims
            os.kill(chance.choice(victims), signal.SIGKILL)
            while set(ranks_of(launcher.pid)) & set(victims):
                time.sleep(0.005)
            kept = lines_of(folder)
        said, _ = launcher.communicate(timeout=company.SECONDS)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, said
    assert certified(tmp_path / "many.jsonl") == certified(tmp_path / "one.jsonl")
    # no row was made again: those that were there when a rank was killed are there to the byte
    assert len(kept) > KILLS
    assert set(kept) <= set((tmp_path / "many.jsonl").read_bytes().splitlines(keepends=True))
    # and no vote cast again but those of the example that each of two ranks had under way, or helped with
    assert (tmp_path / "passes").stat().st_size <= undisturbed + (2 * KILLS + 2) * PASSES_AN_IMAGE


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_bit_for_bit(tmp_path):
    """Three ranks: sums of three depend on their order, which must be the same after a restart."""
    job = (
        "train --data digits --model small-cnn --sigma 0.25 --epochs 4 --batch-size 48 --lr 0.02 --seed 0 --device cpu"
    )
    for name, kill in (("whole", False), ("broken", True)):
        launcher = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
             "--max-restarts", "2", "-m", "--", "art_rs_plugin", *job.split(), "--out", tmp_path / name],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            while kill and not (tmp_path / name / "metrics.jsonl").exists():
                assert launcher.poll() is None, launcher.stdout.read()
                time.sleep(0.002)
            if kill:
                os.kill(ranks_of(launcher.pid)[1], signal.SIGKILL)
            said, _ = launcher.communicate(timeout=company.SECONDS)
        finally:
            launcher.kill()
        assert launcher.returncode == 0, said
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    about = json.loads((tmp_path / "broken" / "checkpoint.json").read_text())
    assert about["training"]["ranks"] == 3
    done = company.torchrun(*job.split(), "--out", tmp_path / "broken", size=2)
    assert done.returncode != 0
    assert "ranks is 3 there and 2 here" in done.stderr


@pytest.mark.slow
def test_ranks_that_are_told_different_things_refuse_to_start(tmp_path):
    alone(
        *["train", "--data", "digits", "--model", "mlp", "--sigma", "0.25", "--epochs", "1", "--out"], tmp_path / "runs"
    )
    job = (
        f"-m art_rs_plugin certify --checkpoint {tmp_path / 'runs'} --data digits --max 4 --seed 0 --device cpu --out "
    )
    first = [*job.split(), tmp_path / "run.jsonl", "--n", "100"]
    ends = company.finished(company.start([first, [*first, "--sigma", "0.5", "--precision", "bf16"]]))
    for rank, (code, said) in enumerate(ends):
        assert code == 2
        assert f"rank {rank}: error: all ranks must be of one run, and they differ" in said
        assert "`noise.sigma` is 0.25 on rank 0, 0.5 on rank 1" in said
        assert '`precision` is "fp32" on rank 0, "bf16" on rank 1' in said
    assert not (tmp_path / "run.jsonl").exists()
