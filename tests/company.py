"""Ranks of one run, for tests: processes started as torchrun starts them, with or without torchrun itself."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from art_rs_plugin.ranks import RankError, Ranks

SECONDS = 600  # after which a test gives up


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, size, port):
    return {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def start(commands):
    """A process for each rank, which runs its command (arguments for Python); rank 0 serves the store."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)], env=environment(rank, len(commands), port),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip


def finished(processes):
    """(return code, what it printed) of each."""
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def together(*command, size):
    """Run the same command (arguments for Python) by so many ranks, all of which must succeed; what each printed."""
    results = finished(start([command] * size))
    assert [code for code, _ in results] == [0] * size, results
    return [text for _, text in results]


def torchrun(*arguments, size, options=()):
    """Run `art-rs` with these arguments under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *options]
    # `--`: older Pythons let torchrun take --n and --max for abbreviations of its own options
    command = [*launcher, "-m", "--", "art_rs_plugin", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=SECONDS
    )


class _Together:
    """Signs of life among threads: a rank that failed is gone for all."""

    def __init__(self):
        self.failed = None

    def listen(self):
        if self.failed is not None and time.monotonic() > self.failed + 0.5:
            raise RankError("a rank is gone")


def in_threads(size, work):
    """What `work(ranks)` returns or raises for each of so many ranks, which are threads of this process."""
    from torch.distributed import HashStore

    store, life = HashStore(), _Together()

    def one(rank):
        try:
            return work(Ranks(rank, size, store, life))
        except Exception as error:
            life.failed = time.monotonic()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
