"""Data sets by name: float32 images in [0, 1], shape (channels, height, width), with whole-number labels.

Scikit-learn's handwritten digits come with the installation; all others are read through `torchvision.datasets` from a
folder the user names. To add one: write a reader that returns `Images`, and give it an entry in `DATASETS`.
"""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from art_rs_plugin.core import checks
from art_rs_plugin.training.batches import Augment

SPLITS = ("train", "test")
ROOT_VARIABLE = "ART_RS_DATA"

Shape = tuple[int, int, int]


class Images(Dataset[tuple[torch.Tensor, int]], ABC):
    """Map-style data set of (float32 image in [0, 1] of shape `shape`, label in 0 .. `nb_classes` - 1)."""

    shape: Shape
    nb_classes: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One split of a data set, and what training on it needs to know.

    :param images: The images as they are predicted and certified: no augmentation, no standardisation.
    :param mean: Mean of each channel of the training images; likewise `std`: for the model's first layer.
    :param augment: Random transform of one image for training, or None. None for the test split.
    """

    name: str
    split: str
    images: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None

    @property
    def input_shape(self) -> Shape:
        """(channels, height, width) of every image."""
        return self.images.shape

    @property
    def nb_classes(self) -> int:
        """Number of classes."""
        return self.images.nb_classes

    def __len__(self) -> int:
        return len(self.images)

    def arrays(self, indices: Iterable[int] | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images and labels at `indices` (default: all) as arrays, float32 (m, C, H, W) and int64 (m,)."""
        rows = range(len(self)) if indices is None else [operator.index(index) for index in indices]
        x = np.empty((len(rows), *self.input_shape), dtype=np.float32)
        y = np.empty(len(rows), dtype=np.int64)
        for row, index in enumerate(rows):
            image, y[row] = self.images[index]
            x[row] = image.numpy()
        return x, y


def load(name: str, split: str = "test", *, root: str | Path | None = None, download: bool = False) -> DataSet:
    """One split of the data set `name`.

    :param name: A key of `DATASETS`.
    :param split: "train" or "test".
    :param root: Folder that holds the data sets in torchvision's layout; default: the environment variable ART_RS_DATA.
    :param download: Let torchvision download a missing set into `root`. Nothing is ever downloaded otherwise.
    :raises FileNotFoundError: The data set is missing or damaged; says where it was looked for and what to do.
    :raises ValueError: `name` or `split` is unknown, or the class folders of an image folder disagree.
    """
    source = DATASETS[checks.one_of("data set", name, DATASETS)]
    checks.one_of("split", split, SPLITS)
    given = root if root is not None else os.environ.get(ROOT_VARIABLE) or None
    folder = None if given is None else Path(given).expanduser()
    if folder is None and not source.embedded:
        raise FileNotFoundError(f"data set `{name}`: no folder was named to look in. {_remedies(source)}")
    try:
        images = source.read(folder, split, download)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"data set `{name}` ({split} split) is missing or damaged in `{folder}`: {error}. {_remedies(source)}"
        ) from error
    augment = source.augment() if source.augment is not None and split == "train" else None
    return DataSet(name=name, split=split, images=images, mean=source.mean, std=source.std, augment=augment)


def _remedies(source: Source) -> str:
    there = f"Name the folder that holds {source.layout} by --data-root (`root=`) or in {ROOT_VARIABLE}"
    return f"{there}, or ask for a download into it by --download (`download=True`)" if source.downloads else there


def _unit(pixels: NDArray[np.uint8], white: int) -> torch.Tensor:
    """`pixels / white`, to the last bit: a product with 1 / 255, as torchvision has it in places, is off by one bit."""
    return torch.from_numpy(np.divide(pixels, np.float32(white), dtype=np.float32))


class _InMemory(Images):
    """Images kept as 8-bit integers, a quarter of their size as float32, and converted one by one."""

    def __init__(self, pixels: NDArray[np.uint8], labels: Any, *, white: int = 255, nb_classes: int = 10) -> None:
        self._pixels = np.ascontiguousarray(pixels)
        self._labels = np.asarray(labels, dtype=np.int64)
        self._white = white
        _, channels, height, width = pixels.shape
        self.shape = (channels, height, width)
        self.nb_classes = nb_classes

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return _unit(self._pixels[index], self._white), int(self._labels[index])


