"""What a run will cost before it is begun: votes, forward passes, seconds, and hours on so many devices.

Votes follow from the rule that draws them: `Fixed` says how many, and what `Looks` draws is simulated by its own steps
at the class probabilities of images like those. Seconds follow from the rate of one device, measured or given. Hours
follow from dealing such images out to the devices (`dealing`), the last ones included that some wait for.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from art_rs_plugin.core import checks
from art_rs_plugin.core.budgets import Budget, Task, drive
from art_rs_plugin.core.radii import cohen
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import dealing, models, runs
from art_rs_plugin.experiments.datasets import DATASETS, Shape
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.votes import automatic_batch_size

_DRAWS = 5  # simulated runs at each class probability
_SECONDS = 5.0  # that a rate is measured for
_SEED = 0

# shape of an image, classes, images of the test split: a plan needs no image
SIZES: dict[str, tuple[Shape, int, int]] = {
    "digits": ((1, 8, 8), 10, 449),
    "mnist": ((1, 28, 28), 10, 10_000),
    "cifar10": ((3, 32, 32), 10, 10_000),
    "svhn": ((3, 32, 32), 10, 26_032),
    "imagenet": ((3, 224, 224), 1_000, 50_000),
}

# p_A of the predicted class, where a twentieth after a twentieth of the images lies, in ten-thousandths: from the
# radii that Cohen et al. 2019 published of 500 test images each (427 for ImageNet at .25), R = sigma Phi^-1(p_A); an
# abstention is taken for 1/2
_PUBLISHED = {
    ("imagenet", 0.25): "5000 5000 5791 6685 7539 8269 8866 9474 9768 9884 9958 9982 9996 9999" + 6 * " 9999",
    ("imagenet", 0.50): "5000 5000 5000 5140 5918 6695 7173 7716 8408 9205 9603 9829 9927 9969 9991 9998" + 4 * " 9999",
    ("imagenet", 1.00): 6 * "5000 " + "5264 5768 6349 6895 7731 8411 8923 9330 9587 9804 9934 9989 9999 9999",
    ("cifar10", 0.12): "5000 5812 6542 7859 8523 9074 9350 9759 9893 9933 9976 9994 9998" + 7 * " 9999",
    ("cifar10", 0.25): "5000 5000 5719 6352 6958 7526 8191 8678 9099 9495 9691 9850 9930 9965 9985 9994" + 4 * " 9999",
    ("cifar10", 0.50): (
        "5000 5000 5000 5055 5674 6119 6675 7258 7656 8095 8345 8822 9095 9456 9688 9819 9910 9967 9994 9999"
    ),
    ("cifar10", 1.00): 6 * "5000 " + "5212 5513 5864 6278 6739 7101 7584 7928 8360 8690 9066 9593 9895 9981",
}


@dataclass(frozen=True)
class Rate:
    """Votes a second of one device, and where the number comes from."""

    votes: float
    source: str


def images_of(data: str, count: int | None, every: int) -> int:
    """How many images of the test split a run certifies.

    :raises ValueError: A data set whose size is not known beforehand, and no `count`.
    """
    checks.one_of("data set", data, DATASETS)
    if data not in SIZES:
        raise ValueError(f"`data` must be one whose size is known beforehand, {', '.join(SIZES)}, got {data!r}")
    chosen = range(0, SIZES[data][2], checks.whole("every", every))
    return len(chosen if count is None else chosen[: checks.whole("max", count)])


def measured_rate(
    model: str, data: str, sigma: float, n: int, *, device: str, batch_size: int | None = None, **how: Any
) -> Rate:
    """Votes a second of this device by `model` with random weights, which take as long as any others.

    :param device: "cpu" or "gpu". :param how: `precision` and `compile` of the estimator.
    """
    shape, nb_classes, _ = SIZES[data]
    network = models.build(model, input_shape=shape, nb_classes=nb_classes)
    estimator = RandomizedSmoothingPyTorch(network, sigma, input_shape=shape, n=n, seed=0, device_type=device, **how)
    x = np.full((1, *shape), 0.5, dtype=np.float32)
    votes = rows_of_a_pass(data, estimator.device, batch_size)
    estimator.votes(x, votes, batch_size=batch_size)  # compiled and warm
    taken = 0.0
    while taken < _SECONDS / 2:
        start = time.perf_counter()
        estimator.votes(x, votes, batch_size=batch_size)
        taken = time.perf_counter() - start
        rate = votes / taken
        votes = int(votes * min(16.0, max(1.5, _SECONDS / taken)))
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if device == "gpu" else f"a CPU with {threads} thread{'s' * (threads > 1)}"
    return Rate(rate, f"measured here on {where}, {estimator.arithmetic}")


def rows_of_a_pass(data: str, device: torch.device, batch_size: int | None) -> int:
    """Noisy copies in a forward pass."""
    return automatic_batch_size(SIZES[data][0], device) if batch_size is None else max(2, batch_size)


def probabilities_like(data: str, sigma: float, ledger: Path | None) -> tuple[NDArray[np.float64], str]:
    """p_A of images like those of the run, one and all as likely, and where they come from.

    :param ledger: Of certificates, such as of every hundredth image; otherwise the logs that Cohen et al. published.
    :raises ValueError: There are none, and what to do.
    """
    if ledger is not None:
        _, rows = read_ledger(ledger)
        kept = [row for row in rows if "selected" in row]
        if not kept:
            raise ValueError(f"{ledger} must hold certificates from votes, got {len(rows)} rows without")
        shares = [row["counts"][row["selected"]] / row["n"] for row in kept]
        return np.array(shares), f"the {len(kept)} images of {ledger}"
    known = [there for name, there in _PUBLISHED if name == data]
    if not known:
        raise ValueError(
            f"`--like` must be given for {data}: a ledger of some of its images, by which to tell how many votes looks "
            "draw. Published logs are of imagenet and cifar10"
        )
    nearest = min(known, key=lambda there: abs(np.log(there / sigma)))
    values = np.array([int(word) for word in _PUBLISHED[data, nearest].split()]) / 10_000
    return values, f"published logs of {data} at sigma {nearest:g}"


def simulated_votes(budget: Budget, p: ArrayLike, sigma: float, alpha: float, draws: int = _DRAWS) -> NDArray[np.int64]:
    """Votes that the budget draws of an image with each class probability, selection included, `draws` times each."""
    chance = np.random.default_rng(_SEED)
    task = Task(radius=lambda lower, upper: cohen(lower, upper, sigma=sigma), alpha=alpha, uniform=1.0)
    spent = []
    for share in np.repeat(np.asarray(p, dtype=np.float64), draws):
        drawn = [0]

        def draw(purpose: str, votes: int, share: float = share, drawn: list[int] = drawn) -> NDArray[np.int64]:
            drawn[0] += votes
            hits = chance.binomial(votes, share)
            return np.array([hits, votes - hits], dtype=np.int64)

        drive(budget.steps(task), draw)
        spent.append(drawn[0])
    return np.array(spent, dtype=np.int64)


def seconds_together(seconds: ArrayLike, devices: int) -> float:
    """Seconds that so many devices take for images of so many seconds each, dealt out as `dealing` does."""
    each = np.asarray(seconds, dtype=np.float64)
    free = [0.0] * devices
    for piece in dealing.pieces(len(each), devices, runs.IMAGES_AT_ONCE):
        heapq.heapreplace(free, free[0] + float(each[piece].sum()))
    return max(free)


def table(
    budgets: Mapping[str, Budget],
    *,
    images: int,
    p: Mapping[str, ArrayLike],
    sigma: float,
    alpha: float,
    rate: float,
    rows: int,
    devices: int,
) -> pd.DataFrame:
    """What each budget costs: a row each, by its name.

    :param p: p_A of images like those, for budgets whose votes depend on it, see `probabilities_like`.
    :param rate: Votes a second of one device. :param rows: Noisy copies in a forward pass.
    :return: `rule`, `votes an image`, `votes`, `passes`, `device hours`, `hours` on all `devices` together, and
        `in use`, the share of these hours that devices are at work.
    """
    chance = np.random.default_rng(_SEED)
    made = []
    for name, budget in budgets.items():
        votes = simulated_votes(budget, p[name], sigma, alpha)
        total = float(votes.mean()) * images
        each = chance.choice(votes, images) / rate
        together = seconds_together(each, devices)
        in_use = float(each.sum()) / (devices * together)
        alone = total / rate
        made.append(
            [name, votes.mean(), total, np.ceil(total / rows), alone / 3600, alone / devices / in_use / 3600, in_use]
        )
    columns = ["rule", "votes an image", "votes", "passes", "device hours", "hours", "in use"]
    return pd.DataFrame(made, columns=columns)


def to_text(costs: pd.DataFrame) -> str:
    """The table in Markdown, large numbers in three digits."""
    lines = ["| " + " | ".join(costs.columns) + " |", "| --- |" + " ---: |" * (len(costs.columns) - 1)]
    for name, each, votes, passes, device_hours, hours, in_use in costs.itertuples(index=False):
        numbers = [
            f"{each:.0f}",
            f"{votes:.3g}",
            f"{passes:.3g}",
            f"{device_hours:.3g}",
            f"{hours:.3g}",
            f"{in_use:.1%}",
        ]
        lines.append("| " + " | ".join([name, *numbers]) + " |")
    return "\n".join(lines)
