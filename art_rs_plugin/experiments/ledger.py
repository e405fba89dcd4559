"""The ledger: what a run certified, one JSON line per example, written as it goes and continued after a crash.

The first line is a header that says what was run: model, noise, seed, data, rule, versions, precision, device. A line
counts once its newline is on the file; whatever follows the last whole line is dropped and done again. Each line ends
with a checksum of the rest of it, `crc` (CRC-32, which finds every flipped bit); a ledger whose header has none, made
elsewhere or by hand, needs none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from art_rs_plugin.core import checks
from art_rs_plugin.experiments.rows import VOTE_KEYS, Row, rebound, row_of

__all__ = ["FORMAT", "ROW_KEYS", "VOTE_KEYS", "Ledger", "LedgerMismatch", "Row", "read_ledger", "rebound", "row_of"]

FORMAT = "art-rs-ledger/1"
_ALWAYS = ("index", "label", "prediction", "alpha", "seconds")
# What each kind of ledger holds of every example at least. A certificate from votes adds `VOTE_KEYS` and what its
# sampling rule needs (see `rows`); other certifiers have none. `seconds` is the time since the row before, which came
# along with this one where inputs are certified side by side: the sum is the run's.
ROW_KEYS = {
    "certify": (*_ALWAYS, "radius"),
    "predict": (*_ALWAYS, "counts", "n"),
    "distance": ("index", "label", "seconds", "distance"),
    "attack": (*_ALWAYS, "counts", "n", "leaves", "clean", "eps", "l2", "linf"),
}
_CHECKSUM = re.compile(rb', "crc": "([0-9a-f]{8})"\}\n\Z')
_JOINED = re.compile(rb', "crc": "[0-9a-f]{8}"\}[^\n]{2}')  # its newline is lost
_START = json.dumps({"format": FORMAT})[:-1].encode()  # every header begins so


class LedgerMismatch(ValueError):
    """The ledger on disk belongs to another run: its header differs from the one given."""


class Ledger:
    """A ledger open for writing; a context manager. Made by `Ledger.open`.

    :ivar header: The header on disk, its seed always a number.
    :ivar done: Indices of the examples that are on disk.
    :ivar sealed: Whether its lines have checksums; those of a ledger that was begun without go on without.
    """

    def __init__(self, path: Path, header: Row, done: set[int], file: BinaryIO, *, sealed: bool = True) -> None:
        self.path = path
        self.header = header
        self.done = done
        self._file = file
        self.sealed = sealed

    @classmethod
    def open(cls, path: str | os.PathLike[str], header: Mapping[str, Any]) -> Ledger:
        """Create the ledger `path` (and its folders), or continue it: a torn last line is cut off and done again.

        :param header: Plain JSON values, with a `kind` of `ROW_KEYS`. A `seed` of None adopts the seed on disk,
            or draws a fresh one from the operating system for a new ledger.
        :raises LedgerMismatch: if the header on disk differs, naming every field that does.
        :raises ValueError: if the file is no ledger, or a line before the last is corrupt.
        :raises BlockingIOError: if another run is writing it.
        """
        path = Path(path)
        checks.one_of("kind", header.get("kind"), ROW_KEYS)
        checks.one_of("format", header.get("format", FORMAT), (FORMAT,))
        given: Row = json.loads(json.dumps({"format": FORMAT, **header}, allow_nan=False))
        path.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered and in append mode: a line is one write at the end of the file, whatever was cut off before
        file = open(path, "ab+", buffering=0)  # noqa: SIM115
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a regular file: a ledger needs one to continue from")
            lock(file, path)
            stored, done, end = _survey(path)
            sealed = stored is None or _is_sealed(path)
            if stored is None:
                from art_rs_plugin.noise import fresh_seed  # not at the top: readers of ledgers do without torch

                stored = given if given.get("seed") is not None else {**given, "seed": fresh_seed()}
                file.truncate(0)
                _write_line(file, path, stored, kept="nothing is written yet")
            else:
                compare(path, stored, given)
                file.truncate(end)
        except BaseException:
            file.close()
            raise
        return cls(path, stored, done, file, sealed=sealed)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one example: one line, handed to the operating system before this returns.

        :param row: Plain JSON values, with at least the keys of this kind of ledger (`ROW_KEYS`).
        :raises ValueError: if a key is missing, a number is not finite, or the index is in the ledger already.
        :raises OSError: if the line cannot be written, as on a full disk; what was written before stays whole.
        """
        index = _index_of(row, self.header["kind"], self.done)
        _write_line(self._file, self.path, row, kept=f"{len(self.done)} examples are kept", sealed=self.sealed)
        self.done.add(index)

    def close(self) -> None:
        """Let go of the file and its lock."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(path: str | os.PathLike[str]) -> tuple[Row, list[Row]]:
    """Header and rows of a ledger, also of one that is being written: a torn last line is left out.

    :raises ValueError: if the file is no ledger or a line before the last is corrupt, with its number.
    """
    found = [value for _, value in lines(Path(path))]
    if not found:
        raise ValueError(f"{path} is not a ledger: it holds no whole header line")
    return found[0], found[1:]


def lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file for this process; BlockingIOError, naming `path`, if another one has it."""
    try:
        import fcntl
    except ImportError:
        return  # a platform without locks of this kind: two writers are the user's care there
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = "another run is writing this ledger: wait for it, or write elsewhere"
        raise BlockingIOError(errno.EWOULDBLOCK, problem, str(path)) from None
    except OSError:
        pass  # a file system without locks


