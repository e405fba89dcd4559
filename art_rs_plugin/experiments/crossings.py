"""Where one certified-accuracy curve leaves another: the radius at which two certifiers change places."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.core.radii import FloatArray


def crossings(first: pd.DataFrame, second: pd.DataFrame) -> list[float]:
    """Radii at which two curves of certified accuracy change places, ascending.

    At a returned radius the curve that led below it still does, or both are equal; beyond it, at the next larger radius
    of either log, the other leads. Curves that touch and part again without changing places do not cross.

    :param first: Columns `prediction, radius, label`, as of `logs.read_log`, and `second` likewise; of the same images.
    """
    # certified accuracy is constant between radii of the two logs, and holds up to and including each of them
    at = np.unique(np.concatenate([[0.0], *(log["radius"].to_numpy() for log in (first, second))]))
    at = at[np.isfinite(at)]
    ahead = np.sign(_accuracy(first, at) - _accuracy(second, at))
    changes = [(one, other) for one, other in pairwise(np.flatnonzero(ahead)) if ahead[one] != ahead[other]]
    return [float(at[other - 1]) for _, other in changes]


def crossing_table(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every crossing of two curves: who leads `below it` and `beyond it`, its `radius`, and the `certified accuracy`.

    Certified accuracy is the lesser of the two at that radius.
    """
    rows = []
    for (name, log), (other, its) in combinations(logs.items(), 2):
        for radius in crossings(log, its):
            there = _accuracy(log, np.array([radius]))[0], _accuracy(its, np.array([radius]))[0]
            beyond = np.array([np.nextafter(radius, np.inf)])
            up = _accuracy(log, beyond)[0] > _accuracy(its, beyond)[0]
            rows.append([other if up else name, name if up else other, radius, float(min(there))])
    return pd.DataFrame(rows, columns=["below it", "beyond it", "radius", "certified accuracy"])


def leads(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Pairs of curves that do not cross, one above the other somewhere: which `leads`, and which `trails`."""
    rows = []
    for (name, log), (other, its) in combinations(logs.items(), 2):
        at = np.unique(np.concatenate([[0.0], log["radius"], its["radius"]]))
        ahead = set(np.sign(_accuracy(log, at) - _accuracy(its, at))) - {0.0}
        if len(ahead) == 1:
            rows.append([name, other] if ahead == {1.0} else [other, name])
    return pd.DataFrame(rows, columns=["leads", "trails"])


def _accuracy(log: pd.DataFrame, at: FloatArray) -> FloatArray:
    return certified_accuracy(log["prediction"].to_numpy(), log["radius"].to_numpy(), log["label"].to_numpy(), at)
