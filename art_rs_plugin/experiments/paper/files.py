"""Tables and figures as files: Markdown, LaTeX and CSV; PNG, SVG and PDF."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from art_rs_plugin.core import checks
from art_rs_plugin.experiments.curve import DECIMALS, save_figure, to_markdown
from art_rs_plugin.experiments.logs import round_down, write_atomically
from art_rs_plugin.experiments.paper.catalogue import ITEMS, Given

_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "ρ": r"$\rho$",
    "\u2009": r"\,",
}


def make(name: str, given: Given, folder: Path) -> list[Path]:
    """Make a table or figure of `catalogue.ITEMS` and write its files, named by it, into a folder; say where they are.

    :raises ValueError: There is no such name, or what it needs was not given: says what to give.
    :raises FileNotFoundError: A data set is not there.
    """
    item = ITEMS[checks.one_of("name", name, ITEMS)]
    written = []
    if item.table is not None:
        table = item.table(given)
        numbers = table if item.csv is None else item.csv(given)
        texts = {
            "md": markdown(table),
            "tex": latex(table, label=f"tab:{name}"),
            "csv": numbers.to_csv(index=False, lineterminator="\n"),
        }
        for suffix, text in texts.items():
            written.append(folder / f"{name}.{suffix}")
            write_atomically(written[-1], text.encode(errors="backslashreplace"))
    if item.figure is not None:
        figure = item.figure(given)
        for suffix in ("png", "svg", "pdf"):
            written.append(folder / f"{name}.{suffix}")
            save_figure(figure, written[-1])
    return written


def markdown(table: pd.DataFrame) -> str:
    """A table with its caption and notes; numbers rounded down to three decimals."""
    notes = "".join(f"- {_line(note)}\n" for note in table.attrs["notes"])
    return f"{_line(table.attrs['caption'])}\n\n{to_markdown(_plain(table))}\n{notes}"


def latex(table: pd.DataFrame, *, label: str) -> str:
    """The same as a LaTeX table for the package booktabs, the notes in its caption."""
    shown = _plain(table)
    heads = [f"$r = {head:.12g}$" if isinstance(head, float) else _escaped(str(head)) for head in shown.columns]
    cells = {
        head: [_escaped(value if isinstance(value, str) else _number(value)) for value in shown[column]]
        for head, column in zip(heads, shown.columns, strict=True)
    }
    text = [isinstance(value, str) for value in shown.iloc[0]] if len(shown) else [True] * len(heads)
    made: str = pd.DataFrame(cells).to_latex(
        index=False,
        escape=False,
        column_format="".join("l" if is_text else "r" for is_text in text),
        caption=_escaped(" ".join([_line(table.attrs["caption"]), *map(_line, table.attrs["notes"])])),
        label=label,
    )
    return made


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its sigmas as they are written, not as shares."""
    return table.assign(sigma=[f"{sigma:.2f}" for sigma in table["sigma"]]) if "sigma" in table else table


def _number(value: float) -> str:
    return round_down(value, DECIMALS) if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)


def _line(text: str) -> str:
    return re.sub(r"[\r\n\t]+", " ", text)
