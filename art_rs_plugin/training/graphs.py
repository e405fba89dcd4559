"""A network's training passes as CUDA graphs: launched whole, they take as long as the GPU computes, not as Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from art_rs_plugin.ranks import Ranks
from art_rs_plugin.votes import Forward

# each keeps the activations of a batch in memory of its own: whole batches, the last one, and those of two methods
MOST_GRAPHS = 4


def check_graphs(device: torch.device, forward: Forward | None, ranks: Ranks) -> None:
    """ValueError where passes cannot be launched whole: on other devices, around the model, or across ranks."""
    if device.type != "cuda":
        raise ValueError(f"`cuda_graphs` must be False for a model that is not on a GPU, got True on {device}")
    if forward is not None:
        raise ValueError(f"`cuda_graphs` must be False with a `forward`, for they hold the model alone, got {forward}")
    if ranks.size > 1:
        raise ValueError(f"`cuda_graphs` must be False where ranks train together, got True for {ranks.size} ranks")


class Graphed:
    """`model`, whose first training pass of each shape in a step is replayed from a graph of it and of its gradients.

    Captured by `torch.cuda.make_graphed_callables` when a shape is met first. A graph has one set of activations, which
    the step's backward pass needs: further passes of its shape before `next_step` are launched kernel by kernel, as
    are those in evaluation mode, without gradients or with one in the images.

    :param dtype: What autocast casts to, or None: its cache of weights, which change, must not enter a graph.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.model = model
        self.dtype = dtype
        self._graphs: dict[Any, nn.Module] = {}
        self._used: set[Any] = set()

    def next_step(self) -> None:
        """Gradients of what was computed so far are done with."""
        self._used.clear()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What the model makes of `x`."""
        key = x.shape, x.stride(), x.dtype
        trains = self.model.training and torch.is_grad_enabled() and not x.requires_grad
        if not trains or key in self._used or (key not in self._graphs and len(self._graphs) == MOST_GRAPHS):
            logits: torch.Tensor = self.model(x)
            return logits
        if key not in self._graphs:
            self._graphs[key] = self._capture(x)
        self._used.add(key)
        return self._graphs[key](x)  # type: ignore[no-any-return]

    def _capture(self, x: torch.Tensor) -> nn.Module:
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        autocast = torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False)
        try:
            with autocast:
                graph = torch.cuda.make_graphed_callables(_Whole(self.model), (x.clone(),))
        except RuntimeError as error:
            raise RuntimeError(
                f"`cuda_graphs` must be False for a model that no CUDA graph can hold, got True: {error}"
            ) from error
        with torch.no_grad():
            for buffer, values in before:  # it is run a few times before: batches that statistics must not count
                buffer.copy_(values)
        assert isinstance(graph, nn.Module)
        return graph


class _Whole(nn.Module):
    """A module around `model`, for torch replaces the forward function of the one that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits
