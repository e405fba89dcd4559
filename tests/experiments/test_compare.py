"""Comparisons: each ledger is its certifier's own, the table is what the ledgers hold, and a stopped run goes on."""

import functools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.certifiers import get
from art_rs_plugin.core.radii import RADII
from art_rs_plugin.experiments import compare, datasets, models, recipes, side_by_side, training
from art_rs_plugin.experiments.checkpoints import load_checkpoint
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger

SHAPE = {"input_shape": (1, 8, 8), "nb_classes": 10}
ONE = '[[entry]]\ncertifier = "crown"\ncheckpoint = "a"'


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a small network on digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    recipe = recipes.Recipe(epochs=3, batch_size=64, lr=0.1)
    training.train(datasets.load("digits", "train"), "mlp", 0.25, out, recipe=recipe, seed=0)
    return out


def entry(trained, certifier, label="", **options):
    return compare.Entry(certifier=certifier, checkpoint=trained, label=label, options=options)


def comparison(*entries, **options):
    return compare.Comparison(
        **{"data": "digits", "entries": entries, "radii": (0.0, 0.1, 0.25), "images": 6, **options}
    )


@pytest.fixture
def usual(trained):
    votes = {"n": 500, "n0": 20}
    return comparison(
        entry(trained, "smoothing", **votes),
        entry(trained, "smoothing-li", **votes),
        entry(trained, "crown", "crown, l2"),
        entry(trained, "fast-lin", "fast-lin, inf", norm=math.inf),
        entry(trained, "attack-bound"),
        seed=5,
    )


