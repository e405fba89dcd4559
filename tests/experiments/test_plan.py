"""What a run will cost, against what it is known to."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from art_rs_plugin.cli import app
from art_rs_plugin.core.budgets import Fixed, Looks, Pilot
from art_rs_plugin.core.looks import growing
from art_rs_plugin.experiments import datasets, plan

COMMAND = "plan --data imagenet --model resnet50 --sigma 0.5 --n 100000 --gpus 64 --rate 2500 --device cpu"


def said(*words):
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^\| (fixed|looks) \| (.*) \|$", result.output, flags=re.MULTILINE)
    return {name: [float(cell.rstrip("%")) for cell in cells.split(" | ")] for name, cells in rows}, result.output


def test_the_command_of_the_documentation_prints_both_rules():
    rows, output = said(*COMMAND.split())
    votes, device_hours = 50_000 * 100_100, 50_000 * 100_100 / 2_500 / 3_600
    each, total, passes, hours, together, in_use = rows["fixed"]
    assert (each, total) == (100_100, pytest.approx(votes, rel=5e-3))
    assert passes == pytest.approx(votes / 32, rel=5e-3)
    assert hours == pytest.approx(device_hours, rel=5e-3)
    assert together == pytest.approx(device_hours / 64, rel=1e-2)
    assert 99 < in_use <= 100
    assert rows["looks"][0] < each / 4
    assert "published logs of imagenet at sigma 0.5" in output


def test_images_are_chosen_as_by_certify():
    rows, _ = said(*COMMAND.split(), "--every", "100", "--max", "20")
    assert rows["fixed"][1] == pytest.approx(20 * 100_100, rel=5e-3)
    assert plan.images_of("cifar10", None, 20) == 500


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_sizes_are_those_of_the_data(name, request):
    root = None if name == "digits" else request.getfixturevalue("data_root")
    data = datasets.load(name, "test", root=root)
    assert plan.SIZES[name] == (data.input_shape, data.nb_classes, len(data))


def test_a_fixed_number_of_votes_is_what_it_is_and_sure_ones_stop_at_the_first_look():
    assert plan.simulated_votes(Fixed(n0=10, n=400), [0.5, 0.9], 0.25, 0.001).tolist() == [410] * 10
    # at p = 1 the radius 0 is certified as soon as ten votes are in, the first look's 100 then; at 1/2 hardly ever
    looks = Looks(radii=(0.0,), n_max=10_000, n0=10)
    assert set(plan.simulated_votes(looks, [1.0], 0.25, 0.001)) == {110}
    assert set(plan.simulated_votes(looks, [0.51], 0.25, 0.001, draws=40)) <= {
        10 + n for n in growing(100, 1.5, 10_000)
    }
    assert plan.simulated_votes(looks, [0.52], 0.25, 0.001).mean() > 5 * 110


def test_votes_of_looks_are_those_of_a_run_on_a_half_space():
    """On a linear classifier p_A is known, and the estimator draws what the plan says, up to chance."""
    import torch

    from art_rs_plugin import RandomizedSmoothingPyTorch

    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    budget = Looks(radii=(0.25,), n_max=20_000, n0=10)
    estimator = RandomizedSmoothingPyTorch(model, 0.5, seed=0, input_shape=(2,), nb_classes=2, device_type="cpu")
    margins = np.linspace(0.05, 0.6, 12)
    x = np.stack([np.repeat(margins, 8), np.zeros(96)], axis=1).astype(np.float32)
    drawn = [certificate.n0 + certificate.schedule[len(certificate.looks) - 1] for certificate in
             estimator.iter_certificates(x, budget=budget)]  # fmt: skip
    planned = plan.simulated_votes(budget, norm.cdf(margins / 0.5), 0.5, 0.001, draws=15)
    # means of 96 and 180 draws whose deviation is about their mean: five deviations of the difference
    assert np.mean(drawn) == pytest.approx(
        planned.mean(), rel=5 * (1 / 96 + 1 / 180) ** 0.5 * planned.std() / planned.mean()
    )


def test_time_together_is_that_of_the_longest_waiting_device():
    assert plan.seconds_together([2.0] * 6, 3) == 4.0
    assert plan.seconds_together([2.0] * 7, 3) == 6.0
    assert plan.seconds_together([9.0, 1.0, 1.0], 64) == 9.0


def test_a_ledger_says_what_looks_would_draw_of_such_images(tmp_path):
    rows = [
        {"index": k, "label": 0, "prediction": 0, "alpha": 0.001, "seconds": 0.1, "radius": 0.5, "counts": [990, 10],
         "selected": 0, "p_lower": 0.9, "p_upper": 0.1, "n0": 10, "n": 1000}
        for k in range(3)
    ]  # fmt: skip
    path = tmp_path / "some.jsonl"
    header = {"format": "art-rs-ledger/1", "kind": "certify", "seed": 0}
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    p, source = plan.probabilities_like("mnist", 0.5, path)
    assert p.tolist() == [0.99] * 3
    assert "3 images" in source
    rows, output = said(
        *["plan", "--data", "mnist", "--model", "mlp", "--sigma", "0.5", "--rate", "9e4", "--device", "cpu", "--like"],
        str(path),
    )
    assert rows["looks"][0] > 0
    assert str(path) in output


def test_a_rate_is_measured_where_none_is_given(monkeypatch):
    monkeypatch.setattr(plan, "_SECONDS", 0.05)
    rows, output = said(
        *[
            "plan",
            "--data",
            "cifar10",
            "--model",
            "small-cnn",
            "--sigma",
            "0.25",
            "--device",
            "cpu",
            "--no-compile",
            "--max",
            "9",
        ]
    )
    rate = float(re.search(r"^(\S+) votes a second of one device \(measured here on a CPU", output, re.MULTILINE)[1])
    assert rows["fixed"][3] == pytest.approx(9 * 100_100 / rate / 3600, rel=2e-2)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--data mnist", "`--like` must be given for mnist"),
        ("--data imagefolder", "must be one whose size is known beforehand"),
        ("--data imagenet --rate 0", "`rate` must be a finite number above 0"),
        ("--data imagenet --gpus 0", "`gpus` must be"),
    ],
)
def test_what_cannot_be_planned_is_said(words, problem):
    arguments = f"plan --model mlp --sigma 0.5 --device cpu --rate 9 {words}".split()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert problem in result.output


def test_other_budgets_can_be_planned_too():
    costs = plan.table(
        {"pilot": Pilot(n_max=20_000)}, images=100, p={"pilot": [0.9, 0.99]}, sigma=0.5, alpha=0.001, rate=1e4, rows=64,
        devices=4,
    )  # fmt: skip
    assert isinstance(costs, pd.DataFrame)
    assert 1_000 < costs["votes an image"][0] < 21_200
