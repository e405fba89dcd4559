"""Certify a network of your own: any of torchvision, weights in a file, images in a folder for each class.

    python examples/certify_your_model.py --arch resnet18 --weights mine.pth --images photos/val --train photos/train

Labels are positions in the sorted list of class folders, as in training. A network that never met noise certifies next
to nothing: with --train it is first trained on under the noise it will vote with, and those weights are kept beside
the ledger. The ledger goes on where it stopped, and `art-rs curve`, `report` and `audit` read it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.transforms import v2

from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import checkpoints, curve, datasets, logs, runs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's own weights expect


class Folder(datasets.Images):
    """A folder of images for each class, resized and cropped to a square; float32 in [0, 1], not standardised."""

    def __init__(self, folder, size):
        view = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
        self._images = torchvision.datasets.ImageFolder(folder, view)
        self.shape, self.nb_classes = (3, size, size), len(self._images.classes)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        pixels, label = self._images[index]
        return pixels / 255, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="a name of torchvision.models")
    parser.add_argument("--weights", type=Path, help="its state_dict: .pth, .pt or .safetensors")
    parser.add_argument("--images", type=Path, help="folder with a folder for each class")
    parser.add_argument("--train", type=Path, help="such a folder, to train on under noise first")
    parser.add_argument("--epochs", type=int, default=3, help="of that training")
    parser.add_argument("--size", type=int, default=224, help="side of the images that the network sees")
    parser.add_argument("--sigma", type=float, default=0.25, help="of the noise; pixels go from 0 to 1")
    parser.add_argument("--max", type=int, default=100, help="images to certify, evenly spaced")
    parser.add_argument("--n", type=int, default=10_000, help="votes an image")
    parser.add_argument("--out", type=Path, default=Path("certified"), help="folder for the ledger")
    parser.add_argument("--quick", action="store_true", help="try it on embedded digits and an untrained network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick:
            quick(options, Path(temporary))
        if options.weights is None or options.images is None:
            parser.error("--weights and --images are needed, or --quick")
        certify(options)


def certify(options) -> None:
    data = Folder(options.images, options.size)
    test = datasets.DataSet(name=options.images.name, split="test", images=data, mean=MEAN, std=STD)

    # 1. Your network, with standardisation inside the estimator: noise comes before it, so sigma is in units of x.
    model = torchvision.models.get_model(options.arch, num_classes=data.nb_classes)
    checkpoints.load_weights(model, options.weights)
    estimator = RandomizedSmoothingPyTorch(
        model,
        options.sigma,
        n=options.n,
        seed=0,
        preprocessing=(np.array(MEAN, np.float32), np.array(STD, np.float32)),
        clip_values=(0, 1),
        input_shape=data.shape,
        nb_classes=data.nb_classes,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    )

    # 2. Noise that it has not met it cannot bear.
    options.out.mkdir(parents=True, exist_ok=True)
    trained = options.out / f"{options.arch}-{options.sigma:g}.pth"
    if options.train is not None and not trained.exists():
        loader = torch.utils.data.DataLoader(Folder(options.train, options.size), batch_size=64, shuffle=True)
        GaussianAugmentationTrainer(estimator, nb_epochs=options.epochs, verbose=True).fit_generator(loader)
        torch.save(model.state_dict(), trained)
    elif options.train is not None:
        checkpoints.load_weights(model, trained)

    # 3. A line for each image, as it is done; the same command goes on where it stopped.
    ledger = options.out / f"{options.arch}-{options.sigma:g}.jsonl"
    indices = np.unique(np.linspace(0, len(test), options.max, endpoint=False, dtype=int)).tolist()
    runs.certify(estimator, test, indices, ledger)
    table = curve.curve_table(logs.read_logs([ledger]), [0.0, *(k * options.sigma for k in (1, 2, 3))])
    print(curve.to_markdown(table))
    print(f"Ledger: {ledger}")


def quick(options, folder) -> None:
    """Digits as small pictures in folders, and a file of weights that nobody has trained."""
    x, y = datasets.load("digits", "test").arrays(range(60))
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        path = folder / "images" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.from_numpy(image * 255).to(torch.uint8)
        torchvision.io.write_png(pixels.repeat_interleave(4, 1).repeat_interleave(4, 2), str(path))
    torch.manual_seed(0)
    options.weights, options.images = folder / "weights.pth", folder / "images"
    torch.save(torchvision.models.get_model(options.arch, num_classes=10).state_dict(), options.weights)
    options.train, options.epochs = options.images, 2
    options.size, options.max, options.n, options.out = 32, 3, 100, folder / "certified"


if __name__ == "__main__":
    main()
