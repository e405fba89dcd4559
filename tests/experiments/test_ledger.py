"""The ledger: created, continued, refused; and radii from its counts against the core."""

import json
from functools import partial

import numpy as np
import pytest

from art_rs_plugin.core.bounds import BOUNDS
from art_rs_plugin.core.certificate import certify, certify_from_counts
from art_rs_plugin.core.radii import RADII, cohen
from art_rs_plugin.experiments.ledger import FORMAT, ROW_KEYS, Ledger, LedgerMismatch, read_ledger, rebound, row_of

HEADER = {
    "kind": "certify",
    "model": {"hash": "sha256:00"},
    "noise": {"name": "gaussian", "sigma": 0.25},
    "seed": 5,
    "data": {"name": "digits", "split": "test"},
    "rule": {"name": "fixed", "n0": 100, "n": 1000, "alpha": 0.001, "bound": "clopper-pearson"},
    "versions": {"torch": "2"},
    "precision": "float32",
    "device": "cpu",
}


def row(index):
    certified = {"prediction": 1, "radius": 0.1 + index / 7} if index % 3 else {"prediction": -1, "radius": 0.0}
    votes = {"counts": [index, 1000 - index], "selected": 1, "p_lower": 1 / (index + 3), "p_upper": 2 / 3}
    return {"index": index, "label": 1, **certified, **votes, "n0": 100, "n": 1000, "alpha": 0.001, "seconds": 0.5}


def write(path, indices, header=HEADER):
    with Ledger.open(path, header) as ledger:
        for index in indices:
            ledger.append(row(index))
    return path


# creating and continuing


def test_a_new_ledger_holds_header_and_rows_exactly(tmp_path):
    path = write(tmp_path / "a" / "b" / "run.jsonl", [7, 3])
    header, rows = read_ledger(path)
    assert header == {"format": FORMAT, **HEADER}
    assert rows == [row(7), row(3)]  # floats too: repr comes back exactly
    assert path.read_bytes().startswith(b'{"format": "art-rs-ledger/1", "kind": "certify"')
    assert path.read_bytes().count(b"\n") == 3


def test_continued_it_knows_what_is_done_and_refuses_an_index_twice(tmp_path):
    path = write(tmp_path / "run.jsonl", range(4))
    with Ledger.open(path, HEADER) as ledger:
        assert ledger.done == {0, 1, 2, 3}
        with pytest.raises(ValueError, match="`index` 2 is in the ledger already"):
            ledger.append(row(2))
        ledger.append(row(4))
        assert ledger.done == {0, 1, 2, 3, 4}
    assert read_ledger(path)[1] == [row(index) for index in range(5)]


def test_a_row_is_on_the_file_before_append_returns(tmp_path):
    path = tmp_path / "run.jsonl"
    with Ledger.open(path, HEADER) as ledger:
        for index in range(3):
            ledger.append(row(index))
            assert len(read_ledger(path)[1]) == index + 1


def test_a_ledger_of_predictions_needs_no_radius(tmp_path):
    prediction = {key: row(1)[key] for key in ROW_KEYS["predict"]}
    with Ledger.open(tmp_path / "p.jsonl", HEADER | {"kind": "predict"}) as ledger:
        ledger.append(prediction)
    assert read_ledger(tmp_path / "p.jsonl")[1] == [prediction]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": -1}, "`index` must be at least 0"),
        ({"index": 1.0}, "`index` must be a whole number"),
        ({"radius": float("nan")}, "not JSON compliant"),
        ({"radius": float("inf")}, "not JSON compliant"),
    ],
)
def test_a_bad_row_is_refused_and_leaves_no_trace(tmp_path, change, message):
    path = write(tmp_path / "run.jsonl", [0])
    before = path.read_bytes()
    with Ledger.open(path, HEADER) as ledger, pytest.raises((TypeError, ValueError), match=message):
        ledger.append(row(1) | change)
    with Ledger.open(path, HEADER) as ledger, pytest.raises(ValueError, match="a row needs `radius`"):
        ledger.append({key: value for key, value in row(1).items() if key != "radius"})
    assert path.read_bytes() == before


