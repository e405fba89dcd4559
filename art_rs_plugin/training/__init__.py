"""Training a base classifier under noise: one loop, one objective a file. Plain torch, no ART.

A new method is a file beside `gaussian.py` and a line in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable

from art_rs_plugin.training.batches import loader_batches
from art_rs_plugin.training.checkpoint import Epoch, read_checkpoint
from art_rs_plugin.training.gaussian import GaussianAugmentation
from art_rs_plugin.training.loop import train
from art_rs_plugin.training.objectives import Objective, Outcome

# each entry takes the method's own options by keyword and gives the objective that `train` wants
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    GaussianAugmentation.name: GaussianAugmentation,
}

__all__ = [
    "OBJECTIVES",
    "Epoch",
    "GaussianAugmentation",
    "Objective",
    "Outcome",
    "loader_batches",
    "read_checkpoint",
    "train",
]
