"""`art-rs paper`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say

PAPER_EXAMPLE = "paper figure5 figure6 --logs digits.jsonl --out paper"


def paper(
    names: Annotated[list[str], typer.Argument(help="table1 to table4, figure2 to figure18, ...; `all`, or `list`.")],
    logs: Annotated[
        list[Path] | None,
        typer.Option(help="Ledgers, or folders with ledgers or the authors' TSV logs; may be given several times."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for tables (Markdown, LaTeX, CSV) and figures (PNG, SVG, PDF).")
    ] = Path("paper"),
    data: Annotated[str | None, typer.Option(help="Data set, if not the paper's.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Noise of figures 8, 14 and 15, if not the paper's: .25, .25 and .5.")
    ] = None,
    n: Annotated[int, typer.Option(help="Votes of logs that do not say theirs: no TSV log does.")] = 100_000,
    data_root: options.DataRoot = None,
) -> None:
    """Tables and figures of the paper, from ledgers or from the authors' logs."""
    with reported("every file is whole"):
        from art_rs_plugin.core import checks
        from art_rs_plugin.experiments.paper import files, sources
        from art_rs_plugin.experiments.paper.catalogue import ITEMS, Given

        if names == ["list"]:
            for name, item in ITEMS.items():
                say(f"{name:18} {item.about}; needs {item.needs}")
            return
        everything = names == ["all"]
        for name in () if everything else names:
            checks.one_of("name", name, ITEMS)
        given = Given(logs=sources.find(logs or (), n=checks.whole("n", n)), data=data, sigma=sigma, root=data_root)
        made, missing = 0, []
        for name in ITEMS if everything else names:
            try:
                written = files.make(name, given, out)
            except (ValueError, FileNotFoundError) as error:
                if not everything:
                    raise type(error)(f"{name}: {error}") from error
                missing.append(f"not made: {name}: {error}")
                continue
            made += 1
            for path in written:
                say(path.read_text(encoding="utf-8") if path.suffix == ".md" else f"{path}")
        for line in missing:
            typer.echo(line, err=True)
        if not made:
            raise ValueError("nothing was made")
