"""One ledger by many ranks: the same as by one, whatever becomes of them on the way."""

import copy
import itertools
import json
import random
import re
from dataclasses import replace

import company
import pytest
import torch
from torch import nn

from art_rs_plugin import Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import attacks, datasets, dealing, runs
from art_rs_plugin.experiments.ledger import Ledger, LedgerMismatch, read_ledger
from art_rs_plugin.ranks import ALONE, RankError
from art_rs_plugin.votes import NotFiniteError

HEADER = {"kind": "distance", "seed": 3}
WANTED = list(range(0, 300, 7))


def rows(seed, names):
    """What depends on the seed and the index alone."""
    for name in names:
        yield {"index": name, "label": name % 10, "seconds": 0.0, "distance": seed + name / 8}


def fill(ranks, out, header=HEADER, wanted=WANTED, make=rows, **about):
    dealing.fill(ranks, out, header, wanted, about, make, at_once=8)


@pytest.fixture
def whole(tmp_path):
    """The bytes of the ledger that one process writes."""
    with Ledger.open(tmp_path / "whole.jsonl", HEADER) as ledger:
        for row in rows(3, WANTED):
            ledger.append(row)
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_leaves_the_ledger_of_one(tmp_path, whole, size):
    out = tmp_path / "run.jsonl"
    assert company.in_threads(size, lambda ranks: fill(ranks, out)) == [None] * size
    assert out.read_bytes() == whole
    assert not dealing.folder_of(out).exists()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_pieces_are_everything_once_and_ever_smaller(count, ranks):
    made = list(dealing.pieces(count, ranks, 16))
    assert [index for piece in made for index in range(count)[piece]] == list(range(count))
    sizes = [piece.stop - piece.start for piece in made]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=0) <= 16
    assert set(sizes[-ranks:]) <= {1}


def test_stopped_again_and_again_with_other_numbers_of_ranks_it_makes_no_row_twice(tmp_path, whole):
    out, chance, made = tmp_path / "run.jsonl", random.Random(0), []

    def stumbling(seed, names):
        for row in rows(seed, names):
            if chance.random() < 0.1:
                raise OSError("the machine is gone")
            made.append(row["index"])
            yield row

    for size in itertools.cycle([2, 4, 1, 3]):
        ends = company.in_threads(size, lambda ranks: fill(ranks, out, make=stumbling))
        if ends == [None] * size:
            break
        assert dealing.folder_of(out).exists()
    assert out.read_bytes() == whole
    assert sorted(made) == WANTED


def test_a_torn_line_and_a_torn_header_of_parts_count_for_nothing(tmp_path, whole):
    out = tmp_path / "run.jsonl"
    folder = dealing.folder_of(out)
    folder.mkdir()
    lines = whole.splitlines(keepends=True)
    (folder / "rank-5.jsonl").write_bytes(b"".join([*lines[:4], lines[6][:-9]]))
    (folder / "rank-6.jsonl").write_bytes(lines[0][:20])
    assert company.in_threads(2, lambda ranks: fill(ranks, out)) == [None] * 2
    assert out.read_bytes() == whole


def test_what_was_merged_but_not_removed_counts_once(tmp_path, whole):
    out = tmp_path / "run.jsonl"
    out.write_bytes(whole)
    dealing.folder_of(out).mkdir()
    (dealing.folder_of(out) / "rank-1.jsonl").write_bytes(whole)

    def never(seed, names):
        raise AssertionError(names)

    fill(ALONE, out, make=never)
    assert out.read_bytes() == whole
    assert not dealing.folder_of(out).exists()


@pytest.mark.parametrize("size", [1, 2])
def test_examples_without_finite_logits_are_named_to_all_ranks_and_all_others_kept(tmp_path, size):
    out, without = tmp_path / "run.jsonl", {14, 35, 259}

    def some_spoilt(seed, names):
        yield from rows(seed, [name for name in names if name not in without])
        if found := [(name, 1, 9) for name in names if name in without]:
            raise NotFiniteError(found)

    ends = company.in_threads(size, lambda ranks: fill(ranks, out, make=some_spoilt))
    assert [{index for index, *_ in end.examples} for end in ends] == [without] * size
    assert [row["index"] for row in read_ledger(out)[1]] == [index for index in WANTED if index not in without]
    assert company.in_threads(size, lambda ranks: fill(ranks, out)) == [None] * size
    assert [row["index"] for row in read_ledger(out)[1]] == WANTED


def test_ranks_add_to_no_ledger_without_checksums(tmp_path, whole):
    out = tmp_path / "run.jsonl"
    out.write_bytes(re.sub(rb', "crc": "[0-9a-f]{8}"', b"", whole))
    before = out.read_bytes()
    first, second = company.in_threads(2, lambda ranks: fill(ranks, out, wanted=[*WANTED, 1000]))
    assert "must have checksums, which its parts have, got one without: go on with one process" in str(first)
    assert isinstance(second, RankError)
    assert out.read_bytes() == before


def test_rows_that_nobody_asks_for_now_are_kept(tmp_path):
    out = tmp_path / "run.jsonl"
    fill(ALONE, out, wanted=[9, 4])
    fill(ALONE, out, wanted=[5])
    assert [row["index"] for row in read_ledger(out)[1]] == [4, 5, 9]


def test_a_part_of_another_run_is_refused_and_kept(tmp_path, whole):
    out = tmp_path / "run.jsonl"
    part = dealing.folder_of(out) / "rank-0.jsonl"
    Ledger.open(part, {**HEADER, "seed": 4}).close()
    first, second = company.in_threads(2, lambda ranks: fill(ranks, out))
    assert isinstance(first, LedgerMismatch)
    assert "`seed` is 4 there, 3 here" in str(first)
    assert "`seed` is 4 there" in str(second)
    assert part.exists()


