"""`art-rs paper`: what it writes and prints, and what it says of what is missing."""

import pytest
from paper_logs import checkout

from art_rs_plugin.cli import app
from art_rs_plugin.experiments.paper.catalogue import ITEMS


@pytest.fixture
def run(capsys):
    """Runs `art-rs paper` and returns what it wrote, as `out` and `err`."""

    def command(*arguments, code=0):
        with pytest.raises(SystemExit) as ended:
            app(["paper", *map(str, arguments)])
        assert ended.value.code == code
        return capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("checkout"))


def test_list_names_everything(run):
    lines = run("list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(ITEMS)
    assert all("; needs " in line for line in lines)


def test_tables_are_printed_and_written(run, authors, tmp_path):
    said = run("table3", "figure5", "--logs", authors, "--out", tmp_path / "out", "--n", 1000).out
    assert "Approximate certified accuracy on cifar10" in said
    assert "| 0.12  |" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"table3.{end}" for end in ("md", "tex", "csv")} | {
        f"figure5.{end}" for end in ("png", "svg", "pdf")
    }
    for name in names - {"table3.md"}:
        assert str(tmp_path / "out" / name) in said


def test_all_makes_what_it_can_and_says_what_it_cannot(run, authors, tmp_path, monkeypatch):
    monkeypatch.delenv("ART_RS_DATA", raising=False)
    for name in set(ITEMS) - {"table1", "table4", "figure6", "figure7", "figure13", "figure17", "figure18"}:
        monkeypatch.delitem(ITEMS, name)  # to be quick
    result = run("all", "--logs", authors, "--out", tmp_path, "--n", 1000)
    missing = [line.split(": ")[1] for line in result.err.splitlines() if line.startswith("not made: ")]
    assert missing == ["figure7", "figure13", "figure17", "figure18"]
    made = {path.stem for path in tmp_path.iterdir()}
    assert made == set(ITEMS) - set(missing)


def test_what_is_missing_or_unknown_is_one_clear_line(run, authors, tmp_path):
    wanted = run("table2", "--out", tmp_path, code=2).err
    assert wanted.startswith("error: table2: certification logs of `imagenet` are needed")
    assert "give them by --logs" in wanted
    assert "error: `name` must be one of 'table1'" in run("table2", "table9", "--logs", authors, code=2).err
    assert "error: logs `nowhere` do not exist" in run("table2", "--logs", "nowhere", code=2).err
    assert "error: figure14: the radii of" in run("figure14", "--logs", authors, "--n", 30, code=2).err
    assert "error: `n` must be at least 1, got 0" in run("table2", "--n", 0, code=2).err
    assert list(tmp_path.iterdir()) == []


def test_a_figure_at_another_sigma_and_data_set(run, authors, tmp_path):
    run("figure14", "--logs", authors, "--data", "cifar10", "--sigma", 0.12, "--n", 1000, "--out", tmp_path)
    assert "on cifar10 at σ = 0.12" in (tmp_path / "figure14.md").read_text(encoding="utf-8")
