"""What docs/paper.md points at is there."""

import re
from pathlib import Path

from typer.main import get_command

from art_rs_plugin.cli import app
from art_rs_plugin.experiments.paper.catalogue import ITEMS

ROOT = Path(__file__).parents[1]
PAPER = (ROOT / "docs" / "paper.md").read_text()


def test_every_path_exists():
    paths = re.findall(r"`((?:tests/|[a-z]+/)?[\w/]+\.(?:py|toml))`", PAPER)
    assert len(set(paths)) > 15
    for path in paths:
        assert any((folder / path).is_file() for folder in (ROOT, ROOT / "art_rs_plugin")), path
    assert all(
        (ROOT / "art_rs_plugin" / path).is_dir()
        for path in re.findall(r"`([a-z]+/)`", PAPER)
        if path != "art_rs_plugin/"
    )


def test_every_function_is_in_the_file_that_it_is_said_to_be_in():
    pairs = re.findall(r"`([\w/]+\.py)`((?:, `\w+`)+)", PAPER)
    assert len(pairs) > 15
    for path, names in pairs:
        text = (ROOT / "art_rs_plugin" / path).read_text()
        for name in re.findall(r"\w+", names):
            assert f"\ndef {name}(" in text, (path, name)


def test_every_command_and_every_name_of_a_table_or_figure_exists():
    commands = re.findall(r"art-rs ([a-z]+)((?: [a-z][\w-]*)*)", PAPER)
    assert {name for name, _ in commands} <= set(get_command(app).commands)  # type: ignore[attr-defined]
    named = {word for name, words in commands if name == "paper" for word in words.split()}
    assert named <= {*ITEMS, "all", "list"}
    assert {f"table{n}" for n in range(1, 5)} <= named
    assert set(ITEMS) - named == {"figure13"}  # as figure7
