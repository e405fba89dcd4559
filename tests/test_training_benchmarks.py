"""The benchmarks of training: what they say is what they measured, and chunks of a long run add up to the whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.experiments.logs import round_down

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def tables(output: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")][2:]


@pytest.mark.slow
def test_beside_art_on_digits(tmp_path):
    small = ["--epochs", "2", "--batch-size", "64", "--train-images", "300", "--images", "30", "--n", "1000"]
    words = ["--data", "digits", "--model", "mlp", *small, "--out"]
    command = [sys.executable, BENCHMARKS / "training.py", *words, tmp_path / "out"]
    first = subprocess.run(command, capture_output=True, text=True)
    rows = tables(first.stdout)
    assert [tuple(row[:2]) for row in rows] == [
        (method, whose) for method in ("gaussian", "smoothadv", "macer", "smoothmix") for whose in ("ours", "ART")
    ], first.stderr
    for row in rows:
        shares = [float(cell) for cell in row[2:-1]]
        assert shares == sorted(shares, reverse=True)
        assert float(row[-1]) > 0
    assert first.returncode == int("MISSED" in first.stdout) == int(not first.stdout.endswith("\nreached\n"))
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.stdout, again.returncode) == (first.stdout, first.returncode)  # seconds and all: nothing is done anew
    other = subprocess.run([*command, "--epochs", "3"], capture_output=True, text=True)
    assert "is of another run: choose another `--out`" in other.stderr


@pytest.mark.slow
def test_a_step_is_compared_with_its_passes():
    words = ["--models", "small-cnn", "--batch-size", "16", "--steps", "1", "--repeats", "1", "--precisions", "fp32"]
    done = subprocess.run([sys.executable, BENCHMARKS / "training_step.py", *words], capture_output=True, text=True)
    rows = tables(done.stdout)
    limits = {"the same loop without noise": 1.05, "a plain loop": float("inf"), "its passes": 1.1}
    assert [row[2] for row in rows] == list(limits), done.stderr
    missed = 0
    for _, step, base, other, ratio in rows:
        step, other, ratio = (float(cell.split()[0]) for cell in (step, other, ratio))
        assert ratio == pytest.approx(step / other, rel=0.02)
        missed += ratio > limits[base]
    assert done.returncode == int(missed > 0)


# Stands in for the program: keeps what it was told, and is slow at what it does first of each kind.
PROGRAM = """#!/usr/bin/env bash
echo "$@" >> "$LOG"
if [[ $(grep -cxF -- "$*" "$LOG") == 1 && $1 != curve ]]; then exec sleep 30; fi
[[ $* != *"$BROKEN"* ]]
"""


@pytest.mark.slow  # it waits for deadlines
class TestPaper:
    @pytest.fixture
    def call(self, tmp_path, monkeypatch):
        program = tmp_path / "bin" / "art-rs"
        program.parent.mkdir()
        program.write_text(PROGRAM)
        program.chmod(0o755)
        log = tmp_path / "log"
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("LOG", str(log))
        monkeypatch.setenv("BROKEN", "nothing")

        def call(seconds):
            done = subprocess.run(
                [BENCHMARKS / "paper_cifar10.sh", tmp_path / "out", str(seconds)], capture_output=True
            )
            return done.returncode, log.read_text().splitlines()

        return call

    def test_goes_on_chunk_by_chunk_until_all_is_done(self, call):
        statuses = []
        while not statuses or statuses[-1] == 75:
            status, said = call(6)
            statuses.append(status)
            assert len(statuses) < 12
        assert statuses == [75] * 8 + [0]  # every command was interrupted once
        commands = list(dict.fromkeys(said))
        assert [words.split()[0] for words in commands] == ["train", "certify"] * 4 + ["curve"]
        assert all(said.count(words) == 2 for words in commands[:-1])
        folders = [re.search(r"out/(\S+?)(\.jsonl)?$", words).group(1) for words in commands[:-1]]
        assert (
            folders[::2] == folders[1::2] == ["gaussian-0.25", "gaussian-0.50", "consistency-0.25", "consistency-0.50"]
        )

    def test_an_error_is_not_tried_again(self, call, monkeypatch):
        monkeypatch.setenv("BROKEN", "train")
        assert call(6)[0] == 75
        assert call(6)[0] == 1

    def test_what_it_says_is_what_the_program_takes(self, call, monkeypatch):
        """Names of recipes, methods and options are known to the program itself."""
        from typer.testing import CliRunner

        from art_rs_plugin.cli import app

        call(6)
        (words,) = Path(os.environ["LOG"]).read_text().splitlines()
        monkeypatch.setenv("ART_RS_DATA", "nowhere")
        said = CliRunner().invoke(app, words.split()).output
        assert "data set `cifar10`" in said
        assert "missing or damaged" in said


@pytest.mark.slow
def test_methods_are_compared_in_pairs_on_what_their_ledgers_hold(tmp_path):
    (tmp_path / "quick.toml").write_text('data = "digits"\nmodel = "mlp"\nepochs = 2\nbatch_size = 64\n')
    (tmp_path / "held.toml").write_text(
        'data = "digits"\nmodel = "mlp"\nmethod = "consistency"\nepochs = 2\nbatch_size = 64\nheld_out = 100\n'
        "[options]\ndraws = 2\n"
    )
    words = ["--data", "digits", "--sigma", "0.25", "--images", "12", "--n", "200", "--radii", "0", "0.25", "--fixed"]
    recipes = ["--recipes", tmp_path / "quick.toml", tmp_path / "held.toml"]
    command = [sys.executable, BENCHMARKS / "methods.py", *words, *recipes, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = tables(done.stdout)
    assert [row[0] for row in rows] == ["quick", "held", "held less quick (p)"], done.stderr
    ledgers = [read_ledger(tmp_path / "out" / f"{name}-0.25-fixed-200-fp32.jsonl")[1] for name in ("quick", "held")]
    right = [np.array([row["prediction"] == row["label"] for row in ledger]) for ledger in ledgers]
    radius = [np.array([row["radius"] for row in ledger]) for ledger in ledgers]
    for row, ok, r in zip(rows, right, radius, strict=False):
        assert row[4:] == [round_down(mean, 3) for mean in (ok.mean(), (ok & (r >= 0.25)).mean(), (ok * r).mean())]
    assert rows[2][4].startswith(f"{right[1].mean() - right[0].mean():+.3f} (")
    about = json.loads((tmp_path / "out" / "held-0.25" / "best" / "checkpoint.json").read_text())
    assert about["training"]["method"] == "consistency"
    for state in (tmp_path / "out").glob("*/training.pt"):
        state.unlink()
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.stdout, again.returncode) == (done.stdout, 0)  # seconds and all: nothing is done anew
    other = subprocess.run([*command, "--epochs", "3"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "must hold the network of this recipe, sigma and seed" in other.stderr
