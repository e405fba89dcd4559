"""Logs: the authors' own against pandas and the printed tables, round trips, hostile text."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from art_rs_plugin.core.certificate import Certificate
from art_rs_plugin.experiments.ledger import Ledger, rebound, row_of
from art_rs_plugin.experiments.logs import read_log, round_down, write_atomically, write_tsv

CERTIFY = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
PREDICT = "idx\tlabel\tpredict\tcorrect\ttime\n"
HEADER = {"kind": "certify", "noise": {"name": "gaussian", "sigma": 0.25}, "seed": 1, "rule": {"name": "fixed"}}
VOTES = {"counts": [10, 990], "selected": 1, "p_lower": 0.97, "p_upper": 0.03, "n0": 100, "n": 1000, "alpha": 0.001}
ROW = {"index": 4, "label": 1, "prediction": 1, "radius": 0.4321, **VOTES, "seconds": 1.5}


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def ledger(path, *rows, header=HEADER):
    with Ledger.open(path, header) as file:
        for row in rows:
            file.append(row)
    return path


def test_a_ledger_is_known_by_its_content_and_brings_its_votes(tmp_path):
    path = ledger(tmp_path / "named.tsv", ROW, ROW | {"index": 2, "prediction": -1, "radius": 0, "later": "rules"})
    log = read_log(path)
    base = ["index", "label", "prediction", "radius", "seconds"]
    assert list(log.columns) == [*base, "alpha", "counts", "selected", "p_lower", "p_upper", "n0", "n"]
    assert log.iloc[0].to_dict() == {**{key: ROW[key] for key in log.columns}, "counts": (10, 990)}
    assert log["radius"].tolist() == [0.4321, 0.0]
    assert log["prediction"].tolist() == [1, -1]
    assert (log["radius"].dtype, log["index"].dtype) == (np.float64, np.int64)
    assert log.attrs["source"] == str(path)
    assert log.attrs["header"]["noise"]["sigma"] == 0.25


def test_a_ledger_of_predictions_has_no_radius_and_neither_has_its_tsv(tmp_path):
    row = {key: ROW[key] for key in ("index", "label", "prediction", "counts", "n", "alpha", "seconds")}
    log = read_log(ledger(tmp_path / "run", row, header=HEADER | {"kind": "predict"}))
    assert list(log.columns) == ["index", "label", "prediction", "seconds", "alpha", "counts", "n"]
    write_tsv(log, tmp_path / "tsv")
    assert (tmp_path / "tsv").read_text() == PREDICT + "4\t1\t1\t1\t1.5\n"


def test_a_ledger_of_a_certifier_without_votes_needs_no_more_than_a_certificate(tmp_path):
    plain = Certificate(prediction=3, radius=0.5, index=7, norm=np.inf, certifies="f", alpha=0.0)
    row = row_of(plain, label=3, seconds=0.1)
    log = read_log(ledger(tmp_path / "run", row))
    assert log.iloc[0].to_dict() == {
        "index": 7,
        "label": 3,
        "prediction": 3,
        "radius": 0.5,
        "seconds": 0.1,
        "alpha": 0.0,
    }
    with pytest.raises(ValueError, match="was not certified by votes: its row has no counts"):
        rebound(HEADER, row, alpha=0.01)


def test_a_ledger_without_rows_and_a_log_without_rows_are_empty_frames(tmp_path):
    for log in (read_log(ledger(tmp_path / "a")), read_log(write(tmp_path / "b", CERTIFY))):
        assert len(log) == 0
        assert (log["radius"].dtype, log["index"].dtype) == (np.float64, np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -0.5}, "`radius` must be a finite number of at least 0, got -0.5"),
        ({"radius": "1"}, "`radius` must be a finite number of at least 0, got '1'"),
        ({"radius": True}, "`radius` must be a finite number"),
        ({"radius": 10**400}, "`radius` must be a finite number"),
        ({"label": None}, "`label` must be a whole number, got None"),
        ({"label": 2**63}, r"`label` must be below 2\^63"),
        ({"prediction": -2}, "`prediction` must be at least -1, got -2"),
        ({"counts": 7}, "`counts` must be a list of whole numbers, got 7"),
        ({"counts": [1, -1]}, "`counts` must be at least 0, got -1"),
    ],
)
def test_a_value_out_of_its_range_in_a_ledger_is_named_with_its_line(tmp_path, change, message):
    path = ledger(tmp_path / "run", ROW, ROW | {"index": 5} | change)
    with pytest.raises(ValueError, match=f"run, line 3: {message}"):
        read_log(path)


# the authors' format


def test_times_are_seconds_or_clocks(tmp_path):
    times = {"15.4": 15.4, "0:00:15.4": 15.4, "0:02:31.238689": 151.238689, "1 day, 1:00:00": 90000, "10:00:01": 36001}
    text = CERTIFY + "".join(f"{index}\t3\t3\t0.1\t1\t{time}\n" for index, time in enumerate(times))
    assert read_log(write(tmp_path / "log", text))["seconds"].tolist() == list(times.values())


def test_windows_line_ends_and_a_missing_last_one_are_understood(tmp_path):
    text = (CERTIFY + "0\t3\t3\t0.378\t1\t1\n20\t7\t-1\t-0.0\t0\t2").replace("\n", "\r\n")
    log = read_log(write(tmp_path / "log", text))
    assert log.to_numpy().tolist() == [[0, 3, 3, 0.378, 1], [20, 7, -1, 0, 2]]
    assert not np.signbit(log["radius"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: a log starts with a ledger's header or the names idx label predict radius correct time"),
        ("idx\tlabel\n", "line 1: a log starts with .* got 'idx\\\\tlabel'"),
        (b"\xff\xfe\x00", "is not a log"),
        (CERTIFY + "0\t3\t3\t0.1\t1\n", "line 2: 6 fields are needed, got 5"),
        (CERTIFY + "0\t3\t3\t0.1\t1\t1\n\n", "line 3: 6 fields are needed, got 1"),
        (CERTIFY + "x\t3\t3\t0.1\t1\t1\n", "line 2: `index` must be a whole number, got 'x'"),
        (CERTIFY + "1_0\t3\t3\t0.1\t1\t1\n", "`index` must be a whole number, got '1_0'"),
        (CERTIFY + "-1\t3\t3\t0.1\t1\t1\n", "`index` must be at least 0, got -1"),
        (CERTIFY + "0\t3\t3.0\t0.1\t1\t1\n", "`prediction` must be a whole number, got '3.0'"),
        (CERTIFY + "0\t3\t3\tnan\t1\t1\n", "`radius` must be a finite number of at least 0, got 'nan'"),
        (CERTIFY + "0\t3\t3\t-0.1\t1\t1\n", "`radius` must be a finite number of at least 0, got -0.1"),
        (CERTIFY + "0\t3\t3\tinf\t1\t1\n", "`radius` must be a finite number"),
        (CERTIFY + "0\t3\t3\t1e999\t1\t1\n", "`radius` must be a finite number"),
        (CERTIFY + "0\t3\t3\t0,1\t1\t1\n", "`radius` must be a finite number of at least 0, got '0,1'"),
        (CERTIFY + "0\t3\t3\t0.1\t1\tsoon\n", "`seconds` must be a finite number of at least 0, got 'soon'"),
        (CERTIFY + "0\t3\t3\t0.1\t0\t1\n", "line 2: `correct` must be 1 .* got '0' for label 3 and predict 3"),
        (PREDICT + "0\t3\t-1\t1\t1\n", "line 2: `correct` must be 1 .* got '1' for label 3 and predict -1"),
        (PREDICT + "0\t3\t3\tyes\t1\n", "got 'yes'"),
        (PREDICT + "0\t3\t3\t1\t1\n" * 2, "line 3: `idx` must not come twice, got 0 again"),
    ],
)
def test_a_bad_log_is_refused_with_path_line_rule_and_value(tmp_path, text, message):
    path = write(tmp_path / "log", text)
    with pytest.raises(ValueError, match=message) as refused:
        read_log(path)
    assert str(refused.value).startswith(str(path))


def frame_of(radii):
    return pd.DataFrame(
        {"index": range(len(radii)), "label": 1, "prediction": 1, "radius": np.array(radii, float), "seconds": 0.1}
    )


@given(st.lists(st.floats(0, 1e300), max_size=8), st.integers(0, 12))
@example([0.0009999999999999999, 0.29, 0.378, 0.0125, 1e-320, 1e300], 3)  # the first: times 1000 is 1.0 in floats
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_round_trip_never_raises_a_radius_and_loses_less_than_one_unit(tmp_path_factory, radii, decimals):
    path = tmp_path_factory.getbasetemp() / "round-trip"
    write_tsv(frame_of(radii), path, decimals=decimals)
    back = read_log(path)["radius"].to_numpy()
    assert (back <= radii).all()
    assert (back >= np.nextafter(np.array(radii) - 10.0**-decimals, -1)).all()
    once = path.read_bytes()
    write_tsv(read_log(path), path, decimals=decimals)
    assert path.read_bytes() == once  # a second trip changes nothing more


def test_the_ledgers_radii_are_cut_not_rounded_in_the_authors_format(tmp_path):
    log = read_log(ledger(tmp_path / "run", ROW | {"radius": 0.4329999}, ROW | {"index": 5, "prediction": -1}))
    write_tsv(log, tmp_path / "tsv")
    assert (tmp_path / "tsv").read_text() == CERTIFY + "4\t1\t1\t0.432\t1\t1.5\n5\t1\t-1\t0.432\t0\t1.5\n"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.29, 2, "0.29"), (0.9999, 3, "0.999"), (5, 0, "5"), (5.99, 0, "5"), (0, 3, "0.000"), (1e-9, 3, "0.000")],
)
def test_rounding_down(value, decimals, text):
    assert round_down(value, decimals) == text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


# hostile text

FIELD = st.one_of(
    st.sampled_from(["0", "1", "-1", "3", "0.5", "nan", "inf", "1e999", "-0.0", "٣", "0:00:1", "99:99:99.9", "9" * 30]),
    st.text(max_size=6),
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)


@st.composite
def hostile_tsv(draw):
    """Mostly a log, with a few fields replaced, added or taken away."""
    header, row = draw(st.sampled_from([(CERTIFY, "3 3 0.5 1 1.5"), (PREDICT, "3 3 1 1.5"), ("idx\n", "")]))
    lines = [[str(index), *row.split()] for index in range(draw(st.integers(0, 4)))]
    for line in lines:
        for place in draw(st.lists(st.integers(0, 7), max_size=1)):
            line[place : place + 1] = draw(st.lists(FIELD, max_size=2)) if place > 5 else [draw(FIELD)]
    text = header + "\n".join(map("\t".join, lines)) + draw(st.sampled_from(["", "\n", "\r\n", "\x00"]))
    return text.encode()


@st.composite
def hostile_ledger(draw):
    """Mostly a ledger, with a few values replaced and a torn or broken end."""
    kind = draw(st.sampled_from(["certify", "predict", "certify", "?"]))
    lines = [
        {"format": "art-rs-ledger/1", "kind": kind, **draw(st.dictionaries(st.text(max_size=3), VALUE, max_size=1))}
    ]
    for index in range(draw(st.integers(0, 3))):
        changes = draw(st.dictionaries(st.sampled_from(sorted(ROW)), VALUE, max_size=1))
        lines.append(draw(st.one_of(*[st.just(ROW | {"index": index} | changes)] * 3, VALUE)))
    end = st.sampled_from(["", "\n", "\n", "\n{", "\n" + "[" * 5000 + "\n{}\n", "9" * 5000 + "\n\n\n"])
    return ("\n".join(map(json.dumps, lines)) + draw(end)).encode()


HOSTILE = st.one_of(hostile_tsv(), hostile_ledger(), st.binary(max_size=60))


@given(HOSTILE)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_hostile_text_is_read_or_refused_and_what_is_read_obeys_the_rules(tmp_path_factory, content):
    check_hostile(tmp_path_factory.getbasetemp() / "hostile", content)


@pytest.mark.slow
def test_hostile_text_for_minutes(tmp_path):
    """Other text every time: half a minute, or before a release ART_RS_FUZZ_MINUTES=10 of them."""
    rounds, end = 0, time.monotonic() + 60 * float(os.environ.get("ART_RS_FUZZ_MINUTES", "0.5"))
    while time.monotonic() < end:

        @given(HOSTILE)
        @settings(max_examples=500, deadline=None, database=None)
        def check(content):
            check_hostile(tmp_path / "hostile", content)

        check()
        rounds += 1
    assert rounds > 0


def check_hostile(path, content):
    write(path, content)
    try:
        log = read_log(path)
    except ValueError:
        return
    assert log["index"].is_unique
    assert (log["label"] >= 0).all()
    assert (log["prediction"] >= -1).all()
    if "radius" in log:
        assert (np.isfinite(log["radius"]) & (log["radius"] >= 0)).all()
        write_tsv(log, path)
        assert len(read_log(path)) == len(log)
