"""The benchmarks of attacks on a network for embedded digits: what they say is what they measured, stopped or not."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from art_rs_plugin.experiments import datasets, recipes, training

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEAR, FAR = 1e-6, 4.0  # in the l2 norm of 8x8 pixels in [0, 1]: no vote changes, and every class is within reach

# What their code looks like from here: images of a batch stand `num_noise_vectors` times in a row, with noise for each.
# It moves every image towards black, as far as it may.
PGD_L2 = """
import torch

class PGD_L2:
    def __init__(self, steps, max_norm):
        self.max_norm = max_norm

    def attack(self, model, inputs, labels, noise, num_noise_vectors):
        assert len(inputs) == len(noise) == num_noise_vectors * len(labels) and not model.training
        assert (inputs[::num_noise_vectors] == inputs[num_noise_vectors - 1 :: num_noise_vectors]).all()
        assert 0.2 < noise.std() < 0.3
        return inputs - inputs * (self.max_norm / inputs.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
"""


def run(name, *words) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def tables(output: str) -> list[list[list[str]]]:
    """The cells of each Markdown table in the output, without its head."""
    found = re.findall(r"(?:^\|.*\n)+", output, flags=re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in block.splitlines()[2:]] for block in found]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A trained network and somebody's attack, as options of `attacks.py`."""
    folder = tmp_path_factory.mktemp("attacks")
    digits = datasets.load("digits", "train")
    training.train(digits, "mlp", 0.25, folder / "net", recipe=recipes.Recipe(epochs=6, batch_size=64), seed=0)
    (folder / "theirs" / "code").mkdir(parents=True)
    (folder / "theirs" / "code" / "attacks.py").write_text(PGD_L2)
    options = (
        f"--checkpoint {folder / 'net'} --data digits --images 20 --eps {NEAR} {FAR} --steps 5 --samples 4 --n 100"
    )
    return [*options.split(), "--smoothing-adversarial", folder / "theirs", "--out", folder / "out"]


@pytest.fixture(scope="module")
def done(words):
    return run("attacks.py", *words)


@pytest.fixture(scope="module")
def names():
    return runpy.run_path(str(BENCHMARKS / "attacks.py"))


@pytest.mark.slow
class TestAttacks:
    def test_compares_every_attack_at_every_eps(self, words, done):
        attacks, *comparisons = tables(done.stdout)
        assert len(attacks) == 10
        assert len({name for name, *_ in attacks}) == 5
        assert {row[1] for row in attacks} == {"1e-06", "4"}
        assert all(float(row[4]) <= float(row[1]) * 1.0001 for row in attacks)
        before = json.loads((words[-1] / "no-attack.json").read_text())["arrays"]
        wrong = sum(one not in (-1, label) for one, label in zip(before["attacked"], before["labels"], strict=True))
        assert {row[5] for row in attacks} == {str((20 - wrong) * 20)}  # those that are wrong anyway are not attacked
        assert [len(rows) for rows in comparisons] == [6, 6]

    def test_an_attack_that_may_not_move_is_judged_as_none_is_and_one_that_may_succeeds(self, done):
        before = re.search(r"Before any attack (\S+ \[.*?\]) are named wrong, and (\S+ \[.*?\]) abst", done.stdout)
        rows = tables(done.stdout)[0]
        assert {(row[2], row[3]) for row in rows if row[1] == "1e-06"} == {before.groups()}
        reached = {row[0]: float(row[2].split()[0]) for row in rows if row[1] == "4"}
        assert min(reached["SmoothedPGD, expected_loss"], reached["SmoothedPGD, smoothadv"]) >= 0.9

    def test_says_what_is_in_its_files(self, words, done):
        out = words[-1]
        assert len(list(out.iterdir())) == 11
        succeeded = []
        for file in ("expected_loss-4.json", "salman-4.json"):
            kept = {name: np.array(values) for name, values in json.loads((out / file).read_text())["arrays"].items()}
            succeeded.append((kept["attacked"] != kept["labels"]) & (kept["attacked"] != -1))
        (row,) = (row for row in tables(done.stdout)[1] if row[0].startswith("PGD_L2") and row[1] == "4")
        here, there = succeeded
        assert [int(row[2]), int(row[3])] == [(here & ~there).sum(), (there & ~here).sum()]
        assert float(row[4]) == pytest.approx((here.sum() - there.sum()) / 20, abs=1e-3)

    def test_goes_on_where_it_stopped_and_ends_with_the_same(self, words, done):
        # ART's sampled gradients were seen to differ in a last bit from process to process: not those far away
        for name in ("expected_loss-4", "smoothadv-4", "salman-4", "art-base-4", "art-smoother-1e-06"):
            (words[-1] / f"{name}.json").unlink()
        left = {path: path.stat().st_mtime_ns for path in words[-1].iterdir()}
        again = run("attacks.py", *words)
        assert again.returncode == done.returncode
        assert re.sub(r"\S+ \|\n", "\n", again.stdout) == re.sub(r"\S+ \|\n", "\n", done.stdout)  # but for the seconds
        assert {path: path.stat().st_mtime_ns for path in left} == left

    def test_does_not_mix_runs(self, words, done, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["attacks.py", *map(str, words), "--samples", "5"])
        with pytest.raises(SystemExit, match="is of another run, which differs in samples: choose another `--out`"):
            runpy.run_path(str(BENCHMARKS / "attacks.py"))["main"]()

    def test_exits_by_its_verdict(self, done):
        assert "default objective, expected_loss; significant is p <= 0.00125" in done.stdout  # .01 / (6 + 2)
        assert done.returncode == int("MISSED: " in done.stdout) == int(not done.stdout.endswith("\nreached\n"))

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("--steps 0", "`--steps` must be at least 1, got 0"),
            ("--eps 0.5 -1", "`--eps` must be above 0 and finite, got -1.0"),
            ("--relative-step 0", "`--relative-step` must be above 0 and finite, got 0.0"),
            ("--n 5", "`n` must be at least 11"),
            ("--images 5000", "`--images` must be at most the 449 of digits, got 5000"),
            ("--smoothing-adversarial nowhere", "must be a checkout with code/attacks.py, got nowhere"),
            ("--checkpoint nowhere", "checkpoint `nowhere` does not exist"),
        ],
    )
    def test_refuses(self, words, more, said, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["attacks.py", *map(str, words), *more.split()])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(BENCHMARKS / "attacks.py"))["main"]()
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.out == ""


