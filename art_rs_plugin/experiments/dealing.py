"""One ledger by many ranks: examples dealt in small pieces, a part of the ledger a rank, merged in index order.

A row is a function of (seed, example), so that it does not matter which rank makes it: the merged ledger is that of one
process. Parts are ledgers of the same header in a folder beside `out`, which must be the same folder for all ranks.
Whatever ranks there were before, all parts that are there count, and no row of theirs is made again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from art_rs_plugin.experiments import ledger as ledgers
from art_rs_plugin.experiments.ledger import Ledger, Row
from art_rs_plugin.ranks import RankError, Ranks
from art_rs_plugin.votes import NotFiniteError

_SECONDS_PER_NEWS = 0.5  # between two times that a rank tells the others how many rows it has made
_SHARE = 4  # a piece is one part in so many of what a rank would still get if all ranks got as much
_SECONDS_TO_SEE = 30.0  # what a shared file system may take to show a new file

Progress = Callable[[Row, int, int], object]
Help = Callable[[Callable[[], object]], None]


def folder_of(out: Path) -> Path:
    """Where the parts of the ledger `out` lie until they are merged."""
    return out.with_name(out.name + ".parts")


def pieces(count: int, ranks: int, most: int) -> Iterator[slice]:
    """`count` examples in the pieces that they are dealt in: large ones, which ranks are fastest at, then smaller ones.

    At the end single ones, so that a hard one keeps the others waiting for no longer than it takes.
    """
    start = 0
    while start < count:
        size = max(1, min(most, (count - start) // (_SHARE * ranks)))
        yield slice(start, start + size)
        start += size


def fill(
    ranks: Ranks,
    out: Path,
    header: Mapping[str, Any],
    wanted: list[int],
    about: Mapping[str, Any],
    make: Callable[[int, list[int]], Iterator[Row]],
    *,
    at_once: int,
    helping: Callable[[Ranks, int], AbstractContextManager[Help]] | None = None,
    on_row: Progress | None = None,
) -> None:
    """Fill the ledger `out` with the rows of the examples `wanted` that are neither in it nor in one of its parts.

    :param about: What else all ranks must agree on, beside the header.
    :param make: (seed, indices) -> their rows, in order.
    :param at_once: Most indices that `make` is given.
    :param helping: (ranks, seed) -> a context in which rows are made, whose value is called, with what to do meanwhile,
        when there are no more examples to deal: it may help others, and returns when all ranks have called it.
    :param on_row: Called on rank 0 with each of its rows, and with {} as others' are known to be in their parts.
    :raises RankError: The ranks do not agree, one is missing, or `out` is not in one folder for all of them.
    :raises LedgerMismatch: `out` or one of its parts is the ledger of another run.
    :raises NotFiniteError: On every rank: f's logits for some examples are not finite; all others are in the ledger.
    """
    ranks = ranks.scope()
    ranks.agree({**header, **about})
    with _Whole(out, header) as whole:
        begun = ranks.share("begun", lambda: whole.open(wanted))
        _see(folder_of(out) / begun["token"], ranks)
        missing, seed = begun["missing"], begun["seed"]
        news = _News(ranks, len(wanted) - len(missing), len(wanted), on_row if ranks.first else None)
        dealt = list(pieces(len(missing), ranks.size, at_once))
        part = Ledger.open(folder_of(out) / f"rank-{ranks.rank}.jsonl", {**header, "seed": seed})
        spoilt: list[tuple[int, int, int]] = []
        with part, (helping or _waiting)(ranks, seed) as until_all_are_done:
            while (turn := ranks.count("dealt", 1) - 1) < len(dealt):
                try:
                    for row in make(seed, missing[dealt[turn]]):
                        part.append(row)
                        news.add(row)
                except NotFiniteError as error:
                    spoilt += error.examples
            news.tell()
            until_all_are_done(news.hear)
        news.hear(at_once=True)
        if ranks.size > 1:
            ranks.put(f"spoilt/{ranks.rank}", spoilt)

        def merged() -> list[tuple[int, int, int]]:
            told = [ranks.take(f"spoilt/{rank}") for rank in range(ranks.size)] if ranks.size > 1 else [spoilt]
            all_of_them = sorted(tuple(example) for some in told for example in some)
            without = {index for index, *_ in all_of_them}
            whole.merge([index for index in wanted if index not in without])
            return all_of_them

        if left_out := ranks.share("merged", merged):
            raise NotFiniteError([tuple(example) for example in left_out])


@contextmanager
def _waiting(ranks: Ranks, seed: int) -> Iterator[Help]:
    """Ranks that do not help each other."""

    def wait(meanwhile: Callable[[], object]) -> None:
        if ranks.count("finished", 1) == ranks.size > 1:
            ranks.put("over", True)
        if ranks.size > 1:
            ranks.take("over", meanwhile)

    yield wait


class _Whole:
    """The ledger that parts are merged into: rank 0 opens it, which locks it. A context manager that lets go of it."""

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        self.out, self.header = out, header
        self._ledger: Ledger | None = None
        self._token = f".token-{secrets.token_hex(8)}"

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def open(self, wanted: list[int]) -> dict[str, Any]:
        """The run's seed, what of `wanted` is missing, and a token that lies in the folder of the parts."""
        self._ledger = Ledger.open(self.out, self.header)
        if not self._ledger.sealed:
            raise ValueError(
                f"{self.out} must have checksums, which its parts have, got one without: go on with one process"
            )
        folder = folder_of(self.out)
        folder.mkdir(exist_ok=True)
        for former in folder.glob(".token-*"):
            former.unlink()
        (folder / self._token).touch()
        done = set(self._ledger.done)
        for part in _parts(folder):
            done |= set(_where(part, self._ledger.header))
        missing = [index for index in wanted if index not in done]
        return {"seed": self._ledger.header["seed"], "missing": missing, "token": self._token}

    def merge(self, wanted: list[int]) -> None:
        """Put ledger and parts together in index order, in the place of the ledger, and remove the parts."""
        assert self._ledger is not None, "opened before"
        folder = folder_of(self.out)
        where: dict[int, tuple[Path, int, int]] = {}
        for source in [*_parts(folder), self.out]:  # the ledger last: of what is in both, its line stays
            found = _where(source, self._ledger.header)
            where |= {index: (source, *span) for index, span in found.items()}
        if lost := [index for index in wanted if index not in where]:
            raise RankError(
                f"{len(lost)} of {len(wanted)} examples are in no part of {self.out}, the first of them {lost[0]}: "
                "what is there is kept; run the same command again for them"
            )
        if all(source == self.out for source, *_ in where.values()):
            shutil.rmtree(folder)
            return
        with ExitStack() as opened:
            file = opened.enter_context(open(folder / "merged.partial", "wb"))
            ledgers.lock(file, self.out)  # so that nobody opens it while parts are still beside it
            sources = {source: opened.enter_context(open(source, "rb")) for source in [self.out, *_parts(folder)]}
            file.write(sources[self.out].readline())
            for _, (source, start, end) in sorted(where.items()):
                sources[source].seek(start)
                file.write(sources[source].read(end - start))
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, self.out)
            shutil.rmtree(folder)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*.jsonl"))


