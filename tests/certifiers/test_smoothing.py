"""Smoothing behind the protocol, and what attacks leave of it: the estimator's own certificates, and known margins."""

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from torch import nn

from art_rs_plugin import Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.certifiers import attack_bound, get
from art_rs_plugin.core.radii import RADII

SIGMA = 0.5


def plane(dimension=4):
    """Class 1 where the first entry is above 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(dimension, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, 0] = 1.0
        model[1].bias.zero_()
    return model


def points(*margins):
    x = np.zeros((len(margins), 1, 2, 2), dtype=np.float32)
    x[:, 0, 0, 0] = margins
    return x


X = points(0.6, -0.3, 0.1, 0.9, 0.001)
SHAPE = {"input_shape": (1, 2, 2), "nb_classes": 2}


@pytest.mark.parametrize("name", ["smoothing", "smoothing-li", "smoothing-lecuyer"])
def test_certificates_are_those_of_the_estimator_with_the_formula_of_the_name(name):
    certifier = get(name).build(plane(), **SHAPE, sigma=SIGMA, n0=20, n=500, alpha=0.01, seed=3)
    estimator = RandomizedSmoothingPyTorch(plane(), SIGMA, n0=20, n=500, alpha=0.01, seed=3)
    formula = RADII[{"smoothing": "cohen"}.get(name, name.removeprefix("smoothing-"))]
    made = certifier.certify(X, indices=[4, 8, 15, 16, 23])
    for ours, theirs in zip(made, estimator.certificates(X, indices=[4, 8, 15, 16, 23]), strict=True):
        radius = float(formula(theirs.p_lower, theirs.p_upper, sigma=SIGMA))
        assert ours.radius == radius
        assert ours.prediction == (theirs.selected if radius > 0 else -1)
        assert (ours.index, ours.counts, ours.certifies, ours.alpha) == (theirs.index, theirs.counts, "g", 0.01)
    assert made[4].prediction == -1


def test_prior_bounds_certify_no_more_at_any_input():
    radius = {
        name: [c.radius for c in get(name).build(plane(), **SHAPE, sigma=SIGMA, n=2_000, seed=1).certify(X)]
        for name in ("smoothing", "smoothing-li", "smoothing-lecuyer")
    }
    for cohen, li, lecuyer in zip(*radius.values(), strict=True):
        assert cohen >= li >= lecuyer
    assert radius["smoothing"][0] > radius["smoothing-li"][0] > radius["smoothing-lecuyer"][0] > 0


def test_budget_is_by_name():
    certifier = get("smoothing").build(plane(), **SHAPE, sigma=SIGMA, n=5_000, budget="looks", radii=[0.25], seed=1)
    expected = RandomizedSmoothingPyTorch(plane(), SIGMA, n=5_000, seed=1).certificates(
        X, budget=Looks(radii=[0.25], n_max=5_000)
    )
    assert certifier.certify(X) == expected
    with pytest.raises(ValueError, match="`budget` must be one of fixed, looks, pilot, got 'guess'"):
        get("smoothing").build(plane(), **SHAPE, sigma=SIGMA, budget="guess")
    with pytest.raises(ValueError, match="`sigma` must be given"):
        get("smoothing").build(plane(), **SHAPE)


class TestAttackBound:
    @pytest.mark.parametrize("order", [2, np.inf])
    @pytest.mark.parametrize("sigma", [None, SIGMA])
    def test_on_a_half_space_finds_the_first_radius_past_the_margin(self, sigma, order):
        radii = [0.2, 0.4, 0.8]
        y = np.array([1, 0, 1, 1, 0])
        bound = get("attack-bound").build(
            plane(), **SHAPE, radii=radii, sigma=sigma, norm=order, clip_values=None, seed=0
        )
        assert bound.certifies == ("f" if sigma is None else "g")
        found = bound.distances(X, y)
        margins = np.array([0.6, 0.3, 0.1, 0.9, 0.0])
        for distance, margin, right in zip(found, margins, [True, True, True, True, False], strict=True):
            if not right:
                assert distance == 0.0
            elif margin > 0.8:
                assert distance == np.inf
            else:
                past = min(radius for radius in radii if radius > margin)
                assert margin <= distance < past  # else it would not count at that radius
                if (sigma, order) == (None, 2):  # DeepFool needs no radius to try
                    assert distance == pytest.approx(margin, rel=1e-4)

    @pytest.mark.parametrize(
        ("by_deepfool", "expected"),
        [(0.0, [0.4, np.inf]), (0.35, [0.35, np.inf]), (0.5, [0.4, np.inf]), (0.95, [0.4, np.inf])],
    )
    def test_of_what_deepfool_and_pgd_find_the_shorter_counts(self, by_deepfool, expected, monkeypatch):
        """Margins of .3 and .9, radii up to .8: what is longer was not to be found."""

        class Fake:
            def __init__(self, classifier, **options):
                assert options["nb_grads"] == 2

            def generate(self, x):
                return x - by_deepfool * np.array([1, 0, 0, 0], np.float32).reshape(1, 1, 2, 2)

        monkeypatch.setattr(attack_bound, "DeepFool", Fake)
        bound = get("attack-bound").build(plane(), **SHAPE, radii=[0.8, 0.2, 0.4], clip_values=None)
        assert bound.distances(points(0.3, 0.9), np.array([1, 1])) == pytest.approx(expected, rel=1e-4)

    def test_depends_on_each_input_and_its_index_alone(self):
        y = np.array([1, 0, 1, 1, 1])
        kind = get("attack-bound")
        options = {**SHAPE, "radii": [0.2, 0.7], "sigma": SIGMA, "clip_values": None, "seed": 2, "n": 100}
        together = kind.build(plane(), **options).distances(X, y, indices=[9, 3, 4, 1, 7])
        for row, index in enumerate([9, 3, 4, 1, 7]):
            alone = kind.build(plane(), **options).distances(X[row : row + 1], y[row : row + 1], indices=[index])
            assert alone[0] == pytest.approx(together[row], rel=1e-4)

    def test_leaves_numpys_generator_as_it_was(self):
        np.random.seed(5)  # noqa: NPY002
        bound = get("attack-bound").build(plane(), **SHAPE, radii=[0.5], clip_values=None)
        bound.distances(X, np.array([1, 0, 1, 1, 1]))
        assert np.random.random() == np.random.RandomState(5).random_sample()  # noqa: NPY002

    def test_bad_options_are_named(self):
        with pytest.raises(ValueError, match="`norm` must be one of 2, inf, got 1"):
            get("attack-bound").build(plane(), **SHAPE, radii=[1.0], norm=1)
        with pytest.raises(ValueError, match="`radii` must be a finite number above 0, got -1"):
            get("attack-bound").build(plane(), **SHAPE, radii=[-1.0])
        with pytest.raises(ValueError, match="`y` must be given"):
            get("attack-bound").build(plane(), **SHAPE, radii=[1.0]).distances(X, None)


def test_radius_is_the_margin_but_for_the_bound():
    """Cohen et al. 2019, Appendix B: p_A is Phi(margin / sigma) on a half-space."""
    certifier = get("smoothing").build(plane(), **SHAPE, sigma=SIGMA, n=100_000, seed=4)
    for certificate, margin in zip(certifier.certify(X[:4]), [0.6, 0.3, 0.1, 0.9], strict=True):
        assert certificate.radius <= margin
        p = normal.cdf(margin / SIGMA)
        spread = 5 * np.sqrt(p * (1 - p) / 100_000)
        assert certificate.radius >= SIGMA * normal.ppf(p - 2 * spread)
