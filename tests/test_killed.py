"""`kill -9` at a hundred random moments of certifying and of training: it ends as if it had never been killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from art_rs_plugin.experiments import models
from art_rs_plugin.experiments.checkpoints import load_checkpoint, model_hash, save_checkpoint
from art_rs_plugin.experiments.ledger import read_ledger

KILLS, NAMES = 100, ("whole", "killed")
SCRIPT = Path(__file__).with_name("killed_commands.py")
pytestmark = pytest.mark.slow


def art_rs(folder: Path, words: str) -> None:
    """The command, into `whole` without a stop and into `killed` with a hundred."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(KILLS), *words.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == KILLS


@pytest.mark.parametrize("budget", ["fixed", "looks"])
def test_certify(tmp_path, budget):
    architecture = {"name": "mlp", "input_shape": (1, 8, 8), "nb_classes": 10, "mean": (0.3,), "std": (0.37,)}
    about = {"architecture": architecture, "sigma": 0.25, "data": {"name": "digits", "split": "train"}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(tmp_path / "network", models.build(**architecture), about)
    words = "certify --checkpoint network --data digits --seed 3 --no-compile --out {}.jsonl"
    art_rs(tmp_path, f"{words} --n {2_000 if budget == 'fixed' else 10_000} --budget {budget}")
    (expected_header, expected), (header, rows) = (read_ledger(tmp_path / f"{name}.jsonl") for name in NAMES)
    assert header == expected_header
    assert [row["index"] for row in rows] == list(range(449))  # none lost, none doubled
    for row in (*rows, *expected):
        del row["seconds"]
    assert rows == expected


def test_train(tmp_path):
    words = "train --data digits --model small-cnn --sigma 0.25 --epochs 30 --lr 0.05 --seed 0 --held-out 100 --out {}"
    art_rs(tmp_path, words)
    for best in ("", "best"):
        hashes = {model_hash(load_checkpoint(tmp_path / name / best)[0]) for name in NAMES}
        assert len(hashes) == 1, best
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in NAMES]
    expected, history = ([{**json.loads(line), "seconds": 0} for line in some] for some in lines)
    assert history == expected
    assert len(history) == 30
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        path.name for path in (tmp_path / "killed").iterdir()
    }
