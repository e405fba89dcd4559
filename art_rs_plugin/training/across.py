"""One training step across ranks: gradients averaged over them, statistics of rank 0 for all, sums over everybody."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from art_rs_plugin.ranks import Ranks
from art_rs_plugin.training.checked import Checked


@contextmanager
def averaged_gradients(model: nn.Module, forward: Checked, ranks: Ranks) -> Iterator[None]:
    """Within, a backward pass leaves each parameter of `model` the mean over all ranks of its gradients.

    By torch's DistributedDataParallel, which `forward` goes through where it is trained; it begins with the weights of
    rank 0. One for each epoch: it sorts gradients anew after its first step, and sums by another order differ in their
    last bits, so that a run that goes on after an epoch would differ from one that was not stopped.
    """
    if ranks.size == 1:
        yield
        return
    device = next(model.parameters()).device
    made = nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers"  # what torch has begun to call it
    shared_at_forward = new if new in signature(made).parameters else "broadcast_buffers"
    on: dict[str, Any] = {"device_ids": [device.index] if device.type == "cuda" else None, shared_at_forward: False}
    parallel = made(model, **on)
    alone = forward.forward
    forward.forward = partial(_logits, parallel, model)
    try:
        yield
    finally:
        forward.forward = alone
        del parallel
        gc.collect()  # its hooks stay on the parameters until it is freed


def _logits(parallel: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # in evaluation mode it is attacked, some ranks' images more often than others', and no gradient is kept
    logits: torch.Tensor = (parallel if model.training else model)(x)
    return logits


@torch.no_grad()
def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the buffers of rank 0, such as running means: each has seen its own share of the batch."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if ranks.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    torch.distributed.broadcast(flat, 0)
    for buffer, values in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def totals(numbers: list[float], device: torch.device, ranks: Ranks) -> list[float]:
    """The sum over all ranks of each number."""
    if ranks.size == 1:
        return numbers
    summed = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return [float(number) for number in summed.tolist()]