class TestVerdict:
    @pytest.mark.parametrize(
        ("base", "rival", "missed"),
        [
            (40, 50, []),
            (50, 50, ["at no eps is it significantly better than ART's PGD on f"]),
            (40, 52, []),
            (40, 53, ["rival is better by 3.0 points at eps = 0.5"]),
            (40, 70, ["rival is significantly better at eps = 0.5", "rival is better by 20.0 points at eps = 0.5"]),
        ],
    )
    def test_is_of_significance_and_of_points(self, names, base, rival, missed):
        """Attacks that succeed on the first so many of 100 images; ours on 50."""
        first = lambda count: {0.5: np.arange(100) < count}  # noqa: E731
        rows = names["comparisons"](first(50), {"ART's PGD on f": first(base), "rival": first(rival)})
        level, said = names["verdict"](rows)
        assert level == pytest.approx(0.01 / 3)
        assert said == missed


@pytest.mark.slow
class TestAttackStep:
    def test_prints_ratios_and_memory_and_exits_by_them(self):
        done = run("attack_step.py", "--models", "small-cnn", "--samples", 16, "--repeats", 2)
        ((_, step, bare, ratio),), ((_, few, many, growth),) = tables(done.stdout)
        step, bare, ratio, growth = (float(cell.split()[0]) for cell in (step, bare, ratio, growth))
        assert ratio == pytest.approx(step / bare, rel=0.02)
        assert growth == pytest.approx(float(many) - float(few), abs=1)
        # a busy machine may miss the claim about time: then it says so
        assert growth <= 50
        assert done.returncode == int(ratio > 1.1), done.stderr
        assert ("MISSED" in done.stdout) == (ratio > 1.1)
