"""Certification logs as data frames: our ledgers, and the tab-separated logs of Cohen et al.'s own code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import ROUND_DOWN, Context, Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from art_rs_plugin.core import checks
from art_rs_plugin.experiments.ledger import VOTE_KEYS, read_ledger

_TSV_NAMES = {  # the authors' column names, and ours
    "idx": "index",
    "label": "label",
    "predict": "prediction",
    "radius": "radius",
    "correct": "correct",
    "time": "seconds",
}
_CERTIFY = tuple(_TSV_NAMES)
_PREDICT = tuple(name for name in _TSV_NAMES if name != "radius")

_WHOLE = re.compile(r"-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", re.IGNORECASE)
_CLOCK = re.compile(r"(?:([0-9]{1,6}) days?, )?([0-9]{1,4}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,6})?)")


def read_log(path: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per example of a ledger or of one of the authors' logs; what the file is, its first line says.

    Columns `index, label, prediction, radius, seconds` (a log of predictions has no `radius`); from a ledger also
    `counts, n, alpha`, and of certificates `selected, p_lower, p_upper, n0`; where votes decided how many to draw also
    `votes`, all that were drawn. Of an attack, whose `prediction` is the one after it, also `leaves` (the class to
    leave), `clean` (the prediction before), `eps`, `l2` and `linf`. `attrs["source"]` is the path, `attrs["header"]` a
    ledger's header. Radii in the authors' logs are rounded to three digits, some of them up.

    :raises ValueError: for an unknown header, a value out of its range, a `correct` that contradicts label and
        prediction, or an index that comes twice; with path, line, rule and value.
    """
    path = Path(path)
    with open(path, "rb") as file:
        is_ledger = file.read(1) == b"{"
    frame = _from_ledger(path) if is_ledger else _from_tsv(path)
    frame.attrs["source"] = str(path)
    return frame


