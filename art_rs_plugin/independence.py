"""Whether a model judges each input by itself: certificates speak of no other."""

from __future__ import annotations

import torch

from art_rs_plugin.votes import Forward

_ROWS, _PLACE = 4, 2
# Difference of logits, as a share of the largest, that no kernel makes for one row of batches of one size.
_TOLERANCE = 1e-3


def check_normalisation(model: torch.nn.Module) -> None:
    """ValueError for batch normalisation that takes a batch's own statistics in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the model must judge each input by itself, got `{name}` = {module}, which mixes a batch in "
                "evaluation mode: batch normalisation needs track_running_stats=True"
            )


def check_independent(forward: Forward, x: torch.Tensor) -> None:
    """Try the first of `x` in one place of two batches, among copies of itself and among others far from it.

    A cheap check: it finds statistics of a batch, attention over it and quantisation by its range, not a coupling that
    is weaker than the rounding of a network or waits for certain inputs. Logits that are not finite tell nothing.

    :raises ValueError: The logits of that input differ: with its neighbours, or by themselves from call to call.
    """
    same = x[:1].expand(_ROWS, *x.shape[1:]).clone()
    noise = torch.randn(same.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    mixed = same + 4 * noise
    mixed[_PLACE] = x[0]
    with torch.no_grad():
        alone, among = (forward(batch)[_PLACE] for batch in (same, mixed))
        if _close(alone, among):
            return
        if not _close(alone, forward(same)[_PLACE]):
            raise ValueError(
                "the model must answer alike whenever it is asked, got other logits for the same batch: something in "
                "it is random in evaluation mode, such as functional dropout with training=True; with "
                "check_coupling=False it is taken as it is"
            )
    apart = float((alone - among).abs().max() / alone.abs().max().clamp_min(1e-30))
    raise ValueError(
        "the model must judge each input by itself, got logits of one that differ by "
        f"{apart:.2g} of the largest with the other inputs of its batch: something in it mixes a batch in evaluation "
        "mode, such as functional batch_norm with training=True; with check_coupling=False it is taken as it is"
    )


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    largest = one.abs().max()
    return not bool((one - other).abs().max() > _TOLERANCE * largest)  # NaN is not above anything
