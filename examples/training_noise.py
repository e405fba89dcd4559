"""Training noise against certification noise: is it best to train at the sigma that one certifies with?

Appendix H.3 of Cohen et al. 2019 asks it of CIFAR-10. Here networks for embedded digits are trained at several sigmas,
and each is certified at each: certified accuracy at a radius, one row a training sigma. Runs within a minute.

python examples/training_noise.py
"""

import argparse

import numpy as np
import torch

from art_rs_plugin import GaussianAugmentationTrainer, Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import datasets, models

RADIUS = 0.25


def trained(sigma, x, y, epochs):
    """A network trained under this noise; without any where sigma is 0."""
    torch.manual_seed(0)
    model = models.build("mlp", input_shape=(1, 8, 8), nb_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # a sigma must be above 0: this one is far below what a pixel can say
    estimator = RandomizedSmoothingPyTorch(model, sigma or 1e-6, seed=0, optimizer=optimizer, clip_values=(0, 1))
    GaussianAugmentationTrainer(estimator, nb_epochs=epochs).fit(x, y)
    return model


def certified_accuracy(model, sigma, x, y, n):
    """Share of the images that are certified as what they are, to `RADIUS`."""
    estimator = RandomizedSmoothingPyTorch(model, sigma, seed=0)
    certificates = estimator.certificates(x, budget=Looks(radii=(RADIUS,), n_max=n))
    return np.mean(
        [made.prediction == label and made.radius >= RADIUS for made, label in zip(certificates, y, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, votes and epochs")
    quick = parser.parse_args().quick
    sigmas, images, n, epochs = ((0.15, 0.5), 40, 1_000, 8) if quick else ((0.12, 0.25, 0.5, 1.0), 200, 10_000, 20)

    x_train, y_train = datasets.load("digits", "train").arrays()
    x, y = datasets.load("digits", "test").arrays(range(images))
    print(f"Certified accuracy at r = {RADIUS}, {images} images")
    print("| trained at | " + " | ".join(f"certified at {sigma}" for sigma in sigmas) + " |")
    print("| ---: |" + " ---: |" * len(sigmas))
    for training_sigma in (0.0, *sigmas):
        model = trained(training_sigma, x_train, y_train, epochs)
        shares = [certified_accuracy(model, sigma, x, y, n) for sigma in sigmas]
        print(f"| {training_sigma} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
