"""Ledgers audited: what no one may alter unseen, what only casting votes again finds, and what cannot be known."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import comb

import pytest
import torch
from digit_networks import train
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from art_rs_plugin import Fixed, Looks, Pilot, RandomizedSmoothingPyTorch
from art_rs_plugin.cli import app
from art_rs_plugin.experiments import checkpoints, datasets, models, runs
from art_rs_plugin.experiments.audit import audit
from art_rs_plugin.experiments.ledger import read_ledger, rebound, row_of

SIGMA, SEED, EVERY, ROWS = 0.4, 7, 40, 12  # rows 0, 40, ..., 440 of 449
RULES = {
    "fixed": {"budget": Fixed(n0=20, n=300)},
    "runner-up": {"budget": Fixed(n0=20, n=300, bound="runner-up")},
    "randomized": {"budget": Fixed(n0=20, n=300, bound="randomized")},
    "known": {"budget": Fixed(n0=20, n=300), "known_labels": True},
    "looks": {"budget": Looks(n0=20, radii=(0.1, 0.3), n_max=600)},
    "pilot": {"budget": Pilot(n0=20, n_pilot=100, n_max=600, cost=1e-5)},
    "predict": {"n": 100},
}


def estimator_of(model, **options):
    return RandomizedSmoothingPyTorch(
        model, SIGMA, input_shape=(1, 8, 8), nb_classes=10, seed=SEED, device_type="cpu", **options
    )


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """An audit reads the images, which takes longer than all else that it does to a dozen rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", cache(datasets.load))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network, another one, and a ledger by each rule."""
    folder = tmp_path_factory.mktemp("audit")
    digits = datasets.load("digits", "test")
    architecture = {"name": "mlp", "input_shape": (1, 8, 8), "nb_classes": 10, "mean": (0.3,), "std": (0.37,)}
    about = {"architecture": architecture, "sigma": SIGMA, "data": {"name": "digits", "split": "train"}}
    torch.manual_seed(0)
    for name, epochs in (("network", 3), ("other", 1)):
        checkpoints.save_checkpoint(folder / name, train(models.build(**architecture), epochs), about)
    estimator = estimator_of(checkpoints.load_checkpoint(folder / "network")[0])
    for name, options in RULES.items():
        run = runs.predict if name == "predict" else runs.certify
        run(estimator, digits, range(0, 449, EVERY), folder / f"{name}.jsonl", **options)
    return folder


def read(folder, name):
    header, rows = read_ledger(folder / f"{name}.jsonl")
    assert len(rows) == ROWS
    return header, rows


def audited(folder, header, entries, **options):
    path = folder / "altered.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *entries]))
    return audit(path, **options)


def found(folder, header, rows, **options):
    """Whether an audit finds fault, if only that it is no ledger."""
    try:
        return any(finding.holds is False for finding in audited(folder, header, rows, **options))
    except ValueError:
        return True


def at_fault(findings):
    return [finding.what for finding in findings if finding.holds is False]


# what is as it was


@pytest.mark.parametrize("name", RULES)
def test_all_of_a_ledger_that_no_one_touched_is_verified(folder, name):
    findings = audit(folder / f"{name}.jsonl", checkpoint=folder / "network", replay=None)
    assert {finding.what for finding in findings if finding.holds} == {
        "header", "rows", "images", "labels", "weights", "modules", "votes",
    }  # fmt: skip
    assert [finding.what for finding in findings if not finding.holds] == ["the run"]
    assert len({row["votes"] for row in read(folder, "looks")[1]}) > 1, "looks stop where they like"


