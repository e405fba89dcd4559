"""Bounds on norms: none is below the norm, by NumPy's singular values of the whole matrix."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import norm_of, randomised, seeded
from torch import nn

from art_rs_plugin.certifiers.norms import convolution_norm, gram_iteration, spectral_norm


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), power=st.integers(-250, 250), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_of_a_matrix(rows, columns, power, seed):
    matrix = 10.0**power * torch.randn(rows, columns, generator=seeded(seed), dtype=torch.float64)
    exact = np.linalg.norm(matrix.numpy(), 2)
    by_eigenvalues, by_products = spectral_norm(matrix), spectral_norm(matrix, eigenvalues=0)
    assert exact * (1 - 1e-14) <= by_eigenvalues <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-14) <= by_products <= exact * min(rows, columns) ** 2.0**-10 * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["orthogonal", "rank one", "nearly equal values"])
def test_gram_iteration_is_no_less_than_the_norm_and_at_most_a_root_of_the_rank_above(kind):
    n = 40
    draw = np.random.default_rng(0).normal
    left, right = (np.linalg.qr(draw(size=(n, n)))[0] for _ in range(2))
    values = {"orthogonal": np.ones(n), "rank one": np.eye(n)[0], "nearly equal values": 1 - 1e-6 * np.arange(n)}
    matrix = torch.from_numpy(3.0 * left * values[kind] @ right)
    rank = 1 if kind == "rank one" else n
    for iterations in (0, 1, 3, 9):
        bound = gram_iteration(matrix, iterations)
        assert 3.0 * (1 - 1e-12) <= bound <= 3.0 * rank**2.0 ** -(iterations + 1) * (1 + 1e-12)
    # for an orthogonal matrix it is what its formula says, whatever the start of an iteration of vectors
    if kind == "orthogonal":
        assert gram_iteration(matrix, 3) == pytest.approx(3.0 * n ** (1 / 16), rel=1e-12)


def test_zeros_and_what_is_not_finite():
    assert spectral_norm(torch.zeros(3, 2)) == gram_iteration(torch.zeros(3, 2)) == 0.0
    for value in (math.nan, math.inf):
        assert spectral_norm(torch.tensor([[1.0, value]])) == math.inf


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 4), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_of_a_convolution(kernel, stride, padding, dilation, groups, channels, size, seed):
    stride = (1, 1) if padding == "same" else stride
    inputs, outputs = (groups * number for number in channels)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    layer = randomised(layer, seed)
    sides = {"same": tuple(-(-d * (k - 1) // 2) for d, k in zip(dilation, kernel, strict=True)), "valid": (0, 0)}
    bound = convolution_norm(
        layer.weight.data,
        size,
        stride=stride,
        padding=sides.get(padding, padding),
        dilation=dilation,
        groups=groups,
    )
    exact = norm_of(layer, (inputs, *size))
    assert exact * (1 - 1e-13) <= bound
    # never more than the sum of the norms of the kernel's taps, which is no bound on a torus but one everywhere
    taps = layer.weight.data.view(groups, -1, *layer.weight.shape[1:])
    assert bound <= max(
        sum(np.linalg.norm(group[:, :, i, j].numpy(), 2) for i in range(kernel[0]) for j in range(kernel[1]))
        for group in taps
    ) * (1 + 1e-12)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (3, 1, 2), (2, 2, 4)])
def test_of_a_convolution_on_a_torus_is_exact(stride, dilation, groups):
    layer = randomised(nn.Conv2d(4, 8, 3, stride, groups=groups, dilation=dilation, bias=False))
    around = F.pad  # images that go on at the other end
    circular = lambda x: layer(around(x, (0, 2 * dilation, 0, 2 * dilation), mode="circular"))  # noqa: E731
    options = {"stride": (stride,) * 2, "dilation": (dilation,) * 2, "padding": (0, 0), "groups": groups}
    bound = convolution_norm(layer.weight.data, (6, 12), **options)
    assert bound == pytest.approx(norm_of(circular, (4, 6, 12)), rel=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_of_a_convolution_is_close_where_images_are_larger_than_kernels(stride):
    layer = randomised(nn.Conv2d(2, 3, 3, stride, 1, bias=False))
    exact = norm_of(layer, (2, 24, 24))
    options = {"stride": (stride,) * 2, "dilation": (1, 1), "padding": (1, 1), "groups": 1}
    assert exact <= convolution_norm(layer.weight.data, (24, 24), **options) <= 1.02 * exact
