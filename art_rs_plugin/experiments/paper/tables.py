"""Tables 1 to 4 of Cohen et al. 2019, and the envelopes over networks that it and Salman et al. 2019 print.

Each function returns a DataFrame with its caption in `attrs["caption"]` and what must be known of it in
`attrs["notes"]`. Columns that are floats are radii in the unit of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.core.radii import FloatArray
from art_rs_plugin.experiments.curve import grouped
from art_rs_plugin.experiments.paper.log import Log
from art_rs_plugin.experiments.paper.sources import Logs
from art_rs_plugin.experiments.side_by_side import in_norm

IMAGENET_RADII = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CIFAR_RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TABLE_1_RADII = (0.5, 1.0, 2.0, 3.0)
PIXELS = {"digits": 64, "mnist": 784, "cifar10": 3072, "svhn": 3072, "imagenet": 150_528}
"""Numbers that an image consists of, by data set."""

_ENVELOPE = (
    "Upper envelope: each radius is given the network that is best at it, so that no single network attains all of "
    "these numbers; and the best of several is chosen by the same images that it is judged by."
)


def by_sigma(logs: Logs, *, data: str, radii: Sequence[float]) -> pd.DataFrame:
    """Tables 2 and 3: approximate certified accuracy by sigma, trained and certified at the same.

    :return: Columns `sigma`, then each radius; rows ascending by sigma.
    :raises ValueError: There are no such logs, or two at the same sigma.
    """
    chosen = logs.by_sigma(data)
    table = pd.DataFrame(
        [[sigma, *accuracy(log, radii)] for sigma, log in chosen.items()], columns=["sigma", *map(float, radii)]
    )
    return _said(table, f"Approximate certified accuracy on {data} by radius in l2.", map(_origin, chosen.values()))


def best_by_radius(logs: Logs, *, data: str, radii: Sequence[float] = TABLE_1_RADII) -> pd.DataFrame:
    """Table 1: for each radius the sigma of the best certified accuracy, with its accuracy there and at radius 0.

    :return: Columns `radius`, `sigma`, `certified accuracy`, `standard accuracy`; of equals the least sigma.
    :raises ValueError: As in `by_sigma`.
    """
    chosen = logs.by_sigma(data)
    rows = []
    for radius in radii:
        shares = {sigma: accuracy(log, [radius, 0.0]) for sigma, log in chosen.items()}
        best = max(shares, key=lambda sigma: (shares[sigma][0], -sigma))
        rows.append([f"{radius:g}", best, *shares[best]])
    table = pd.DataFrame(rows, columns=["radius", "sigma", "certified accuracy", "standard accuracy"])
    caption = f"Approximate certified accuracy on {data} of the best sigma for each radius in l2."
    return _said(table, caption, [_ENVELOPE, *map(_origin, chosen.values())])


def envelope(logs: Logs, *, data: str, radii: Sequence[float]) -> pd.DataFrame:
    """The tables of Salman et al. 2019: for each method the best certified accuracy over its networks, by radius.

    Networks count that were trained at the sigma they are certified at, as those of both papers.

    :return: Columns `method` (what the folders between data set and noise say), `networks` (how many), and each radius;
        of more than one method, a last row for all of them.
    :raises ValueError: There are no certification logs of `data`.
    """
    shares = _by_method({log: accuracy(log, radii) for log in logs.matched(data)})
    rows = [[method, len(found), *np.max(found, axis=0)] for method, found in shares.items()]
    table = pd.DataFrame(rows, columns=["method", "networks", *map(float, radii)])
    return _said(table, f"Approximate certified accuracy on {data} by radius in l2, envelopes.", [_ENVELOPE])


def l_inf(logs: Logs, *, data: str, eps: Sequence[int] = (1, 2, 4, 8)) -> pd.DataFrame:
    """The same envelopes in l_inf: an l2 ball of radius r holds the l_inf ball of radius r / sqrt(d).

    :param eps: Radii in l_inf, in units of 1/255.
    :return: Columns `method`, `networks`, and each eps, as "2/255".
    :raises ValueError: There are no certification logs of `data`, or its number of pixels is not known here.
    """
    if data not in PIXELS:
        raise ValueError(f"`data` must be one of {', '.join(PIXELS)} for a view in l_inf, got {data!r}")
    at = np.array(eps) / 255
    found = {log: accuracy(log, at, dimension=PIXELS[data]) for log in logs.matched(data)}
    rows = [[method, len(made), *np.max(made, axis=0)] for method, made in _by_method(found).items()]
    table = pd.DataFrame(rows, columns=["method", "networks", *(f"{step}/255" for step in eps)])
    inside = f"Each l2 radius r is read as the l_inf radius r / sqrt({PIXELS[data]}) that lies within it."
    return _said(table, f"Approximate certified accuracy on {data} by radius in l_inf, envelopes.", [inside, _ENVELOPE])


def predictions(logs: Logs, *, data: str) -> pd.DataFrame:
    """Table 4: what became of the images under PREDICT with n votes, for every n but the largest.

    The gold standard of g(x) is the answer with the most votes there are: the class with the highest count where the
    log has counts, else its prediction; where that abstains no prediction counts as accurate, and the notes say so.

    :return: Columns `n`, then the shares that are `correct, accurate`, `correct, inaccurate`, `incorrect, accurate`,
        `incorrect, inaccurate`, and `abstain`; rows ascending by n.
    :raises ValueError: There are not two logs of predictions, or they are of different images.
    """
    found = {log.votes: log for log in logs if (log.kind, log.data, log.split) == ("predict", data, "test")}
    if None in found or len(found) < 2:
        raise ValueError(
            f"logs of PREDICT on `{data}` at two n or more are needed: ledgers of `art-rs predict`, or TSV logs laid "
            f"out as predict/<data>/<network>/noise_<sigma>/test/N_<votes>; {logs.looked}"
        )
    *others, most = sorted(n for n in found if n is not None)
    gold = _gold(found[most].frame).set_index("index")["gold"]
    rows = []
    for n in others:
        log = found[n].frame
        if set(log["index"]) != set(gold.index):
            raise ValueError(f"{found[n].path} and {found[most].path} must be of the same images, got different ones")
        truth = gold.loc[log["index"]].to_numpy()
        predicted = log["prediction"].to_numpy()
        answered, correct = predicted != ABSTAIN, predicted == log["label"].to_numpy()
        accurate = (predicted == truth) & answered
        kinds = [answered & one & other for one in (correct, ~correct) for other in (accurate, ~accurate)]
        rows.append([n, *(float(kind.mean()) for kind in (*kinds, ~answered))])
    names = [f"{one}, {other}" for one in ("correct", "incorrect") for other in ("accurate", "inaccurate")]
    table = pd.DataFrame(rows, columns=["n", *names, "abstain"])
    unknown = int((gold == ABSTAIN).sum())
    notes = [
        f"Accurate is what {grouped(most)} votes say too; of {len(gold)} images they leave {unknown} open, on which no "
        "prediction counts as accurate."
    ]
    return _said(table, f"PREDICT on {data} by the number of votes.", notes)


def accuracy(log: Log, radii: Sequence[float] | FloatArray, *, dimension: int | None = None) -> FloatArray:
    """Approximate certified accuracy of a log at each radius; in l_inf if `dimension` is given."""
    frame = log.frame
    held = frame["radius"].to_numpy()
    if dimension is not None:
        held = np.array([in_norm(float(radius), 2, np.inf, dimension) for radius in held])
    return certified_accuracy(frame["prediction"].to_numpy(), held, frame["label"].to_numpy(), np.asarray(radii))


def _by_method(shares: dict[Log, FloatArray]) -> dict[str, list[FloatArray]]:
    methods: dict[str, list[FloatArray]] = {}
    for log, found in shares.items():
        methods.setdefault(log.method, []).append(found)
    return methods | ({"all of them": list(shares.values())} if len(methods) > 1 else {})


def _gold(log: pd.DataFrame) -> pd.DataFrame:
    if "counts" not in log:
        return log.assign(gold=log["prediction"])
    return log.assign(gold=[int(np.argmax(counts)) for counts in log["counts"]])


def _origin(log: Log) -> str:
    trained = "" if log.trained in (None, log.sigma) else f", trained at {log.trained:g}"
    return f"σ = {log.sigma:g}{trained}: {len(log.frame)} images, {log.setting}; {log.path}"


def _said(table: pd.DataFrame, caption: str, notes: Sequence[str] | map[str]) -> pd.DataFrame:
    table.attrs.update(caption=caption, notes=list(notes))
    return table
