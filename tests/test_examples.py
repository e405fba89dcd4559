"""Every example runs, quickly, and prints what it promises."""

import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

pytestmark = pytest.mark.slow  # starts of Python with torch, of several seconds each
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


FAST = EXAMPLES[0].with_name("fast_certification.py")


def test_fast_certification_spends_fewer_votes_and_lists_what_differs() -> None:
    printed = output(FAST)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[0] == "|"]
    rows = {name: [float(cell) for cell in row] for name, *row in cells[2:]}
    assert list(rows) == ["Fixed", "Looks", "Fixed, y known", "Looks, y known"]
    for *shares, votes, seconds in rows.values():
        assert 1 >= shares[0] >= shares[1] >= shares[2] >= 0
        assert min(votes, seconds) > 0
    fixed, looks, fixed_known, looks_known = (row[3] for row in rows.values())
    assert looks < fixed == 2_100
    assert looks_known < fixed_known == 2_000  # no votes to select a class
    fewer = [float(ratio) for ratio in re.findall(r"(\S+) times fewer votes", printed)]
    assert fewer == pytest.approx([fixed / looks, fixed_known / looks_known], abs=0.06)
    told = [int(number) for number in re.findall(r"^decided otherwise: (\d+) of 60$", printed, flags=re.MULTILINE)]
    listed = re.findall(r"^  image \d+ at r = (\S+): (\S+) and (\S+), p_A about", printed, flags=re.MULTILINE)
    assert sum(told) == len(listed)
    # columns cannot differ by more images than are listed
    for one, other, differing in zip(("Fixed", "Fixed, y known"), ("Looks", "Looks, y known"), told, strict=True):
        assert np.abs(np.subtract(rows[one], rows[other])[:3]).sum() * 20 <= differing + 0.1


def test_fast_certification_decides_by_class_and_radius() -> None:
    names = runpy.run_path(str(FAST))
    assert names["RADII"] == (0.0, 0.25, 0.5)
    made = [(3, 0.5), (3, np.nextafter(0.5, 0)), (3, 0.0), (7, 9.0), (-1, 0.0)]
    certificates = [SimpleNamespace(prediction=prediction, radius=radius) for prediction, radius in made]
    decided = names["certified"](certificates, np.array([3, 3, 3, 3, 0]))
    assert decided.tolist() == [[True] * 3, [True, True, False], [True, False, False], [False] * 3, [False] * 3]


def test_security_curve_lies_above_what_is_certified() -> None:
    printed = output(EXAMPLES[0].with_name("security_curve.py"))
    rows = [[float(cell) for cell in line.strip("| ").split("|")] for line in printed.splitlines()[3:]]
    assert [row[0] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    for _, by_art, right, abstaining, wrong, certified in rows:
        assert right + abstaining + wrong == pytest.approx(1.0, abs=0.002)
        assert certified <= right
        assert certified <= by_art
    assert rows[-1][4] > 0.5, "beyond the radii the attack succeeds"


def test_compare_certifiers_has_a_row_for_each_and_prior_bounds_below() -> None:
    printed = output(EXAMPLES[0].with_name("compare_certifiers.py"))
    table = printed.split("\n\n")[0]  # another says where curves cross
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    rows = {name: dict(zip(cells[0][1:], row, strict=True)) for name, *row in cells[2:]}
    of_g = ["smoothing", "smoothing-li", "smoothing-lecuyer", "attacks on smoothing"]
    assert list(rows) == [*of_g, "crown", "fast-lin", "attacks on the network"]
    for better, worse in (("smoothing", "smoothing-li"), ("smoothing-li", "smoothing-lecuyer"), ("crown", "fast-lin")):
        assert float(rows[better]["average radius"]) >= float(rows[worse]["average radius"])
    for certified, attacked in (("smoothing", "attacks on smoothing"), ("crown", "attacks on the network")):
        for radius in ("r = 0.1", "r = 0.25", "r = 0.5"):
            assert float(rows[certified][radius]) <= float(rows[attacked][radius])


def test_training_noise_pays_where_it_is_the_noise_of_the_certificate() -> None:
    printed = output(EXAMPLES[0].with_name("training_noise.py"))
    rows = {
        float(trained): [float(share) for share in shares]
        for trained, *shares in (line.strip("| ").split(" | ") for line in printed.splitlines()[3:])
    }
    assert list(rows) == [0.0, 0.15, 0.5]
    assert min(shares[0] for shares in rows.values()) > 0.5, "at sigma .15 noise costs little"
    assert rows[0.5][1] > rows[0.0][1] + 0.1, "at sigma .5 it pays to have met it"


def test_art_attack_benchmark_keeps_certified_below_empirical_and_writes_both_files(tmp_path: Path) -> None:
    script = EXAMPLES[0].with_name("art_attack_benchmark.py")
    subprocess.run([sys.executable, script, "--quick", "--out", tmp_path], check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "benchmark.csv")
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    assert len(table) == 2 * table["attack"].nunique() == 20
    assert (table["certified"] <= table["empirical"] + table["abstains"]).all()
    assert (table[["empirical", "abstains", "wrong"]].sum(axis=1) - 1).abs().max() < 1e-9
    together = table[table["attack"] == "all together"].set_index("eps")["empirical"]
    for eps, rows in table.groupby("eps"):
        assert together[eps] <= rows["empirical"].min()
    assert together[1.0] < together[0.5] < table["clean"].iloc[0]


def test_a_radius_of_a_table_is_told_in_the_unit_of_a_measurement() -> None:
    printed = output(EXAMPLES[0].with_name("tabular.py"))
    shares = [float(share) for share in re.findall(r"radius \d.\d+: (\S+)", printed)]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert shares[1] > 0.7
    (radius,) = re.findall(r"within (\d\.\d+)", printed)
    (reach,) = re.findall(r"mean radius alone may be off by (\d+\.\d+)", printed)
    # the deviation of all 569, of which three quarters are the training set's
    assert float(reach) / float(radius) == pytest.approx(load_breast_cancer().data[:, 0].std(), rel=0.05)


def test_twice_the_resolution_gives_about_twice_the_radius() -> None:
    (ratio,) = re.findall(r"resolution: (\S+) times", output(EXAMPLES[0].with_name("resolution.py")))
    assert 1.7 < float(ratio) < 2.3