def read_logs(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Several logs by name: the file's name without its suffix, or the whole path where such names repeat."""
    stems = [path.stem if path.suffix == ".jsonl" else path.name for path in paths]
    names = [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
    return {name: read_log(path) for name, path in zip(names, paths, strict=True)}


def write_tsv(frame: pd.DataFrame, path: str | os.PathLike[str], *, decimals: int = 3) -> None:
    """Write a log in the authors' format, atomically; without radii it becomes one of PREDICT.

    :param frame: As `read_log` returns it.
    :param decimals: Digits after the point; radii are rounded down to them, never up.
    """
    checks.whole("decimals", decimals, minimum=0)
    names = _CERTIFY if "radius" in frame else _PREDICT
    table = frame.assign(correct=(frame["label"] == frame["prediction"]).astype(int))
    if "radius" in table:
        table["radius"] = [round_down(radius, decimals) for radius in table["radius"]]
    text = table[[_TSV_NAMES[name] for name in names]].to_csv(sep="\t", header=names, index=False, lineterminator="\n")
    write_atomically(Path(path), text.encode())


def round_down(value: float, decimals: int) -> str:
    """`value` (of at least 0) as text with so many decimals, rounded toward 0.

    It is the shortest decimal that stands for the float that is cut, so a value read from such text is written as it
    was, and none comes back larger.
    """
    exponent = Decimal(1).scaleb(-decimals)
    return format(Decimal(repr(float(value))).quantize(exponent, ROUND_DOWN, Context(prec=400)), "f")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, making its folder: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:  # of a full disk it names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _from_ledger(path: Path) -> pd.DataFrame:
    header, rows = read_ledger(path)
    columns = [*_LOG, "alpha"] if header["kind"] == "certify" else [*_LOG_PREDICT, "alpha"]
    columns += _ATTACK if header["kind"] == "attack" else []
    # a certifier without votes has none to show
    columns += [name for name in (*VOTE_KEYS, "votes") if rows and all(name in row for row in rows)]
    records = []
    for number, row in enumerate(rows, 2):
        records.append(_checked(f"{path}, line {number}", {name: row[name] for name in columns}))
    frame = _frame(records, columns)
    frame.attrs["header"] = header
    return frame


def _from_tsv(path: Path) -> pd.DataFrame:
    try:
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a log: {error}") from None
    names = tuple(lines[0].removesuffix("\r").split("\t"))
    if names not in (_CERTIFY, _PREDICT):
        raise ValueError(
            f"{path}, line 1: a log starts with a ledger's header or the names {' '.join(_CERTIFY)} "
            f"(without radius for predictions), separated by tabs; got {lines[0][:80]!r}"
        )
    records, seen = [], set()
    for number, line in enumerate(lines[1:], 2):
        where = f"{path}, line {number}"
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != len(names):
            raise ValueError(f"{where}: {len(names)} fields are needed, got {len(fields)}")
        record = {_TSV_NAMES[name]: text for name, text in zip(names, fields, strict=True)}
        correct = record.pop("correct")
        row = _checked(where, {name: _PARSERS[name](text) for name, text in record.items()})
        if correct != str(int(row["label"] == row["prediction"])):
            raise ValueError(
                f"{where}: `correct` must be 1 where label and predict agree, else 0; got {correct[:80]!r} "
                f"for label {row['label']} and predict {row['prediction']}"
            )
        if row["index"] in seen:
            raise ValueError(f"{where}: `idx` must not come twice, got {row['index']} again")
        seen.add(row["index"])
        records.append(row)
    return _frame(records, _LOG if "radius" in names else _LOG_PREDICT)


def _frame(records: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=columns).astype({name: _RULES[name][0] for name in columns})


def _checked(where: str, row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {name: _RULES[name][1](name, value) for name, value in row.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _whole(name: str, value: Any, *, minimum: int = 0) -> int:
    number = checks.whole(name, value, minimum=minimum)
    if number >= 2**63:
        raise ValueError(f"`{name}` must be below 2^63, got {value!r}")
    return number


def _real(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= sys.float_info.max):  # false for nan
        raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _counts(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"`{name}` must be a list of whole numbers, got {value!r}")
    return tuple(_whole(name, count) for count in value)


# a column's type, and its rule: the value that goes into the frame, or ValueError or TypeError
_RULES: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "index": ("int64", _whole),
    "label": ("int64", _whole),
    "prediction": ("int64", partial(_whole, minimum=-1)),
    "radius": ("float64", _real),
    "seconds": ("float64", _real),
    "counts": ("object", _counts),
    "selected": ("int64", _whole),
    "p_lower": ("float64", _real),
    "p_upper": ("float64", _real),
    "n0": ("int64", _whole),
    "n": ("int64", _whole),
    "votes": ("int64", _whole),
    "alpha": ("float64", _real),
    "leaves": ("int64", _whole),
    "clean": ("int64", partial(_whole, minimum=-1)),
    "eps": ("float64", _real),
    "l2": ("float64", _real),
    "linf": ("float64", _real),
}
_LOG = ["index", "label", "prediction", "radius", "seconds"]
_ATTACK = ["leaves", "clean", "eps", "l2", "linf"]
_LOG_PREDICT = ["index", "label", "prediction", "seconds"]


def _parse_whole(text: str) -> int | str:
    return int(text) if _WHOLE.fullmatch(text) else text


def _parse_real(text: str) -> float | str:
    return float(text) if _DECIMAL.fullmatch(text) else text


def _parse_time(text: str) -> float | str:
    """Seconds, also from the text of a `datetime.timedelta` as "0:02:31.238689"."""
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return _parse_real(text)
    days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()


# text that none of them understands stays text, which the column's rule then refuses
_PARSERS: dict[str, Callable[[str], Any]] = {
    "index": _parse_whole,
    "label": _parse_whole,
    "prediction": _parse_whole,
    "radius": _parse_real,
    "seconds": _parse_time,
}
