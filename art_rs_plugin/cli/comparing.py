"""`art-rs compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say

COMPARE_EXAMPLE = (
    "compare --data digits --checkpoint runs/digits --certifiers smoothing,smoothing-li,crown --max 10 --out compared"
)


def compare(
    out: Annotated[Path, typer.Option(help="Folder for ledgers, table and picture; if it exists, the run goes on.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file that says data, images, radii, and an [[entry]] for each certifier.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set, without --config.")] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Network for all certifiers, without --config; may be given again.")
    ] = None,
    certifiers_: Annotated[
        str | None, typer.Option("--certifiers", help="Names separated by commas, without --config; `list` shows them.")
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(help="Noise of certifiers by votes, without --config: not the checkpoint's but each of these."),
    ] = None,
    radii: Annotated[str | None, typer.Option(help="Radii of the table, in the unit of the input.")] = None,
    max_: Annotated[
        int, typer.Option("--max", help="Images, evenly spread over the test set, without --config.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of the noise, without --config.")] = 0,
    data_root: options.DataRoot = None,
) -> None:
    """Compare certifiers on the same images: certified accuracy, average radius, seconds an input."""
    with reported(f"what is finished is in {out}"):
        from tqdm import tqdm

        from art_rs_plugin import certifiers
        from art_rs_plugin.experiments import compare as comparing
        from art_rs_plugin.experiments import datasets, side_by_side

        if certifiers_ == "list":
            say("\n".join(certifiers.available()))
            return
        if config is not None:
            if any(given is not None for given in (data, checkpoint, certifiers_, sigmas, radii)):
                raise ValueError(f"`--config` must stand alone, for {config} says data, networks, certifiers and radii")
            comparison = comparing.load(config)
        else:
            if data is None or not checkpoint or certifiers_ is None:
                raise ValueError("`--config` must be given, or `--data`, `--checkpoint` and `--certifiers`")
            comparison = comparing.Comparison(
                data=data,
                entries=comparing.crossed(
                    [name.strip() for name in certifiers_.split(",")],
                    checkpoint,
                    [] if sigmas is None else options.numbers(sigmas, "sigmas"),
                ),
                radii=tuple(options.numbers(radii or options.DEFAULT_RADII)),
                images=max_,
                seed=seed,
            )
        with tqdm(unit="image", disable=None) as bar:

            def on_row(label: str, done: int, total: int) -> None:
                bar.set_description(label, refresh=False)
                bar.total, bar.n = total, done
                bar.refresh()

            ledgers = comparing.run(comparison, out, data_root=data_root, on_row=on_row)
        images = datasets.load(comparison.data, comparison.split, root=data_root)
        dimension = images.arrays([0])[0].size
        written = side_by_side.write(ledgers, comparison.radii, comparison.norm, dimension, out)
        for path in written:
            if path.suffix == ".md":
                say(path.read_text().rstrip() + "\n")
        say(f"Written: {', '.join(map(str, written))}")