def test_a_ledger_of_the_stream_cipher_is_verified_and_its_source_is_part_of_it(folder):
    estimator = estimator_of(checkpoints.load_checkpoint(folder / "network")[0], randomness="chacha20")
    digits, budget = datasets.load("digits", "test"), RULES["fixed"]["budget"]
    runs.certify(estimator, digits, range(0, 449, EVERY), folder / "cipher.jsonl", budget=budget)
    findings = audit(folder / "cipher.jsonl", checkpoint=folder / "network", replay=None)
    assert at_fault(findings) == []
    assert {"header", "rows", "votes", "weights"} <= {finding.what for finding in findings if finding.holds}
    header, rows = read(folder, "cipher")
    assert header["noise"]["randomness"] == "chacha20"
    torchs = {**header, "noise": {**header["noise"], "randomness": "torch"}}
    assert found(folder, torchs, rows, checkpoint=folder / "network", replay=None)
    assert found(folder, header, read(folder, "fixed")[1], checkpoint=folder / "network", replay=None)


class Whole(datasets.Images):
    """Images whose every number is a whole 255th."""

    def __init__(self, images):
        self.images, self.shape, self.nb_classes = images, images.shape, images.nb_classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return torch.round(image * 255) / 255, label


def test_a_ledger_of_sound_mode_is_verified_and_its_dimension_is_part_of_it(folder, monkeypatch):
    digits = datasets.load("digits", "test")
    whole = replace(digits, images=Whole(digits.images))
    monkeypatch.setattr(datasets, "load", lambda *_, **__: whole)
    estimator = estimator_of(checkpoints.load_checkpoint(folder / "network")[0], sound=True)
    runs.certify(estimator, whole, range(0, 449, EVERY), folder / "sound.jsonl", budget=RULES["fixed"]["budget"])
    findings = audit(folder / "sound.jsonl", checkpoint=folder / "network", replay=None)
    assert at_fault(findings) == []
    assert {"header", "rows", "votes", "weights"} <= {finding.what for finding in findings if finding.holds}
    header, rows = read(folder, "sound")
    assert header["noise"] == {"name": "rounded-gaussian", "sigma": SIGMA, "dimension": 64}
    for noise in ({"dimension": 32}, {"name": "gaussian"}, {"sigma": SIGMA / 2}):
        assert found(folder, {**header, "noise": {**header["noise"], **noise}}, rows, checkpoint=folder / "network")


def test_what_is_not_at_hand_is_said_to_be_not_verified(folder):
    header, rows = read(folder, "fixed")
    without = audited(folder, {**header, "data": {**header["data"], "name": "mine"}}, rows)
    assert [finding.what for finding in without if finding.holds is None] == ["labels", "network", "the run"]
    assert "must be one of" in next(finding.said for finding in without if finding.what == "labels")
    weights = audited(
        folder, {**header, "data": {**header["data"], "name": "mine"}}, rows, checkpoint=folder / "network"
    )
    assert [finding.what for finding in weights if finding.holds is True] == ["header", "rows", "images", "weights"]
    mine = audited(folder, {**header, "rule": {"name": "mine", "alpha": 0.001}}, rows)
    assert next(finding for finding in mine if finding.what == "rows").holds is None


# what does not agree with itself