# the seed


def test_a_seed_of_none_adopts_the_stored_seed_and_another_is_refused(tmp_path):
    path = write(tmp_path / "run.jsonl", [0])
    with Ledger.open(path, HEADER | {"seed": None}) as ledger:
        assert ledger.header["seed"] == 5
    with pytest.raises(LedgerMismatch, match="`seed` is 5 there, 6 here"):
        Ledger.open(path, HEADER | {"seed": 6})


def test_a_new_ledger_without_a_seed_draws_and_records_one(tmp_path):
    seeds = []
    for name in "ab":
        with Ledger.open(tmp_path / name, HEADER | {"seed": None}) as ledger:
            seeds.append(ledger.header["seed"])
        assert read_ledger(tmp_path / name)[0]["seed"] == seeds[-1]
    assert seeds[0] != seeds[1]
    assert all(isinstance(seed, int) and seed >= 0 for seed in seeds)


# other runs and other files


def test_a_mismatch_names_every_differing_field_with_both_values(tmp_path):
    path = write(tmp_path / "run.jsonl", [0])
    before = path.read_bytes()
    other = HEADER | {
        "noise": {"name": "gaussian", "sigma": 0.5},
        "rule": HEADER["rule"] | {"alpha": 0.01, "looks": [1, 2]},
        "device": {"name": "cuda"},
    }
    with pytest.raises(LedgerMismatch) as refused:
        Ledger.open(path, other)
    message = str(refused.value)
    for part in [
        str(path),
        "`noise.sigma` is 0.25 there, 0.5 here",
        "`rule.alpha` is 0.001 there, 0.01 here",
        "`rule.looks` is null there, [1, 2] here",
        '`device` is "cpu" there, {"name": "cuda"} here',
    ]:
        assert part in message
    assert "noise.name" not in message
    assert "model" not in message
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"idx\tlabel\n0\t1\n", "line 1, is not a ledger"),
        (b"precious notes without a newline", "nothing was changed"),
        (b'{"format": "art-rs-led', None),  # our own header, torn: written again
        (b'{"format": "art-rs-ledger/2", "kind": "certify"}\n', "`format` must be one of 'art-rs-ledger/1'"),
        (b'{"format": "art-rs-ledger/1", "kind": "dance"}\n', "`kind` must be one of"),
        (b'{"some": "json"}\n', "`format` must be one of"),
        (b"[1, 2]\n", "line 1, is not a ledger: not a JSON object"),
        (b"\xff\xfe\n", "line 1, is not a ledger"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"", None),
    ],
)
def test_files_that_are_no_ledger_are_refused_and_kept(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    if message is None:
        with pytest.raises(ValueError, match="holds no whole header line"):
            read_ledger(path)
        write(path, [0])
        assert read_ledger(path)[1] == [row(0)]
        return
    with pytest.raises(ValueError, match=message):
        Ledger.open(path, HEADER)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match=r"ledger|format|kind"):
        read_ledger(path)


def test_a_device_is_no_place_for_a_ledger():
    with pytest.raises(ValueError, match="/dev/null is not a regular file"):
        Ledger.open("/dev/null", HEADER)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b'{"index": 1, "la\x00', "line 3, is corrupt"),
        (b"[]", "line 3, is corrupt: not a JSON object"),
        (b"{}", "line 3: a row needs `index`, `label`"),
        (json.dumps(row(0)).encode(), "line 3: `index` 0 is in the ledger already"),
        (json.dumps(row(1) | {"radius": float("nan")}).encode(), "line 3, is corrupt: NaN is not a finite number"),
    ],
)
def test_a_corrupt_line_in_the_middle_is_an_error_with_its_number(tmp_path, damage, message):
    path = tmp_path / "run.jsonl"  # without checksums, as written by hand: what they find needs no other rule
    lines = [json.dumps(line).encode() for line in [{"format": FORMAT, **HEADER}, row(0), row(1), row(2)]]
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:], b""]))
    before = path.read_bytes()
    for reader in (read_ledger, partial(Ledger.open, header=HEADER)):
        with pytest.raises(ValueError, match=message):
            reader(path)
    assert path.read_bytes() == before


