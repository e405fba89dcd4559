"""What a deterministic certificate costs: CROWN and Fast-Lin beside `convex_adversarial` and ART's DeepZ.

    python benchmarks/certifiers.py --weights mnist.pth

On the MNIST network of Wong et al. 2018 (two convolutions, two layers; `mnist.pth` of their repository, or random
weights without), the same test images, each certifier by itself, all on the same threads: seconds an input, its search
for the radius included, and the mean radius in l2 and l_inf. The claim: CROWN takes less than .5 s an input on two
threads. Fast-Lin and `convex_adversarial` compute the same bound: their radii are to agree within .1%. Status 1 if one
is missed.
"""

import argparse
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

from art_rs_plugin import certifiers
from art_rs_plugin.experiments import datasets, models
from art_rs_plugin.experiments.checkpoints import load_weights

ALLOWED = 0.5  # seconds an input, of CROWN
AGREE = 1e-3
CASES = [
    (name, norm)
    for norm in (2.0, math.inf)
    for name in ("crown", "fast-lin", "wong-kolter", "art-deepz")
    if (name, norm) != ("art-deepz", 2.0)
]


def network(weights):
    torch.manual_seed(0)
    model = models.build("wong-kolter", input_shape=(1, 28, 28), nb_classes=10)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="of the published network; random ones if not given")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=10)
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"`--images` must be at least 1, got {options.images}")
    model = network(options.weights)
    x, _ = datasets.load("mnist", "test", root=options.data_root).arrays(range(options.images))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {len(x)} images\n")
    print("| certifier | norm | s an input, median (least to most) | mean radius |\n| --- | --- | ---: | ---: |")
    radii, seconds = {}, {}
    for name, norm in CASES:
        own = {} if name == "art-deepz" else {"norm": norm, "tolerance": 1e-3}
        certifier = certifiers.get(name).build(model, input_shape=(1, 28, 28), nb_classes=10, **own)
        taken, found = [], []
        for image in x:
            start = time.perf_counter()
            (certificate,) = certifier.certify(image[None])
            taken.append(time.perf_counter() - start)
            found.append(certificate.radius)
        radii[name, norm], seconds[name, norm] = np.array(found), float(np.median(taken))
        cells = f"{np.median(taken):.3g} ({min(taken):.3g} to {max(taken):.3g}) | {np.mean(found):.4f}"
        print(f"| {name} | {'l2' if norm == 2 else 'l_inf'} | {cells} |", flush=True)
    missed = [
        f"CROWN takes {seconds['crown', norm]:.3g} s an input in the norm {norm:g}"
        for norm in (2.0, math.inf)
        if seconds["crown", norm] >= ALLOWED
    ]
    for norm in (2.0, math.inf):
        apart = np.abs(radii["fast-lin", norm] / radii["wong-kolter", norm] - 1).max()
        print(f"\nFast-Lin and the dual of Wong and Kolter differ by {apart:.2%} at most in the norm {norm:g}.")
        if apart > AGREE + 1e-3:  # either may be a tolerance below
            missed.append(f"Fast-Lin and the dual differ by {apart:.2%} in the norm {norm:g}")
    print("\n" + ("\n".join(f"MISSED: {line}" for line in missed) or "reached"))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
