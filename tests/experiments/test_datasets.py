"""Data sets against torchvision, Pillow and scikit-learn read directly, and against what is published of them."""

import hashlib
import pickle
import time

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as reference_sets
from torchvision.transforms.functional import to_tensor

from art_rs_plugin.experiments import datasets

OUTSIDE = [name for name, source in datasets.DATASETS.items() if not source.embedded]
DOWNLOADS = [name for name, source in datasets.DATASETS.items() if source.downloads]


@pytest.fixture
def no_download(monkeypatch):
    """The names of the data sets that were asked to download themselves; none of them reaches the network."""
    asked = []
    for name in DOWNLOADS:
        source = getattr(reference_sets, name.upper())
        monkeypatch.setattr(source, "download", lambda self, name=name: asked.append(name))
    return asked


@pytest.fixture
def svhn_root(tmp_path, monkeypatch):
    """Six images in SVHN's own format. The files' own checksums stand in for SVHN's, so the integrity check runs."""
    generator = np.random.default_rng(0)
    files = {}
    for split in ("train", "test"):
        pixels = generator.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
        labels = np.array([[1], [10], [2], [9], [10], [5]], dtype=np.uint8)
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels, "y": labels})
        files[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(reference_sets.SVHN, "split_list", files)
    return tmp_path


def _write_images(folder, classes, sizes=((300, 260),)):
    generator = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def _by_hand(path):
    """Pillow alone: shorter side to 256, centre of 224, divided by 255."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    width, height = (256 if side == short else int(256 * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    return pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


# digits


def test_digits_hold_out_every_fourth_scan_and_need_no_folder(monkeypatch):
    monkeypatch.delenv("ART_RS_DATA", raising=False)
    scans = load_digits()
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    x, y = test.arrays()
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    np.testing.assert_array_equal(x, scans.images[3::4][:, None] / 16)
    np.testing.assert_array_equal(y, scans.target[3::4])
    rest = np.delete(np.arange(1797), np.s_[3::4])
    np.testing.assert_array_equal(train.arrays()[0], scans.images[rest][:, None] / 16)
    np.testing.assert_array_equal(train.arrays()[1], scans.target[rest])
    assert (len(train), len(test), test.input_shape, test.nb_classes) == (1348, 449, (1, 8, 8), 10)


def test_digits_mean_and_deviation_are_those_of_the_training_scans():
    train = datasets.load("digits", "train")
    x = train.arrays()[0].astype(np.float64)
    assert train.mean == pytest.approx((x.mean(),), abs=5e-5)
    assert train.std == pytest.approx((x.std(),), abs=5e-5)


# real data in torchvision's layout


@pytest.mark.parametrize(
    ("name", "split", "length", "shape", "labels"),
    [
        ("mnist", "train", 60_000, (1, 28, 28), [5, 0, 4, 1, 9]),
        ("mnist", "test", 10_000, (1, 28, 28), [7, 2, 1, 0, 4]),
        ("cifar10", "train", 50_000, (3, 32, 32), [6, 9, 9, 4, 1]),
        ("cifar10", "test", 10_000, (3, 32, 32), [3, 8, 8, 0, 6]),
    ],
)
def test_real_images_are_those_of_torchvision(data_root, name, split, length, shape, labels):
    data = datasets.load(name, split, root=data_root)
    assert (len(data), data.input_shape, data.nb_classes) == (length, shape, 10)
    assert [data.images[index][1] for index in range(5)] == labels
    theirs = getattr(reference_sets, name.upper())(data_root, train=split == "train")
    for index in (0, 1, 4321, length - 1):
        image, label = data.images[index]
        assert image.dtype == torch.float32
        assert torch.equal(image, to_tensor(theirs[index][0]))
        assert label == theirs[index][1]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_mean_and_deviation_agree_with_the_training_images(data_root, name):
    data = datasets.load(name, "train", root=data_root)
    x, _ = data.arrays(range(len(data)))
    assert data.mean == pytest.approx(x.mean((0, 2, 3), dtype=np.float64), abs=1e-4)
    # what is published for CIFAR-10 is the mean of the deviations of single images
    deviation = x.std((0, 2, 3), dtype=np.float64) if name == "mnist" else x.std((2, 3)).mean(0)
    assert data.std == pytest.approx(deviation, abs=2e-4)


def test_arrays_hold_the_asked_images_in_the_asked_order(data_root):
    data = datasets.load("cifar10", "test", root=data_root)
    chosen = np.array([9_999, 3, 3, 500])
    x, y = data.arrays(chosen)
    assert (x.shape, y.shape) == ((4, 3, 32, 32), (4,))
    for row, index in enumerate(chosen):
        image, label = data.images[int(index)]
        np.testing.assert_array_equal(x[row], image)
        assert y[row] == label
    assert data.arrays([])[0].shape == (0, 3, 32, 32)
    with pytest.raises(IndexError):
        data.arrays([10_000])


def test_a_cifar_image_is_quick_to_read(data_root):
    images = datasets.load("cifar10", "test", root=data_root).images
    seconds = []
    for _ in range(10):  # the best of ten: other processes may be at work
        start = time.perf_counter()
        for index in range(100):
            images[index]
        seconds.append((time.perf_counter() - start) / 100)
    assert min(seconds) < 50e-6


def test_imagenet_images_are_resized_and_cropped_as_by_pillow(data_root):
    data = datasets.load("imagenet", "test", root=data_root)
    paths = sorted((data_root / "imagenet" / "val").glob("*/*.JPEG"))
    assert (len(data), data.input_shape, data.nb_classes) == (40, (3, 224, 224), 40)
    x, y = data.arrays()
    np.testing.assert_array_equal(y, np.arange(40))
    for image, path in zip(x, paths, strict=True):
        np.testing.assert_array_equal(image, _by_hand(path))


# other layouts, written here


def test_an_image_folder_has_a_training_and_a_test_split(tmp_path):
    sizes = ((300, 260), (256, 400))
    _write_images(tmp_path / "train", ["cat", "dog"], sizes)
    _write_images(tmp_path / "val", ["cat", "dog"], sizes[1:])
    train, test = datasets.load("imagefolder", "train", root=tmp_path), datasets.load("imagefolder", root=tmp_path)
    assert (len(train), len(test), train.nb_classes) == (4, 2, 2)
    assert [train.images[index][1] for index in range(4)] == [0, 0, 1, 1]
    np.testing.assert_array_equal(test.images[1][0], _by_hand(tmp_path / "val" / "dog" / "0.png"))
    np.testing.assert_array_equal(train.images[0][0], _by_hand(tmp_path / "train" / "cat" / "0.png"))
    augmented = train.augment(train.images[0][0])
    assert augmented.shape == (3, 224, 224)
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_class_folders_that_disagree_are_refused(tmp_path):
    _write_images(tmp_path / "train", ["cat", "dog", "owl"])
    _write_images(tmp_path / "val", ["cat", "owl"])
    with pytest.raises(ValueError, match=r"`train` and `val` in .* must hold the same class folders.*dog"):
        datasets.load("imagefolder", "test", root=tmp_path)


def test_svhn_is_read_through_torchvision(svhn_root):
    data = datasets.load("svhn", "test", root=svhn_root)
    pixels = scipy.io.loadmat(svhn_root / "test_32x32.mat")["X"]
    x, y = data.arrays()
    np.testing.assert_array_equal(y, [1, 0, 2, 9, 0, 5])  # the file says 10 for a zero
    np.testing.assert_array_equal(x, pixels.transpose(3, 2, 0, 1).astype(np.float32) / np.float32(255))
    assert (data.input_shape, data.nb_classes) == ((3, 32, 32), 10)


def test_svhn_files_with_another_checksum_are_refused(svhn_root):
    path = svhn_root / "test_32x32.mat"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileNotFoundError, match=r"data set `svhn` \(test split\) is missing or damaged"):
        datasets.load("svhn", "test", root=svhn_root)


# augmentation


def _windows(image, flip):
    """Every 32 x 32 window of the image with 4 black pixels around it, and its mirror image where `flip`."""
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    crops = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    return {crop.tobytes() for crop in crops} | {crop[:, :, ::-1].tobytes() for crop in crops if flip}


def test_cifar_is_cropped_and_mirrored_for_training_only(data_root):
    train = datasets.load("cifar10", "train", root=data_root)
    image, _ = train.images[0]
    torch.manual_seed(0)
    seen = {train.augment(image).numpy().tobytes() for _ in range(600)}
    possible = _windows(image.numpy(), flip=True)
    assert seen <= possible
    # 600 draws from 162 windows leave 162 (1 - 1/162)^600 = 4 of them out on average
    assert len(seen) > 140
    assert len(seen - _windows(image.numpy(), flip=False)) > 60
    assert datasets.load("cifar10", "test", root=data_root).augment is None


def test_numerals_are_never_mirrored(svhn_root, data_root):
    train = datasets.load("svhn", "train", root=svhn_root)
    image, _ = train.images[0]
    torch.manual_seed(0)
    seen = {train.augment(image).numpy().tobytes() for _ in range(300)}
    assert seen <= _windows(image.numpy(), flip=False)
    assert len(seen) > 60
    assert datasets.load("digits", "train").augment is None
    assert datasets.load("mnist", "train", root=data_root).augment is None


def test_a_data_set_travels_to_the_workers_of_a_loader(svhn_root):
    train = pickle.loads(pickle.dumps(datasets.load("svhn", "train", root=svhn_root)))
    x, y = next(iter(torch.utils.data.DataLoader(train.images, batch_size=3)))
    assert (x.shape, x.dtype, y.tolist()) == ((3, 3, 32, 32), torch.float32, [1, 0, 2])
    assert train.augment(x[0]).shape == (3, 32, 32)


# what is missing


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("split", datasets.SPLITS)
def test_a_missing_data_set_says_where_and_what_to_do_and_downloads_nothing(name, split, tmp_path, no_download):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load(name, split, root=tmp_path)
    message = str(caught.value)
    for part in (f"`{name}`", split, str(tmp_path), "--data-root", "ART_RS_DATA"):
        assert part in message
    assert ("--download" in message) == (name in DOWNLOADS)
    assert no_download == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_without_a_folder_the_error_names_the_remedies(name, monkeypatch):
    monkeypatch.delenv("ART_RS_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"`{name}`: no folder was named.*--data-root.*ART_RS_DATA"):
        datasets.load(name, "test")


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_download_happens_where_it_is_asked_for(name, tmp_path, no_download):
    with pytest.raises(FileNotFoundError, match="missing or damaged"):  # nothing came
        datasets.load(name, "test", root=tmp_path, download=True)
    assert no_download == [name]


def test_a_failed_download_gives_its_reason(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setattr(reference_sets.CIFAR10, "download", fail)
    with pytest.raises(FileNotFoundError, match=r"`cifar10`.*no route to host"):
        datasets.load("cifar10", "test", root=tmp_path, download=True)


def test_the_given_folder_comes_before_the_environment(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ART_RS_DATA", str(tmp_path))
    assert len(datasets.load("mnist", "test", root=data_root)) == 10_000
    monkeypatch.setenv("ART_RS_DATA", str(data_root))
    assert len(datasets.load("mnist", "test")) == 10_000
    with pytest.raises(FileNotFoundError):
        datasets.load("mnist", "test", root=tmp_path)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`data set` must be one of 'digits', 'mnist', .*, got 'cifar'"):
        datasets.load("cifar", "test")
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test', got 'val'"):
        datasets.load("digits", "val")