def _where(path: Path, header: Row) -> dict[int, tuple[int, int]]:
    """Where the rows of a part lie: index -> offsets of its line. A torn last line counts for nothing."""
    found: dict[int, tuple[int, int]] = {}
    begin = 0
    for end, value in ledgers.lines(path):
        if begin == 0:
            ledgers.compare(path, value, header)
        else:
            found[value["index"]] = begin, end
        begin = end
    return found


def _see(token: Path, ranks: Ranks) -> None:
    """RankError where rank 0's file in the folder of the parts does not show up for this rank."""
    until = time.monotonic() + _SECONDS_TO_SEE
    while not token.exists():
        if time.monotonic() > until:
            raise RankError(
                f"rank {ranks.rank} must write into the folder that rank 0 does, and does not: {token.parent}"
            )
        time.sleep(0.05)


class _News:
    """How many rows there are in all parts: told by each rank now and then, and heard by rank 0."""

    def __init__(self, ranks: Ranks, done: int, total: int, on_row: Progress | None) -> None:
        self._ranks, self._before, self._total, self._on_row = ranks, done, total, on_row
        self._mine = self._others = 0
        self._untold, self._told = 0, time.monotonic()
        self._said = self._done

    def add(self, row: Row) -> None:
        """One row more."""
        self._mine, self._untold = self._mine + 1, self._untold + 1
        if time.monotonic() - self._told > _SECONDS_PER_NEWS:
            self.tell()
        self._say(row)

    def tell(self) -> None:
        """Tell the others, and hear how many there are."""
        self._others = self._ranks.count("rows", self._untold) - self._mine
        self._untold, self._told = 0, time.monotonic()

    def hear(self, at_once: bool = False) -> None:
        """Hear, while there is nothing to tell."""
        if self._on_row is not None and (at_once or time.monotonic() - self._told > _SECONDS_PER_NEWS):
            self.tell()
            if self._done != self._said:
                self._say({})

    def _say(self, row: Row) -> None:
        self._said = self._done
        if self._on_row is not None:
            self._on_row(row, self._said, self._total)

    @property
    def _done(self) -> int:
        return self._before + self._mine + self._others
