"""Training a base classifier under noise: one loop, one objective a file. Plain torch, no ART.

A new method is a file beside `gaussian.py` and a line in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable

from art_rs_plugin.training.batches import loader_batches
from art_rs_plugin.training.cat_rs import CatRS
from art_rs_plugin.training.checkpoint import Epoch, read_checkpoint
from art_rs_plugin.training.consistency import Consistency
from art_rs_plugin.training.gaussian import GaussianAugmentation
from art_rs_plugin.training.lmt import LipschitzMargin
from art_rs_plugin.training.loop import train
from art_rs_plugin.training.macer import MACER
from art_rs_plugin.training.objectives import Objective, Outcome, Step
from art_rs_plugin.training.smoothadv import SmoothAdv
from art_rs_plugin.training.smoothmix import SmoothMix
from art_rs_plugin.training.stability import Stability

# each entry takes the method's own options by keyword and gives the objective that `train` wants
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    objective.name: objective
    for objective in (GaussianAugmentation, Stability, SmoothAdv, MACER, Consistency, SmoothMix, CatRS, LipschitzMargin)
}

__all__ = [
    "MACER",
    "OBJECTIVES",
    "CatRS",
    "Consistency",
    "Epoch",
    "GaussianAugmentation",
    "LipschitzMargin",
    "Objective",
    "Outcome",
    "SmoothAdv",
    "SmoothMix",
    "Stability",
    "Step",
    "loader_batches",
    "read_checkpoint",
    "train",
]
