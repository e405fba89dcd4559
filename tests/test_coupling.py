"""Models that do not judge each input by itself, or not alike twice: refused at the first x, unless asked not to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

X = np.random.default_rng(0).random((3, 1, 4, 4), dtype=np.float32)


class Around(nn.Module):
    """A linear network with `mix` of whole batches behind it."""

    def __init__(self, mix):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mix, self.linear = mix, nn.Linear(16, 3)

    def forward(self, x):
        return self.mix(self.linear(x.flatten(1)))


def attention(x):
    return torch.softmax(x @ x.T, dim=1) @ x


def in_eight_bits(x):
    scale = x.abs().max() / 127  # of the batch, as dynamic quantisation has it
    return torch.round(x / scale) * scale


MIXED = {
    "normalised": lambda x: F.batch_norm(x, None, None, training=True),
    "centred": lambda x: x - x.mean(dim=0),
    "softmax over the batch": lambda x: torch.softmax(x, dim=0),
    "attention": attention,
    "sorted": lambda x: x.sort(dim=0).values,
    "quantised by the batch": in_eight_bits,
}


def smoothed(mix, **options):
    return RandomizedSmoothingPyTorch(Around(mix), 0.25, n0=20, n=50, seed=0, **options)


@pytest.mark.parametrize("use", ["certify", "predict", "certificates"])
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("zeros", [False, True])
def test_a_model_that_looks_at_the_rest_of_a_batch_is_refused(name, use, zeros):
    x = X * 0 if zeros else X
    with pytest.raises(ValueError, match=r"must judge each input by itself, got logits .* check_coupling=False"):
        getattr(smoothed(MIXED[name]), use)(x)
    smoothed(MIXED[name], check_coupling=False).certify(x)


def test_a_model_that_is_random_in_evaluation_mode_is_refused():
    # dropout of a hundred copies of each logit: of three alone, two masks are the same now and then
    dropout = lambda x: F.dropout(x.repeat(1, 100), 0.5, training=True).view(len(x), 100, 3).sum(dim=1)  # noqa: E731
    for random in (dropout, lambda x: x + torch.rand(x.shape)):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="must answer alike whenever it is asked, got other logits"):
            smoothed(random).certify(X)
        smoothed(random, check_coupling=False).certify(X)


@pytest.mark.parametrize("mix", [lambda x: x, torch.softmax, lambda x: x * 0, lambda x: x.bfloat16().float()])
def test_models_that_do_not_are_taken(mix):
    mix = (lambda x: torch.softmax(x, dim=1)) if mix is torch.softmax else mix
    assert smoothed(mix).certify(X)[0].shape == (3,)


def test_normalisation_and_dropout_in_training_mode_are_no_coupling():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    RandomizedSmoothingPyTorch(model, 0.25, n0=20, n=50).certify(X)
    assert all(module.training for module in model.modules())


def test_is_a_parameter_like_the_others():
    estimator = smoothed(MIXED["centred"], check_coupling=False)
    assert estimator.get_params()["check_coupling"] is False
    assert estimator.clone_for_refitting().check_coupling is False
    estimator.set_params(check_coupling=True)
    with pytest.raises(ValueError, match="must judge each input by itself"):
        estimator.certify(X)
    for value in (1, "no"):
        with pytest.raises(TypeError, match="`check_coupling` must be True or False, got"):
            smoothed(MIXED["centred"], check_coupling=value)
        with pytest.raises(TypeError, match="`check_coupling` must be True or False, got"):
            estimator.set_params(check_coupling=value)
