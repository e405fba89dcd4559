"""The processes that torchrun starts for one run: which of them this is, what they must agree on, what they tell.

Everything goes through the store of torchrun's rendezvous, a table of keys that every process reaches, so that no port
is opened beside it. Only training, which averages gradients at every step, needs more (`Ranks.process_group`). A
process that nobody started so is one rank, `ALONE`, and asks no store.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from art_rs_plugin.core import checks

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = 300.0  # seconds after which a rank that has not come, or is no longer heard of, is missing
_LONGEST_STEP = timedelta(minutes=30)  # that others wait for a rank while they train: rank 0 validates meanwhile
_MOST_NAMED = 8
_FAREWELL = 10.0  # seconds that the rank which serves the store stays for the others


class RankError(RuntimeError):
    """Ranks do not agree, or one of them is missing: nothing can go on, and what is on disk stays."""


def started() -> tuple[int, int]:
    """(rank, number of ranks) by torchrun's environment variables, (0, 1) without; torch is not needed to tell.

    :raises ValueError: RANK and WORLD_SIZE are set, but not to what they must be, or the others are missing.
    """
    if not all(os.environ.get(name) for name in VARIABLES[:2]):
        return 0, 1
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        raise ValueError(f"{' and '.join(missing)} must be set where RANK and WORLD_SIZE are, as torchrun does")
    try:
        rank, size, _ = (int(os.environ[name]) for name in (*VARIABLES[:2], VARIABLES[3]))
    except ValueError:
        said = ", ".join(f"{name}={os.environ[name]!r}" for name in VARIABLES)
        raise ValueError(f"RANK, WORLD_SIZE and MASTER_PORT must be whole numbers, got {said}") from None
    if not 0 <= rank < size:
        raise ValueError(f"RANK must be at least 0 and below WORLD_SIZE, got {rank} of {size}")
    return rank, size


class Ranks:
    """The ranks of one run, as one of them sees them; made by `joined`, or `ALONE`.

    All ranks make the same calls of `agree`, `share` and `scope`, in the same order.

    :ivar rank: Which this is, from 0 on. :ivar size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, life: _Life | None = None) -> None:
        self.rank, self.size, self._store, self._life = rank, size, store, life
        self._scopes, self._own = 0, Counter[str]()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def scope(self) -> Ranks:
        """The same ranks with keys of their own, for the next piece of work that they do together."""
        if self.size == 1:
            return Ranks()
        self._scopes += 1
        return Ranks(self.rank, self.size, _distributed().PrefixStore(f"{self._scopes}", self._store), self._life)

    def agree(self, about: Mapping[str, Any]) -> None:
        """Come to an end, on every rank, if they do not all say the same.

        :param about: Plain JSON values, dicts within dicts; a difference is named by its path in them.
        :raises RankError: naming each rank that differs from rank 0, and in what.
        """
        if self.size == 1:
            return
        mine = json.loads(json.dumps(about))
        self.put(f"says/{self.rank}", {"host": socket.gethostname(), "about": mine})

        def verdict() -> list[str]:
            found = []
            for rank in range(1, self.size):
                theirs = self.take(f"says/{rank}")
                for name, here, there in checks.differences(mine, theirs["about"]):
                    values = f"{json.dumps(here)} on rank 0, {json.dumps(there)} on rank {rank} ({theirs['host']})"
                    found.append(f"`{name}` is {values}")
            return found

        if found := self.share("verdict", verdict):
            more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            raise RankError(f"all ranks must be of one run, and they differ: {'; '.join(found[:_MOST_NAMED])}{more}")

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make`, called on rank 0 alone, returns, on every rank: plain JSON values.

        :raises RankError: `make` raised an error on rank 0, where it is raised as it is.
        """
        if self.size == 1:
            return make()
        if not self.first:
            told = self.take(name)
            if "error" in told:
                raise RankError(f"rank 0 could not go on: {told['error']}")
            return told["value"]
        try:
            value = make()
        except Exception as error:
            self.put(name, {"error": str(error)})
            raise
        self.put(name, {"value": value})
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep a plain JSON value for whoever takes it."""
        with _reached():
            self._store.set(key, json.dumps(value))

    def take(self, key: str, meanwhile: Callable[[], object] | None = None, nap: float = 0.25) -> Any:
        """The value that some rank puts there, waited for as long as all ranks are heard of.

        :param meanwhile: Called while it is not there. :param nap: Seconds between two looks, at most.
        :raises RankError: A rank is missing.
        """
        pause = 0.001
        with _reached():
            while not self._store.check([key]):
                time.sleep(pause)
                pause = min(nap, 1.5 * pause)
                if self._life is not None:
                    self._life.listen()
                if meanwhile is not None:
                    meanwhile()
            return json.loads(self._store.get(key))

    def count(self, name: str, by: int = 0) -> int:
        """A number that all ranks share, 0 at first, after adding to it."""
        if self.size == 1:
            self._own[name] += by
            return self._own[name]
        with _reached():
            return int(self._store.add(name, by))

    @contextmanager
    def process_group(self, device: Any) -> Iterator[None]:
        """Torch's process group, for collectives on this `torch.device`: NCCL or gloo, which open connections."""
        if self.size == 1:
            yield
            return
        dist = _distributed()
        with _reached():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("process group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=_LONGEST_STEP,
            )
        try:
            yield
        finally:
            dist.destroy_process_group()


ALONE = Ranks()  # the one rank of a run that is one process


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """The ranks that torchrun started, once all have come; `ALONE` where it started none.

    :param timeout: Seconds after which a rank that has not come, or is no longer heard of, is missing.
    :raises RankError: A rank is missing, and which, or there is no store to ask.
    :raises ValueError: Half of what torchrun sets in the environment.
    """
    rank, size = started()
    if size == 1:
        yield ALONE
        return
    dist = _distributed()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent serves the store; where something else has set the variables, rank 0 does
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    prefix = f"art-rs/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with _reached():
        if not serves:
            _knock(host, port, timeout)
        # a second connection for signs of life: the first one is taken while a call on it lasts
        connect = partial(dist.TCPStore, host, port, timeout=timedelta(seconds=timeout), wait_for_workers=False)
        stores = [connect(is_master=master, multi_tenant=True) for master in (serves, False)]
        store, other = (dist.PrefixStore(prefix, each) for each in stores)
        _gather(store, rank, size, timeout)
    life = _Life(other, rank, size, timeout)
    ranks = Ranks(rank, size, dist.PrefixStore("run", store), life)
    try:
        yield ranks
    finally:
        life.stop()
        with suppress(RuntimeError):
            left, until = int(store.add("left", 1)), time.monotonic() + _FAREWELL
            while serves and left < size and time.monotonic() < until:  # with this process the store goes
                time.sleep(0.01)
                left = int(store.add("left", 0))


def _knock(host: str, port: int, timeout: float) -> None:
    """Wait until somebody listens there: torch's own client says what it misses in pages."""
    until = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout=5.0).close()
        except OSError as error:
            if time.monotonic() > until:
                why = f"as MASTER_ADDR and MASTER_PORT say: {error}"
                raise RankError(f"no answer from {host}:{port} in {timeout:g} s, {why}") from None
        time.sleep(0.2)


def _gather(store: Any, rank: int, size: int, timeout: float) -> None:
    """Wait for all ranks to come.

    :raises RankError: naming those that have not, or one that has come twice: a store with the keys of a former run.
    """
    if store.add(f"came/{rank}", 1) != 1:
        raise RankError(f"rank {rank} has come before: another process has its RANK, or the store is a former run's")
    until, missing = time.monotonic() + timeout, list(range(size))
    while missing := [other for other in missing if not store.check([f"came/{other}"])]:
        if time.monotonic() > until:
            named = ", ".join(map(str, missing[:_MOST_NAMED])) + ", ..." * (len(missing) > _MOST_NAMED)
            raise RankError(f"rank {named} of {size} has not come in {timeout:g} s: was it started?")
        time.sleep(0.02)


class _Life:
    """Signs of life: each rank gives its own, rank 0 listens to all, and the others to rank 0."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self._store, self._rank, self._timeout = store, rank, timeout
        self._others = [other for other in (range(size) if rank == 0 else [0]) if other != rank]
        now = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = dict.fromkeys(self._others, (0, now))
        self._looked, self._every = now, min(5.0, timeout / 10)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="art-rs-life", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give none any more."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # a store that is gone is noticed by whoever needs it
            while not self._stopped.wait(self._every):
                self._store.add(f"life/{self._rank}", 1)

    def listen(self) -> None:
        """RankError for a rank that has given no sign of life for `timeout`."""
        now = time.monotonic()
        if now - self._looked < self._every:
            return
        self._looked = now
        silent = []
        for other in self._others:
            sign = int(self._store.add(f"life/{other}", 0))
            if sign != self._heard[other][0]:
                self._heard[other] = sign, now
            if now - self._heard[other][1] > self._timeout:
                silent.append(str(other))
        if silent:
            gone = "its process or machine is gone; what is finished is on disk"
            raise RankError(f"rank {', '.join(silent)} has not been heard of for {self._timeout:g} s: {gone}")


def _distributed() -> Any:
    """`torch.distributed`, whose types leave out what it exports; not at the top, for who is alone needs none."""
    import torch.distributed

    return torch.distributed


@contextmanager
def _reached() -> Iterator[None]:
    """RankError where the store does not answer."""
    try:
        yield
    except _distributed().DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        said = str(error).strip().partition("\n")[0]
        raise RankError(f"the ranks' store at {where} does not answer; has rank 0 ended? ({said})") from error