class _ImageFolder(Images):
    """One folder of images per class, each image resized to 256 and cropped to its centre of 224 x 224."""

    shape = (3, 224, 224)

    def __init__(self, folder: Path) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        view = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
        self._folder = ImageFolder(folder, view)
        self.nb_classes = len(self._folder.classes)

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels, label = self._folder[index]
        return _unit(pixels.numpy(), 255), label


def _digits(root: Path | None, split: str, download: bool) -> Images:
    """1 797 scans of 8 x 8 pixels with values 0 .. 16 (UCI ML, 1998); every fourth is held out for the test."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    held_out = np.arange(len(scans.target)) % 4 == 3
    chosen = held_out if split == "test" else ~held_out
    return _InMemory(scans.images[chosen, None].astype(np.uint8), scans.target[chosen], white=16)


def _mnist(root: Path | None, split: str, download: bool) -> Images:
    from torchvision.datasets import MNIST

    source = MNIST(root, train=split == "train", download=download)
    return _InMemory(source.data.numpy()[:, None], source.targets)


def _cifar10(root: Path | None, split: str, download: bool) -> Images:
    from torchvision.datasets import CIFAR10

    source = CIFAR10(root, train=split == "train", download=download)
    return _InMemory(source.data.transpose(0, 3, 1, 2), source.targets)


def _svhn(root: Path | None, split: str, download: bool) -> Images:
    from torchvision.datasets import SVHN

    source = SVHN(root, split=split, download=download)
    return _InMemory(source.data, source.labels)


def _image_folder(root: Path | None, split: str, download: bool, *, inside: str = ".") -> Images:
    """Labels are positions in the sorted list of class folders: part of a set's folders gives other labels."""
    assert root is not None
    folders = {"train": root / inside / "train", "test": root / inside / "val"}
    classes = [
        {entry.name for entry in folder.iterdir() if entry.is_dir()} for folder in folders.values() if folder.is_dir()
    ]
    if len(classes) == 2 and classes[0] != classes[1]:
        only = ", ".join(sorted(classes[0] ^ classes[1])[:5])
        raise ValueError(
            f"`train` and `val` in `{root / inside}` must hold the same class folders, got only one of: {only}"
        )
    return _ImageFolder(folders[split])


def _crop(size: int) -> Augment:
    from torchvision.transforms import v2

    crop: Augment = v2.RandomCrop(size, padding=4)
    return crop


def _crop_and_flip(size: int) -> Augment:
    from torchvision.transforms import v2

    both: Augment = v2.Compose([_crop(size), v2.RandomHorizontalFlip()])
    return both


def _zoom_and_flip() -> Augment:
    from torchvision.transforms import v2

    both: Augment = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
    return both


@dataclass(frozen=True, kw_only=True)
class Source:
    """How one data set is read: an entry of `DATASETS`.

    :param read: (root folder, split, download) -> `Images`; OSError or RuntimeError where the data are not there.
    :param layout: What the root folder must hold, for the error message.
    :param augment: Makes the random transform for training.
    :param embedded: Comes with the installation and needs no root folder.
    :param downloads: `read` can download.
    """

    read: Callable[[Path | None, str, bool], Images]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = ""
    augment: Callable[[], Augment] | None = None
    embedded: bool = False
    downloads: bool = False


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, Source] = {
    "digits": Source(read=_digits, mean=(0.3053,), std=(0.3760,), embedded=True),
    "mnist": Source(read=_mnist, mean=(0.1307,), std=(0.3081,), layout="`MNIST/raw`", downloads=True),
    "cifar10": Source(
        read=_cifar10,
        mean=(0.4914, 0.4822, 0.4465),
        # as Cohen et al. standardise, so that their weights fit: the mean of the deviations of single images
        std=(0.2023, 0.1994, 0.2010),
        layout="`cifar-10-batches-py`",
        augment=partial(_crop_and_flip, 32),
        downloads=True,
    ),
    "svhn": Source(
        read=_svhn,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        layout="`train_32x32.mat` and `test_32x32.mat`",
        augment=partial(_crop, 32),  # no flip: a mirrored numeral is another one, or none
        downloads=True,
    ),
    "imagefolder": Source(
        read=_image_folder,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        layout="`train` and `val`, one folder of images per class in each",
        augment=_zoom_and_flip,
    ),
    "imagenet": Source(
        read=partial(_image_folder, inside="imagenet"),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        layout="`imagenet/train` and `imagenet/val`, one folder of images per class in each",
        augment=_zoom_and_flip,
    ),
}
