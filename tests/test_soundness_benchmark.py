"""The count of false certificates: its truth by brute force, its marks, and that it goes on where it stopped."""

import itertools
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from art_rs_plugin.core.rounded import table


@pytest.fixture(scope="module")
def soundness():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "soundness.py")))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_least_norm_of_whole_steps(soundness, count):
    for k in range(8):
        every = itertools.product(range(-2, k + 3), repeat=count)
        assert soundness.steps(k, count) == min(math.hypot(*v) for v in every if sum(v) == k)


def test_law_of_a_sum_of_two(soundness):
    made = table(soundness.SIGMA)
    pmf = np.diff(np.concatenate([[0.0], made.thresholds / 2.0**63, [1.0]]))
    first, cumulative = soundness.sums(2)
    expected = np.cumsum(np.convolve(pmf, pmf))
    at = -2 * made.reach - first
    np.testing.assert_allclose(cumulative[at : at + len(expected)], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimension", [2, 108])
@pytest.mark.parametrize("mode", ["ordinary", "sound"])
def test_inputs_lie_where_they_are_said_to(soundness, mode, dimension):
    nominal = np.linspace(0.1, 1.2, 40)
    plane = soundness.Plane(mode, dimension, nominal, np.random.default_rng(0))
    scale = 255 if mode == "sound" else 1  # sound mode's plane is in whole 255ths
    margin = (plane.x.astype(np.float64) @ plane.weight + plane.offset / scale) / np.linalg.norm(plane.weight)
    assert set(plane.side) == {0, 1}
    assert np.array_equal(margin > 1e-6, plane.side == 1)  # in sound mode class 1 begins a step above 0
    grid = 1 / 255 if mode == "sound" else 0.0
    asked = 0.0 if mode == "sound" else 3 * soundness.SLACK
    assert (plane.own <= nominal + 1e-9).all()
    assert (plane.own >= nominal - asked - 2 * grid / soundness.SIGMA).all()
    if mode == "sound":
        whole = 255 * plane.x.astype(np.float64)
        assert np.abs(whole - np.rint(whole)).max() < 1e-3
    # whole steps never cross where the distance to the plane is longer
    assert (plane.own * soundness.SIGMA >= np.abs(margin) - 1e-6).all()


@pytest.mark.parametrize("rule", ["fixed", "runner-up"])
def test_enumerated_error_is_the_binomials(soundness, rule):
    share = {"fixed": 1.0, "runner-up": 0.9}[rule]
    for k in (60, 64):
        p = float(soundness.lower(64, share * 0.01)[k]) - 1e-9
        assert soundness.error(rule, 0.01, p, p) == pytest.approx(binom.sf(k - 1, 64, p))
        assert soundness.error(rule, 0.01, p, p) == pytest.approx(share * 0.01, rel=1e-5)


def test_looks_err_no_more_than_alpha_and_more_than_each_look(soundness):
    for p in np.linspace(0.5, 0.95, 10):
        assert soundness.error("looks", 0.01, p, p) <= 0.01


@pytest.mark.parametrize(
    ("false", "longer", "mark", "fine"),
    [(10, 200, "", True), (200, 400, " MISSED", False), (10, 12, " TOO BLUNT", False)],
)
def test_report_marks_what_it_must_not_see(soundness, capsys, false, longer, mark, fine):
    row = {
        "mode": "sound", "rule": "fixed", "alpha": 0.001, "dimension": 2, "piece": 0, "certifications": 10_000,
        "certified": 5_000, "false": false, "false_if_longer": longer, "enumerated_mean": 0.0009,
        "enumerated_most": 0.001, "seconds": 1.0,
    }  # fmt: skip
    assert soundness.report([row]) is fine
    assert f"| {false}{mark} | {int(binom.isf(1e-6, 10_000, 0.001))} |" in capsys.readouterr().out


def test_a_run_goes_on_where_it_stopped(soundness, tmp_path):
    run, done = soundness.run, []

    def work(mode, rule, alpha, dimension, piece):
        done.append((alpha, dimension, piece))
        if len(done) in (4, 9):
            raise KeyboardInterrupt
        return {"mode": mode, "rule": rule, "alpha": alpha, "dimension": dimension, "piece": piece} | {
            "certifications": 50_000
        }

    run.__globals__["work"] = work
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a.jsonl", ["sound"], ["looks"], 1)
    run(tmp_path / "a.jsonl", ["sound"], ["looks"], 1)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    pieces = [(row["alpha"], row["dimension"], row["piece"]) for row in rows]
    assert len(set(pieces)) == len(pieces) == 15  # of each alpha and dimension one piece is enough
