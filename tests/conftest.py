"""Shared fixtures: a disk that fills up; where real data and published references lie, without which tests skip."""

import os
import resource
import signal
from pathlib import Path

import pytest

# the tests speak of the CPU, also where a GPU is: what a GPU does is measured in benchmarks/
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# a shell ignores Ctrl-C in what it runs in the background, and whoever it starts inherits that: tests send the signal
signal.signal(signal.SIGINT, signal.default_int_handler)
# small networks run faster on one thread, and threads that wait for each other slow down whatever else is running
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        missing = pytest.fail if os.environ.get("ART_RS_DATA_REQUIRED") else pytest.skip
        missing(f"{variable} is not set: {what} are not at hand")
    return Path(value)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of unpacked data sets in torchvision's layout."""
    return _folder("ART_RS_DATA", "the unpacked data sets")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with `checkpoints` and `certlogs`: published networks and certification logs."""
    return _folder("ART_RS_REFERENCE", "published networks and logs")


@pytest.fixture
def file_limit():
    """A disk that fills up: a limit on the size of files, whose signal is ignored so that writing raises EFBIG."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def published(reference, data_root):
    """The published ResNet-20 and four test images: at a noise it was not trained for, so that its votes are split."""
    from art_rs_plugin.experiments import datasets, models
    from art_rs_plugin.experiments.checkpoints import load_weights

    data = datasets.load("cifar10", "test", root=data_root)
    model = models.build(
        "resnet20", input_shape=data.input_shape, nb_classes=10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    load_weights(model, reference / "checkpoints" / "akamaster_resnet_cifar10" / "resnet20-12fca82f.th")
    return model.eval(), data.arrays(range(4))[0]
