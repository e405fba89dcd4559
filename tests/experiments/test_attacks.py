"""Attacks into a ledger, and tightness: on half-spaces, whose certificates have a known length to spare."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest, norm
from torch import nn

from art_rs_plugin import ABSTAIN, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import attacks, datasets, runs
from art_rs_plugin.experiments.attacks import Plan, attack, certified, judged, tightness_table
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger
from art_rs_plugin.experiments.logs import read_log

SIGMA, PLAN = 0.25, Plan(max_iter=3, num_samples=4)


class Bright(nn.Module):
    """Class 1 for images whose mean is above that of most digits: a half-space."""

    def forward(self, x):
        z = 8 * (x.flatten(1).mean(dim=1) - 0.3)  # the distance to the plane: a mean of 64 pixels has gradient 1 / 8
        return torch.stack([torch.zeros_like(z), z, *[torch.full_like(z, -50.0)] * 8], dim=1)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "test")


def smoothed(seed=0, **options):
    return RandomizedSmoothingPyTorch(
        Bright(), SIGMA, n0=20, n=2_000, seed=seed, input_shape=(1, 8, 8), nb_classes=10, device_type="cpu", **options
    )


def margins(digits, indices):
    x, _ = digits.arrays(indices)
    return 8 * (x.reshape(len(x), -1).mean(axis=1, dtype=np.float64) - 0.3)


@pytest.fixture(scope="module")
def ledger(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("certificates") / "certificates.jsonl"
    runs.certify(smoothed(), digits, range(60), path)
    return path


def test_a_row_says_what_was_attacked_how_far_and_what_predict_says_of_it(digits, tmp_path, ledger):
    made = certified(ledger, smoothed(), digits)
    attack(smoothed(), digits, range(60), tmp_path / "a.jsonl", plan=PLAN, certificates=made, times_radius=1.5)
    header, rows = read_ledger(tmp_path / "a.jsonl")
    assert header["rule"]["times_radius"] == 1.5
    assert header["rule"]["attack"] == "smoothed-pgd"
    assert [row["index"] for row in rows] == sorted(made.certificates)
    for row in rows:
        label, radius = made.certificates[row["index"]]
        (margin,) = margins(digits, [row["index"]])
        assert row["leaves"] == label == int(margin > 0)
        assert row["label"] == digits.arrays([row["index"]])[1][0]
        assert row["eps"] == 1.5 * radius
        assert row["l2"] == pytest.approx(row["eps"], rel=1e-4)
        left = abs(margin) - row["l2"]  # of the distance to the plane, the whole of which the attack goes straight to
        p = norm.cdf(left / SIGMA)
        assert sum(row["counts"]) == row["n"] == 1_000
        assert abs(row["counts"][label] / 1_000 - p) < 5.5 * np.sqrt(p * (1 - p) / 1_000) + 0.006  # 1e-7 each
        assert row["prediction"] in ({label, ABSTAIN} if left > 0 else {1 - label, ABSTAIN})


def test_tightness_counts_what_predict_calls_by_another_class(digits, tmp_path, ledger):
    made, found = certified(ledger, smoothed(), digits), {}
    for times in (1.0, 2.0, 4.0):
        found[times] = tmp_path / f"{times}.jsonl"
        attack(smoothed(), digits, range(60), found[times], plan=PLAN, certificates=made, times_radius=times)
    table = tightness_table(found)
    assert table["times"].tolist() == [1.0, 2.0, 4.0]
    assert (table["images"] == len(made.certificates)).all()
    assert table["adversarial"].iloc[0] == 0.0
    for times, share in zip(table["times"], table["adversarial"], strict=True):
        names = sorted(made.certificates)
        beyond = times * np.array([made.certificates[name][1] for name in names]) - np.abs(margins(digits, names))
        # PREDICT needs .13 sigma beyond the plane, and five standard deviations of 1 000 votes are .2
        assert (beyond > 0.35 * SIGMA).mean() <= share <= (beyond > -0.1 * SIGMA).mean()
    assert table["adversarial"].iloc[-1] > 0.5
    k, m = round(table["adversarial"].iloc[-1] * len(made.certificates)), len(made.certificates)
    interval = binomtest(k, m).proportion_ci(0.95, method="exact")
    assert (table["low"].iloc[-1], table["high"].iloc[-1]) == pytest.approx((interval.low, interval.high))
    files = attacks.write_tightness(found, tmp_path / "out")
    assert [path.name for path in files] == ["tightness.md", "tightness.csv", "tightness.png", "tightness.svg"]
    pd.testing.assert_frame_equal(pd.read_csv(files[1]), table)
    assert all(path.stat().st_size > 100 for path in files)


def frame(tmp_path, name, predictions):
    """A ledger of an attack that left class 3 of these images."""
    rows = [
        {"index": i, "label": 3, "leaves": 3, "clean": 3, "prediction": p, "counts": [9], "n": 9, "alpha": 0.01,
         "eps": 1.0, "l2": 1.0, "linf": 0.5, "seconds": 0.0} for i, p in enumerate(predictions)
    ]  # fmt: skip
    header = {"format": "art-rs-ledger/1", "kind": "attack", "seed": 0}
    path = tmp_path / name
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    return path


def test_what_is_found_nearer_counts_farther_out_and_an_abstention_counts_nowhere(tmp_path):
    near, far = frame(tmp_path, "near", [3, 5, 3, -1, -1]), frame(tmp_path, "far", [5, 3, -1, -1, 3])
    table = tightness_table({2.0: far, 1.0: near})
    assert table["adversarial"].tolist() == [0.2, 0.4]
    assert table["abstain"].tolist() == [0.4, 0.4]
    with pytest.raises(ValueError, match="images in common, got none"):
        tightness_table({1.0: frame(tmp_path, "empty", [])})


def test_a_stopped_run_goes_on_and_ends_with_the_rows_of_a_whole_one(digits, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    attack(smoothed(), digits, range(50), whole, plan=PLAN, eps=0.3)
    attack(smoothed(), digits, [3, 40, 7], parts, plan=PLAN, eps=0.3)
    assert len(read_ledger(parts)[1]) == 3
    attack(smoothed(), digits, range(50), parts, plan=PLAN, eps=0.3)
    made = [
        sorted(({**row, "seconds": 0} for row in read_ledger(path)[1]), key=lambda row: row["index"])
        for path in (whole, parts)
    ]
    assert [row["index"] for row in made[0]] == list(range(50))
    for one, other in zip(*made, strict=True):
        # the last bit of a sum may depend on who came along
        assert one.pop("l2") == pytest.approx(other.pop("l2"), rel=1e-5)
        assert one.pop("linf") == pytest.approx(other.pop("linf"), rel=1e-4)
        assert one == other
    with pytest.raises(LedgerMismatch, match=r"`rule\.eps` is 0.3 there, 0.4 here"):
        attack(smoothed(), digits, range(50), parts, plan=PLAN, eps=0.4)


def test_ddn_counts_within_eps_alone(digits, tmp_path):
    plan = Plan(attack="smoothed-ddn", max_iter=8, num_samples=4, objective="smoothadv")
    attack(smoothed(), digits, range(40), tmp_path / "ddn.jsonl", plan=plan, eps=0.4)
    log = read_log(tmp_path / "ddn.jsonl")
    assert (log["l2"] <= 0.4 * (1 + 1e-4)).all()
    margin = np.abs(margins(digits, range(40)))
    moved = (log["l2"] > 0).to_numpy()
    right = (log["clean"] == log["label"]).to_numpy()  # of the few that are zeros and ones
    assert (log["leaves"] == log["label"]).all()
    assert not moved[right & (margin > 0.5)].any()
    assert right.any()


def test_judged_reads_what_was_written(digits, tmp_path):
    attack(smoothed(), digits, range(12), tmp_path / "a.jsonl", plan=PLAN, eps=0.2)
    log, evaluation = read_log(tmp_path / "a.jsonl"), judged(tmp_path / "a.jsonl")
    assert evaluation.attacked.tolist() == log["prediction"].tolist()
    assert evaluation.right.value == (log["prediction"] == log["label"]).mean()
    assert (evaluation.n, evaluation.alpha, len(evaluation.counts)) == (1_000, 0.001, 12)


class TestRefusals:
    def test_of_certificates_of_another_run(self, digits, tmp_path, ledger):
        other = RandomizedSmoothingPyTorch(Bright(), 0.5, input_shape=(1, 8, 8), nb_classes=10, device_type="cpu")
        with pytest.raises(ValueError, match="certificates of this run's `noise`"):
            certified(ledger, other, digits)
        with pytest.raises(ValueError, match="certificates of this run's `data`"):
            certified(ledger, smoothed(), datasets.load("digits", "train"))
        runs.predict(smoothed(), digits, range(2), tmp_path / "p.jsonl", n=50)
        with pytest.raises(ValueError, match="must be a ledger of certificates, got one of kind 'predict'"):
            certified(tmp_path / "p.jsonl", smoothed(), digits)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "`eps` must be given, or certificates and `times_radius`"),
            ({"eps": 0.1, "times_radius": 2.0}, "`eps` must be given, or certificates"),
            ({"eps": -1.0}, "`eps` must be a finite number of at least 0, got -1.0"),
            ({"eps": 0.1, "n": 5}, "`n` must be at least"),
            ({"eps": 0.1, "plan": Plan(attack="magic")}, "`attack` must be one of 'smoothed-pgd', 'smoothed-ddn'"),
            ({"eps": 0.1, "plan": Plan(attack="smoothed-ddn", norm="inf")}, "`norm` must be 2 for smoothed-ddn"),
            ({"eps": 0.1, "plan": Plan(max_iter=0)}, "`max_iter` must be at least 1"),
        ],
    )
    def test_of_unfit_options_before_there_is_a_ledger(self, digits, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            attack(smoothed(), digits, range(2), tmp_path / "a.jsonl", **{"plan": PLAN, **options})
        assert not (tmp_path / "a.jsonl").exists()

    def test_of_images_without_a_certificate(self, digits, tmp_path, ledger):
        made = certified(ledger, smoothed(), digits)
        with pytest.raises(ValueError, match="one of the images must be certified, got none among 2"):
            attack(smoothed(), digits, [298, 299], tmp_path / "a.jsonl", plan=PLAN, certificates=made, times_radius=1.0)
