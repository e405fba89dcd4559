"""Noisy images, and noise against resolution: Cohen et al. 2019, Figures 2, 4, 12, 17 and 18, and Appendix G."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import avg_pool2d

from art_rs_plugin.core.curves import average_certified_radius, certified_accuracy
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments.datasets import DataSet
from art_rs_plugin.experiments.paper.drawing import footnote, panels

Array = NDArray[np.float32]

SIGMAS = (0.0, 0.25, 0.5, 1.0)


def noisy(data: DataSet, *, sigmas: Sequence[float] = SIGMAS, images: int = 4, seed: int = 0) -> Figure:
    """Figures 17 and 18: images of a data set, a row each, under Gaussian noise of each sigma.

    They are clipped to [0, 1] for show alone; what is certified is not.

    :param images: How many, evenly spread over the data set.
    """
    every = max(1, len(data) // images)
    x, _ = data.arrays(range(0, every * images, every))
    random = np.random.default_rng(seed)
    figure, axes = panels(len(x) * len(sigmas), columns=len(sigmas))
    figure.set_size_inches(1.6 * len(sigmas), 1.6 * len(x) + 0.8)
    for place, panel in enumerate(axes):
        image, sigma = x[place // len(sigmas)], sigmas[place % len(sigmas)]
        _show(panel, image + sigma * random.standard_normal(image.shape), f"σ = {sigma:g}" * (place < len(sigmas)))
    footnote(
        figure, f"{data.name}: noise N(0, σ²I) in the unit of the input, [0, 1]; clipped to [0, 1] for show alone."
    )
    return figure


def resolutions(data: DataSet, *, sigma: float = 0.5, factor: int = 2, index: int = 0, seed: int = 0) -> Figure:
    """Figures 4 and 12: an image and its average pooled version, clean and under noise of the same sigma."""
    x, _ = data.arrays([index])
    high, low = x[0], pooled(x, factor)[0]
    random = np.random.default_rng(seed)
    figure, axes = panels(4, columns=4)
    figure.set_size_inches(9.6, 3.2)
    for panel, image, level in zip(axes, (low, high, low, high), (0.0, 0.0, sigma, sigma), strict=True):
        size = f"{image.shape[1]} x {image.shape[2]}"
        noise = level * random.standard_normal(image.shape)
        _show(panel, image + noise, f"{size}, " + (f"σ = {level:g}" if level else "clean"))
    footnote(
        figure,
        f"{data.name}: the low resolution is the average of every {factor} x {factor} pixels of the high one. The same "
        f"noise, pooled, has 1/{factor} of its σ: high resolution withstands more (Proposition 7). Unit of the input.",
    )
    return figure


def pooled(x: Array, factor: int = 2) -> Array:
    """Images (n, channels, height, width), every `factor` x `factor` pixels averaged; a rest at the end is cut."""
    return avg_pool2d(torch.from_numpy(x), factor).numpy()


def doubled_radius(
    train: DataSet, test: DataSet, *, sigma: float = 0.25, images: int = 60, n: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Proposition 7 in small: pooled images at sigma, and full ones pooled by the network at twice sigma.

    g' = (f', sigma) classifies 2 x 2 average pooled images; g = (f' after pooling, 2 sigma) the images themselves. The
    average of four independent N(0, (2 sigma)^2) is N(0, sigma^2), so that g names the same class as g' and Theorem 1
    gives it twice the radius. f' is a linear classifier, fitted to pooled training images under the noise it will see.

    :return: Rows for g' and g: columns `resolution`, `sigma`, `noise after pooling` (measured), `accuracy` (certified,
        at radius 0), `at sigma` (certified at the row's own sigma), `average radius`, and `same class` (share on which
        both agree, abstentions included).
    """
    x, y = test.arrays(range(0, len(test), max(1, len(test) // images))[:images])
    low = _linear(train, sigma, seed)
    rows, predictions = [], []
    for resolution, model, inputs, level in (
        (test.input_shape[1] // 2, low, pooled(x), sigma),
        (test.input_shape[1], nn.Sequential(nn.AvgPool2d(2), low), x, 2 * sigma),
    ):
        estimator = RandomizedSmoothingPyTorch(
            model, level, n=n, seed=seed, input_shape=inputs.shape[1:], nb_classes=test.nb_classes, device_type="cpu"
        )
        certificates = estimator.certificates(inputs)
        prediction = np.array([certificate.prediction for certificate in certificates])
        radius = np.array([certificate.radius for certificate in certificates])
        noise = level * np.random.default_rng(seed).standard_normal((2000, *inputs.shape[1:])).astype(np.float32)
        measured = float(noise.std() if model is low else pooled(noise).std())
        shares = certified_accuracy(prediction, radius, y, [0.0, level])
        rows.append([resolution, level, measured, *shares, average_certified_radius(prediction, radius, y)])
        predictions.append(prediction)
    same = float((predictions[0] == predictions[1]).mean())
    names = ["resolution", "sigma", "noise after pooling", "accuracy", "at sigma", "average radius"]
    table = pd.DataFrame(rows, columns=names).assign(**{"same class": same})
    table.attrs["caption"] = f"Proposition 7 on {test.name}: twice the noise, twice the radius."
    table.attrs["notes"] = [
        f"{len(x)} images, n = {n}, α = {estimator.alpha:g}, a linear f'; the votes of both rows are drawn apart, so "
        "that they agree up to the chance of the votes."
    ]
    return table


def _linear(train: DataSet, sigma: float, seed: int) -> nn.Module:
    """Logistic regression on pooled training images under noise of this sigma, as a network."""
    x, y = train.arrays()
    x = pooled(x)
    noisy_x = x + sigma * np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
    fitted: Any = LogisticRegression(max_iter=300).fit(noisy_x.reshape(len(x), -1), y)
    layer = nn.Linear(x[0].size, train.nb_classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fitted.coef_))
        layer.bias.copy_(torch.from_numpy(fitted.intercept_))
    return nn.Sequential(nn.Flatten(), layer).eval()


def _show(axes: Axes, image: NDArray[Any], title: str) -> None:
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
