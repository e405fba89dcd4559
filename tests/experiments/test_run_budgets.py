"""Runs whose votes decide how many to draw: header, rows, going on after a stop, and what is refused."""

import os
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from torch import nn

from art_rs_plugin import Fixed, Looks, Pilot, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import datasets, runs
from art_rs_plugin.experiments.curve import curve_table, plot
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger, rebound
from art_rs_plugin.experiments.logs import read_log

SIGMA = 0.25
BUDGETS = {
    "fixed": Fixed(n0=20, n=300, bound="runner-up"),
    "looks": Looks(n0=20, radii=(0.1, 0.3), n_max=1_500),
    "pilot": Pilot(n0=20, n_pilot=100, n_max=1_000, cost=1e-5),
}
INDICES = range(0, 449, 9)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "test")


@pytest.fixture(scope="module")
def network():
    """Class templates: right about most digits, and as unsure of some as a network that was trained."""
    x, y = datasets.load("digits", "train").arrays()
    means = np.stack([x[y == label].mean(axis=0).ravel() for label in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(means))
        layer.bias.copy_(torch.from_numpy(-0.5 * (means**2).sum(axis=1)))
    return nn.Sequential(nn.Flatten(), layer)


def smoothed(network, **options):
    options = {"n0": 20, "n": 1_000, "seed": 7, "device_type": "cpu", **options}
    return RandomizedSmoothingPyTorch(network, SIGMA, **options)


def certify(network, digits, path, indices=INDICES, *, options=None, **run):
    runs.certify(smoothed(network, **(options or {})), digits, indices, path, **run)
    return read_ledger(path)


def untimed(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_without_a_budget_header_and_rows_are_what_they_were(network, digits, tmp_path):
    header, rows = certify(network, digits, tmp_path / "run.jsonl", range(3))
    assert header["rule"] == {"name": "fixed", "n0": 20, "n": 1_000, "alpha": 0.001, "bound": "clopper-pearson"}
    assert header["precision"] == smoothed(network, input_shape=(1, 8, 8)).arithmetic
    known = ["index", "label", "prediction", "radius", "counts", "selected", "p_lower", "p_upper", "n0", "n"]
    assert all(list(row) == [*known, "alpha", "seconds"] for row in rows)
    # the same rule by its own name goes on where that one stopped
    certify(network, digits, tmp_path / "run.jsonl", range(4), budget=Fixed(n0=20, n=1_000))


@pytest.mark.parametrize("known_labels", [False, True])
@pytest.mark.parametrize("name", BUDGETS)
def test_header_and_rows_are_the_budget_and_the_estimators_certificates(network, digits, tmp_path, name, known_labels):
    budget = BUDGETS[name]
    header, rows = certify(network, digits, tmp_path / "run.jsonl", budget=budget, known_labels=known_labels)
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(budget).items()}
    labels = {"known_labels": True} if known_labels else {}
    assert header["rule"] == {"name": name, **fields, "alpha": 0.001, **labels}
    x, y = digits.arrays(INDICES)
    given = {"y": y} if known_labels else {}
    certificates = smoothed(network).certificates(x, indices=list(INDICES), budget=budget, **given)
    assert [rebound(header, row) for row in rows] == certificates
    assert {row["n0"] for row in rows} == {0 if known_labels else 20}
    if known_labels:
        assert [row["selected"] for row in rows] == y.tolist()
        assert any(row["prediction"] == -1 for row in rows)
    if name != "fixed":
        assert [row["votes"] for row in rows] == [certificate.votes for certificate in certificates]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_run_that_stops_at_any_row_goes_on_to_the_same_certificates(network, digits, tmp_path, name):
    """Stopped after a row, by an interrupt within a burst, and by a line that was torn."""
    whole = certify(network, digits, tmp_path / "whole.jsonl", budget=BUDGETS[name])[1]
    path = tmp_path / "run.jsonl"

    def stop(after):
        def on_row(row, done, total):
            if done >= after:
                raise KeyboardInterrupt

        return on_row

    for after in (1, 7, 33, 36):
        with pytest.raises(KeyboardInterrupt):
            certify(network, digits, path, budget=BUDGETS[name], on_row=stop(after))
        assert len(read_ledger(path)[1]) == after
        os.truncate(path, path.stat().st_size - 5)
    _, rows = certify(network, digits, path, budget=BUDGETS[name], options={"n": 999} if name != "fixed" else {})
    assert untimed(rows) == untimed(whole)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"budget": Looks(n0=20, radii=(0.1, 0.2), n_max=1_500)}, r"rule\.radii` is \[0.1, 0.3\] there, \[0.1, 0.2\]"),
        ({"budget": Looks(n0=20, radii=(0.1, 0.3), n_max=1_600)}, r"rule\.n_max"),
        ({"budget": Looks(n0=20, radii=(0.1, 0.3), n_max=1_500, bound="runner-up")}, r"rule\.bound"),
        ({"budget": BUDGETS["pilot"]}, r"rule\.name` is \"looks\" there, \"pilot\" here"),
        ({"budget": None}, r"rule\.name` is \"looks\" there, \"fixed\" here"),
        ({"known_labels": True}, r"rule\.known_labels` is null there, true here"),
        ({"options": {"alpha": 0.01}}, r"rule\.alpha"),
        ({"options": {"precision": "bf16"}}, 'precision` is "fp32" there, "bf16'),
    ],
)
def test_another_budget_radius_or_precision_does_not_go_on(network, digits, tmp_path, change, field):
    path = tmp_path / "run.jsonl"
    certify(network, digits, path, range(2), budget=BUDGETS["looks"])
    before = path.read_bytes()
    with pytest.raises(LedgerMismatch, match=f"`{field}"):
        certify(network, digits, path, range(3), **({"budget": BUDGETS["looks"]} | change))
    assert path.read_bytes() == before


