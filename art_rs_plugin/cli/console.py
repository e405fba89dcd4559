"""What commands print: tables, progress, and errors that a user can mend."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


def say(text: str) -> None:
    """A line on standard output."""
    typer.echo(text)


def print_table(paths: list[Path], radii: list[float]) -> None:
    """Certified accuracy of ledgers at the radii."""
    from art_rs_plugin.experiments.curve import curve_table, to_markdown
    from art_rs_plugin.experiments.logs import read_logs

    say(to_markdown(curve_table(read_logs(paths), radii)).rstrip())


def print_votes(path: Path, n: int) -> None:
    """What a ledger whose votes decided how many to draw spent, against `n` votes for every bound."""
    from art_rs_plugin.experiments.logs import read_log, round_down

    log = read_log(path)
    mean, fixed = float(log["votes"].mean()), float(log["n0"].mean() + n)
    say(
        f"{mean:.0f} votes an image on average, {round_down(fixed / mean, 1)} times fewer than the {fixed:.0f} of fixed"
    )


@contextmanager
def bar(title: str) -> Iterator[Callable[[dict[str, Any], int, int], None]]:
    """A progress bar with rate and time left, on standard error; of many ranks, the first one's."""
    from tqdm import tqdm

    from art_rs_plugin.ranks import started

    rank, _ = started()
    with tqdm(desc=title, unit="image", disable=True if rank else None, smoothing=0.05) as progress:

        def on_row(row: dict[str, Any], done: int, total: int) -> None:
            if progress.total != total:
                progress.reset(total)
                progress.initial = done - 1
                progress.n = done - 1
            progress.update(done - progress.n)  # other ranks may have made some, too

        yield on_row


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it: what is going on ends as by Ctrl-C."""


@contextmanager
def reported(kept: str) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error, and Ctrl-C and SIGTERM into a way to go on."""
    many = in_company()
    rank = os.environ["RANK"] if many else "0"
    try:
        with _terminable():
            yield
    except KeyboardInterrupt as stopped:
        again = "the torchrun command" if many else shlex.join(["art-rs", *sys.argv[1:]])
        if rank == "0":
            typer.echo(f"\nStopped; {kept}. To go on, run the same command again:\n  {again}", err=True)
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        raise typer.Exit(128 + number) from None
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        typer.echo(f"{f'rank {rank}: ' if many else ''}error: {error}", err=True)
        if isinstance(error, (RuntimeError, ArithmeticError)):
            typer.echo(f"Stopped; {kept}. The same command goes on from there.", err=True)
        raise typer.Exit(2) from None


def leave_if_stopped(status: object) -> None:
    """End the process at once where `status` is that of a command that was stopped.

    All that is kept is on disk by then, and an interpreter that winds down while the thread of a worker is still ending
    may abort, with the status of SIGABRT in the place of this one.
    """
    if isinstance(status, int) and status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, in the main thread, which alone can."""

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first is enough: a second would interrupt tidying up
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_company() -> bool:
    """Whether torchrun has started more than one rank."""
    size = os.environ.get("WORLD_SIZE", "")
    return bool(os.environ.get("RANK")) and size.isdigit() and int(size) > 1
