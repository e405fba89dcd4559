"""The files: a CSV of radii alone, LaTeX and Markdown without what would break them, pictures that are pictures."""

import csv
import io
import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from art_rs_plugin.experiments.paper.catalogue import ITEMS, Given
from art_rs_plugin.experiments.paper.files import latex, make, markdown
from art_rs_plugin.experiments.paper.sources import find


def rows_of(path):
    return list(csv.reader(io.StringIO(path.read_text())))


def test_a_tables_csv_is_sigma_and_one_column_for_each_radius_ascending_by_sigma(logs, tmp_path):
    heads = {
        "table1": ["sigma", "0.0", "0.5", "1.0", "2.0", "3.0"],
        "table2": ["sigma", "0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"],
        "table3": ["sigma", "0.0", "0.25", "0.5", "0.75", "1.0", "1.25", "1.5"],
    }
    for name, head in heads.items():
        written = make(name, Given(logs=logs), tmp_path)
        assert [path.name for path in written] == [f"{name}.md", f"{name}.tex", f"{name}.csv"]
        rows = rows_of(tmp_path / f"{name}.csv")
        assert rows[0] == head
        sigmas = [float(row[0]) for row in rows[1:]]
        assert sigmas == sorted(sigmas)
        assert len(sigmas) == 2
        assert all(0 <= float(cell) <= 1 for row in rows[1:] for cell in row[1:])


def test_figures_are_pictures_of_three_kinds(logs, tmp_path):
    written = make("figure14", Given(logs=logs), tmp_path)
    assert [path.suffix for path in written] == [".md", ".tex", ".csv", ".png", ".svg", ".pdf"]
    assert (tmp_path / "figure14.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure14.pdf").read_bytes().startswith(b"%PDF")
    assert ET.parse(tmp_path / "figure14.svg").getroot().tag.endswith("svg")


def test_hostile_words_break_neither_markdown_nor_latex():
    table = pd.DataFrame({"sigma": [0.25], "who": [r"a|b & \c_{d}% $e$ #~^<α>"], 0.5: [0.98765]})
    table.attrs.update(caption="of 100% & more\nin σ", notes=["a\r\nline | & _"])
    assert markdown(table).splitlines() == [
        "of 100% & more in σ",
        "",
        "| sigma | who                        | r = 0.5 |",
        "| ----- | -------------------------- | ------: |",
        r"| 0.25  | a\|b & \\c_{d}% $e$ #~^<α> |   0.987 |",
        "",
        "- a line | & _",
    ]
    made = latex(table, label="tab:x")
    assert r"\caption{of 100\% \& more in $\sigma$ a line | \& \_}" in made
    assert r"sigma & who & $r = 0.5$ \\" in made
    assert r"0.25 & a|b \& \textbackslash{}c\_\{d\}\% \$e\$ \#\textasciitilde{}\textasciicircum{}" in made
    assert r"\textless{}$\alpha$\textgreater{} & 0.987 \\" in made
    assert r"\begin{tabular}{llr}" in made


def test_names_say_what_they_are_and_what_they_need(tmp_path):
    # the paper's others hold no data
    wanted = [f"table{n}" for n in range(1, 5)] + [f"figure{n}" for n in (2, 4, 5, 6, 7, 8, *range(12, 19))]
    assert set(wanted) <= set(ITEMS)
    for name, item in ITEMS.items():
        assert re.fullmatch("[a-z0-9-]+", name)
        assert item.about
        assert item.needs
        assert item.table or item.figure
    with pytest.raises(ValueError, match=r"`name` must be one of 'table1', .*, got 'table9'"):
        make("table9", Given(logs=find([])), tmp_path)
    with pytest.raises(ValueError, match="certification logs of `cifar10` are needed"):
        make("table3", Given(logs=find([])), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_data_set_takes_the_place_of_the_papers(logs, tmp_path):
    make("table2", Given(logs=logs, data="cifar10"), tmp_path)
    assert [row[0] for row in rows_of(tmp_path / "table2.csv")[1:]] == ["0.12", "0.25"]
