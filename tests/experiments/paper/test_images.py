"""Noise against resolution: pooled noise against exact covariance, radii against each other."""

import numpy as np
import pytest

from art_rs_plugin.experiments import datasets
from art_rs_plugin.experiments.paper import images


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.mark.parametrize("factor", [2, 4])
def test_pooled_noise_is_white_with_its_sigma_divided_by_the_factor(factor):
    """Exactly: pooling is linear, P, and the covariance of P eps is sigma^2 P P^T."""
    basis = np.eye(64, dtype=np.float32).reshape(64, 1, 8, 8)
    p = images.pooled(basis, factor).reshape(64, -1).T
    np.testing.assert_array_equal(p @ p.T, np.eye(len(p)) / factor**2)


def test_pooling_averages_squares_by_hand():
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert images.pooled(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_twice_the_resolution_and_twice_the_noise_give_twice_the_radius(digits):
    """Proposition 7. Votes are drawn apart, 2 000 for each of 40 images: average radii agree to 4% (seed fixed)."""
    table = images.doubled_radius(datasets.load("digits", "train"), digits, images=40, n=2000)
    low, high = (table.iloc[row] for row in (0, 1))
    assert (low["resolution"], high["resolution"]) == (4, 8)
    assert (low["sigma"], high["sigma"]) == (0.25, 0.5)
    assert low["noise after pooling"] == pytest.approx(0.25, rel=0.02)
    assert high["noise after pooling"] == pytest.approx(0.25, rel=0.02)
    assert high["average radius"] == pytest.approx(2 * low["average radius"], rel=0.04)
    assert low["average radius"] > 0.03
    assert low["same class"] > 0.85


def test_noisy_images_are_the_images_and_noise_of_each_sigma(digits):
    figure = images.noisy(digits, sigmas=(0.0, 0.1, 1.0), images=2)
    assert [axes.get_title() for axes in figure.axes] == ["σ = 0", "σ = 0.1", "σ = 1", "", "", ""]
    x, _ = digits.arrays([0, len(digits) // 2])
    for row in (0, 1):
        clean, little, much = (axes.images[0].get_array() for axes in figure.axes[3 * row : 3 * row + 3])
        np.testing.assert_allclose(clean, x[row, 0], atol=1e-7)
        assert 0 < np.abs(little - clean).mean() < np.abs(much - clean).mean()
        assert 0 <= much.min() <= much.max() <= 1
    assert "clipped to [0, 1] for show alone" in figure.get_supxlabel().replace("\n", " ")


def test_figure_4_shows_both_resolutions(digits):
    figure = images.resolutions(digits, sigma=0.5, index=10)
    assert [axes.get_title() for axes in figure.axes] == [
        "4 x 4, clean",
        "8 x 8, clean",
        "4 x 4, σ = 0.5",
        "8 x 8, σ = 0.5",
    ]
    low, high = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_allclose(low, high.reshape(4, 2, 4, 2).mean(axis=(1, 3)), atol=1e-6)
