"""The ledger under faults: cut at any byte, killed, on a full disk, written twice at once."""

import json
import os
import random
import resource
import subprocess
import sys
import textwrap

import pytest

from art_rs_plugin.experiments.ledger import FORMAT, Ledger, read_ledger

HEADER = {"kind": "predict", "noise": {"name": "gaussian", "sigma": 0.25}, "seed": 5, "versions": {"torch": "2"}}


def row(index):
    chances = {"index": index, "label": 1, "prediction": -1, "counts": [index, 1000 - index]}
    return {**chances, "n": 1000, "alpha": 0.001, "seconds": 1 / (index + 3)}


def write(path, indices):
    with Ledger.open(path, HEADER) as ledger:
        for index in indices:
            ledger.append(row(index))
    return path


def test_cut_at_any_byte_every_whole_line_is_kept_and_the_rest_redone(tmp_path):
    path = write(tmp_path / "run.jsonl", range(3))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        if lines:
            assert read_ledger(path)[1] == [row(index) for index in range(lines - 1)]
        with Ledger.open(path, HEADER) as ledger:
            assert ledger.done == set(range(lines - 1))
            for index in set(range(3)) - ledger.done:
                ledger.append(row(index))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\x00" * 40 + b"\n", b"\n", b'{"index": 3,\n', b"\xff", b'{"index": 3}'])
def test_a_last_line_that_is_no_json_or_has_no_newline_is_dropped(tmp_path, tail):
    path = write(tmp_path / "run.jsonl", range(3))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(read_ledger(path)[1]) == 3
    Ledger.open(path, HEADER).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("indices", [range(3), [0]])
def test_no_flipped_bit_goes_unnoticed(tmp_path, indices):
    path = write(tmp_path / "run.jsonl", indices)
    whole = path.read_bytes()
    header, rows = read_ledger(path)
    last = whole[:-1].rindex(b"\n") + 1  # where the last line starts
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            if place < last:
                with pytest.raises(ValueError, match=r"run\.jsonl, line|is not a ledger"):
                    read_ledger(path)
            elif b"\n" in flipped[last:-1]:  # a newline came to be
                with pytest.raises(ValueError, match=r"run\.jsonl, line"):
                    read_ledger(path)
            else:  # taken for a line that was torn, and done again
                assert read_ledger(path) == (header, rows[:-1])


def test_a_damaged_line_is_named_with_both_checksums_and_nothing_is_written(tmp_path):
    path = write(tmp_path / "run.jsonl", range(3))
    path.write_bytes(path.read_bytes().replace(b'"counts": [1, 999]', b'"counts": [9, 991]'))
    before = path.read_bytes()
    for use in (read_ledger, lambda path: Ledger.open(path, HEADER)):
        with pytest.raises(ValueError, match=r"line 3, is corrupt: its checksum must be [0-9a-f]{8}, got [0-9a-f]{8}"):
            use(path)
    lines = before.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].rpartition(b', "crc"')[0] + b"}\n" + lines[3])
    with pytest.raises(ValueError, match="line 2, is corrupt: its checksum is missing"):
        read_ledger(path)
    path.write_bytes(lines[0].rpartition(b', "crc"')[0] + b"}\n" + lines[1] + lines[3])
    with pytest.raises(ValueError, match="line 2, is corrupt: it has a checksum where the header has none"):
        read_ledger(path)


def test_a_ledger_without_checksums_is_read_and_continued_without(tmp_path):
    path = tmp_path / "run.jsonl"
    lines = [{"format": FORMAT, **HEADER}, row(0)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(path, [1])
    assert read_ledger(path)[1] == [row(0), row(1)]
    assert b"crc" not in path.read_bytes()


KILLER = """
    import json, os, random, signal, sys, time
    from art_rs_plugin.experiments.ledger import Ledger

    path, header, row, kills, examples = json.loads(sys.argv[1])
    opened, tell = os.pipe()

    def child():
        pid = os.fork()
        if not pid:
            with Ledger.open(path, header) as ledger:
                os.write(tell, b".")
                for index in sorted(set(range(examples)) - ledger.done):
                    ledger.append({**row, "index": index})
            os._exit(0)
        return pid

    chance, killed = random.Random(0), 0
    for kill in range(kills):
        pid = child()
        if kill % 4:  # each fourth dies while it opens the ledger, the others while they append
            os.read(opened, 1)
        time.sleep(chance.uniform(0, 0.005))
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    between = os.path.getsize(path)
    assert os.waitpid(child(), 0)[1] == 0
    assert 0 < between < os.path.getsize(path)  # no child came to the end
    print(killed)
"""


def test_killed_at_random_moments_it_ends_as_the_uninterrupted_ledger(tmp_path):
    # one fork a round, from a process of one thread: twenty starts of Python would cost half a minute
    kills, examples, big = 20, 10_000, row(1) | {"counts": [0] * 100}
    task = json.dumps([str(tmp_path / "killed.jsonl"), HEADER, big, kills, examples])
    command = [sys.executable, "-c", textwrap.dedent(KILLER), task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == kills
    with Ledger.open(tmp_path / "whole.jsonl", HEADER) as ledger:
        for index in range(examples):
            ledger.append(big | {"index": index})
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_keeps_every_whole_line_and_says_how_to_go_on(tmp_path, file_limit, room):
    path = write(tmp_path / "run.jsonl", range(3))
    before = path.read_bytes()
    with Ledger.open(path, HEADER) as ledger:
        file_limit(len(before) + room)
        with pytest.raises(OSError, match=r"3 examples are kept\. Make room, .* to go on") as full:
            ledger.append(row(3))
        assert full.value.filename == str(path)
        assert path.read_bytes() == before  # not even a part of the line
        assert ledger.done == {0, 1, 2}
        file_limit(resource.RLIM_INFINITY)
        ledger.append(row(3))
    assert read_ledger(path)[1] == [row(index) for index in range(4)]


def test_a_disk_too_full_for_the_header_leaves_a_file_that_can_be_started_again(tmp_path, file_limit):
    file_limit(10)
    with pytest.raises(OSError, match="nothing is written yet"):
        Ledger.open(tmp_path / "run.jsonl", HEADER)
    file_limit(resource.RLIM_INFINITY)
    assert read_ledger(write(tmp_path / "run.jsonl", [0]))[1] == [row(0)]


# two writers


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / "run.jsonl"
    code = (
        "import json, sys\nfrom art_rs_plugin.experiments.ledger import Ledger\n"
        "ledger = Ledger.open(sys.argv[1], json.loads(sys.argv[2]))\nprint('open', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path), json.dumps(HEADER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "open\n"
            with pytest.raises(BlockingIOError, match="another run is writing this ledger"):
                Ledger.open(path, HEADER)
        finally:
            first.kill()
    write(path, [0])  # a killed process holds no lock
    assert read_ledger(path)[1] == [row(0)]


def test_random_appends_and_cuts_never_lose_a_whole_line(tmp_path):
    chance, path, written = random.Random(1), tmp_path / "run.jsonl", []
    for _ in range(60):
        with Ledger.open(path, HEADER) as ledger:
            assert ledger.done == set(written)
            for _ in range(chance.randrange(4)):
                written.append(len(written))
                ledger.append(row(written[-1]))
        size = path.stat().st_size
        cut = chance.randrange(min(120, size))
        kept = path.read_bytes()[: size - cut].count(b"\n") - 1
        os.truncate(path, size - cut)
        written = written[: max(kept, 0)]
