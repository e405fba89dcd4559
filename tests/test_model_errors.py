"""Models that are no classifiers, or stop being one on the way: what is said, and what is kept."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import CertificationError, RandomizedSmoothingPyTorch
from art_rs_plugin.votes import ModelOutputError

SHAPE, CLASSES = (1, 4, 4), 3
X = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
Y = np.arange(6) % CLASSES


def smoothed(model, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(model, 0.25, **{"n": 200, "n0": 50, "seed": 3, **options})


def refuses(error, message):
    """Expect an error whose message says exactly this somewhere."""
    return pytest.raises(error, match=re.escape(message))


class Wrong(nn.Module):
    """A model that returns `answer(x)`."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.answer(x)


def logits(x):
    return x.flatten(1)[:, :CLASSES]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda x: logits(x)[:, :1], ValueError, "`nb_classes` must be at least 2, got 1: a model with one output"),
        (
            lambda x: logits(x)[:, 0],
            ModelOutputError,
            "must return logits of shape (m, nb_classes) for m inputs, got (",
        ),
        (lambda x: logits(x)[:1], ModelOutputError, "for m inputs, got (1, 3)"),
        (lambda x: logits(x)[:, :, None], ModelOutputError, "for m inputs, got (2, 3, 1)"),
        (lambda x: (logits(x), x), ModelOutputError, "for m inputs, got tuple"),
        (lambda x: None, ModelOutputError, "for m inputs, got NoneType"),
        (
            lambda x: x @ torch.zeros(7, 7),
            ValueError,
            "the model must accept x of shape (2, 1, 4, 4) and dtype float32",
        ),
        (
            lambda x: logits(x) + torch.nan,
            ModelOutputError,
            "must return finite logits, got NaN or infinity in 50 of 50",
        ),
    ],
    ids=["one-output", "vector", "one-row", "image", "tuple", "none", "shapes", "nan"],
)
def test_models(answer, error, message):
    with refuses(error, message):
        RandomizedSmoothingPyTorch(Wrong(answer), 0.25, n0=50).certify(X[:2], n=100)
    if error is not ModelOutputError or "finite" not in message:
        with refuses(error, message):
            RandomizedSmoothingPyTorch(Wrong(answer), 0.25).loss_gradient(X[:2], Y[:2])


def test_a_model_whose_last_layer_has_one_output_is_refused():
    with refuses(ValueError, "`nb_classes` must be at least 2, got 1: a model with one output z names no class; give"):
        RandomizedSmoothingPyTorch(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), 0.25).predict(X)


# 60 and 9000 votes: examples that share forward passes, and examples that are a unit of work each
@pytest.mark.parametrize("n", [60, 9000])
@pytest.mark.parametrize("bad", [0, 1, 4])
class TestModelFailingHalfway:
    # clear of each other, and of the zeros that pad a batch
    X = np.ones((6, *SHAPE), np.float32) * np.arange(100, 700, 100, dtype=np.float32).reshape(6, 1, 1, 1)

    def test_names_the_example_and_keeps_all_others(self, n, bad):
        def spoil(x):
            return torch.where((x[:, 0, 0, :1] / 100).round() == bad + 1, torch.nan, logits(x))

        indices = np.arange(6) + 70
        message = f"got NaN or infinity in 50 of 50 noisy copies of the example with index {70 + bad}"
        with refuses(CertificationError, message) as caught:
            smoothed(Wrong(spoil), n=n).certificates(self.X, indices=indices)
        assert "made all others, 5 certificates, which `certificates` of this error holds" in str(caught.value)
        rest = np.delete(np.arange(6), bad)
        assert caught.value.certificates == smoothed(Wrong(logits), n=n).certificates(
            self.X[rest], indices=indices[rest]
        )
        assert caught.value.__cause__.examples == ((70 + bad, 50, 50),)

    def test_keeps_the_certificates_before_any_other_failure(self, n, bad):
        def fail(x):
            if bool(((x[:, 0, 0, 0] / 100).round() == bad + 1).any()):
                raise RuntimeError("out of memory")
            return logits(x)

        # the first x says what the model is: let it be one on which it works
        estimator = smoothed(Wrong(fail), n=n)
        estimator.predict(self.X[5:], n=20)
        with refuses(RuntimeError, "out of memory") as caught:
            estimator.certificates(self.X)
        self.assert_kept(caught.value, n, bad, np.arange(6))

    def assert_kept(self, error, n, bad, indices):
        expected = smoothed(Wrong(logits), n=n).certificates(self.X[:bad], indices=indices[:bad])
        if bad:
            assert f"stopped after {bad} certificates" in str(error)
            assert error.certificates == expected
        else:
            assert not isinstance(error, CertificationError)
