"""`art-rs paired`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say

PAIRED_EXAMPLE = "paired digits.jsonl digits-0.50.jsonl --radii 0,0.25,0.5 --out paired.csv"


def paired(
    ledgers: Annotated[list[Path], typer.Argument(help="Two ledgers (or the authors' TSV logs) of the same images.")],
    radii: options.Radii = options.DEFAULT_RADII,
    confidence: Annotated[float, typer.Option(help="Of the interval of the difference of average radii.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap that gives it.")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV file, with every digit.")] = None,
) -> None:
    """Compare two ledgers image by image: McNemar at each radius, a bootstrap of the average radius."""
    with reported("nothing is half-written"):
        from art_rs_plugin.experiments.curve import to_markdown
        from art_rs_plugin.experiments.logs import write_atomically
        from art_rs_plugin.experiments.paired import as_text, paired_table

        table = paired_table(ledgers, options.numbers(radii), confidence=confidence, seed=seed)
        say(to_markdown(as_text(table)).rstrip())
        first, second = table.attrs["names"]
        say(f"\nfirst: {first}; second: {second}; difference: the first less the second")
        say(
            f"p: exact two-sided McNemar test, of each radius by itself (times {len(table) - 1} to speak of all)\n"
            f"low to high: {confidence:g} bootstrap interval of the difference, for images like these"
        )
        if out is not None:
            write_atomically(out, table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace"))
            say(f"Written: {out}")
