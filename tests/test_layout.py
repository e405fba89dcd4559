"""Models that need images with channels first: the same answers as from a model that takes them either way."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch, SmoothedPGD
from art_rs_plugin.layout import tried, weights_with_channels_last
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, train


class Small(nn.Module):
    """A convolutional network that flattens its activations by `view`, as ART's first example does, or by `flatten`."""

    def __init__(self, channels, views):
        super().__init__()
        self.conv, self.pool, self.linear = nn.Conv2d(channels, 4, 3), nn.MaxPool2d(2), nn.Linear(36, 3)
        self.views = views

    def forward(self, x):
        x = self.pool(torch.relu(self.conv(x)))
        return self.linear(x.view(-1, 36) if self.views else x.flatten(1))


def pair(channels):
    """Two models with the same weights, the second of which takes no channels last."""
    torch.manual_seed(channels)
    first, second = Small(channels, views=False), Small(channels, views=True)
    second.load_state_dict(first.state_dict())
    return first, second


def images(channels, m=6):
    return torch.rand(m, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def smoothed(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return RandomizedSmoothingPyTorch(
        model, 0.25, optimizer=optimizer, nb_classes=3, n0=20, n=200, alpha=0.01, seed=3, **options
    )


@pytest.mark.parametrize("channels", [1, 3])
class TestAModelThatTakesViews:
    def test_is_told_from_one_that_does_not(self, channels):
        x = images(channels)
        either, first = pair(channels)
        (logits, need), (of_first, need_of_first) = (tried(model, x) for model in (either, first))
        assert (need, need_of_first) == (False, True)
        torch.testing.assert_close(logits, of_first)
        assert tried(nn.Linear(4, 2), torch.rand(3, 4))[1] is False  # no images: nothing to lay out
        with pytest.raises(RuntimeError, match=r"(?i)kernel size"):
            tried(first, x[..., :2])

    def test_votes_and_has_gradients_as_the_other(self, channels):
        x, y = images(channels).numpy(), np.arange(6) % 3
        either, first = (smoothed(model) for model in pair(channels))
        for one, other in zip(either.certify(x), first.certify(x), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(either.predict(x), first.predict(x))
        assert first.channels_first  # ART's own, which says where the channels of x are
        gradients = [estimator.loss_gradient(x, y) for estimator in (either, first)]
        assert np.abs(gradients[0]).max() > 0
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)

    def test_is_attacked_as_the_other(self, channels):
        x, y = images(channels).numpy(), np.arange(6) % 3
        found = []
        for model in pair(channels):
            attack = SmoothedPGD(smoothed(model), eps=0.5, max_iter=3, num_samples=8, verbose=False)
            found.append(attack.generate(x, y))
        assert np.abs(found[0] - x).max() > 0.01
        np.testing.assert_allclose(*found, atol=1e-4)

    def test_learns_what_the_other_learns(self, channels):
        x, y = images(channels, 30), torch.arange(30) % 3
        models = pair(channels)
        before = models[0].conv.weight.detach().clone()
        for model in models:
            smoothed(model).fit(x.numpy(), y.numpy(), batch_size=10, nb_epochs=2)
        assert (models[0].conv.weight - before).abs().max() > 1e-3
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_compiled_one_votes_as_the_other():
    x = images(3).numpy()
    either, first = (smoothed(model, compile=compile) for model, compile in zip(pair(3), (False, True), strict=True))
    for one, other in zip(either.certify(x), first.certify(x), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05)  # a vote that is next to tied may change
    assert first.arithmetic == "fp32, compiled"


def test_a_copy_from_a_pickle_still_knows():
    estimator = smoothed(pair(3)[1])
    x = images(3).numpy()
    expected = estimator.certify(x)
    for one, other in zip(copy.deepcopy(estimator).certify(x), expected, strict=True):
        assert np.array_equal(one, other)
    estimator.set_params(model=pair(3)[0])
    for one, other in zip(estimator.certify(x), expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("views", [False, True])
def test_training_gives_weights_back_as_they_lay(views):
    model = pair(3)[views]
    seen = []
    model.conv.register_forward_hook(lambda module, x, y: seen.append((module.training, module.weight.stride())))
    train(
        model, lambda epoch: [(images(3), torch.arange(6) % 3)], objective=OBJECTIVES["gaussian"](),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1), noise=Gaussian(0.25), epochs=1, seed=0,
    )  # fmt: skip
    assert [stride for training, stride in seen if training] == [(27, 9, 3, 1) if views else (27, 1, 9, 3)]
    assert model.conv.weight.stride() == (27, 9, 3, 1)


def test_weights_keep_values_and_any_other_strides():
    model = nn.Conv2d(1, 4, 3)
    model.weight.data = torch.rand(3, 4, 3, 1).permute(1, 3, 0, 2)
    values, stride = model.weight.detach().clone(), model.weight.stride()
    with weights_with_channels_last(model):
        assert model.weight.stride() == (9, 1, 3, 1)
        assert torch.equal(model.weight, values)
    assert model.weight.stride() == stride
    assert torch.equal(model.weight, values)
