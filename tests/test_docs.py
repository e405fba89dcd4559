"""What the pages in docs/ show, runs, what they point at, is there, and what is started under torchrun can be."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from mktestdocs import check_md_file
from torch.distributed.run import get_args_parser
from typer.main import get_command

from art_rs_plugin.cli import IN_COMPANY, app
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


PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_md_file(page, memory=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_name_options_that_exist(page):
    shown = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line for block in shown for line in block.splitlines() if line.startswith("art-rs ")]
    lines += re.findall(r"`(art-rs [a-z][^`]*)`", page.read_text())
    for line in lines:
        words = shlex.split(line, comments=True)
        if " | " in line or words[1] not in COMMANDS:
            assert set(re.findall(r"[a-z]+", line.partition(" ")[2].partition("--")[0])) <= {*COMMANDS}, line
            continue
        known = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_options_that_prose_names_exist(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    scripts = "".join(
        path.read_text() for folder in ("benchmarks", "examples", "tests") for path in (ROOT / folder).glob("*.py")
    )
    of_scripts = set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', scripts))
    # a script of somebody else's has options of its own
    code = [words for words in re.findall(r"`([^`]*)`", prose) if not re.match(r"\w+\.py ", words)]
    named = {word for words in code for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", words)}
    of_torchrun = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert named <= OPTIONS | of_scripts | of_torchrun


def torchrun_lines() -> list[str]:
    """What the documentation and the batch scripts start under torchrun."""
    texts = [(ROOT / path).read_text() for path in ("README.md", "docs/scaling.md")]
    texts += [path.read_text() for path in (ROOT / "examples" / "slurm").iterdir()]
    text = "\n".join(texts).replace("\\\n", " ")
    return re.findall(r"^(?:srun[^\n]* )?torchrun ([^\n]*)$", text, flags=re.MULTILINE)


def test_what_is_started_under_torchrun_is_shared_by_ranks_and_has_options_that_exist():
    assert len(torchrun_lines()) >= 6
    for line in torchrun_lines():
        launcher, words = line.split(" -m -- art_rs_plugin ")
        command, *options = words.split()
        assert command in IN_COMPANY
        known = {option for parameter in get_command(app).commands[command].params for option in parameter.opts}  # type: ignore[attr-defined]
        assert {word for word in options if word.startswith("--")} <= known
        assert "--nproc-per-node" in launcher


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "slurm").iterdir()), ids=lambda path: path.name)
def test_a_batch_script_is_a_script(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert "#SBATCH --nodes" in path.read_text()
