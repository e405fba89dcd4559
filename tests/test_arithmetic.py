"""Precision: what f is computed in, the same for votes and gradients, and named; training is not touched."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import datasets, models
from art_rs_plugin.noise import Purpose
from art_rs_plugin.votes import Request, count_votes

SHAPE, SIGMA = (3, 8, 8), 0.25
X = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
Y = np.arange(4) % 3


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
        ).eval()


def smoothed(model=None, **options):
    options = {"n0": 50, "n": 500, "alpha": 0.01, "seed": 3, "input_shape": SHAPE, **options}
    return RandomizedSmoothingPyTorch(model or network(), 0.5, **options)


class Seen(nn.Module):
    """Remembers what its convolution returned in."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.dtypes = set()

    def forward(self, x):
        features = self.network[0](x)
        self.dtypes.add((x.dtype, features.dtype))
        return self.network[1:](features)


class TestPrecision:
    @pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
    def test_is_the_same_for_votes_predictions_and_gradients(self, precision, dtype):
        model = Seen()
        estimator = smoothed(model, precision=precision, compile=False)
        calls = {
            "certify": lambda: estimator.certify(X[:1]),
            "predict": lambda: estimator.predict(X[:1], n=100),
            "loss_gradient": lambda: estimator.loss_gradient(X, Y),
            "class_gradient": lambda: estimator.class_gradient(X, num_samples=4),
            "compute_loss": lambda: estimator.compute_loss(X, Y),
        }
        for name, call in calls.items():
            model.dtypes.clear()
            call()
            # noise is added in float32, and the sum cast once
            assert model.dtypes == {(torch.float32, dtype)}, name

    def test_fp32_whatever_surrounds_it(self):
        model = Seen()
        estimator = smoothed(model, compile=False)
        with torch.autocast("cpu", torch.bfloat16):
            gradient = estimator.loss_gradient(X, Y)
            estimator.predict(X, n=100)
        assert model.dtypes == {(torch.float32, torch.float32)}
        assert np.array_equal(gradient, smoothed(compile=False).loss_gradient(X, Y))

    def test_training_is_not_touched(self):
        model = Seen()
        estimator = smoothed(model, precision="bf16", optimizer=torch.optim.SGD(model.parameters(), 0.01))
        estimator.predict(X, n=100)  # the trial pass is over
        model.dtypes.clear()
        estimator.fit(X, Y, nb_epochs=1)
        assert model.dtypes == {(torch.float32, torch.float32)}

    def test_gradients_in_bf16_are_those_in_fp32_but_for_rounding(self):
        exact = smoothed(compile=False).loss_gradient(X, Y, num_samples=64)
        rough = smoothed(precision="bf16", compile=False).loss_gradient(X, Y, num_samples=64)
        difference = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
        assert 1e-5 < difference < 0.05

    @pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_votes_in_bf16_are_those_of_a_plain_autocast_loop(self, published, compile):
        """A second implementation: ART's own predict under autocast, one batch of the estimator's noise at a time."""
        model, x = published
        options = {"n0": 50, "n": 500, "seed": 3, "input_shape": x.shape[1:]}
        estimator = RandomizedSmoothingPyTorch(model, 0.25, precision="bf16", compile=compile, **options)
        taken = []

        def keep(x):
            taken.append(x.clone())
            return torch.zeros(len(x), 10)

        requests = [Request(row, row, Purpose.PREDICTION, 128) for row in range(len(x))]
        count_votes(
            lambda _: [keep], torch.from_numpy(x), requests, noise=estimator.noise, nb_classes=10, seed=3, batch_size=64
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            named = torch.cat([model(batch).argmax(dim=1) for batch in taken]).view(len(x), 128)
        expected = np.stack([np.bincount(row, minlength=10) for row in named.numpy()])
        changed = np.abs(estimator.votes(x, 128) - expected).sum() / 2 / expected.sum()
        # compiled, folded weights round differently: some near-tied votes of this network, whose votes are split, move
        assert changed <= (0.03 if compile else 0.0)

    @pytest.mark.parametrize("precision", ["fp64", "FP32", "", None, 16])
    def test_another_is_refused(self, precision):
        with pytest.raises(ValueError, match=r"`precision` must be one of 'fp32', 'bf16', 'fp16', got"):
            smoothed(precision=precision)


class TestParams:
    def test_round_trip_and_drop_what_was_compiled(self):
        estimator = smoothed(precision="bf16", compile=True)
        assert estimator.arithmetic == "bf16, compiled"
        assert estimator.get_params()["precision"] == "bf16"
        assert estimator.get_params()["compile"] is True
        estimator.set_params(precision="fp32", compile=False)
        assert estimator.arithmetic == "fp32"
        assert estimator.certificates(X) == smoothed(compile=False).certificates(X)
        for wrong in ({"precision": "fp8"}, {"compile": 2}):
            with pytest.raises(ValueError, match="must be one of"):
                estimator.set_params(**wrong)
            assert estimator.arithmetic == "fp32"

    def test_pickles_and_clones_carry_them(self):
        estimator = smoothed(precision="bf16", compile=True)
        expected = estimator.certificates(X)
        for other in (pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
            assert other.arithmetic == "bf16, compiled"
            assert other.certificates(X) == expected
        assert estimator.clone_for_refitting().precision == "bf16"

    def test_a_thread_setting_is_named(self):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            assert smoothed().arithmetic == "fp32, matmul high"
        finally:
            torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_bf16_decides_few_images_otherwise_and_only_at_their_thresholds():
    """A network trained on digits, and its test images: another f, but one that names the same class nearly always."""
    x_train, y_train = datasets.load("digits", "train").arrays()
    x, y = datasets.load("digits", "test").arrays()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("small-cnn", input_shape=x.shape[1:], nb_classes=10)
    options = {"n0": 50, "n": 1_000, "seed": 1, "compile": False}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    RandomizedSmoothingPyTorch(model, SIGMA, optimizer=optimizer, **options).fit(x_train, y_train, nb_epochs=5)
    exact, rough = (
        RandomizedSmoothingPyTorch(model, SIGMA, precision=precision, **options).certificates(x)
        for precision in ("fp32", "bf16")
    )
    counts = [np.array([certificate.counts for certificate in made]) for made in (exact, rough)]
    moved = np.abs(counts[0] - counts[1]).sum() / 2 / counts[0].sum()
    assert 0 < moved < 0.005
    for radius in (0.0, 0.25, 0.5):
        decided = [
            np.array([c.prediction == label and c.radius >= radius for c, label in zip(made, y, strict=True)])
            for made in (exact, rough)
        ]
        others = np.flatnonzero(decided[0] != decided[1])
        assert decided[0].sum() > 30
        assert len(others) <= 0.01 * len(x), radius
        for row in others:
            # the lower bounds lie on either side of the radius, and as near as the moved votes of one image can be
            bounds = sorted((exact[row].p_lower, rough[row].p_lower))
            assert bounds[0] <= max(norm.cdf(radius / SIGMA), 0.5) <= bounds[1]
            assert bounds[1] - bounds[0] < 0.02