def leaves(value, path=()):
    """Every place in a JSON value that holds no other."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, (*path, place))
    else:
        yield path


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def at(value, path):
    for step in path:
        value = value[step]
    return value


def others(old):
    """JSON values that are not this one, near it and of any kind."""
    near = st.none()
    if isinstance(old, int):
        near = st.integers(-3, 1_000) | st.sampled_from([old + 1, old - 1, float(old)])
    if isinstance(old, float):
        near = st.floats(0.0, 2.0) | st.sampled_from([old * 1.001, old * 0.999, old + 1e-15, -old])
    junk = st.sampled_from([None, True, False, 0, 1, -1, 0.5, "", "1", [], [1], {}, 2**70, 1e300])
    return (near | junk).filter(lambda new: json.dumps(new) != json.dumps(old))


QUIET = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", RULES)
@QUIET
@given(data=st.data())
def test_a_value_of_a_row_that_does_not_go_with_the_others_is_found(folder, name, data):
    header, rows = read(folder, name)
    row = data.draw(st.integers(0, ROWS - 1))
    path = data.draw(st.sampled_from([path for path in leaves(rows[row]) if path != ("seconds",)]))
    new = data.draw(others(at(rows[row], path)))
    if path == ("selected",) and type(new) is int and new in range(10):
        # a class with as many votes would have been certified alike
        counts = rows[row]["counts"]
        assume(counts[new] != counts[rows[row]["selected"]])
    assert found(folder, header, [*rows[:row], changed(rows[row], path, new), *rows[row + 1 :]])


# what by itself nobody can hold against a header: the network, the run, and what a rule was told but did not do
SILENT = {"model", "versions", "device", "precision", "format"}
UNUSED = {("rule", "cost"), ("rule", "growth"), ("rule", "radii", 0), ("rule", "radii", 1), ("rule", "n_max")}


@pytest.mark.parametrize("name", RULES)
@QUIET
@given(data=st.data())
def test_a_value_of_the_header_that_does_not_go_with_the_rows_is_found(folder, name, data):
    header, rows = read(folder, name)
    silent = SILENT if name == "randomized" else SILENT | {"seed"}
    if name == "predict":
        silent = silent | {"noise"}  # no radius follows from it
    unused = UNUSED | {("rule", "n0")} if name == "known" else UNUSED
    paths = [path for path in leaves(header) if path[0] not in silent and path not in unused]
    path = data.draw(st.sampled_from(paths))
    new = data.draw(others(at(header, path)))
    # somebody's own images or rule, of which an audit says that it could not verify them
    assume(path not in (("data", "name"), ("rule", "name")) or not isinstance(new, str))
    # a sigma that is off by an ulp may give the same radii
    assume(path != ("noise", "sigma") or not isinstance(new, float) or abs(new - SIGMA) > 1e-9)
    assert found(folder, changed(header, path, new), rows)


@pytest.mark.parametrize("name", RULES)
def test_a_key_that_is_missing_or_added_is_found(folder, name):
    header, rows = read(folder, name)
    for key in rows[0]:
        assert found(folder, header, [{k: v for k, v in rows[0].items() if k != key}, *rows[1:]]), key
    assert found(folder, header, [{**rows[0], "more": 1}, *rows[1:]])
    for key in set(header) - {"device"}:
        assert found(folder, {k: v for k, v in header.items() if k != key}, rows), key
    for key in header["rule"]:
        rule = {k: v for k, v in header["rule"].items() if k != key}
        assert found(folder, {**header, "rule": rule}, rows), key
    assert found(folder, {**header, "rule": {**header["rule"], "more": 1}}, rows)


@settings(QUIET, max_examples=30)
@given(data=st.data())
def test_rows_that_are_missing_moved_or_added_are_found(folder, data):
    header, rows = read(folder, "fixed")
    one, two = sorted(data.draw(st.lists(st.integers(0, ROWS - 1), min_size=2, max_size=2, unique=True)))
    swapped = list(rows)
    swapped[one], swapped[two] = rows[two], rows[one]
    assert found(folder, header, swapped)
    assert found(folder, header, [*rows[:one], *rows[one + 1 :]])
    index = data.draw(st.integers(0, 500))
    assert found(folder, header, [*rows[:two], {**rows[one], "index": index}, *rows[two:]])


def test_a_missing_end_takes_somebody_who_knows_how_many_rows_there_are(folder):
    header, rows = read(folder, "fixed")
    (images,) = (finding for finding in audited(folder, header, rows[:9]) if finding.what == "images")
    assert images.holds
    assert "whether the last ones are missing, is open" in images.said
    assert at_fault(audited(folder, header, rows[:9], rows=12)) == ["images"]
    assert "none is missing" in next(f.said for f in audited(folder, header, rows[:9], rows=9) if f.what == "images")
    # and one who chose images otherwise says so
    assert at_fault(audited(folder, header, rows[3:7][::-1])) == ["images"]
    assert at_fault(audited(folder, header, rows[3:7][::-1], any_images=True)) == []


def test_every_second_row_alone_takes_somebody_who_knows_how_many_there_are(folder):
    header, rows = read(folder, "fixed")
    (images,) = (finding for finding in audited(folder, header, rows[::2]) if finding.what == "images")
    assert images.holds
    assert "every 80-th" in images.said
    assert "whether others between them are missing, is open" in images.said
    assert at_fault(audited(folder, header, rows[::2], rows=12)) == ["images"]


def test_a_torn_line_is_told_and_is_no_fault(folder):
    path = folder / "torn.jsonl"
    path.write_bytes((folder / "fixed.jsonl").read_bytes()[:-10])
    findings = audit(path)
    assert at_fault(findings) == []
    assert findings[0].what == "last line"


# what agrees with itself


def transplanted(rows, source, target):
    """The rows with one image's votes in the place of another's, and all that follows from votes."""
    own = {name: rows[target][name] for name in ("index", "label")}
    return [*rows[:target], {**rows[source], **own}, *rows[target + 1 :]]


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("randomized", "known")])
def test_another_images_votes_are_found_by_casting_them_again(folder, name):
    header, rows = read(folder, name)
    source, target = next((i, j) for i, j in combinations(range(ROWS), 2) if rows[i]["counts"] != rows[j]["counts"])
    altered = transplanted(rows, source, target)
    assert not found(folder, header, altered), "it agrees with itself, or this test is of something else"
    findings = audited(folder, header, altered, checkpoint=folder / "network", replay=None)
    assert at_fault(findings) == ["votes"]
    assert f"image {EVERY * target}: " in next(finding.said for finding in findings if finding.what == "votes")


def test_votes_that_were_not_cast_again_are_named(folder):
    header, rows = read(folder, "fixed")
    for options, why in (
        ({"checkpoint": folder / "network", "replay": 0}, "a row altered consistently is not found"),
        ({"checkpoint": folder / "other"}, "the network is another"),
    ):
        (votes,) = (finding for finding in audited(folder, header, rows, **options) if finding.what == "votes")
        assert votes.holds is None
        assert why in votes.said


def test_the_number_of_a_randomized_bound_ties_votes_to_their_image_and_seed(folder):
    header, rows = read(folder, "randomized")
    assert at_fault(audited(folder, header, transplanted(rows, 0, 1))) == ["rows"]
    assert at_fault(audited(folder, {**header, "seed": SEED + 1}, rows)) == ["rows"]


def test_some_rows_are_found_as_often_as_they_are_cast_again(folder):
    """Every choice of two rows of six: the altered one is found by a third of them, which is what the audit says."""
    header, rows = read(folder, "fixed")
    altered = transplanted(rows[:6], 0, 3)

    class Chosen:
        def sample(self, population, count):
            assert count == 2
            return [population[place] for place in self.places]

    chance, hits = Chosen(), 0
    for chance.places in combinations(range(6), 2):
        findings = audited(folder, header, altered, checkpoint=folder / "network", replay=2, chance=chance)
        votes = next(finding for finding in findings if finding.what == "votes")
        assert votes.holds == (3 not in chance.places)
        assert "2 of 6 rows were cast again" in votes.said
        if votes.holds:
            assert "with probability 2/6" in votes.said
        hits += not votes.holds
    assert hits / comb(6, 2) == 2 / 6


def test_another_seed_network_or_structure_is_found(folder):
    header, rows = read(folder, "fixed")
    given = {"checkpoint": folder / "network", "replay": None}
    assert at_fault(audited(folder, {**header, "seed": SEED + 1}, rows, **given)) == ["votes"]
    assert at_fault(audited(folder, header, rows, checkpoint=folder / "other")) == ["weights"]
    other = {**header["model"], "hash": "sha256:" + 64 * "0"}
    assert at_fault(audited(folder, {**header, "model": other}, rows, **given)) == ["weights"]
    structure = {**header["model"], "structure": "sha256:" + 64 * "0"}
    assert at_fault(audited(folder, {**header, "model": structure}, rows, **given)) == ["modules"]
    old = {**header, "model": structure, "versions": {**header["versions"], "torch": "2.0"}}
    assert at_fault(audited(folder, old, rows, **given)) == []


def test_a_vote_that_was_all_but_tied_may_fall_otherwise_on_another_machine(folder):
    header, rows = read(folder, "fixed")
    counts = list(rows[0]["counts"])
    here, there = sorted(range(10), key=lambda name: counts[name] if name != rows[0]["selected"] else -1)[-2:]
    counts[there] -= 1
    counts[here] += 1
    moved = json.loads(json.dumps(row_of(rebound(header, {**rows[0], "counts": counts}), rows[0]["label"], 0.5)))
    given = {"checkpoint": folder / "network", "replay": None}
    findings = audited(folder, {**header, "versions": {"torch": "2.0"}}, [moved, *rows[1:]], **given)
    assert at_fault(findings) == ["votes"]
    assert "all but tied" in next(finding.said for finding in findings if finding.what == "votes")
    findings = audited(folder, header, [moved, *rows[1:]], tolerance=1, **given)
    assert at_fault(findings) == []
    assert "but for 1 votes" in next(finding.said for finding in findings if finding.what == "votes")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"precision": "bf16"}, None),
        ({"precision": "fp32, conv tf32"}, "cast in fp32, conv tf32, which would be fp32 here"),
        ({"device": "NVIDIA Something"}, "noise on NVIDIA Something is another than on cpu"),
        ({"device": "cpu somewhere"}, ""),
    ],
)
def test_votes_that_cannot_be_cast_as_they_were_are_not_verified(folder, change, why):
    header, rows = read(folder, "fixed")
    findings = audited(folder, {**header, **change}, rows, checkpoint=folder / "network", replay=1)
    votes = next(finding for finding in findings if finding.what == "votes")
    if why is None:
        assert votes.holds in (True, False), "bf16 is there on every CPU: it is another f, whose votes may agree"
    else:
        assert votes.holds is (None if why else True)
        assert why in votes.said


# the command


def run(*words):
    said = CliRunner().invoke(app, ["audit", *map(str, words)], catch_exceptions=False)
    return said.exit_code, said.output


def test_the_command_ends_with_a_status_for_ci(folder):
    path, header_and_rows = folder / "fixed.jsonl", read(folder, "fixed")
    code, said = run(path, "--checkpoint", folder / "network", "--replay", "2", "--rows", "12")
    assert code == 0
    assert "verified      rows: all 12 follow from their votes by the rule fixed, alpha 0.001\n" in said
    assert "with probability 2/12" in said
    header, rows = header_and_rows
    altered = folder / "wrong.jsonl"
    altered.write_text("".join(json.dumps(line) + "\n" for line in [header, {**rows[0], "radius": 9.0}, *rows[1:]]))
    code, said = run(altered)
    assert code == 1
    assert "INCONSISTENT  rows: line 2 (image 0): `radius` is 9.0, and must be " in said
    assert "is not what a run left" in said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["fixed.jsonl", "--replay", "-1"], "`--replay` must be a whole number or all, got '-1'"),
        (["fixed.jsonl", "--tolerance", "-1"], "`tolerance` must be at least 0"),
        (["fixed.jsonl", "--checkpoint", "nowhere"], "`nowhere` does not exist"),
        (["attack.jsonl"], "must be a ledger of certificates or predictions, got one of kind 'attack'"),
        (["network/checkpoint.json"], "is not a ledger"),
    ],
)
def test_what_cannot_be_audited_gets_one_line_and_status_2(folder, monkeypatch, words, problem):
    monkeypatch.chdir(folder)
    (folder / "attack.jsonl").write_text(json.dumps({"format": "art-rs-ledger/1", "kind": "attack"}) + "\n")
    code, said = run(*words)
    assert code == 2
    assert said.startswith("error: ")
    assert problem in said