def test_a_seed_that_nobody_gave_is_one_for_all(tmp_path):
    out = tmp_path / "run.jsonl"
    header = {**HEADER, "seed": None}
    company.in_threads(3, lambda ranks: fill(ranks, out, header))
    stored, made = read_ledger(out)
    assert made == list(rows(stored["seed"], WANTED))


def test_ranks_that_do_not_agree_write_nothing(tmp_path):
    out = tmp_path / "run.jsonl"
    ends = company.in_threads(2, lambda ranks: fill(ranks, out, {**HEADER, "seed": ranks.rank}))
    assert all("`seed` is 0 on rank 0, 1 on rank 1" in str(end) for end in ends)
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_do_not_share_the_folder_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(dealing, "_SECONDS_TO_SEE", 0.2)
    ends = company.in_threads(2, lambda ranks: fill(ranks, tmp_path / str(ranks.rank) / "run.jsonl"))
    assert any("must write into the folder that rank 0 does" in str(end) for end in ends)
    assert all(isinstance(end, RankError) for end in ends)


def test_rank_0_hears_of_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(dealing, "_SECONDS_PER_NEWS", 0.0)
    heard = []

    def on_row(row, done, total):
        heard.append((done, total))

    def work(ranks):
        dealing.fill(ranks, tmp_path / "run.jsonl", HEADER, WANTED, {}, rows, at_once=8, on_row=on_row)

    assert company.in_threads(3, work) == [None] * 3
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1] == (len(WANTED), len(WANTED))


def test_rank_0_hears_of_rows_that_were_told_as_it_told_its_own():
    heard, told = [], iter([5, 9, 9])

    class Counting:
        def count(self, name, by):
            return next(told)

    news = dealing._News(Counting(), 1, 10, lambda row, done, total: heard.append((row, done, total)))
    news.add({"index": 3})
    news.tell()  # others have told 4 rows by now
    news.tell()  # and 4 more
    news.hear(at_once=True)
    assert heard == [({"index": 3}, 2, 10), ({}, 10, 10)]


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "test")


torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def smoothed(**options):
    network = copy.deepcopy(NETWORK)
    return RandomizedSmoothingPyTorch(network, 0.25, n0=10, n=400, seed=0, alpha=0.1, device_type="cpu", **options)


def certified(path):
    header, found = read_ledger(path)
    return header, [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.mark.parametrize("budget", [None, Looks(radii=(0.0, 0.1), n_max=400, n0=10)], ids=["fixed", "looks"])
@pytest.mark.parametrize("size", [2, 4])
def test_certificates_are_those_of_one_process(digits, tmp_path, size, budget):
    def certify(out, ranks=ALONE):
        runs.certify(smoothed(), digits, range(24), out, budget=budget, ranks=ranks)

    certify(tmp_path / "one.jsonl")
    assert company.in_threads(size, lambda ranks: certify(tmp_path / "many.jsonl", ranks)) == [None] * size
    assert certified(tmp_path / "many.jsonl") == certified(tmp_path / "one.jsonl")


def test_predictions_are_those_of_one_process(digits, tmp_path):
    def predict(out, ranks=ALONE):
        runs.predict(smoothed(), digits, range(9), out, n=50, ranks=ranks)

    predict(tmp_path / "one.jsonl")
    assert company.in_threads(2, lambda ranks: predict(tmp_path / "many.jsonl", ranks)) == [None] * 2
    assert certified(tmp_path / "many.jsonl") == certified(tmp_path / "one.jsonl")


def test_attacks_find_what_one_process_finds(digits, tmp_path):
    plan = attacks.Plan(max_iter=2, num_samples=4)

    def attack(out, ranks=ALONE):
        estimator = smoothed(clip_values=(0.0, 1.0))
        attacks.attack(estimator, digits, range(9), out, plan=plan, eps=0.5, n=50, alpha=0.1, ranks=ranks)

    attack(tmp_path / "one.jsonl")
    assert company.in_threads(2, lambda ranks: attack(tmp_path / "many.jsonl", ranks)) == [None] * 2
    (header, many), (same, one) = certified(tmp_path / "many.jsonl"), certified(tmp_path / "one.jsonl")
    assert header == same
    assert [row.pop("l2") for row in many] == pytest.approx([row.pop("l2") for row in one], rel=1e-5)
    for row in (*many, *one):
        del row["linf"], row["counts"]  # gradients of another number of images side by side may end in another bit
    assert many == one


def test_ranks_with_other_images_are_refused(digits, tmp_path):
    class Darker(type(digits.images)):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image / 2, label

    images = copy.copy(digits.images)
    images.__class__ = Darker
    others = replace(digits, images=images)
    ends = company.in_threads(
        2,
        lambda ranks: runs.certify(
            smoothed(), others if ranks.rank else digits, range(9), tmp_path / "run.jsonl", ranks=ranks
        ),
    )
    assert all(isinstance(end, RankError) and "`images`" in str(end) for end in ends)


def test_one_process_goes_on_where_many_were_stopped(digits, tmp_path):
    out = tmp_path / "run.jsonl"

    def part_of_it(ranks):
        estimator = smoothed()
        made = iter(range(9))

        def stop(row, done, total):
            if next(made) == 5:
                raise KeyError("stopped")

        runs.certify(estimator, digits, range(24), out, ranks=ranks, on_row=stop)

    ends = company.in_threads(2, part_of_it)
    assert isinstance(ends[0], KeyError)
    assert json.loads(out.read_text().splitlines()[0])["kind"] == "certify"
    runs.certify(smoothed(), digits, range(24), out)
    runs.certify(smoothed(), digits, range(24), tmp_path / "one.jsonl")
    assert certified(out) == certified(tmp_path / "one.jsonl")
