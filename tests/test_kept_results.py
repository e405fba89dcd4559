"""Networks and ledgers that are kept in `examples/checkpoints`: each ledger is of the network beside it, and whole."""

import re
from pathlib import Path

import numpy as np
import pytest

from art_rs_plugin.core.curves import average_certified_radius, certified_accuracy
from art_rs_plugin.experiments.audit import audit
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.experiments.logs import round_down

KEPT = Path(__file__).parents[1] / "examples" / "checkpoints"
LEDGERS = sorted(KEPT.glob("*/*.jsonl"))
README = (KEPT.parents[1] / "README.md").read_text()


def folder_of(ledger: Path) -> Path:
    """The network's folder, whose name the ledger's begins with."""
    (folder,) = (path for path in ledger.parent.iterdir() if path.is_dir() and ledger.name.startswith(f"{path.name}-"))
    return folder


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda path: path.stem)
def test_a_kept_ledger_is_whole_and_of_the_network_beside_it(ledger, data_root):
    folder = folder_of(ledger)
    best = folder / "best"  # where images were held out
    findings = audit(ledger, data_root=data_root, checkpoint=best if best.exists() else folder, replay=0)
    assert [finding for finding in findings if finding.holds is False] == []
    held = {finding.what for finding in findings if finding.holds}
    assert held >= {"header", "rows", "images", "labels", "weights"}  # modules are described by torch, which changes


def test_no_network_is_kept_without_its_ledger():
    assert LEDGERS
    assert {path for path in KEPT.glob("*/*") if path.is_dir()} == set(map(folder_of, LEDGERS))


def reached(ledger: Path, radii: list[float]) -> list[str]:
    """Certified accuracy at each radius, and the average certified radius, as tables have them."""
    columns = [
        np.array([row[column] for row in read_ledger(ledger)[1]]) for column in ("prediction", "radius", "label")
    ]
    return [
        round_down(value, 3) for value in (*certified_accuracy(*columns, radii), average_certified_radius(*columns))
    ]


def test_the_tables_of_methods_are_what_the_ledgers_hold():
    told = []
    for table in README.split("| recipe | sigma | epochs |")[1:]:
        head, _, *lines = table.partition("\n\n")[0].splitlines()
        radii = [float(radius) for radius in re.findall(r"r = ([\d.]+)", head)]
        for name, sigma, _, *cells in (line.strip("| ").split(" | ") for line in lines):
            (ledger,) = (
                path for path in LEDGERS if path.name.startswith((f"{name}-{sigma}-fixed", f"{name}-{sigma}-looks"))
            )
            assert cells == reached(ledger, radii)[: len(cells)], ledger.stem
            told.append(ledger)
    (cells,) = re.findall(r"^\| trained here \| (.*) \|$", README, re.MULTILINE)
    (paper,) = KEPT.glob("cifar10/resnet110-*.jsonl")
    assert cells.split(" | ") == reached(paper, [0.0, 0.25, 0.5, 0.75])[:4]
    assert sorted([*told, paper]) == LEDGERS
