"""`art-rs audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import bar, reported, say

AUDIT_EXAMPLE = "audit digits.jsonl --checkpoint runs/digits --replay 5"

_WORDS = {True: "verified", False: "INCONSISTENT", None: "not verified"}


def audit(
    ledger: Annotated[Path, typer.Argument(help="Ledger of `art-rs certify`, `predict` or `compare`.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its network: folder of `art-rs train`, or weights (.pth, with --model).")
    ] = None,
    model: options.ModelName = None,
    replay: Annotated[str, typer.Option(help="Rows whose votes are cast again, given --checkpoint; or all.")] = "3",
    tolerance: Annotated[
        int, typer.Option(help="Votes of such a row that may fall otherwise, as on another machine.")
    ] = 0,
    rows: Annotated[int | None, typer.Option(help="How many rows there must be.")] = None,
    any_images: Annotated[
        bool, typer.Option("--any-images", help="Take rows of any images in any order, not only every k-th.")
    ] = False,
    data_root: options.DataRoot = None,
) -> None:
    """Audit a ledger: radii from votes, header, labels, order, network, some votes cast again.

    Ends with status 0 if nothing is inconsistent, 1 if something is, 2 if the ledger cannot be read.
    """
    with reported("nothing was changed"):
        from art_rs_plugin.experiments import audit as auditing

        if replay != "all" and not replay.isdecimal():
            raise ValueError(f"`--replay` must be a whole number or all, got {replay!r}")
        with bar("cast again") as on_row:
            findings = auditing.audit(
                ledger,
                data_root=data_root,
                checkpoint=checkpoint,
                model_name=model,
                replay=None if replay == "all" else int(replay),
                tolerance=tolerance,
                rows=rows,
                any_images=any_images,
                on_row=on_row,
            )
    for finding in findings:
        say(f"{_WORDS[finding.holds]:<12}  {finding.what}: {finding.said}")
    if any(finding.holds is False for finding in findings):
        say(f"{ledger} is not what a run left.")
        raise typer.Exit(1)
    say(f"Nothing in {ledger} is inconsistent with what could be verified.")
