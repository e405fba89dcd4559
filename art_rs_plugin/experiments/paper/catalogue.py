"""What can be made of the paper, by name: each table and figure, what it needs, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from art_rs_plugin.experiments import datasets
from art_rs_plugin.experiments.paper import accuracy, baselines, bounds, images, tables
from art_rs_plugin.experiments.paper.sources import Logs
from art_rs_plugin.experiments.paper.tables import CIFAR_RADII, IMAGENET_RADII, TABLE_1_RADII

_LOGS, _NOTHING = "logs of CERTIFY", "nothing"
_SALMAN_IMAGENET = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
_SALMAN_CIFAR = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user gave: logs, and, if not those of the paper, data set and sigma.

    :param root: Folder of the data sets, for pictures of images.
    """

    logs: Logs
    data: str | None = None
    sigma: float | None = None
    root: Path | None = None

    def images(self, default: str, split: str = "test") -> datasets.DataSet:
        """The data set's images."""
        return datasets.load(self.data or default, split, root=self.root)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table, a figure, or a figure with its numbers.

    :param needs: What must be given.
    :param csv: The numbers of the CSV file, where they are others than the table's.
    """

    about: str
    needs: str
    table: Callable[[Given], pd.DataFrame] | None = None
    figure: Callable[[Given], Figure] | None = None
    csv: Callable[[Given], pd.DataFrame] | None = None


def _resolutions(given: Given, default: str) -> Figure:
    # the paper's 224 x 224 against 56 x 56
    factor = 4 if (given.data or default) == "imagenet" else 2
    return images.resolutions(given.images(default), factor=factor, index=10)


ITEMS: dict[str, Item] = {
    "table1": Item(
        about="the best sigma for each radius, ImageNet",
        needs=_LOGS,
        table=lambda given: tables.best_by_radius(given.logs, data=given.data or "imagenet"),
        csv=lambda given: tables.by_sigma(given.logs, data=given.data or "imagenet", radii=(0.0, *TABLE_1_RADII)),
    ),
    "table2": Item(
        about="certified accuracy by sigma and radius, ImageNet",
        needs=_LOGS,
        table=lambda given: tables.by_sigma(given.logs, data=given.data or "imagenet", radii=IMAGENET_RADII),
    ),
    "table3": Item(
        about="certified accuracy by sigma and radius, CIFAR-10",
        needs=_LOGS,
        table=lambda given: tables.by_sigma(given.logs, data=given.data or "cifar10", radii=CIFAR_RADII),
    ),
    "table4": Item(
        about="PREDICT by the number of votes, ImageNet",
        needs="logs of PREDICT at several n",
        table=lambda given: tables.predictions(given.logs, data=given.data or "imagenet"),
    ),
    "figure2": Item(
        about="an image and the image under noise",
        needs="a data set; digits come along",
        figure=lambda given: images.noisy(given.images("digits"), sigmas=(0.0, 0.5), images=1),
    ),
    "figure4": Item(
        about="noise at low and at high resolution",
        needs="a data set; digits come along",
        figure=lambda given: _resolutions(given, "digits"),
    ),
    "figure5": Item(
        about="radius by probability for three bounds; radius by number of votes",
        needs=_NOTHING,
        figure=lambda given: bounds.by_probability(),
    ),
    "figure6": Item(
        about="certified accuracy by radius, a curve for each sigma",
        needs=f"{_LOGS}; for the upper bound a ledger of attack-bound by art-rs compare",
        figure=lambda given: accuracy.by_sigma(given.logs, given.data),
    ),
    "figure7": Item(
        about="smoothing against the other certifiers, and where the curves cross",
        needs="a folder that art-rs compare wrote",
        figure=lambda given: baselines.compared(given.logs, data=given.data),
        table=lambda given: baselines.crossing_points(given.logs, data=given.data),
    ),
    "figure8": Item(
        about="certified accuracy by bound, by projected n, by alpha, ImageNet sigma .25; its numbers at every sigma",
        needs=_LOGS,
        figure=lambda given: bounds.on_data(given.logs, data=given.data or "imagenet", sigma=given.sigma or 0.25),
        table=lambda given: bounds.shares(given.logs, data=given.data or "imagenet", radii=IMAGENET_RADII),
    ),
    "figure12": Item(
        about="as figure 4, of an ImageNet image, 224 x 224 and 56 x 56",
        needs="the data set",
        figure=lambda given: _resolutions(given, "imagenet"),
    ),
    "figure13": Item(
        about="as figure 7, a panel for each data set",
        needs="a folder that art-rs compare wrote",
        figure=lambda given: baselines.compared(given.logs, data=given.data),
        table=lambda given: baselines.crossing_points(given.logs, data=given.data),
    ),
    "figure14": Item(
        about="approximate certified accuracy and what is guaranteed of it (Theorem 6), ImageNet sigma .25",
        needs=_LOGS,
        figure=lambda given: accuracy.guaranteed(given.logs, data=given.data or "imagenet", sigma=given.sigma or 0.25),
        table=lambda given: accuracy.confidence(
            given.logs, data=given.data or "imagenet", sigma=given.sigma or 0.25, radii=(0.0, 0.25, 0.5, 0.75)
        ),
    ),
    "figure15": Item(
        about="training noise, certified at sigma .5",
        needs=f"{_LOGS} of networks trained at several sigmas",
        figure=lambda given: accuracy.by_training(
            given.logs, data=given.data and [given.data], sigma=given.sigma or 0.5
        ),
    ),
    "figure16": Item(
        about="the bounds of Lecuyer et al. and Li et al. over their parameter",
        needs=_NOTHING,
        figure=lambda given: bounds.by_parameter(),
    ),
    "figure17": Item(
        about="CIFAR-10 images under noise",
        needs="the data set",
        figure=lambda given: images.noisy(given.images("cifar10")),
    ),
    "figure18": Item(
        about="ImageNet images under noise",
        needs="the data set",
        figure=lambda given: images.noisy(given.images("imagenet")),
    ),
    "noise": Item(
        about="images under noise, as figures 17 and 18, of another data set",
        needs="a data set; digits come along",
        figure=lambda given: images.noisy(given.images("digits")),
    ),
    "proposition7": Item(
        about="twice the resolution, twice the noise, twice the radius (Appendix G in small)",
        needs="a data set; digits come along",
        table=lambda given: images.doubled_radius(given.images("digits", "train"), given.images("digits")),
    ),
    "envelope-imagenet": Item(
        about="Salman et al. 2019, Table 1: the best network for each radius, ImageNet",
        needs=_LOGS,
        table=lambda given: tables.envelope(given.logs, data=given.data or "imagenet", radii=_SALMAN_IMAGENET),
    ),
    "envelope-cifar10": Item(
        about="Salman et al. 2019, Table 2: the best network for each radius, CIFAR-10",
        needs=_LOGS,
        table=lambda given: tables.envelope(given.logs, data=given.data or "cifar10", radii=_SALMAN_CIFAR),
    ),
    "linf-imagenet": Item(
        about="the same in l_inf, ImageNet",
        needs=_LOGS,
        table=lambda given: tables.l_inf(given.logs, data=given.data or "imagenet"),
    ),
    "linf-cifar10": Item(
        about="the same in l_inf, CIFAR-10",
        needs=_LOGS,
        table=lambda given: tables.l_inf(given.logs, data=given.data or "cifar10"),
    ),
}