def _survey(path: Path) -> tuple[Row | None, set[int], int]:
    """Header (None: yet to be written), indices and end of the whole lines of a ledger."""
    header: Row | None = None
    done, end = set[int](), 0
    for offset, value in lines(path):
        end = offset
        if header is None:
            header = value
        else:
            done.add(value["index"])
    if header is None:
        with open(path, "rb") as file:
            begun = file.read(len(_START))
        if not _START.startswith(begun):  # not our own torn header: somebody else's file
            raise ValueError(f"{path} is not a ledger: its first line is not a header; nothing was changed")
    return header, done, end


def lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Each whole line of a ledger, header first, with the offset of its end; stops before a torn last line."""
    kind, seen, end, sealed = "", set[int](), 0, False
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            joined = _JOINED.search(line) is not None
            if not line.endswith(b"\n") and not joined:
                return
            try:
                body = _unsealed(line, None if number == 1 else sealed)
                sealed, value = body != line, _parse(body)
            except ValueError as error:
                if number > 1 and not joined and (sealed or not _CHECKSUM.search(line)) and not file.read(1):
                    return  # torn, as a line with a checksum is not whose header has lost its own
                problem = "is not a ledger" if number == 1 else "is corrupt"
                raise ValueError(f"{path}, line {number}, {problem}: {error}") from None
            try:
                if number == 1:
                    checks.one_of("format", value.get("format"), (FORMAT,))
                    kind = str(checks.one_of("kind", value.get("kind"), tuple(ROW_KEYS)))
                else:
                    seen.add(_index_of(value, kind, seen))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            end += len(line)
            yield end, value


def _is_sealed(path: Path) -> bool:
    with open(path, "rb") as file:
        return _CHECKSUM.search(file.readline()) is not None


def _unsealed(line: bytes, sealed: bool | None) -> bytes:
    """The line without its checksum, if it has the right one.

    :param sealed: Whether it must have one; None if not known.
    """
    found = _CHECKSUM.search(line)
    if found is None:
        if sealed:
            raise ValueError("its checksum is missing: the line was damaged or altered")
        return line
    body = line[: found.start()] + b"}"
    if sealed is False:
        raise ValueError("it has a checksum where the header has none: the header was damaged or altered")
    if int(found[1], 16) != zlib.crc32(body):
        raise ValueError(f"its checksum must be {zlib.crc32(body):08x}, got {found[1].decode()}: damaged or altered")
    return body


def _parse(line: bytes) -> Row:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a finite number")

    try:
        value = json.loads(line.decode(), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _index_of(row: Mapping[str, Any], kind: str, taken: set[int]) -> int:
    missing = [key for key in ROW_KEYS[kind] if key not in row]
    if missing:
        raise ValueError(f"a row needs {', '.join(f'`{key}`' for key in missing)}")
    index = checks.whole("index", row["index"], minimum=0)
    if index in taken:
        raise ValueError(f"`index` {index} is in the ledger already")
    return index


def _write_line(file: BinaryIO, path: Path, value: Mapping[str, Any], *, kept: str, sealed: bool = True) -> None:
    body = json.dumps(value, allow_nan=False).encode()
    line = memoryview(body[:-1] + b', "crc": "%08x"}\n' % zlib.crc32(body) if sealed else body + b"\n")
    end = os.fstat(file.fileno()).st_size
    try:
        while line:  # once around, unless the disk takes only a part
            line = line[file.write(line) :]
    except BaseException as error:
        with contextlib.suppress(OSError):  # if even this fails, the torn line is dropped on the next start
            file.truncate(end)
        if isinstance(error, OSError):
            problem = f"{error.strerror or error}; {kept}. Make room, then run the same command to go on"
            raise OSError(error.errno, problem, str(path)) from error
        raise


def compare(path: Path, stored: Row, given: Row) -> None:
    """LedgerMismatch, naming every field, if the header `stored` in a ledger is not the one `given`."""
    if given.get("seed") is None:
        given = {**given, "seed": stored.get("seed")}
    differences = [
        f"`{name}` is {json.dumps(there)} there, {json.dumps(here)} here"
        for name, there, here in checks.differences(stored, given)
    ]
    if differences:
        raise LedgerMismatch(
            f"{path} is the ledger of another run: {'; '.join(differences)}. "
            "Run with the same settings to continue it, or write elsewhere"
        )
