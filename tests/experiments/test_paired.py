"""Two ledgers image by image: against counting by hand, and what may not be compared."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from art_rs_plugin.cli import app
from art_rs_plugin.core.paired import difference_interval
from art_rs_plugin.experiments.logs import write_tsv
from art_rs_plugin.experiments.paired import as_text, paired_table

HEADER = {"format": "art-rs-ledger/1", "kind": "certify", "data": {"name": "digits", "split": "test", "images": 449}}
# (label, prediction, radius) of the same five images
FIRST = [(0, 0, 0.5), (1, 1, 0.3), (2, 2, 0.2), (3, -1, 0.0), (4, 1, 0.9)]
SECOND = [(0, 0, 0.1), (1, 1, 0.3), (2, -1, 0.0), (3, 3, 0.25), (4, 4, 0.05)]


def ledger(path, rows, *, order=None, first=0, **header):
    lines = [
        {"index": first + i, "label": y, "prediction": c, "radius": r, "alpha": 0.001, "seconds": 1.0}
        for i, (y, c, r) in enumerate(rows)
    ]
    lines = [lines[i] for i in order] if order else lines
    path.write_text("".join(json.dumps(line) + "\n" for line in [{**HEADER, **header}, *lines]))
    return path


@pytest.fixture
def two(tmp_path):
    return [ledger(tmp_path / "a.jsonl", FIRST), ledger(tmp_path / "b.jsonl", SECOND, order=[4, 2, 0, 1, 3])]


def test_radii_are_compared_image_by_image_whatever_their_order(two):
    table = paired_table(two, [0.25, 0.0, 0.2])
    assert table.attrs["names"] == ["a", "b"]
    columns = ["at", "first", "second", "only first", "only second"]
    assert table[columns].to_numpy().tolist()[:3] == [
        [0.0, 0.6, 0.8, 1, 2],
        [0.2, 0.6, 0.4, 2, 1],
        [0.25, 0.4, 0.4, 1, 1],
    ]
    assert table["p"].to_list()[:3] == [binomtest(one, both).pvalue for one, both in ((1, 3), (2, 3), (1, 2))]
    assert table["difference"].to_list()[:2] == pytest.approx([-0.2, 0.2])


def test_the_last_row_is_the_average_radius_with_its_interval(two):
    row = paired_table(two, [0.0]).iloc[-1]
    # errors and abstentions have no radius
    apart = np.array([0.4, 0.0, 0.2, -0.25, -0.05])
    assert (row["at"], row["first"], row["second"]) == ("average radius", pytest.approx(0.2), pytest.approx(0.14))
    assert row["difference"] == pytest.approx(apart.mean())
    assert apart.min() < row["low"] < apart.mean() < row["high"] < apart.max()
    other = paired_table(two, [0.0], seed=5, confidence=0.8).iloc[-1]
    assert (other["low"], other["high"]) == difference_interval(apart, np.zeros(5), seed=5, confidence=0.8)
    assert paired_table(two, [0.0], confidence=0.5).iloc[-1]["low"] > row["low"]


def test_the_text_says_it_in_three_decimals_and_leaves_out_what_is_not(two):
    said = as_text(paired_table(two, [0.2]))
    assert said.iloc[0].to_list() == ["r = 0.2", "0.600", "0.400", "+0.200", "2", "1", "1", "", ""]
    assert said.iloc[1].to_list()[:7] == ["average radius", "0.200", "0.140", "+0.060", "", "", ""]


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        (SECOND[:4], {}, "1 of the 5 images of a are in it alone, such as 4"),
        ([*SECOND, (5, 5, 0.1)], {}, "1 of the 6 images of b are in it alone, such as 5"),
        (SECOND, {"first": 1}, "1 of the 5 images of a are in it alone, such as 0; 1 of the 5 images of b"),
        ([*SECOND[:4], (7, 4, 0.1)], {}, "1 labels differ, such as that of image 4, 4 in a and 7 in b"),
        (SECOND, {"data": {**HEADER["data"], "split": "train"}}, '"train"'),
        (SECOND, {"data": {**HEADER["data"], "name": "mnist"}}, "a is of the data .*digits.* b of .*mnist"),
        (SECOND, {"certifier": {"norm": "inf"}}, "radii of a are in the norm 2, of b in inf"),
    ],
)
def test_other_images_data_or_norms_are_refused_by_name(tmp_path, rows, options, problem):
    paths = [ledger(tmp_path / "a.jsonl", FIRST), ledger(tmp_path / "b.jsonl", rows, **options)]
    with pytest.raises(ValueError, match=f"must be of the same images: .*{problem}"):
        paired_table(paths, [0.0])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_anything_but_two_ledgers_is_refused(two, tmp_path, count):
    with pytest.raises(ValueError, match="`ledgers` must be two, each another"):
        paired_table([*two, ledger(tmp_path / "c.jsonl", FIRST)][:count], [0.0])
    with pytest.raises(ValueError, match="`ledgers` must be two, each another"):
        paired_table([two[0], two[0]], [0.0])


def test_predictions_have_no_radii(two, tmp_path):
    votes = {"index": 0, "label": 0, "prediction": 0, "counts": [9, 2], "n": 11, "alpha": 0.001, "seconds": 1.0}
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps({**HEADER, "kind": "predict"}) + "\n" + json.dumps(votes) + "\n")
    with pytest.raises(ValueError, match="votes has no radii"):
        paired_table([two[0], path], [0.0])


def test_the_command_prints_markdown_and_writes_csv(two, tmp_path):
    out = tmp_path / "new" / "paired.csv"
    words = ["paired", *map(str, two), "--radii", "0,0.2", "--out", str(out)]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 0
    assert said.output.startswith("| at             | first | second | difference | only first | only second | p ")
    assert "first: a; second: b" in said.output
    table = pd.read_csv(out)
    assert list(table["at"]) == ["0.0", "0.2", "average radius"]
    assert list(table["first"])[:2] == [0.6, 0.6]
    assert CliRunner().invoke(app, words[:2], catch_exceptions=False).exit_code == 2


def test_the_authors_logs_are_compared_with_each_other(tmp_path):
    logs = [
        pd.DataFrame(rows, columns=["label", "prediction", "radius"]).assign(index=range(5), seconds=1.0)
        for rows in (FIRST, SECOND)
    ]
    for log, name in zip(logs, "ab", strict=True):
        write_tsv(log, tmp_path / name)
    assert paired_table([tmp_path / "a", tmp_path / "b"], [0.0]).iloc[0]["second"] == 0.8
