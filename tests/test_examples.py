"""Every example runs, quickly, and prints what it promises."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@cache
def output(path: Path) -> str:
    return subprocess.run([sys.executable, path, "--quick"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path) -> None:
    assert output(path)


def test_get_started_certifies_and_is_attacked() -> None:
    numbers = [float(number) for number in re.findall(r": (\d\.\d+)", output(EXAMPLES[0].with_name("get_started.py")))]
    certified, (clean, attacked) = numbers[:3], numbers[3:]
    assert certified[0] >= certified[1] >= certified[2]
    assert certified[1] > 0.5
    # what is certified beyond the attack's norm cannot fall; the rest does, mostly
    assert attacked < clean - 0.3
