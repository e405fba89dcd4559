"""The same table with fewer votes: the paper's `Fixed` beside `Looks`, with votes and seconds of each.

Both give certificates that hold with probability 1 - alpha. They share the votes that they both draw; where they decide
otherwise, usually nowhere, p_A lies just above what that radius takes, so close that other votes would decide anew.
Runs within a minute on embedded digits.

python examples/fast_certification.py
"""

import argparse
import time

import numpy as np
import torch
from scipy.stats import norm

from art_rs_plugin import Fixed, GaussianAugmentationTrainer, Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import datasets, models

RADII = (0.0, 0.25, 0.5)


def timed(estimator, x, budget, y=None):
    """Certificates and the seconds they took."""
    start = time.perf_counter()
    certificates = estimator.certificates(x, budget=budget, y=y)
    return certificates, time.perf_counter() - start


def certified(certificates, y):
    """Whether each image is certified as its class at each radius, (m, radii): what the table is the mean of."""
    prediction = np.array([certificate.prediction for certificate in certificates])  # -1, an abstention, is no class
    radius = np.array([certificate.radius for certificate in certificates])
    return (prediction == y)[:, None] & (radius[:, None] >= RADII)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and votes")
    quick = parser.parse_args().quick
    images, n = (20, 2_000) if quick else (100, 10_000)

    # 1. As in get_started.py: data, a network, training under noise.
    x_train, y_train = datasets.load("digits", "train").arrays()
    x, y = datasets.load("digits", "test").arrays(range(images))
    torch.manual_seed(0)
    model = models.build("small-cnn", input_shape=(1, 8, 8), nb_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    estimator = RandomizedSmoothingPyTorch(model, sigma=0.25, seed=0, optimizer=optimizer, clip_values=(0, 1))
    GaussianAugmentationTrainer(estimator, nb_epochs=5 if quick else 20).fit(x_train, y_train)
    estimator.predict(x)  # what the first call alone has to do is nobody's seconds

    # 2. The table. With `y`, for benchmarks where only the right class counts, no votes are drawn to select a class.
    fixed, looks = Fixed(n0=100, n=n), Looks(radii=RADII, n_max=n)
    runs = {"Fixed": (fixed, None), "Looks": (looks, None), "Fixed, y known": (fixed, y), "Looks, y known": (looks, y)}
    print("| certified accuracy |", *(f"r = {r} |" for r in RADII), "votes an image | seconds |")
    print("| --- |", *("---: |" for _ in RADII), "---: | ---: |")
    done, votes, seconds = {}, {}, {}
    for name, (budget, labels) in runs.items():
        done[name], seconds[name] = timed(estimator, x, budget, labels)
        votes[name] = np.mean([certificate.votes for certificate in done[name]])
        shares = (f"{share:.3f} |" for share in certified(done[name], y).mean(axis=0))
        print(f"| {name} |", *shares, f"{votes[name]:.0f} | {seconds[name]:.2f} |")

    # 3. What was saved, and what was decided otherwise, image by image.
    for one, other in (("Fixed", "Looks"), ("Fixed, y known", "Looks, y known")):
        fewer, faster = votes[one] / votes[other], seconds[one] / seconds[other]
        print(f"{other}: {fewer:.1f} times fewer votes, {faster:.1f} times fewer seconds")
        differs = np.argwhere(certified(done[one], y) != certified(done[other], y))
        print(f"decided otherwise: {len(differs)} of {len(y) * len(RADII)}")
        for image, at in differs:
            a, b, takes = done[one][image], done[other][image], norm.cdf(RADII[at] / estimator.sigma)
            print(f"  image {image} at r = {RADII[at]}: {a.radius:.4f} and {b.radius:.4f},", end=" ")
            print(f"p_A about {a.counts[a.selected] / a.n:.4f}, and that radius takes {takes:.4f}")


if __name__ == "__main__":
    main()
