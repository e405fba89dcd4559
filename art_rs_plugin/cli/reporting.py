"""`art-rs report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say

REPORT_EXAMPLE = "report digits.jsonl digits-0.50.jsonl --out report.html"


def report(
    ledgers: Annotated[list[Path], typer.Argument(help="Ledgers of certificates, as `art-rs certify` writes them.")],
    out: Annotated[Path, typer.Option(help="HTML file.")],
    radii: options.Radii = options.DEFAULT_RADII,
    confidence: Annotated[float, typer.Option(help="Of the lower bounds on certified accuracy.")] = 0.95,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Certified robustness",
    data_root: options.DataRoot = None,
) -> None:
    """Report on ledgers in one HTML file: curves with bounds, p_A, votes, pictures, settings."""
    with reported("nothing is half-written"):
        from art_rs_plugin.experiments.report import write_report

        missing = write_report(
            ledgers, out, radii=options.numbers(radii), data_root=data_root, confidence=confidence, title=title
        )
        for problem in missing:
            say(problem)
        say(f"Written: {out}")
