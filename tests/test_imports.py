"""What a start must not load: heavy modules that its job does not need. Seconds are in `benchmarks/startup.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "art",
    "numpy",
    "scipy",
    "pandas",
    "sklearn",
    "matplotlib",
    "sympy",
    "statsmodels",
    "mpmath",
    "jinja2",
)
# ART loads some of those itself; what is left is ours to spare
NOT_TO_CERTIFY = ("torch._dynamo", "torch._inductor", "sympy", "matplotlib", "statsmodels", "mpmath", "jinja2")

HELP = """
import sys
from pathlib import Path
sys.argv = ["art-rs", *{words}]
from art_rs_plugin.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""
CERTIFY = """
import numpy, torch
from art_rs_plugin import Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments.curve import curve_table, to_markdown
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
estimator = RandomizedSmoothingPyTorch(model, 0.25)
estimator.certify(numpy.zeros((1, 1, 4, 4), numpy.float32), budget=Looks(radii=(0.1,), n_max=1000))
"""


def loaded(code: str) -> set[str]:
    code += "\nimport sys\nprint('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize(
    "code", ["import art_rs_plugin", HELP.format(words=["--help"]), HELP.format(words=["certify", "--help"])]
)
def test_importing_and_asking_for_help_load_nothing_heavy(code: str) -> None:
    assert loaded(code) & set(HEAVY) == set()


@pytest.mark.slow
def test_certifying_a_small_network_loads_no_compiler_and_nothing_that_draws() -> None:
    assert loaded(CERTIFY) & set(NOT_TO_CERTIFY) == set()


def test_the_check_can_fail() -> None:
    assert loaded("import numpy") & set(HEAVY) == {"numpy"}


@pytest.mark.slow
def test_the_benchmark_says_what_starting_costs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "startup.py"
    printed = subprocess.run(
        [sys.executable, script, "--repeats", "1"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [name for name, *_ in rows][:3] == ["python alone", "import art_rs_plugin", "art-rs --help"]
    assert all(float(seconds) > 0 for _, seconds, _ in rows)
