"""Networks and ledgers that are kept in `examples/checkpoints`: each ledger is of the network beside it, and whole."""

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


def test_the_table_of_methods_is_what_the_ledgers_hold():
    lines = README.partition("| recipe | sigma | epochs |")[2].partition("\n\n")[0].splitlines()
    radii = [float(cell.removeprefix("r = ")) for cell in lines[0].strip("| ").split(" | ")[:-1]]
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    names = {f"{name}-{sigma}": cells for name, sigma, _, *cells in rows}
    assert len(rows) == len(names) == len(list((KEPT / "mnist").glob("*.jsonl")))
    for name, cells in names.items():
        _, ledger = read_ledger(KEPT / "mnist" / f"{name}-fixed-100000-bf16.jsonl")
        columns = [np.array([row[column] for row in ledger]) for column in ("prediction", "radius", "label")]
        reached = [*certified_accuracy(*columns, radii), average_certified_radius(*columns)]
        assert cells == [round_down(value, 3) for value in reached], name
