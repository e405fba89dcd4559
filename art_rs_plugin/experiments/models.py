"""Base classifiers by name, each with channel standardisation as its first layer, so that noise comes before it.

To add one: write a function of (input_shape, nb_classes) that returns the network, and give it an entry in `MODELS`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional

from art_rs_plugin.core import checks

Shape = tuple[int, int, int]
Network = TypeVar("Network", bound=nn.Module)


class Normalize(nn.Module):
    """Channel standardisation (x - mean) / std of images (n, channels, height, width).

    :param mean: One number per channel, in the unit of `x`; None: 0.
    :param std: One number above 0 per channel, in the unit of `x`; None: 1.
    :raises ValueError: Their number is not the number of channels, or a deviation is not above 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        for name, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = torch.tensor([default] * channels if given is None else list(given), dtype=torch.float32)
            if values.shape != (channels,) or not values.isfinite().all():
                raise ValueError(f"`{name}` must be {channels} finite numbers, one per channel, got {given!r}")
            self.register_buffer(name, values.reshape(channels, 1, 1))
        if not (self.std > 0).all():
            raise ValueError(f"`std` must be above 0 in every channel, got {std!r}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised `x`, same shape."""
        return (x - self.mean) / self.std


class _PadChannels(nn.Module):
    """The shortcut without parameters (He et al. 2016, option A): every second pixel, zeros as the new channels."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.before = new // 2
        self.after = new - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; the first has stride 2 where the number of channels grows."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 and projection:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        elif stride != 1:
            self.downsample = _PadChannels(outputs - inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class CifarResNet(nn.Module):
    """The ResNet for small images of He et al. 2016, section 4.2: stages of 16, 32 and 64 channels, k blocks each.

    :param depth: 6 k + 2.
    :param projection: Shortcuts between the stages are 1 x 1 convolutions with batch normalisation, as in the
        ResNet-110 of Cohen et al. 2019; False: option A, without parameters.
    """

    def __init__(self, *, depth: int, projection: bool, channels: int, nb_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"`depth` must be 8, 14, 20, ... (6 k + 2), got {depth!r}")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1, projection=projection)
        self.layer2 = _stage(blocks, 16, 32, stride=2, projection=projection)
        self.layer3 = _stage(blocks, 32, 64, stride=2, projection=projection)
        self.fc = nn.Linear(64, nb_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, nb_classes) of images (n, channels, height, width)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: torch.Tensor = self.fc(out.mean((2, 3)))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, *, stride: int, projection: bool) -> nn.Sequential:
    first = _BasicBlock(inputs, outputs, stride=stride, projection=projection)
    rest = [_BasicBlock(outputs, outputs, stride=1, projection=projection) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _cifar_resnet(*, input_shape: Shape, nb_classes: int, depth: int, projection: bool) -> nn.Module:
    return CifarResNet(depth=depth, projection=projection, channels=input_shape[0], nb_classes=nb_classes)


def _small_cnn(*, input_shape: Shape, nb_classes: int) -> nn.Module:
    """Quick on a CPU: the wide first kernel averages the noise, and its stride saves three quarters of the second."""
    return _sequence(
        conv1=nn.Conv2d(input_shape[0], 32, 5, stride=2, padding=2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3, padding=1),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(4),
        flatten=nn.Flatten(),
        fc=nn.Linear(64 * 4 * 4, nb_classes),
    )


def _lenet(*, input_shape: Shape, nb_classes: int) -> nn.Module:
    """LeNet with 20 and 50 filters of 5 x 5 and a layer of 500, as Jeong and Shin 2020 train it on MNIST.

    Its weights begin as torch draws them: He et al. 2015 have no max pooling, and theirs diverge at the rate of 0.01.
    """
    channels, height, width = input_shape
    left = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 20, 5),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(50 * left, 500),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(500, nb_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _mlp(*, input_shape: Shape, nb_classes: int) -> nn.Module:
    channels, height, width = input_shape
    return _sequence(
        flatten=nn.Flatten(),
        fc1=nn.Linear(channels * height * width, 256),
        relu1=nn.ReLU(),
        fc2=nn.Linear(256, 256),
        relu2=nn.ReLU(),
        fc3=nn.Linear(256, nb_classes),
    )


def _mlp_of_seven(*, input_shape: Shape, nb_classes: int, width: int) -> nn.Module:
    """Seven layers, six of them of 1 024 as Zhang et al. 2018 certify on CIFAR-10 by CROWN, or of another width."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    inputs = math.prod(input_shape)
    for number in range(1, 7):
        layers |= {f"fc{number}": nn.Linear(inputs, width), f"relu{number}": nn.ReLU()}
        inputs = width
    return _sequence(**layers, fc7=nn.Linear(inputs, nb_classes))


def _wong_kolter(*, input_shape: Shape, nb_classes: int) -> nn.Module:
    """The small network of Wong et al. 2018, its layers numbered as in the files that they published."""
    channels, height, width = input_shape
    left = (height // 4) * (width // 4)  # each convolution halves, rounding down
    return _initialise(
        nn.Sequential(
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * left, 100),
            nn.ReLU(),
            nn.Linear(100, nb_classes),
        )
    )


def _sequence(**layers: nn.Module) -> nn.Module:
    return _initialise(nn.Sequential(OrderedDict(layers)))


def _initialise(network: Network) -> Network:
    """He et al. 2015: weights N(0, 2 / fan-in), biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _resnet50(*, input_shape: Shape, nb_classes: int) -> nn.Module:
    from torchvision.models import resnet50

    if input_shape[0] != 3:
        raise ValueError(f"`resnet50` takes images with 3 channels, got {input_shape[0]}")
    network: nn.Module = resnet50(weights=None, num_classes=nb_classes)
    return network


class Factory(Protocol):
    """A function that makes networks."""

    def __call__(self, *, input_shape: Shape, nb_classes: int) -> nn.Module:
        """A network that maps images (n, *input_shape) to logits (n, nb_classes)."""


@dataclass(frozen=True)
class Architecture:
    """An entry of `MODELS`: the factory, and the least height and width of the images it takes."""

    make: Factory
    smallest: int = 1


MODELS: dict[str, Architecture] = {
    "small-cnn": Architecture(_small_cnn),
    "lenet": Architecture(_lenet, smallest=16),
    "mlp": Architecture(_mlp),
    "mlp-7x256": Architecture(partial(_mlp_of_seven, width=256)),
    "mlp-7x1024": Architecture(partial(_mlp_of_seven, width=1024)),
    "wong-kolter": Architecture(_wong_kolter, smallest=4),
    "resnet20": Architecture(partial(_cifar_resnet, depth=20, projection=False), smallest=16),
    "resnet110": Architecture(partial(_cifar_resnet, depth=110, projection=True), smallest=16),
    "resnet50": Architecture(_resnet50, smallest=32),
}


def build(
    name: str,
    *,
    input_shape: Sequence[int],
    nb_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """A fresh model: `Normalize`, then the network `name`; it takes images in the unit of `mean` and `std`.

    :param name: A key of `MODELS`, or "module:factory": a user's own function or class, called with those of the
        keywords `input_shape` and `nb_classes` that it takes. Its network gets `Normalize` as its first layer unless
        it is a `Sequential` that begins with one.
    :param input_shape: (channels, height, width).
    :param mean: One number per channel; None: 0. Likewise `std`; None: 1.
    :raises ValueError: Unknown name, images that the architecture does not take, or `mean` and `std` that do not fit.
    :raises ImportError: The user's module cannot be imported, or has no such factory.
    :raises TypeError: The user's factory needs something else, or returns no `torch.nn.Module`.
    """
    shape = _image_shape(input_shape)
    classes = checks.whole("nb_classes", nb_classes, minimum=2)
    normalize = Normalize(shape[0], mean, std)
    if ":" in name:
        network = _users_network(name, shape, classes)
        if isinstance(network, nn.Sequential) and isinstance(next(iter(network), None), Normalize):
            return network  # standardising twice would make another function of it
        return nn.Sequential(normalize, network)
    if name not in MODELS:
        known = ", ".join(map(repr, MODELS))
        raise ValueError(f"`model` must be one of {known}, or 'module:factory', got {name!r}")
    architecture = MODELS[name]
    if min(shape[1:]) < architecture.smallest:
        least = architecture.smallest
        raise ValueError(f"`{name}` takes images of at least {least} x {least} pixels, got {shape[1]} x {shape[2]}")
    return nn.Sequential(normalize, architecture.make(input_shape=shape, nb_classes=classes))


def _image_shape(input_shape: Sequence[int]) -> Shape:
    if len(input_shape) != 3:
        raise ValueError(f"`input_shape` must be (channels, height, width), got {tuple(input_shape)!r}")
    channels, height, width = (checks.whole("input_shape", number) for number in input_shape)
    return channels, height, width


def _users_network(name: str, input_shape: Shape, nb_classes: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError: the name is empty
        raise ImportError(f"model `{name}`: module `{module_name}` cannot be imported: {error}") from error
    factory: Callable[..., object] | None = getattr(module, attribute, None)
    if not callable(factory):
        raise ImportError(f"model `{name}`: module `{module_name}` has no function or class `{attribute}`")
    signature = inspect.signature(factory)
    known = {"input_shape": input_shape, "nb_classes": nb_classes}
    open_to_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    keywords = {word: value for word, value in known.items() if open_to_all or word in signature.parameters}
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise TypeError(f"model `{name}` must need nothing but `input_shape` and `nb_classes`: {error}") from error
    network = factory(**keywords)
    if not isinstance(network, nn.Module):
        raise TypeError(f"model `{name}` must return a torch.nn.Module, got {type(network).__name__}")
    return network
