"""What the README shows, runs: its Python blocks in order, and its shell words against the parsers."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from mktestdocs import grab_code_blocks
from typer.testing import CliRunner

from art_rs_plugin.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()
SHELL_LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("art-rs ")
]


def test_the_two_commands_are_there() -> None:
    assert len(SHELL_LINES) >= 5
    assert "@@" not in README
    assert "\npip install . && art-rs demo\n" in README
    assert "\npip install '.[test]' && pytest\n" in README


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for words in (
        "train --data digits --model mlp --sigma 0.25 --epochs 2 --out digits",
        "certify --checkpoint digits --data digits --n 100 --max 3 --out mnist-0.25.jsonl",
    ):
        assert runner.invoke(app, words.split()).exit_code == 0
    names: dict[str, object] = {}
    for block in grab_code_blocks(README, lang="python"):
        exec(block, names)
    assert len(names["prediction"]) == len(names["radius"]) == 10  # type: ignore[arg-type]
    assert names["x_adversarial"].shape == names["x_test"].shape  # type: ignore[attr-defined]
    radii = [[certificate.radius for certificate in names[name]] for name in ("stricter", "lecuyer")]  # type: ignore[attr-defined]
    assert [len(column) for column in radii] == [3, 3]


@pytest.mark.parametrize("line", SHELL_LINES)
def test_shell_lines_name_options_that_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert {word for word in words if word.startswith("--")} <= known
