"""ART's preprocessing of an estimator as a differentiable torch function, so that noise can come before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.pytorch import PyTorchEstimator
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

from art_rs_plugin.layout import with_channels_first


def preprocessed(estimator: PyTorchEstimator, x: torch.Tensor, fit: bool) -> torch.Tensor:
    """`x` after the estimator's defences and standardisation, those that ART applies to fit or to predict.

    Differentiable in `x`, by ART's own estimate where a defence works on arrays. Channels come first where the model
    needs them so.
    """
    result: torch.Tensor = x
    if all(map(_is_identity, estimator.preprocessing_operations)):
        pass
    elif estimator.all_framework_preprocessing:
        result = estimator._apply_preprocessing(x, None, fit=fit, no_grad=False)[0]
    else:
        result = _OnArrays.apply(x, estimator, fit)
    return with_channels_first(result) if estimator._needs_channels_first else result


def side_by_side(estimator: PyTorchEstimator) -> bool:
    """Whether several threads may preprocess at once: standardisation keeps nothing of an input, others may."""
    return all(isinstance(operation, StandardisationMeanStdPyTorch) for operation in estimator.preprocessing_operations)


class _OnArrays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, estimator: PyTorchEstimator, fit: bool) -> torch.Tensor:
        array = x.detach().cpu().numpy()
        ctx.array, ctx.estimator, ctx.fit = array, estimator, fit
        result = np.asarray(estimator._apply_preprocessing(array, None, fit=fit)[0], dtype=np.float32)
        return torch.from_numpy(result).to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0]
        with torch.enable_grad():  # ART differentiates its own preprocessors of torch in there
            estimate = ctx.estimator._apply_preprocessing_gradient(ctx.array, gradient.cpu().numpy(), fit=ctx.fit)
        return torch.from_numpy(np.asarray(estimate, dtype=np.float32)).to(gradient.device), None, None


def _is_identity(operation: Any) -> bool:
    standardises = isinstance(operation, StandardisationMeanStdPyTorch)
    return standardises and bool(np.all(operation.mean == 0) and np.all(operation.std == 1))
