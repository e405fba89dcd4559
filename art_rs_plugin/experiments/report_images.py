"""The hardest and the easiest inputs of a ledger, with pictures that a page can hold."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.noise import Purpose, distribution, stream

SHOWN = 6
_LARGE = 64  # pixels a side, from which noise is kept smaller by JPEG


def extremes(log: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of the inputs whose own class got the least share of votes, and of those with the largest radii."""
    counts = np.array(log["counts"].tolist(), dtype=np.float64)
    label = np.clip(log["label"].to_numpy(), 0, counts.shape[1] - 1)
    own = counts[np.arange(len(log)), label] / counts.sum(axis=1)
    log = log.assign(own=own)
    right = log[(log["prediction"] == log["label"]) & (log["prediction"] != ABSTAIN)]
    return {
        "hardest": log.sort_values(["own", "index"]).head(SHOWN),
        "easiest": right.sort_values(["radius", "own", "index"], ascending=[False, False, True]).head(SHOWN),
    }


def cards(rows: pd.DataFrame, header: dict[str, Any], data: DataSet | None) -> list[dict[str, Any]]:
    """What to show of each input: what was certified, its most voted classes, and, with `data`, its pictures."""
    made = []
    for row in rows.to_dict("records"):
        counts = np.array(row["counts"])
        first = sorted(range(len(counts)), key=lambda name: (-counts[name], name))[:3]
        card = {
            "index": row["index"],
            "label": row["label"],
            "prediction": row["prediction"],
            "abstained": row["prediction"] == ABSTAIN,
            "right": row["prediction"] == row["label"],
            "radius": row["radius"],
            "votes": [(name, int(counts[name]), counts[name] / counts.sum()) for name in first if counts[name]],
            "pictures": [],
        }
        if data is not None and row["index"] < len(data):
            (x,), _ = data.arrays([row["index"]])
            card["pictures"] = [("clean", _picture(x)), ("noisy", _picture(x + _noise(x, header, row["index"])))]
        made.append(card)
    return made


def _noise(x: NDArray[np.float32], header: dict[str, Any], index: int) -> NDArray[np.float32]:
    """A draw of the ledger's noise, from a stream that no vote is drawn from."""
    noise = distribution(header["noise"])
    return noise.fill_(torch.empty(x.shape), stream(header["seed"], Purpose.VALIDATION, index)).numpy()


def _picture(x: NDArray[np.float32]) -> str:
    """An image (channels, height, width) as a data URL; clipped to [0, 1], which only a picture needs."""
    pixels = np.round(np.clip(x, 0.0, 1.0) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels[:3].transpose(1, 2, 0))
    buffer, kind = io.BytesIO(), "jpeg" if min(picture.size) > _LARGE else "png"
    picture.save(buffer, kind, **({"quality": 80} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
