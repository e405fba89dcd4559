"""The page of a report: what it says against counting, what it must not let through, how large it may be."""

import base64
import html
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_ledgers import HOSTILE, SIGMA, header_of, ledger, rows_of
from PIL import Image
from scipy.stats import binom, norm

from art_rs_plugin import Looks
from art_rs_plugin.experiments import datasets, report_figures
from art_rs_plugin.experiments.logs import read_log
from art_rs_plugin.experiments.report import write_report

RADII = (0.0, 0.25, 0.5)


class Page(HTMLParser):
    """Tables as lists of rows, and all tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.text, self._cell = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


def report(tmp_path, *ledgers, **options):
    missing = write_report(list(ledgers), tmp_path / "report.html", **{"radii": RADII, **options})
    return Page((tmp_path / "report.html").read_text()), missing


@pytest.fixture(scope="module")
def rows():
    return rows_of(40)


def test_the_summary_counts_as_the_definition_does(tmp_path, rows):
    page, missing = report(tmp_path, ledger(tmp_path / "one.jsonl", rows))
    assert missing == []
    right = [row for row in rows if row["prediction"] == row["label"]]
    abstained = sum(row["prediction"] == -1 for row in rows)
    average = sum(row["radius"] for row in right) / 40
    name, images, sigma, alpha, *shares = page.tables[0][1]
    assert (name, images, sigma, alpha) == ("one", "40", "0.25", "0.001")
    expected = [len(right) / 40, 1 - (len(right) + abstained) / 40, abstained / 40, average]
    assert 0 < abstained < 40 - len(right)
    assert [float(share) for share in shares] == pytest.approx(expected, abs=0.001)
    assert all(float(share) <= value + 1e-12 for share, value in zip(shares, expected, strict=True)), "rounded down"


def test_certified_accuracy_stands_with_both_bounds_and_what_they_speak_of(tmp_path, rows):
    page, _ = report(tmp_path, ledger(tmp_path / "one.jsonl", rows), confidence=0.9)
    heads, certified, these, like_these = page.tables[1]
    assert heads == ["ledger", "share", "r = 0", "r = 0.25", "r = 0.5"]
    assert [line[1] for line in (certified, these, like_these)] == [
        "certified right", "at least, on these images", "at least, on images like these",
    ]  # fmt: skip
    for place, radius in enumerate(RADII, 2):
        share = sum(row["prediction"] == row["label"] and row["radius"] >= radius for row in rows) / 40
        assert float(certified[place]) == pytest.approx(share, abs=0.001)
        theorem_6 = share - binom.ppf(0.9, 40, 0.001) / 40
        assert float(these[place]) == pytest.approx(max(theorem_6, 0), abs=0.00101)
        dkw = share - 0.001 - np.sqrt(np.log(10) / 80)
        assert float(like_these[place]) == pytest.approx(max(dkw, 0), abs=0.00101)
    assert "with probability 0.9 over the noise" in page.text
    assert "with probability 0.9 over images and noise" in page.text


def test_p_a_votes_and_seconds(tmp_path, rows):
    page, _ = report(tmp_path, ledger(tmp_path / "one.jsonl", rows))
    share = [row["counts"][row["selected"]] / row["n"] for row in rows]
    cells = page.tables[2][1]
    for cell, level in zip(cells[1:], (0.5, 0.9, 0.99, 0.999), strict=False):
        assert float(cell.split()[0]) == pytest.approx(np.mean([p >= level for p in share]), abs=0.001)
        assert f"(r = {SIGMA * norm.ppf(level):.3f})" in cell
    assert page.tables[3][1][1:] == ["44,000", "1,100", "1,100", "1,100", "20.0", "0.5", "2,200"]


def test_the_distribution_of_p_a_has_room_above_its_highest_bar(rows, tmp_path, monkeypatch):
    log = read_log(ledger(tmp_path / "one.jsonl", rows))
    monkeypatch.setattr(report_figures, "_svg", lambda figure, said: figure)
    (axes,) = report_figures.class_probabilities(log).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert max(tops) < axes.get_ylim()[1]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)


def test_votes_that_vary_have_a_picture_and_a_word_of_warning(tmp_path):
    looks = Looks(radii=(0.25,), n_max=3_000)
    path = ledger(tmp_path / "looks.jsonl", rows_of(12, budget=looks), header_of(looks))
    page, _ = report(tmp_path, path)
    assert "votes that an image took" in page.text
    assert "Votes by looks stop" in page.text
    page, _ = report(tmp_path, ledger(tmp_path / "one.jsonl", rows_of(12)))
    assert "votes that an image took" not in page.text
    assert "Votes by looks stop" not in page.text


def test_the_hardest_and_easiest_inputs_are_shown_with_their_pictures(tmp_path, rows):
    page, _ = report(tmp_path, ledger(tmp_path / "one.jsonl", rows))
    own = sorted(rows, key=lambda row: (row["counts"][row["label"]] / row["n"], row["index"]))
    shown = [int(index) for index in re.findall(r"Image (\d+)", page.text)]
    assert shown[:6] == [row["index"] for row in own[:6]]
    right = [row["radius"] for row in rows if row["prediction"] == row["label"]]
    radii = {row["index"]: row["radius"] for row in rows}
    assert [radii[index] for index in shown[6:]] == sorted(right, reverse=True)[:6]
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 24
    clean, noisy = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in pictures[:2]
    )
    (x,), _ = datasets.load("digits", "test").arrays(shown[:1])
    np.testing.assert_array_equal(clean, np.round(255 * x[0]))
    inside = (noisy > 0) & (noisy < 255)
    noise = (noisy / 255.0 - x[0])[inside]
    assert inside.sum() > 10
    assert 0.5 * SIGMA < np.std(noise) < 1.5 * SIGMA


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"name": "mine", "split": "test", "images": 449}, "`data.name` must be one of"),
        ({"name": "digits", "split": "all", "images": 449}, "`data.split` must be one of"),
        ({"name": "digits", "split": "test", "images": 7}, "there are 449 images, and the header speaks of 7"),
        (None, "`data.name` must be one of"),
    ],
)
def test_without_its_images_a_report_says_so_and_goes_on(tmp_path, rows, data, why):
    page, (missing,) = report(tmp_path, ledger(tmp_path / "one.jsonl", rows, header_of(data=data)))
    assert f"no pictures of one: {why}" in missing or why in missing
    assert "No pictures: " in page.text
    assert [tag for tag, _ in page.tags].count("img") == 0
    assert page.text.count("Image ") >= 12


def test_all_of_the_header_is_there_for_an_audit(tmp_path, rows):
    path = ledger(tmp_path / "one.jsonl", rows)
    page, _ = report(tmp_path, path)
    told = dict(page.tables[-1])
    assert told["ledger"] == str(path)
    assert told["model.hash"] == "sha256:" + 64 * "a"
    assert (told["seed"], told["noise.sigma"], told["versions.torch"]) == ("5", "0.25", "2.0")
    assert len(told["sha256 of the ledger"]) == 64


# what must not get through


def test_hostile_strings_are_text(tmp_path, rows):
    hostile = HOSTILE.replace("/", "").replace("\x00", "").replace("\ud800", "\udcff")
    header = header_of(
        precision=HOSTILE,
        device=HOSTILE,
        versions={HOSTILE: HOSTILE},
        model={"hash": HOSTILE, "structure": HOSTILE},
        data={"name": HOSTILE, "split": HOSTILE, "images": 449},
        rule={"name": HOSTILE, "list": [HOSTILE]},
    )
    paths = [ledger(tmp_path / f"{hostile}{number}.jsonl", rows, header) for number in range(2)]
    page, missing = report(tmp_path, *paths, title=HOSTILE)
    assert len(missing) == 2
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert tags.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not any(
        value and "javascript:" in value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("href", "src", "xlink:href", "action")
    )
    text = (tmp_path / "report.html").read_text()
    assert html.escape("<script>window.hacked=1</script>") in text
    assert "{{7*7}}" in page.text, "what a header says is no template"
    assert not set("\x00\u202e\ud800\udcff") & set(text)
    assert "\ufffd" in text


def test_a_page_asks_for_nothing(tmp_path, rows):
    page, _ = report(tmp_path, ledger(tmp_path / "one.jsonl", rows))
    outside = [
        (tag, name, value)
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action", "srcset") and not value.startswith(("data:", "#"))
    ]
    assert outside == []
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text


def test_figures_are_in_the_pages_colours(tmp_path, rows):
    report(tmp_path, ledger(tmp_path / "one.jsonl", rows))
    text = (tmp_path / "report.html").read_text()
    figures = re.findall(r"<svg xmlns.*?</svg>", text, re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        assert 'role="img" aria-label="' in figure
        assert "currentColor" in figure
        assert "<text" in figure
        colours = set(re.findall(r"#[0-9a-f]{6}\b", figure))
        assert colours <= {"#000000", "#ffffff"}, "of the clip paths and the background, which is transparent"


def test_the_same_ledgers_give_the_same_page(tmp_path, rows):
    path = ledger(tmp_path / "one.jsonl", rows)
    report(tmp_path, path)
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path, path)
    assert (tmp_path / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("header", "kept", "problem"),
    [
        ({"kind": "predict"}, None, "a report is of ledgers of certificates, and bad is one of 'predict'"),
        ({"kind": "attack"}, 0, "and bad is one of 'attack'"),
        ({}, 0, "bad has no examples to report of"),
        ({"noise": None}, None, "a report is of certificates from votes"),
        ({"noise": {"name": "laplace", "sigma": 1}}, None, "bad: `noise.name` must be one of 'gaussian'"),
        ({"noise": {"name": "gaussian", "sigma": -1}}, None, "bad: `noise.sigma` must be a finite number above 0"),
        ({"noise": {"name": "gaussian"}}, None, "bad: `noise.sigma` must be a number"),
        ({"seed": None}, None, "`seed of bad` must be a whole number"),
        ({"certifier": {"name": "smoothing-li"}}, None, "a report is of the radii of Theorem 1, and bad has others"),
        ({"rule": None}, None, "a report is of certificates from votes"),
    ],
)
def test_what_is_no_ledger_of_votes_is_refused_and_nothing_written(tmp_path, rows, header, kept, problem):
    good = ledger(tmp_path / "good.jsonl", rows)
    bad = ledger(tmp_path / "bad.jsonl", rows[:kept], header_of(**header))
    with pytest.raises((ValueError, TypeError), match=re.escape(problem)):
        write_report([good, bad], tmp_path / "report.html", radii=RADII)
    assert not (tmp_path / "report.html").exists()


def test_votes_that_make_no_sense_are_refused(tmp_path, rows):
    for change in ({"selected": 10}, {"counts": [1, 2]}, {"counts": [0] * 10}):
        path = ledger(tmp_path / "bad.jsonl", [*rows[:3], {**rows[3], **change}])
        with pytest.raises(ValueError, match="votes of bad must be for the same classes"):
            write_report([path], tmp_path / "report.html", radii=RADII)


def test_ten_thousand_images_are_a_page_of_less_than_ten_megabytes(tmp_path, rows):
    """How long it takes, `benchmarks/report.py` says."""
    many = [{**rows[place % 40], "index": place, "radius": rows[place % 40]["radius"] * (1 - place * 1e-6)}
            for place in range(10_000)]  # fmt: skip
    data = {"name": "digits", "split": "test", "images": 449}
    paths = [ledger(tmp_path / f"{name}.jsonl", many, header_of(data=data)) for name in "ab"]
    report(tmp_path, *paths)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
