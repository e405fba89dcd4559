"""The benchmarks run, on a CPU and quickly, and say what they measured; what they then say is measured elsewhere."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from art_rs_plugin import arithmetic

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def tables(output: str) -> list[list[dict[str, str]]]:
    """Each Markdown table in the output: its rows, by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", output, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in block.splitlines()]
        found.append([dict(zip(head, [*row, *[""] * (len(head) - len(row))], strict=True)) for row in rows])
    return found


@pytest.mark.slow
class TestGpu:
    def test_refuses_to_measure_where_there_is_no_gpu(self):
        done = run("gpu.py")
        assert done.returncode == 2
        assert "needs an NVIDIA GPU, and torch finds none" in done.stderr
        assert done.stdout == ""

    def test_runs_on_a_cpu_to_show_its_table(self):
        words = "--device cpu --n 200 --full 400 --repeats 2 --models small-cnn --configurations fp32 bf16"
        done = run("gpu.py", *words.split())
        assert done.returncode == 0, done.stderr
        assert "TF32" not in done.stdout
        assert "CPU" in done.stdout
        ((fp32, bf16),) = tables(done.stdout)
        assert (fp32["arithmetic"], bf16["arithmetic"]) == ("fp32", "bf16")
        for row in (fp32, bf16):
            assert row["model"] == "small-cnn"
            certify, forward, share = (float(row[name]) for name in ("certify s", "forward only s", "forward share"))
            assert 0 < share <= 1.5
            assert share == pytest.approx(forward / certify, rel=0.02)  # three digits are shown
            assert float(row["full certify s"]) > 0
            assert row["limit s"] == ""  # claims are of the two networks of the paper
        assert "fastest in" in done.stdout
        assert "reached" not in done.stdout

    def test_one_that_cannot_be_compiled_costs_the_others_nothing(self, monkeypatch, capsys):
        monkeypatch.setitem(arithmetic._TOLERANCE, "fp32", -1.0)
        words = "--device cpu --n 100 --full 100 --repeats 1 --models small-cnn --configurations fp32+compile fp32"
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words.split()])
        runpy.run_path(str(BENCHMARKS / "gpu.py"))["main"]()
        printed = capsys.readouterr().out
        ((row,),) = tables(printed)
        assert row["arithmetic"] == "fp32"
        assert "small-cnn: fp32+compile is left out: the model cannot be compiled" in printed

    def test_scales_by_forward_passes_for_the_last_one_is_padded(self):
        contender = SimpleNamespace(passes=lambda votes: -(-votes // 2048))
        scale = runpy.run_path(str(BENCHMARKS / "gpu.py"))["Contender"].scale
        assert scale(contender, "forward", 20_000, 100_000) == 49 / 10
        assert scale(contender, "certify", 20_000, 100_000) == 50 / 11  # one more that selects the class

    @pytest.mark.parametrize(
        ("seconds", "share", "full", "reached"),
        [(0.5, 0.85, 100_000, True), (0.51, 0.9, 100_000, False), (0.4, 0.84, 100_000, False), (9.0, 0.1, 400, True)],
    )
    def test_judges_the_fastest_row_of_a_full_run_alone(self, seconds, share, full, reached):
        names = runpy.run_path(str(BENCHMARKS / "gpu.py"))
        row = {"full certify s": seconds, "forward share": share, "arithmetic": "bf16"}
        slower = {**row, "full certify s": 10.0, "forward share": 0.99, "arithmetic": "fp32"}
        rows = [[one.get(column) for column in names["COLUMNS"]] for one in (slower, row)]
        said, holds = names["verdict"]("resnet110", rows, full)
        assert holds is reached
        assert said.startswith("resnet110: fastest in bf16")
        assert ("MISSED" in said, "reached" in said) == (not reached, reached and full == 100_000)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What `scaling.py` says of a small network, and its picture."""
    picture = tmp_path_factory.mktemp("scaling") / "new" / "scaling.svg"
    words = "--model mlp --input-shape 1 8 8 --votes 500 1000 4000 --inputs 1 2 4 --repeats 2 --out"
    return run("scaling.py", *words.split(), picture), picture


@pytest.mark.slow
class TestScaling:
    def test_prints_what_is_measured_and_the_ratio(self, measured):
        done, _ = measured
        votes, inputs = tables(done.stdout)
        assert [row["votes n of one input"] for row in votes] == ["500", "1 000", "4 000"]
        assert [row["inputs at n = 1000"] for row in inputs] == ["1", "2", "4"]
        assert all(float(row["seconds"]) > 0 for row in votes + inputs)
        ratio = float(re.search(r"^ratio (\S+) \(at most 1.2\)", done.stdout, flags=re.MULTILINE)[1])
        an_input, its_votes = map(float, re.findall(r": (\S+) ms", done.stdout))
        assert ratio == pytest.approx(an_input / its_votes, rel=0.02)
        # so few votes on a busy machine may miss the claim: then it says so
        assert done.returncode == (0 if ratio <= 1.2 else 1), done.stderr

    def test_draws_it_without_a_date(self, measured):
        _, picture = measured
        text = picture.read_text()
        assert "<svg" in text
        assert "dc:date" not in text

    def test_needs_two_points_for_a_line(self):
        done = run("scaling.py", "--votes", 1000, 1000)
        assert done.returncode == 2
        assert "at least two different numbers" in done.stderr


@pytest.mark.slow
def test_report_says_how_long_a_page_takes_and_how_large_it_is():
    done = run("report.py", "--examples", 30, "--ledgers", 2, "--runs", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 x 30 examples, medians of 1\n")
    seconds, used, size = map(float, re.search(r"([\d.]+) s, ([\d.]+) s of .*; ([\d.]+) MB", done.stdout).groups())
    assert 0 < used < 60 * seconds
    assert 0.05 < size < 10
