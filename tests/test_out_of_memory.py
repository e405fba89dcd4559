"""A device that runs out of memory: fewer noisy copies a forward pass, said once, and the same votes."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import Looks, RandomizedSmoothingPyTorch

# those that `pytest.warns` was not asked for come again when it ends
pytestmark = pytest.mark.filterwarnings("ignore:cpu ran out of memory:UserWarning")

X = np.random.default_rng(0).random((4, 1, 4, 4), dtype=np.float32)
SAID = "cpu ran out of memory: forward passes take at most {} noisy copies from here on"


class Small(nn.Module):
    """A network that takes so many rows; whole numbers, so that no order of summation matters."""

    def __init__(self, most=None):
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, x):
        self.sizes.append(len(x))
        if self.most is not None and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        whole = torch.round(64 * x.flatten(1))
        return torch.stack([whole[:, :8].sum(dim=1), whole[:, 8:].sum(dim=1) + 0.5], dim=1)


def smoothed(most=None):
    return RandomizedSmoothingPyTorch(Small(most), 0.25, n0=20, n=400, seed=3, nb_classes=2)


@pytest.mark.parametrize("budget", [None, Looks(radii=(0.0, 0.1), n_max=400, n0=20)])
@pytest.mark.parametrize(("most", "rows"), [(63, 32), (16, 16), (5, 4), (2, 2)])
def test_halves_the_batch_says_so_and_ends_with_the_same_certificates(most, rows, budget):
    expected = smoothed().certificates(X, budget=budget)
    estimator = smoothed()
    estimator.predict(X, n=20)  # a first look at the network, by two and four rows
    estimator.model.most = most
    with pytest.warns(UserWarning, match=SAID.format(rows)) as said:
        assert estimator.certificates(X, budget=budget) == expected
    wanted = [SAID.format(2**k) for k in range(5, 0, -1) if 2**k >= rows]
    assert [str(warning.message) for warning in said] == wanted
    estimator.model.sizes.clear()
    assert estimator.certificates(X[:1], batch_size=1_000, budget=budget) == expected[:1]  # once is enough
    assert set(estimator.model.sizes) == {rows}


def test_goes_on_within_a_call_too():
    estimator = smoothed()
    made = estimator.iter_certificates(X, n=20_000)
    first = next(made)
    estimator.model.most = 32
    with pytest.warns(UserWarning, match=SAID.format(32)):
        rest = list(made)
    assert [first, *rest] == smoothed().certificates(X, n=20_000)


def test_a_pass_of_two_rows_that_is_too_large_is_an_error():
    estimator = smoothed()
    estimator.predict(X, n=20)
    estimator.model.most = 1
    with pytest.warns(UserWarning, match=SAID.format(2)), pytest.raises(torch.OutOfMemoryError, match="of memory"):
        estimator.votes(X, 100)


def test_predict_and_votes_too():
    expected = smoothed().votes(X, 300)
    estimator = smoothed()
    estimator.predict(X, n=20)
    estimator.model.most = 40
    with pytest.warns(UserWarning, match=re.escape(SAID.format(32))):
        assert np.array_equal(estimator.votes(X, 300), expected)
