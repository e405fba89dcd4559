"""The images that a ledger is of, found again by what its header says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art_rs_plugin.core import checks
from art_rs_plugin.experiments import datasets
from art_rs_plugin.experiments.datasets import DATASETS, SPLITS, DataSet


def images_of(header: Mapping[str, Any], root: Path | None) -> tuple[DataSet | None, str]:
    """The data set that a header names; or None, and why, if it names none that is known here or it is not there.

    :param root: Folder of the data sets, as in `datasets.load`.
    """
    named = header.get("data")
    told = named if isinstance(named, Mapping) else {}
    try:
        name = checks.one_of("data.name", str(told.get("name")), DATASETS)
        split = checks.one_of("data.split", str(told.get("split")), SPLITS)
        return datasets.load(name, split, root=root), ""
    except (ValueError, FileNotFoundError) as error:
        return None, f"the images are not at hand: {error}"
