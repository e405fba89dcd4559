"""Upper bounds on the l2 norms of matrices and convolutions, that is on their largest singular values.

Power iteration is not among them: what it finds is a lower bound, and a radius divided by it is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_EPS = 2.0**-52  # of float64
_EIGENVALUES = 4096  # of matrices with sides up to this; products of larger ones make better use of many cores


def spectral_norm(matrices: torch.Tensor, eigenvalues: int = _EIGENVALUES) -> float:
    """An upper bound on the largest singular value of any of the matrices `(..., rows, columns)`.

    The root of the largest eigenvalue of A A^H or A^H A, whichever is smaller, in float64 and rounded up. It is as
    precise as a singular value decomposition, whose small values alone would suffer from the square.

    :param matrices: Real or complex.
    :param eigenvalues: Where the shorter side is above this, the bound is `gram_iteration`'s, at most 1% above.
    :return: Infinity if an entry is not finite.
    """
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    scale = float(matrices.abs().max())
    if not math.isfinite(scale):
        return math.inf
    if scale == 0.0:
        return 0.0
    matrices = matrices / scale  # lest squares underflow
    rows, columns = matrices.shape[-2:]
    gram = matrices @ matrices.mH if rows <= columns else matrices.mH @ matrices
    if min(rows, columns) <= eigenvalues:
        root = math.sqrt(float(torch.linalg.eigvalsh(gram)[..., -1].max()))
    else:
        root = math.sqrt(max(gram_iteration(matrix) for matrix in gram.reshape(-1, *gram.shape[-2:])))
    # an entry of the Gram matrix is a sum of one side's length, and as many of the other's may add up
    return scale * root * (1.0 + 4.0 * _EPS * rows * columns)


def gram_iteration(matrix: torch.Tensor, iterations: int = 8) -> float:
    """An upper bound on the largest singular value by Gram iteration (Delattre et al. 2023).

    With G_0 = A and G_{t+1} = G_t^H G_t the norm of A is that of G_t to the power 2^-t, and the Frobenius norm is no
    less than the norm, and at most the root of the rank times it: after t products the bound is above the norm by a
    factor of at most rank^(2^-(t+1)), 1.02 for a rank of 10 000 after 8. Not rounded up.

    :param matrix: `(rows, columns)`.
    """
    log, power = 0.0, 1.0  # the norm is exp(log) times that of `matrix`, to the power 1 / `power`
    for _ in range(iterations):
        size = float(torch.linalg.matrix_norm(matrix))
        if size == 0.0:
            return 0.0
        matrix = matrix / size  # lest entries overflow
        log, power = log + math.log(size) / power, 2 * power
        matrix = matrix.mH @ matrix
    return math.exp(log) * math.pow(float(torch.linalg.matrix_norm(matrix)), 1 / power)


def convolution_norm(
    weight: torch.Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> float:
    """An upper bound on the norm of a convolution of images with zeros around them.

    On a torus of at least size + padding, where the zeros of either side may be the same, the circular convolution
    gives all that this one gives of images that are zero elsewhere, so its norm is no less. That is the largest
    singular value of the kernel's Fourier transform over all frequencies (Sedghi et al. 2019, Theorem 6). With a stride
    s frequencies that differ by multiples of size / s fall together: the blocks of such a set lie side by side, over
    the root of their number. Exact for the torus, hence an upper bound that is close where images are larger than
    kernels.

    :param weight: `(outputs, inputs / groups, height, width)`.
    :param size: Height and width of the images; likewise `stride` and `dilation`.
    :param padding: Zeros above and beside the images, on the side that has more.
    """
    outputs, inputs = weight.shape[:2]
    weight = weight.to(torch.complex128).reshape(groups, outputs // groups, inputs, *weight.shape[2:])
    # torus sizes are multiples of the stride
    torus = [-(-(size[i] + padding[i]) // stride[i]) * stride[i] for i in (0, 1)]
    down, across = (_waves(torus[i], stride[i], dilation[i], weight.shape[3 + i]) for i in (0, 1))
    across = across[: len(across) // 2 + 1]  # the rest are conjugates
    largest = 0.0
    for wave in down:  # one row of frequencies, for the memory
        blocks = torch.einsum("goihw,ah,fbw->gfoabi", weight, wave, across).flatten(3)
        largest = max(largest, spectral_norm(blocks))
    return largest / math.sqrt(stride[0] * stride[1]) * (1.0 + 4.0 * _EPS * weight.numel())


def _waves(torus: int, stride: int, dilation: int, kernel: int) -> torch.Tensor:
    """exp(-2 pi i f j dilation / torus), `(torus / stride, stride, kernel)`: frequencies that coincide in a row."""
    frequencies = torch.arange(torus).view(stride, torus // stride).T
    turns = frequencies.unsqueeze(-1) * torch.arange(kernel) * dilation % torus  # whole numbers, hence exact
    angles = turns.to(torch.float64) * (-2 * math.pi / torus)
    return torch.polar(torch.ones_like(angles), angles)
