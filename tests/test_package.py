"""The package as a user gets it: a wheel with all its files, that runs from a folder of its own."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import art_rs_plugin

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `python -m build` makes of a copy of the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "art_rs_plugin", source / "art_rs_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    subprocess.run(words, check=True, capture_output=True)  # the source distribution, and the wheel from that
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_the_licence_and_the_type_marker(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "art_rs_plugin").rglob("*.py")} <= inside
    assert "art_rs_plugin/py.typed" in inside
    for name in ("templates", "recipes"):
        files = (ROOT / "art_rs_plugin/experiments" / name).iterdir()
        assert {path.relative_to(ROOT).as_posix() for path in files} <= inside, name
    assert any(name.endswith("/LICENSE") for name in inside)


def test_the_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
    words = "train --data digits --model mlp --sigma 0.25 --epochs 1 --out digits"
    for command in (
        ["-c", "import art_rs_plugin; print(art_rs_plugin.__file__)"],
        ["-m", "art_rs_plugin", *words.split()],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        if "-c" in command:
            assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert (tmp_path / "digits/model.safetensors").exists()


def test_metadata(wheel: Path) -> None:
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "\nName: art-rs-plugin\n" in text
    assert f"\nVersion: {art_rs_plugin.__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert "\nLicense: MIT\n" in text
    assert "\nLicense-File: LICENSE\n" in text


def test_an_index_would_take_both_distributions(wheel: Path) -> None:
    files = sorted(wheel.parent.iterdir())
    assert [file.name.endswith((".whl", ".tar.gz")) for file in files] == [True, True]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_constraints_are_the_least_versions_that_are_allowed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line]
    lines = (ROOT / "constraints-minimum.txt").read_text().splitlines()
    least = {pin.name: pin for pin in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert set(least) == {requirement.name for requirement in needed}
    for requirement in needed:
        (allowed,) = requirement.specifier
        (pinned,) = least[requirement.name].specifier
        assert (allowed.operator, pinned.operator) == (">=", "==")
        assert allowed.version == pinned.version


def test_the_version_is_semantic_and_the_changelog_has_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", art_rs_plugin.__version__)
    assert f"\n## {art_rs_plugin.__version__}" in (ROOT / "CHANGELOG.md").read_text()