def test_every_ledger_holds_what_its_certifier_says_of_the_same_images(usual, trained, tmp_path):
    ledgers = compare.run(usual, tmp_path)
    assert list(ledgers) == ["smoothing", "smoothing-li", "crown, l2", "fast-lin, inf", "attack-bound"]
    data, model = datasets.load("digits", "test"), load_checkpoint(trained)[0]
    indices = list(range(0, len(data), len(data) // 6))[:6]
    x, y = data.arrays(indices)
    rows = {label: read_ledger(path)[1] for label, path in ledgers.items()}
    assert all([row["index"] for row in of] == indices for of in rows.values())
    assert all([row["label"] for row in of] == y.tolist() for of in rows.values())
    smoothing = RandomizedSmoothingPyTorch(model, 0.25, n0=20, n=500, seed=5).certificates(x, indices=indices)
    li = [float(RADII["li"](c.p_lower, c.p_upper, sigma=0.25)) for c in smoothing]
    assert [row["radius"] for row in rows["smoothing"]] == [c.radius for c in smoothing]
    assert [row["radius"] for row in rows["smoothing-li"]] == li
    crown = get("crown").build(model, **SHAPE).certify(x, y)
    assert [row["radius"] for row in rows["crown, l2"]] == [c.radius for c in crown]
    found = get("attack-bound").build(model, **SHAPE, radii=[0.1, 0.25]).distances(x, y)
    assert [row["distance"] for row in rows["attack-bound"]] == [float(d) if np.isfinite(d) else None for d in found]


def test_the_same_votes_serve_every_radius_formula(usual, tmp_path, monkeypatch):
    calls = []
    certificates = RandomizedSmoothingPyTorch.certificates

    def counted(self, x, *args, **options):
        calls.append(len(x))
        return certificates(self, x, *args, **options)

    monkeypatch.setattr(RandomizedSmoothingPyTorch, "certificates", counted)
    compare.run(usual, tmp_path)
    assert sum(calls) == 6


def test_prior_bounds_on_the_same_votes_are_below_ours_at_every_example(trained, tmp_path):
    names = "smoothing", "smoothing-li", "smoothing-lecuyer"
    votes = {"n": 500, "n0": 20}
    ledgers = compare.run(comparison(*(entry(trained, name, **votes) for name in names), images=30), tmp_path)
    ours, li, lecuyer = (np.array([row["radius"] for row in read_ledger(ledgers[name])[1]]) for name in names)
    assert (ours >= li).all()
    assert (li >= lecuyer).all()
    assert (ours > li).sum() > 20  # they do differ


def test_weights_read_as_two_architectures_have_votes_of_their_own(tmp_path, monkeypatch):
    def network(activation, *, input_shape, nb_classes):
        layers = nn.Linear(64, 16), activation(), nn.Linear(16, nb_classes)
        return nn.Sequential(nn.Flatten(), *layers)

    for name, activation in {"of-relu": nn.ReLU, "of-tanh": nn.Tanh}.items():
        monkeypatch.setitem(models.MODELS, name, models.Architecture(functools.partial(network, activation)))
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(network(nn.ReLU, **SHAPE).state_dict(), weights)
    options = {"n": 200, "n0": 20, "sigma": 0.25}
    entries = [
        compare.Entry(certifier="smoothing", checkpoint=weights, model=name, label=name, options=options)
        for name in ("of-relu", "of-tanh")
    ]
    ledgers = compare.run(comparison(*entries), tmp_path / "out")
    counts = [[row["counts"] for row in read_ledger(ledgers[name])[1]] for name in ledgers]
    assert counts[0] != counts[1]


def test_weights_of_others_keep_the_standardisation_that_an_entry_names(tmp_path):
    torch.manual_seed(0)
    data = datasets.load("digits", "test")
    network = models.build("mlp", **SHAPE, mean=(0.5,), std=(2.0,))
    weights = tmp_path / "weights.pth"
    torch.save(network[1].state_dict(), weights)
    named = compare.Entry(certifier="crown", checkpoint=weights, model="mlp", mean=(0.5,), std=(2.0,), label="named")
    usual = compare.Entry(certifier="crown", checkpoint=weights, model="mlp", label="usual")
    ledgers = compare.run(comparison(named, usual, images=30), tmp_path / "out")
    rows = {label: read_ledger(path)[1] for label, path in ledgers.items()}
    made = get("crown").build(network, **SHAPE).certify(*data.arrays([row["index"] for row in rows["named"]]))
    assert any(certificate.radius > 0 for certificate in made)
    assert [row["radius"] for row in rows["named"]] == [certificate.radius for certificate in made]
    assert [row["radius"] for row in rows["usual"]] != [certificate.radius for certificate in made]


def test_a_checkpoint_keeps_its_own_standardisation(trained, tmp_path):
    named = compare.Entry(certifier="crown", checkpoint=trained, std=(2.0,))
    with pytest.raises(ValueError, match=r"crown: `std` must not be given for a checkpoint that says it, got \(2.0,\)"):
        compare.run(comparison(named), tmp_path)


def test_a_curve_of_attacks_ends_where_they_end_and_every_other_at_0(usual, tmp_path):
    ledgers = compare.run(usual, tmp_path)
    frames = {label: side_by_side.read(path, usual.norm, 64) for label, path in ledgers.items()}
    lines = dict(zip(frames, side_by_side.figure(frames, usual.norm).axes[0].lines, strict=True))
    for label, line in lines.items():
        x, y = line.get_data()
        if label == "attack-bound":
            # one that was fooled at a distance of .25 may be certified up to there
            distances = [row["distance"] for row in read_ledger(ledgers[label])[1]]
            held = [distance is None or distance >= 0.25 for distance in distances]
            assert (x[-1], y[-1]) == (0.25, pytest.approx(np.mean(held)))
            assert y[-1] > 0
        else:
            assert (x[-1], y[-1]) == (frames[label]["radius"].max(), 0)


def test_the_legend_tells_votes_and_alpha_of_what_has_them(usual, tmp_path):
    ledgers = compare.run(usual, tmp_path)
    frames = {label: side_by_side.read(path, usual.norm, 64) for label, path in ledgers.items()}
    (legend,) = side_by_side.figure(frames, usual.norm).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said[0] == "smoothing (n = 500, α = 0.001)"
    assert said[2] == "crown, l2"


def test_the_table_says_what_each_is_and_what_the_ledgers_hold(usual, tmp_path):
    ledgers = compare.run(usual, tmp_path)
    written = side_by_side.write(ledgers, usual.radii, usual.norm, 64, tmp_path)
    assert [path.name for path in written] == [
        "compare.md", "compare.csv", "compare.png", "compare.svg", "crossings.md",
    ]  # fmt: skip
    table = pd.read_csv(tmp_path / "compare.csv", index_col="certifier")
    assert table["certifies"].to_dict() == {
        "smoothing": "g", "smoothing-li": "g", "crown, l2": "f", "fast-lin, inf": "f", "attack-bound": "f",
    }  # fmt: skip
    assert table["guarantee"].tolist() == ["probability 0.999"] * 2 + ["certain"] * 2 + ["upper bound"]
    assert table["norm"].tolist() == ["l2", "l2", "l2", "l_inf as l2", "l2"]
    for label, path in ledgers.items():
        rows = read_ledger(path)[1]
        for radius in usual.radii:
            if label == "attack-bound":
                held = [row["distance"] is None or (row["distance"] > 0 and row["distance"] >= radius) for row in rows]
            else:
                held = [row["prediction"] == row["label"] and row["radius"] >= radius for row in rows]
            assert table.loc[label, str(radius)] == pytest.approx(np.mean(held))
    text = (tmp_path / "compare.md").read_text()
    assert "| crown, l2" in text
    assert "NaN" not in text


def test_a_run_that_was_stopped_goes_on_and_ends_as_an_unbroken_one(usual, tmp_path):
    whole = compare.run(usual, tmp_path / "whole")
    stops = iter(range(100))

    def stop(label, done, total):
        if next(stops) in (0, 3):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare.run(usual, tmp_path / "parts", on_row=stop)
    parts = compare.run(usual, tmp_path / "parts")
    for label, path in whole.items():
        one, other = (read_ledger(which) for which in (path, parts[label]))
        assert one[0] == other[0]
        for row, again in zip(one[1], other[1], strict=True):
            assert {**row, "seconds": 0} == {**again, "seconds": 0}


def test_a_certifier_that_trains_is_trained_and_says_so(trained, tmp_path):
    options = {"n": 200, "n0": 20, "alpha": 0.01}
    by_art = compare.Entry(certifier="art-smoothing", checkpoint=trained, fit={"epochs": 1}, options=options)
    ledgers = compare.run(comparison(by_art, images=3), tmp_path)
    header, rows = read_ledger(ledgers["art-smoothing"])
    assert header["certifier"]["fit"] == {"epochs": 1}
    frames = {"art-smoothing": side_by_side.read(ledgers["art-smoothing"], 2, 64)}
    assert side_by_side.table(frames, (0.0,), 2)["guarantee"].tolist() == ["probability 0.99"]
    model = load_checkpoint(trained)[0]
    x, y = datasets.load("digits", "train").arrays()
    again = get("art-smoothing").build(model, **SHAPE, sigma=0.25, seed=0, **options).fit(x, y, epochs=1)
    indices = [row["index"] for row in rows]
    made = again.certify(datasets.load("digits", "test").arrays(indices)[0], indices=indices)
    assert [(row["prediction"], row["radius"]) for row in rows] == [(c.prediction, c.radius) for c in made]
    with pytest.raises(ValueError, match="`fit` must not be given for `crown`, which has no training of its own"):
        compare.run(
            comparison(compare.Entry(certifier="crown", checkpoint=trained, fit={"epochs": 1})), tmp_path / "other"
        )


def test_patches_have_a_table_of_their_own_and_their_network_twice_the_channels(trained, tmp_path):
    path = tmp_path / "patches.toml"
    path.write_text(
        'data = "digits"\nimages = 12\nradii = [0.0]\n[[entry]]\ncertifier = "art-derandomized"\nmodel = "mlp"\n'
        "fit = { epochs = 12, lr = 0.05, batch_size = 64 }\noptions = { ablation_size = 3, threshold = 0.3 }\n"
    )
    read = compare.load(path)
    ledgers = compare.run(compare.Comparison(
        data="digits", images=12, radii=(0.0,), entries=(*read.entries, entry(trained, "crown"))
    ), tmp_path / "out")  # fmt: skip
    of_all, rows = read_ledger(ledgers["art-derandomized"])
    assert of_all["certifier"]["norm"] == "patch"
    right = [row["prediction"] == row["label"] for row in rows]
    side = [row["radius"] if ok else -1 for row, ok in zip(rows, right, strict=True)]
    assert max(side) >= 1  # else nothing is shown
    written = side_by_side.write(ledgers, read.radii, 2, 64, tmp_path / "out")
    assert {path.name for path in written} >= {"patches.md", "compare.md"}
    table, others = ((tmp_path / "out" / name).read_text() for name in ("patches.md", "compare.md"))
    assert ("art-derandomized" in table, "crown" in table) == (True, False)
    assert ("art-derandomized" in others, "crown" in others) == (False, True)
    header, _, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    cells = dict(zip(header, row, strict=True))
    assert float(cells["r = 1"]) == pytest.approx(np.mean([s >= 1 for s in side]), abs=5e-4)
    # the same network, trained the same way, if the run is made again
    again = compare.run(read, tmp_path / "again")
    assert [row["radius"] for row in read_ledger(again["art-derandomized"])[1]] == [row["radius"] for row in rows]


def test_certifiers_are_crossed_with_checkpoints_and_sigmas(trained, tmp_path):
    def told(names, folders, sigmas=()):
        made = compare.crossed(names.split(), folders, sigmas)
        assert all(entry.checkpoint in folders for entry in made)
        return {entry.label: entry.options.get("sigma") for entry in made}

    assert told("smoothing crown", [trained]) == {"smoothing": None, "crown": None}
    assert told("smoothing crown", [trained], [0.1, 0.5]) == {
        "smoothing, 0.1": 0.1,
        "smoothing, 0.5": 0.5,
        "crown": None,
    }
    two = told("smoothing crown", [trained, trained.with_name("other")], [0.5])
    assert two == {"smoothing, digits": 0.5, "smoothing, other": 0.5, "crown, digits": None, "crown, other": None}
    # what attacks leave, of what the others certify: f, g of the checkpoint's sigma, or of those that are given
    assert told("crown attack-bound", [trained])["attack-bound"] is None
    assert told("smoothing attack-bound", [trained])["attack-bound"] == 0.25
    both = told("smoothing crown attack-bound", [trained], [0.1, 0.5])
    assert [label for label in both if "attack" in label] == [
        "attack-bound, f",
        "attack-bound, 0.1",
        "attack-bound, 0.5",
    ]
    made = compare.crossed(["smoothing"], [trained], [0.1, 0.5])
    ledgers = compare.run(comparison(*(replace(one, options={**one.options, "n": 100}) for one in made)), tmp_path)
    assert [read_ledger(path)[0]["noise"]["sigma"] for path in ledgers.values()] == [0.1, 0.5]


def test_another_networks_ledger_is_not_continued(usual, trained, tmp_path):
    compare.run(comparison(entry(trained, "crown")), tmp_path)
    with pytest.raises(LedgerMismatch, match="tolerance"):
        compare.run(comparison(entry(trained, "crown", tolerance=0.5)), tmp_path)


class TestNorms:
    @pytest.mark.parametrize("dimension", [1, 64, 784, 3072])
    @pytest.mark.parametrize("radius", [0.0, 1e-3, 0.1, 1.0, 7.3])
    def test_a_ball_lies_in_the_ball_that_it_was_made_of(self, radius, dimension):
        corner = side_by_side.in_norm(radius, 2, math.inf, dimension)
        assert dimension * Fraction(corner) ** 2 <= Fraction(radius) ** 2
        assert corner == pytest.approx(radius / math.sqrt(dimension))
        assert side_by_side.in_norm(radius, math.inf, 2, dimension) == radius
        assert side_by_side.in_norm(radius, 2, 2, dimension) == radius

    def test_an_upper_bound_stays_one(self):
        delta = np.random.default_rng(0).normal(size=50)
        l2, linf = np.linalg.norm(delta), np.abs(delta).max()
        assert side_by_side.upper_in_norm(l2, 2, math.inf, 50) >= linf
        assert side_by_side.upper_in_norm(linf, math.inf, 2, 50) >= l2
        assert side_by_side.upper_in_norm(0.5, math.inf, 2, 4) == pytest.approx(1.0)


class TestConfiguration:
    def test_is_read_with_checkpoints_beside_it(self, trained, tmp_path):
        path = trained.parent / "compare.toml"
        path.write_text(
            'data = "digits"\nimages = 3\nradii = [0.0, 0.5]\nnorm = inf\nseed = 2\n'
            '[[entry]]\ncertifier = "crown"\ncheckpoint = "digits"\noptions = { norm = inf, tolerance = 0.01 }\n'
            '[[entry]]\ncertifier = "smoothing"\ncheckpoint = "digits"\nlabel = "ours"\noptions = { n = 300 }\n'
        )
        read = compare.load(path)
        assert read.entries[0] == compare.Entry(
            certifier="crown", checkpoint=trained, options={"norm": math.inf, "tolerance": 0.01}
        )
        assert (read.entries[1].label, read.images, read.radii, read.seed) == ("ours", 3, (0.0, 0.5), 2)
        ledgers = compare.run(read, tmp_path)
        assert read_ledger(ledgers["ours"])[0]["rule"]["n"] == 300
        frames = {label: side_by_side.read(ledger, math.inf, 64) for label, ledger in ledgers.items()}
        assert frames["ours"]["radius"].max() < 0.25  # of l2 balls, divided by 8
        assert side_by_side.table(frames, read.radii, math.inf)["norm"].tolist() == ["l_inf", "l2 as l_inf"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("data = ", "Invalid value"),
            ("radii = [0.1]", "`entry` must name at least one certifier"),
            ('[[entry]]\ncertifier = "corwn"\ncheckpoint = "a"', "`certifier` must be one of .*, crown, .*got 'corwn'"),
            ('[[entry]]\ncertifier = "crown"', "`checkpoint` must be given, or `model` and `fit`"),
            ('[[entry]]\ncertifier = "crown"\nmodel = "mlp"', "none for crown"),
            (f'{ONE}\nlabel = "../b"', "`label` must be of letters"),
            (f"{ONE}\n{ONE}", "each `label` must be another"),
            (f"radii = [-1.0]\n{ONE}", "`radii` must be"),
            (f"images = 0\n{ONE}", "`images` must be at least 1, got 0"),
            (f"frobnicate = 1\n{ONE}", "frobnicate"),
        ],
    )  # fmt: skip
    def test_mistakes_are_named_with_the_file(self, tmp_path, text, said):
        path = tmp_path / "mine.toml"
        path.write_text(text if text == "data = " else 'data = "digits"\n' + text)
        with pytest.raises((ValueError, TypeError), match=f"mine.toml.*{said}"):
            compare.load(path)

    def test_an_entry_that_cannot_be_built_is_named_and_nothing_is_lost(self, trained, tmp_path):
        with pytest.raises(TypeError, match=r"crown: .*frobnicate"):
            compare.run(comparison(entry(trained, "fast-lin"), entry(trained, "crown", frobnicate=1)), tmp_path)
        assert len(read_ledger(tmp_path / "fast-lin.jsonl")[1]) == 6
        with pytest.raises(FileNotFoundError, match=r"crown: checkpoint `.*nowhere` does not exist"):
            compare.run(comparison(entry(tmp_path / "nowhere", "crown")), tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_ledger_of_something_else_is_refused(self, tmp_path):
        path = tmp_path / "other.jsonl"
        path.write_text(json.dumps({"format": "art-rs-ledger/1", "kind": "predict", "seed": 1}) + "\n")
        with pytest.raises(ValueError, match="must be a ledger that `art-rs compare` wrote, got one of kind 'predict'"):
            side_by_side.read(path, 2, 4)
