"""Networks and ledgers that are kept in `examples/checkpoints`: each ledger is of the network beside it, and whole."""

from pathlib import Path

import pytest

from art_rs_plugin.experiments.audit import audit

KEPT = Path(__file__).parents[1] / "examples" / "checkpoints"
LEDGERS = sorted(KEPT.glob("*/*.jsonl"))


def network_of(ledger: Path) -> Path | None:
    """The folder whose name the ledger's begins with, `best` inside it if images were held out; None if not kept."""
    folders = [path for path in ledger.parent.iterdir() if path.is_dir() and ledger.name.startswith(f"{path.name}-")]
    if not folders:
        return None
    (folder,) = folders
    return folder / "best" if (folder / "best").exists() else folder


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda path: path.stem)
def test_a_kept_ledger_is_whole_and_of_the_network_beside_it(ledger, data_root):
    network = network_of(ledger)
    findings = audit(ledger, data_root=data_root, checkpoint=network, replay=0)
    assert [finding for finding in findings if finding.holds is False] == []
    held = {finding.what for finding in findings if finding.holds}
    assert held >= {"header", "rows", "images", "labels"} | ({"weights", "modules"} if network else set())


def test_no_network_is_kept_without_its_ledger():
    assert LEDGERS
    folders = {path for path in KEPT.glob("*/*") if path.is_dir()}
    assert folders == {folder for folder in folders if any(name.name.startswith(f"{folder.name}-") for name in LEDGERS)}
