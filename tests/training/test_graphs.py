"""Passes as CUDA graphs: which are replayed. That they give what kernels give is `benchmarks/gpu_training.py`'s."""

import pytest
import torch
from torch import nn

from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, train
from art_rs_plugin.training.graphs import MOST_GRAPHS, Graphed


class Captured(nn.Module):
    """What a test holds in the place of a graph: it runs the module, as torch does when it captures, and counts."""

    def __init__(self, whole, args):
        super().__init__()
        self.whole, self.replays = whole, 0
        assert not torch.is_autocast_cache_enabled()
        for _ in range(3):
            whole(*args)

    def forward(self, x):
        self.replays += 1
        return self.whole(x)


@pytest.fixture
def made(monkeypatch):
    graphs = []

    def capture(whole, args):
        graphs.append(Captured(whole, args))
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return graphs


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_the_first_pass_of_a_step_is_replayed_and_none_after_it(made):
    passes, x = Graphed(network(), None), torch.rand(5, 4)
    for step in (1, 2):
        passes.next_step()
        passes(x)
        passes(x)  # its activations would overwrite those that the backward pass of the first needs
        assert [graph.replays for graph in made] == [step]


def test_passes_without_gradients_in_the_weights_alone_are_not_replayed(made):
    model, x = network(), torch.rand(5, 4)
    passes = Graphed(model, None)
    with torch.no_grad():
        passes(x)
    passes(x.clone().requires_grad_(True))
    model.eval()
    passes(x)
    assert made == []


def test_each_shape_has_a_graph_up_to_so_many(made):
    passes = Graphed(network(), None)
    for size in range(2, 2 + MOST_GRAPHS + 2):
        passes(torch.rand(size, 4))
    assert [graph.replays for graph in made] == [1] * MOST_GRAPHS


def test_capturing_leaves_running_means_as_they_were(made):
    model, plain, x = network(), network(), torch.rand(5, 4)
    assert torch.equal(Graphed(model, None)(x), plain(x))
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), plain.buffers(), strict=True))


def test_a_model_that_cannot_be_captured_is_said(monkeypatch):
    def refuse(whole, args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(RuntimeError, match=r"`cuda_graphs` must be False for a model .* not permitted"):
        Graphed(network(), None)(torch.rand(5, 4))


def test_without_a_gpu_it_is_refused():
    model = network()
    with pytest.raises(ValueError, match="`cuda_graphs` must be False for a model that is not on a GPU, got True on"):
        train(
            model,
            lambda epoch: [(torch.rand(5, 4), torch.zeros(5, dtype=torch.int64))],
            objective=OBJECTIVES["gaussian"](),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            noise=Gaussian(0.5),
            epochs=1,
            seed=0,
            cuda_graphs=True,
        )
