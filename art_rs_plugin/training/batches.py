"""Mini-batches whose order is a function of (seed, epoch) alone, so that a resumed run meets the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from art_rs_plugin.core import checks
from art_rs_plugin.noise import Purpose, stream
from art_rs_plugin.ranks import ALONE, Ranks

Augment = Callable[[torch.Tensor], torch.Tensor]


def loader_batches(
    dataset: Dataset[Any] | tuple[ArrayLike, ArrayLike],
    batch_size: int,
    seed: int,
    *,
    augment: Augment | None = None,
    drop_last: bool = False,
    num_workers: int = 0,
    ranks: Ranks = ALONE,
) -> Callable[[int], DataLoader[Any]]:
    """`batches` for `train`: epoch -> a shuffled DataLoader over the whole of `dataset`.

    :param dataset: Map-style, of (x floating, int label) pairs; or a pair of arrays or tensors (x, y).
    :param augment: Random transform of one x, such as a torchvision crop or flip. It draws from torch's global
        generator, which `train` seeds for each epoch (in worker processes the DataLoader does, from the same seed).
    :param drop_last: Leave out the last batch where it is smaller (other samples in each epoch).
    :param num_workers: Processes that load the data; with `augment` a change of it changes the crops.
    :param ranks: Who trains together: each gets its share of every batch, all of one size. Where the samples, or those
        of the last batch, are no multiple of their number, a few of the first ones come twice, as with torch's
        DistributedSampler.
    :raises ValueError: for a data set without samples, x and y of different length, no single full batch to keep, or a
        `batch_size` that is no multiple of the number of ranks.
    """
    checks.whole("batch_size", batch_size)
    checks.whole("seed", seed, minimum=0)
    if batch_size % ranks.size:
        raise ValueError(f"`batch_size` must be a multiple of the {ranks.size} ranks that share it, got {batch_size}")
    if isinstance(dataset, tuple):
        x, y = (torch.as_tensor(values) for values in dataset)
        if len(x) != len(y):
            raise ValueError(f"`dataset` must hold one label a sample, got {len(x)} samples and {len(y)} labels")
        dataset = TensorDataset(x, y)
    samples = len(dataset)  # type: ignore[arg-type]  # a map-style data set has a length, its type does not say so
    checks.whole("len(dataset)", samples, minimum=batch_size if drop_last else 1)
    source = dataset if augment is None else _Augmented(dataset, augment)

    def shared(epoch: int) -> DataLoader[Any]:
        order = torch.randperm(samples, generator=stream(seed, Purpose.SHUFFLING, epoch)).tolist()
        shuffled = Subset(source, order)  # whose batches of all ranks together follow one another in it
        sampler: DistributedSampler[Any] = DistributedSampler(
            shuffled, ranks.size, ranks.rank, shuffle=False, drop_last=drop_last
        )
        share = batch_size // ranks.size
        return DataLoader(shuffled, batch_size=share, sampler=sampler, drop_last=drop_last, num_workers=num_workers)

    def batches(epoch: int) -> DataLoader[Any]:
        return DataLoader(
            source,
            batch_size=batch_size,
            shuffle=True,
            drop_last=drop_last,
            num_workers=num_workers,
            generator=stream(seed, Purpose.SHUFFLING, epoch),
        )

    return batches if ranks.size == 1 else shared


class _Augmented(Dataset[Any]):
    """`dataset` with every x changed by `augment`, anew at each access."""

    def __init__(self, dataset: Dataset[Any], augment: Augment) -> None:
        self.dataset = dataset
        self.augment = augment

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # as above

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        x, y = self.dataset[index]
        return self.augment(x), y