def test_a_header_that_json_cannot_hold_or_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kind` must be one of"):
        Ledger.open(tmp_path / "a", {})
    with pytest.raises(ValueError, match="JSON"):
        Ledger.open(tmp_path / "a", HEADER | {"noise": {"sigma": float("nan")}})
    assert not (tmp_path / "a").exists()


# radii from counts


def ballot(seed, p):
    chance = np.random.default_rng(seed)
    return lambda purpose, votes: chance.multinomial(votes, p)


@pytest.fixture(scope="module")
def certificates():
    """Certificates of a made-up ledger: easy, hard and undecided examples."""
    shares = [(0.95, 0.03, 0.02), (0.2, 0.7, 0.1), (0.45, 0.3, 0.25), (1.0, 0.0, 0.0), (0.4, 0.35, 0.25)]
    radius = partial(cohen, sigma=0.25)
    return [
        certify(ballot(seed, p), radius=radius, n0=100, n=1000, alpha=0.001, index=10 * seed, seed=5)
        for seed, p in enumerate(shares)
    ]


@pytest.fixture(scope="module")
def stored(certificates, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "run.jsonl"
    with Ledger.open(path, HEADER) as ledger:
        for label, certificate in enumerate(certificates):
            ledger.append(row_of(certificate, np.int64(label), 0.25))
    return read_ledger(path)


def test_a_certificate_comes_back_whole(certificates, stored):
    header, rows = stored
    assert [rebound(header, row) for row in rows] == certificates
    assert [(row["label"], row["seconds"]) for row in rows] == [(label, 0.25) for label in range(5)]
    assert any(certificate.prediction == -1 for certificate in certificates)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("bound", [name for name in BOUNDS if name != "randomized"])
@pytest.mark.parametrize("alpha", [0.0001, 0.05])
def test_another_alpha_bound_or_radius_agrees_with_the_core(certificates, stored, alpha, bound, radius):
    header, rows = stored
    for row, certificate in zip(rows, certificates, strict=True):
        again = rebound(header, row, alpha=alpha, bound=bound, radius=radius)
        p_lower, p_upper = BOUNDS[bound](np.array(certificate.counts), certificate.selected, alpha)
        assert (again.p_lower, again.p_upper, again.alpha) == (p_lower, p_upper, alpha)
        assert again.radius == RADII[radius](p_lower, p_upper, sigma=0.25)
        assert again.prediction == (certificate.selected if again.radius > 0 else -1)
        assert (again.index, again.n0, again.n, again.seed) == (certificate.index, 100, 1000, 5)
        assert again == certify_from_counts(
            np.array(certificate.counts),
            certificate.selected,
            radius=partial(RADII[radius], sigma=0.25),
            alpha=alpha,
            bound=bound,
            index=certificate.index,
            n0=100,
            seed=5,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": {"name": "looks"}}, "optional stopping"),
        ({"noise": {"name": "uniform", "sigma": 0.25}}, "must be one of 'gaussian', 'rounded-gaussian', got 'uniform'"),
        ({"kind": "predict"}, "not one of kind 'predict'"),
    ],
)
def test_votes_that_cannot_be_bounded_anew_are_refused_with_the_reason(stored, change, message):
    header, rows = stored
    with pytest.raises(ValueError, match=message):
        rebound(header | change, rows[0])


def test_unknown_names_and_counts_that_do_not_add_up_are_refused(stored):
    header, rows = stored
    with pytest.raises(ValueError, match="`radius` must be one of 'cohen'"):
        rebound(header, rows[0], radius="best")
    with pytest.raises(ValueError, match="`bound` must be one of"):
        rebound(header, rows[0], bound="best")
    with pytest.raises(ValueError, match="add up to 1000, but `n` is 1001"):
        rebound(header, rows[0] | {"n": 1001})