class Nameless:
    name = "nameless"

    def steps(self, task):
        return BUDGETS["fixed"].steps(task)


@dataclass(frozen=True)
class Mine:
    """A user's own: as many votes as it is told to, and a share that JSON may not hold."""

    n: object = 50

    def steps(self, task):
        selected, n0 = yield from task.select(10)
        counts = yield "estimation", 50
        return task.certify(counts, selected, n0=n0, bound="clopper-pearson")


@dataclass(frozen=True)
class Named(Mine):
    name: ClassVar[str] = "mine"


@dataclass(frozen=True)
class Impostor(Mine):
    name: ClassVar[str] = "fixed"


@pytest.mark.parametrize(
    ("budget", "rule"),
    [
        *[(budget, "be a dataclass with a `name`") for budget in (Nameless(), Mine(), Fixed, "looks")],
        *[(Named(n=number), "have fields that JSON can hold") for number in (np.ones(2), float("nan"))],
        (Impostor(), "have a `name` that is not another budget's"),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],  # the same in every process
)
def test_a_budget_that_a_header_cannot_name_is_refused(network, digits, tmp_path, budget, rule):
    with pytest.raises(TypeError, match=f"`budget` must {rule}"):
        certify(network, digits, tmp_path / "run.jsonl", budget=budget)
    assert not (tmp_path / "run.jsonl").exists()


def test_a_budget_of_the_users_own_is_certified_and_named(network, digits, tmp_path):
    header, rows = certify(network, digits, tmp_path / "run.jsonl", range(3), budget=Named())
    assert header["rule"] == {"name": "mine", "n": 50, "alpha": 0.001}
    assert [row["n"] for row in rows] == [50] * 3
    with pytest.raises(ValueError, match="got 'mine'"):
        rebound(header, rows[0])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Looks(radii=(9.0,)), "`radii` must hold one that 100000 votes can certify"),
        (Fixed(n=10, bound="runner-up"), "`n` must be at least"),
        (Pilot(n_max=5), "`n` must be at least"),
    ],
)
@pytest.mark.parametrize("known_labels", [False, True])
def test_a_budget_that_can_never_certify_leaves_no_ledger(network, digits, tmp_path, budget, message, known_labels):
    with pytest.raises(ValueError, match=message):
        certify(network, digits, tmp_path / "run.jsonl", budget=budget, known_labels=known_labels)
    assert not (tmp_path / "run.jsonl").exists()


# read as logs and curves


def test_certified_accuracy_of_a_ledger_of_looks_is_right_at_every_radius(network, digits, tmp_path):
    """Against SciPy's bounds of the votes at each look, for radii that were asked for and others."""
    _, rows = certify(network, digits, tmp_path / "run.jsonl", budget=BUDGETS["looks"])
    certified = []
    for row in rows:
        bounds = [
            beta.ppf(share, look[row["selected"]], sum(look) - look[row["selected"]] + 1)
            for look, share in zip(row["looks"], row["spend"], strict=False)
        ]
        p = np.nanmax([0.0, *bounds])
        certified.append(SIGMA * norm.ppf(p) if p > 0.5 and row["selected"] == row["label"] else -1.0)
    radii = [0.0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.5]
    expected = [np.mean([radius >= r for radius in certified]) for r in radii]
    log = read_log(tmp_path / "run.jsonl")
    table = curve_table({"looks": log}, radii)
    np.testing.assert_array_equal(table[radii].to_numpy()[0], expected)
    assert len(set(expected)) >= 4
    assert table["average radius"][0] == pytest.approx(np.mean(np.maximum(certified, 0.0)), rel=1e-8)
    assert log["votes"].tolist() == [row["votes"] for row in rows]
    mean = round(sum(row["votes"] for row in rows) / len(rows))
    title = plot({"looks": log}).axes[0].get_title()
    assert title == f"Certified accuracy ({f'{mean:,}'.replace(',', chr(0x2009))} votes on average, α = 0.001)"


def test_looks_settle_the_radii_asked_for_as_many_votes_do(network, digits, tmp_path):
    """Few images differ from what n_max votes each certify at these radii, for a fraction of the votes."""
    _, few = certify(network, digits, tmp_path / "looks.jsonl", budget=Looks(n0=20, radii=(0.1, 0.3), n_max=20_000))
    _, many = certify(network, digits, tmp_path / "fixed.jsonl", budget=Fixed(n0=20, n=20_000))
    for r in (0.1, 0.3):
        differ = sum((one["radius"] >= r) != (other["radius"] >= r) for one, other in zip(few, many, strict=True))
        assert differ <= 2
    assert sum(row["votes"] for row in few) < 0.5 * 20_020 * len(few)


def test_a_ledger_of_pilots_is_read_with_all_its_votes(network, digits, tmp_path):
    _, rows = certify(network, digits, tmp_path / "run.jsonl", range(5), budget=BUDGETS["pilot"])
    log = read_log(tmp_path / "run.jsonl")
    assert log["votes"].tolist() == [20 + sum(row["pilot"]) + row["n"] for row in rows]
    assert log["radius"].tolist() == [row["radius"] for row in rows]
