"""The forward pass of training, in its precision and with its labels checked."""

from __future__ import annotations

from typing import Any

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.layout import with_channels_first
from art_rs_plugin.votes import Forward


class Checked:
    """The forward pass, refusing a label without an output before a loss meets it: on a GPU that kills the process."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.dtype: torch.dtype | None = None  # what autocast casts to
        self.channels_first = False  # whether the model needs images so
        self.highest = 0
        self.where = ""

    def expect(self, x: torch.Tensor, y: torch.Tensor, where: str, weight: tuple[Any, ...] = ()) -> None:
        """Check the next batch, and its loss's weight if it has one, and remember what to hold the logits against."""
        if weight:
            if len(weight) > 1:
                raise ValueError(f"a batch must be (x, y) or (x, y, weight), got {2 + len(weight)} parts in {where}")
            checks.positive("weight", weight[0])
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype} in {where}")
        if y.dtype != torch.int64:
            raise TypeError(f"labels must be class indices of type int64, got {y.dtype} in {where}")
        if y.shape != x.shape[:1] or not len(y):
            raise ValueError(f"labels must have shape {tuple(x.shape[:1])}, got {tuple(y.shape)} in {where}")
        lowest, highest = (int(value) for value in y.aminmax())
        if lowest < 0:
            raise ValueError(f"labels must be at least 0, got {lowest} in {where}")
        self.highest, self.where = highest, where

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(n, classes)` in float32."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.forward(with_channels_first(x) if self.channels_first else x)
        logits = logits.float() if logits.dtype == self.dtype else logits
        if logits.ndim != 2:
            raise ValueError(f"the model must return logits (n, classes), got shape {tuple(logits.shape)}")
        if self.highest >= logits.shape[1]:
            raise ValueError(
                f"labels must be below {logits.shape[1]}, the model's number of outputs, "
                f"got {self.highest} in {self.where}"
            )
        return logits
