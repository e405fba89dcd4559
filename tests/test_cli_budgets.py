"""Budgets, bounds and precision on the command line."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import art_rs_plugin.estimator
from art_rs_plugin.cli import app
from art_rs_plugin.cli.options import Rule
from art_rs_plugin.core.bounds import BOUNDS
from art_rs_plugin.core.budgets import BUDGETS
from art_rs_plugin.experiments.ledger import read_ledger, rebound

CERTIFY = ["certify", "--checkpoint", "net", "--data", "digits", "--seed", "3"]
LOOKS = [*CERTIFY, "--budget", "looks", "--radii", "0.1,0.3", "--n", "3000"]
VOTES = re.compile(r"^(\d+) votes an image on average, (\d+\.\d) times fewer than the (\d+) of fixed$", re.MULTILINE)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budgets")
    train = "train --data digits --model mlp --sigma 0.25 --epochs 3 --lr 0.05 --seed 0 --out"
    run(*train.split(), str(folder / "net"))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def untimed(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_ledger(path)[1]]


def test_the_rules_are_those_of_the_table() -> None:
    assert [rule.value for rule in Rule] == list(BUDGETS)


def test_looks_print_what_they_saved(here: Path) -> None:
    output = run(*LOOKS, "--max", "20", "--out", "looks.jsonl")
    header, rows = read_ledger(here / "looks.jsonl")
    rule = {"name": "looks", "radii": [0.1, 0.3], "n_max": 3_000, "n0": 100, "first": 100, "growth": 1.5}
    assert header["rule"] == {**rule, "bound": "clopper-pearson", "alpha": 0.001}
    votes = [100 + row["n"] for row in rows]
    assert votes == [row["votes"] for row in rows]
    mean, fewer, fixed = VOTES.search(output).groups()  # type: ignore[union-attr]
    assert float(mean) == pytest.approx(sum(votes) / 20, abs=0.5)
    assert fixed == "3100"
    assert 0 <= 3_100 / (sum(votes) / 20) - float(fewer) < 0.1
    assert float(fewer) > 1
    assert "r = 0.1 | r = 0.3" in output
    for r in (0.1, 0.3):
        share = sum(row["prediction"] == row["label"] and row["radius"] >= r for row in rows) / 20
        assert f"{share:.3f}" in output
    assert not VOTES.search(run(*CERTIFY, "--n", "200", "--max", "2", "--out", "fixed.jsonl"))


def test_pilots_take_a_cost_and_have_one_of_their_own(here: Path) -> None:
    words = [*CERTIFY, "--budget", "pilot", "--n", "5000", "--max", "3"]
    dear, cheap = run(*words, "--cost", "1e-4", "--out", "dear.jsonl"), run(*words, "--out", "cheap.jsonl")
    headers = [read_ledger(here / name)[0]["rule"] for name in ("dear.jsonl", "cheap.jsonl")]
    assert [rule["cost"] for rule in headers] == [1e-4, 1e-6]
    assert all(rule["name"] == "pilot" and rule["n_max"] == 5_000 for rule in headers)
    fewer = [float(VOTES.search(output)[2]) for output in (dear, cheap)]  # type: ignore[index]
    assert fewer[0] > fewer[1]


def test_known_labels_are_certified_without_votes_to_select_them(here: Path) -> None:
    output = run(*LOOKS, "--known-labels", "--max", "10", "--out", "known.jsonl")
    header, rows = read_ledger(here / "known.jsonl")
    assert header["rule"]["known_labels"] is True
    assert all(row["selected"] == row["label"] and row["n0"] == 0 for row in rows)
    assert [rebound(header, row).n0 for row in rows] == [0] * 10
    assert VOTES.search(output)[3] == "3000", "fixed would not have selected either"  # type: ignore[index]


@pytest.mark.parametrize("bound", BOUNDS)
def test_any_bound_of_the_table(here: Path, bound: str) -> None:
    run(*CERTIFY, "--bound", bound, "--n", "100", "--max", "2", "--out", f"{bound}.jsonl")
    header, rows = read_ledger(here / f"{bound}.jsonl")
    assert header["rule"]["bound"] == bound
    assert [rebound(header, row).radius for row in rows] == [row["radius"] for row in rows]
    assert all(("uniform" in row) == (bound == "randomized") for row in rows)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_looks_that_were_stopped_end_as_if_they_had_not_been(here: Path, how: signal.Signals) -> None:
    words = [*LOOKS, "--n", "50000", "--max", "120", "--out"]
    name, whole = f"{how.name}.jsonl", "whole.jsonl"
    run(*words, whole)  # does nothing the second time
    process = subprocess.Popen(
        [sys.executable, "-m", "art_rs_plugin", *words, name],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300  # on a machine that is busy
    while not (here / name).exists() or (here / name).read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline, "it has not 3 rows after five minutes"
        time.sleep(0.01)
    process.send_signal(how)
    errors = process.communicate()[1]
    assert "Traceback" not in errors
    assert process.returncode in (130, -signal.SIGKILL)
    assert 3 <= len(read_ledger(here / name)[1]) < 120
    run(*words, name)
    assert untimed(here / name) == untimed(here / whole)
    assert len(untimed(here / name)) == 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bound best", "`bound` must be one of 'clopper-pearson', 'runner-up'"),
        ("--budget looks --bound best", "`bound` must be one of 'clopper-pearson', 'runner-up'"),
        ("--budget looks --cost 1e-5", "`--cost` must not be given with --budget looks"),
        ("--cost 1e-5", "`--cost` must not be given with --budget fixed"),
        ("--budget pilot --cost 0", "`cost` must be a finite number above 0, got 0.0"),
        ("--budget looks --radii 9", "`radii` must hold one that 100000 votes can certify"),
        ("--budget looks --radii -1", "`radii` must be a finite number of at least 0, got -1.0"),
        ("--budget looks --n 9", "`n` must be at least 10"),
        ("--budget pilot --n 10 --bound runner-up", "`n` must be at least"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_leaves_nothing(here: Path, words: str, message: str) -> None:
    output = run(*CERTIFY, "--out", "new.jsonl", *words.split(), code=2)
    assert message in output
    assert output.startswith("error: ")
    assert not (here / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("--radii 0.1,0.4", "rule.radii"),
        ("--budget pilot", "rule.name"),
        ("--budget fixed", "rule.name"),
        ("--known-labels", "rule.known_labels"),
        ("--bound runner-up", "rule.bound"),
        ("--precision bf16", "precision"),
    ],
)
def test_a_run_of_looks_goes_on_as_it_began_or_not_at_all(here: Path, words: str, field: str) -> None:
    begun = [*LOOKS, "--max", "2", "--out", "begun.jsonl"]
    run(*begun)
    before = (here / "begun.jsonl").read_bytes()
    output = run(*begun, *words.split(), code=2)
    assert f"`{field}` is" in output
    assert (here / "begun.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["certify", "predict"])
@pytest.mark.parametrize(
    ("words", "precision", "compiled"),
    [
        ("", "fp32", "auto"),
        ("--precision bf16 --compile", "bf16", True),
        ("--precision fp16 --no-compile", "fp16", False),
    ],
)
def test_precision_and_compilation_reach_the_estimator(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str, precision: str, compiled: object
) -> None:
    seen = {}

    def estimator(*_: object, **options: object) -> None:
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr(art_rs_plugin.estimator, "RandomizedSmoothingPyTorch", estimator)
    common = ["--checkpoint", "net", "--data", "digits", "--out", "x.jsonl"]
    assert run(command, *common, *words.split(), code=2) == "error: seen\n"
    assert (seen["precision"], seen["compile"]) == (precision, compiled)


def test_a_rule_or_precision_that_there_is_not_is_refused(here: Path) -> None:
    assert "'fp64' is not one of" in run(*CERTIFY, "--out", "x.jsonl", "--precision", "fp64", code=2)
    assert "'most' is not one of" in run(*CERTIFY, "--out", "x.jsonl", "--budget", "most", code=2)
