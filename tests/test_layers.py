"""Imports go down only: a room knows the rooms below it and none above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import art_rs_plugin

PACKAGE = Path(art_rs_plugin.__file__).parent

# from the top down; rooms on one line do not know each other
LAYERS = [
    {"__main__"},
    {"cli"},
    {"experiments"},
    {"certifiers"},
    {"attacks", "trainers"},
    {"estimator"},
    {"fitting"},
    {"voting"},
    {"casting"},
    {"classifier", "migration", "plain"},
    {"asking", "inputs", "preprocessing"},
    {"training"},
    {"ascent", "smoothed"},
    {"arithmetic", "independence", "layout"},
    {"votes"},
    {"noise", "ranks"},
    {"randomness"},
    {"core"},
]
HEIGHT = {room: len(LAYERS) - depth for depth, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != Path("__init__.py"))


def imports(source: str) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def rooms(modules: set[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("art_rs_plugin.")} - {"__version__"}


def upward(room: str, modules: set[str]) -> set[str]:
    return {other for other in rooms(modules) if other != room and HEIGHT[other] >= HEIGHT[room]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert upward(room, imports(path.read_text())) == set()


def test_the_check_can_fail() -> None:
    assert upward("votes", imports("from art_rs_plugin.estimator import RandomizedSmoothingPyTorch")) == {"estimator"}
    assert upward("noise", imports("import art_rs_plugin.smoothed")) == {"smoothed"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("art_rs_plugin", {"torch", "art", "numpy", "scipy"}),
        ("art_rs_plugin.core.curves", {"torch", "art"}),
        ("art_rs_plugin.ranks", {"torch", "art"}),
        ("art_rs_plugin.training", {"art"}),
        ("art_rs_plugin.smoothed", {"art"}),
        ("art_rs_plugin.cli", {"torch", "art", "matplotlib"}),
    ],
)
def test_importing_a_room_does_not_load_what_it_must_do_without(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert forbidden & set(loaded) == set()
