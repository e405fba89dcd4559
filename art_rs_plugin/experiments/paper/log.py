"""A log of the paper's experiments, and what its header or its place in the authors' folders says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from art_rs_plugin.core.budgets import Fixed
from art_rs_plugin.core.projection import inferred_alphas, printed_digits
from art_rs_plugin.experiments import projection
from art_rs_plugin.experiments.curve import grouped
from art_rs_plugin.experiments.datasets import DATASETS, SPLITS
from art_rs_plugin.experiments.logs import read_log

# the authors' folders: certify/<data>/<network>/noise_<sigma of training>/<split>/sigma_<sigma>, predict/.../N_<votes>
_SIGMA = re.compile(r"sigma_([0-9.]+)")
_NOISE = re.compile(r"noise_([0-9.]+)")
_VOTES = re.compile(r"N_([0-9]+)")
_TSV = {"idx\tlabel\tpredict\tradius\tcorrect\ttime": "certify", "idx\tlabel\tpredict\tcorrect\ttime": "predict"}
LAYOUT = "certify/<data>/<network>/noise_<sigma>/test/sigma_<sigma>"


@dataclass(frozen=True, kw_only=True, eq=False)  # the frame is read once, and cached
class Log:
    """A log, and what its header or its place in the folders says of it.

    :param kind: "certify", "predict", "attack" or "distance", as a ledger's.
    :param data: Name of the data set, None if nothing says it.
    :param sigma: Of the noise of certification, None if nothing says it; `trained`, of training, likewise.
    :param method: What the folders between data set and noise say, or the ledger's name.
    :param votes: n, as far as header or path say; `supposed_votes` is what is supposed where they do not.
    :param header: A ledger's, empty for a TSV file.
    """

    path: Path
    kind: str
    data: str | None
    split: str
    sigma: float | None
    trained: float | None
    method: str
    votes: int | None
    supposed_votes: int
    header: dict[str, Any]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Its rows, as `logs.read_log` returns them."""
        return read_log(self.path)

    @property
    def n(self) -> int:
        """The votes that bound p_A: said by the log, or supposed."""
        return self.supposed_votes if self.votes is None else self.votes

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """The level of its certificates: the ledger's, or those that its printed radii are attainable at."""
        if self.header or self.sigma is None:
            return tuple(sorted(set(self.frame.get("alpha", []))))
        radii = self.frame["radius"]
        return inferred_alphas(radii, sigma=self.sigma, n=self.n, digits=printed_digits(radii))

    @property
    def drawn(self) -> str:
        """How many votes were drawn for an image, and how that is known."""
        if "votes" in self.frame:
            return f"{grouped(round(self.frame['votes'].mean()))} votes on average"
        return f"n = {grouped(self.n)}" + (" (supposed)" if self.votes is None else "")

    @property
    def setting(self) -> str:
        """What is known of n and alpha, and how."""
        return f"{self.drawn}, {self.level}" if self.kind == "certify" else self.drawn

    @property
    def fixed(self) -> bool:
        """Whether the number of votes was fixed before they were drawn, as far as anything says otherwise."""
        return not self.header or self.header["rule"]["name"] == Fixed.name

    @property
    def level(self) -> str:
        """What is known of alpha: "α = 0.01", "(inferred)" where the log does not say it."""
        if not self.alphas:
            return "α unknown"
        how = "" if self.header else " (inferred)" if len(self.alphas) == 1 else " (undetermined)"
        return f"α = {' or '.join(f'{alpha:g}' for alpha in self.alphas)}{how}"

    def projected(
        self, *, alpha: float | None = None, n: int | None = None, radius: str = "cohen"
    ) -> dict[str, pd.DataFrame]:
        """Its certificates at another alpha, n or radius formula; one frame, or one for each alpha it may be of.

        :return: Frames as of `projection.from_ledger`, by "" or by the alpha that is supposed.
            Of a TSV log of which no alpha is known, no frame.
        :raises ValueError: The log cannot be projected so.
        """
        if self.header:
            return {"": projection.from_ledger(self.path, alpha=alpha, n=n, radius=radius)}
        assert self.sigma is not None
        options: dict[str, Any] = {"sigma": self.sigma, "log_n": self.n, "alpha": alpha, "n": n, "radius": radius}
        return {
            f"if log's α = {level:g}" if len(self.alphas) > 1 else "": projection.from_radii(
                self.frame, log_alpha=level, **options
            )
            for level in self.alphas
        }


def recognised(path: Path, n: int) -> Log | None:
    """The log in a file, or None for a file that is none.

    :param n: Votes that are supposed where nothing says how many were drawn.
    """
    with open(path, "rb") as file:
        first = file.readline(1 << 20).decode(errors="replace").strip()
    said = _said_by_folders(path)
    if first in _TSV:
        return Log(path=path, kind=_TSV[first], header={}, supposed_votes=n, **said)
    header = _header(first)
    if header is None:
        return None
    data, noise, rule = (header.get(key, {}) for key in ("data", "noise", "rule"))
    said |= {"data": data.get("name", said["data"]), "split": data.get("split", said["split"]), "votes": rule.get("n")}
    said |= {"sigma": noise.get("sigma", said["sigma"]), "method": path.stem}
    return Log(path=path, kind=header["kind"], header=header, supposed_votes=n, **said)


def _header(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"format": "art-rs-ledger/'):
        return None
    try:
        header = json.loads(line)
    except json.JSONDecodeError:
        return None
    parts = [header.get(key, {}) for key in ("data", "noise", "rule", "certifier")]
    is_one = isinstance(header.get("kind"), str) and all(isinstance(part, dict) for part in parts)
    return header if is_one else None


def _said_by_folders(path: Path) -> dict[str, Any]:
    parts = path.resolve().parts
    start = max((i for i, part in enumerate(parts) if part in _TSV.values()), default=None)
    places = [i for i, part in enumerate(parts) if part in DATASETS and (start is None or i > start)]
    # after `certify` the first name is the data set, however deep the folders go on; without it, the nearest
    place = (places[-1] if start is None else places[0]) if places else None
    noise = next((i for i, part in enumerate(parts) if _NOISE.fullmatch(part)), len(parts) - 1)
    between = parts[place + 1 : noise] if place is not None else ()
    return {
        "data": None if place is None else parts[place],
        "split": next((part for part in reversed(parts[:-1]) if part in SPLITS), "test"),
        "sigma": _number(_SIGMA, parts[-1:]),
        "trained": _number(_NOISE, parts),
        "votes": None if (votes := _number(_VOTES, parts[-1:])) is None else int(votes),
        "method": between[0] if between else path.name,
    }


def _number(pattern: re.Pattern[str], parts: Sequence[str]) -> float | None:
    for part in reversed(parts):
        if (found := pattern.fullmatch(part)) is not None:
            try:
                number = float(found[1])
            except ValueError:
                return None
            return number if np.isfinite(number) else None
    return None
