"""Training beside ART's: the same network, images, epochs and optimizer, certified by the same certifier.

    python benchmarks/training.py --data mnist --epochs 3 --out training

For each method that ART has a smoother for (Gaussian augmentation, SmoothAdv, MACER, SmoothMix): ours and ART's begin
with the same weights and train as long, with the method's options at ART's names and values where ART takes them; then
both networks are certified by our `Looks` on the same test images and noise, as both would be by ART. ART's SmoothAdv
and SmoothMix take one noise draw an image here as it fails with more, and SmoothMix's steps are as long as its alpha,
the failure probability, as ART has it.

The claims: at no radius is ours significantly worse (exact one-sided McNemar tests over the images, level .01 over all
of them), and an epoch of ours takes less time. Networks and results are in `--out`: stopped, the same command goes on.
Status 1 if a claim does not hold.

The command above, on one of a core's two threads while the other trained and certified too (x86-64 with AVX-512, torch
2.14.1, ART 1.20.1); certified accuracy of 500 test images, sigma .25:

| method | whose | r = 0 | r = 0.25 | r = 0.5 | r = 0.75 | seconds an epoch |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| gaussian | ours | 0.972 | 0.948 | 0.906 | 0.846 | 19.2 |
| gaussian | ART | 0.972 | 0.948 | 0.904 | 0.846 | 22.8 |
| smoothadv | ours | 0.972 | 0.958 | 0.936 | 0.900 | 177 |
| smoothadv | ART | 0.968 | 0.946 | 0.928 | 0.874 | 945 |
| macer | ours | 0.968 | 0.944 | 0.902 | 0.844 | 428 |
| macer | ART | 0.970 | 0.942 | 0.910 | 0.842 | 703 |
| smoothmix | ours | 0.960 | 0.950 | 0.918 | 0.864 | 148 |
| smoothmix | ART | 0.970 | 0.944 | 0.918 | 0.850 | 151 |

The least p of the 16 tests is .031. Such seconds move with what else runs, so gaussian and smoothmix were timed again
in turns (`--methods gaussian smoothmix --epochs 3 --train-images 4000 --images 4 --n 1000 --seed S`, S = 1, 2, 3): ours
took .81, .74, .85 and .71, .58, .71 of ART's time.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import art
import numpy as np
import torch

import art_rs_plugin
from art_rs_plugin import Looks, RandomizedSmoothingPyTorch, trainers
from art_rs_plugin.core.paired import mcnemar
from art_rs_plugin.experiments import datasets, models

ALPHA, LEVEL = 0.001, 0.01
IN_SIGMA = (0.0, 1.0, 2.0, 3.0)  # radii, in units of sigma
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4

# our trainer and its options, and ART's smoother and its
METHODS = {
    "gaussian": (trainers.GaussianAugmentationTrainer, {}, "PyTorchRandomizedSmoothing", {}),
    "smoothadv": (
        trainers.SmoothAdvTrainer,
        {"eps": 1.0, "steps": 10, "draws": 1, "warmup": 1},
        "PyTorchSmoothAdv",
        {"epsilon": 1.0, "num_steps": 10, "num_noise_vec": 1, "warmup": 1},
    ),
    "macer": (
        trainers.MACERTrainer,
        {"weight": 12.0, "draws": 16, "beta": 16.0, "gamma": 8.0},
        "PyTorchMACER",
        {"lmbda": 12.0, "gaussian_samples": 16, "beta": 16.0, "gamma": 8.0},
    ),
    "smoothmix": (
        trainers.SmoothMixTrainer,
        {"weight": 1.0, "steps": 4, "step_size": 1.0, "draws": 1, "warmup": 1},
        "PyTorchSmoothMix",
        {"eta": 1.0, "num_steps": 4, "num_noise_vec": 1, "warmup": 1},
    ),
}


def network(options, data):
    """A network with its optimizer and schedule, the same whenever it is made."""
    torch.manual_seed(options.seed)
    model = models.build(
        options.model, input_shape=data.input_shape, nb_classes=data.nb_classes, mean=data.mean, std=data.std
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, max(1, -(-options.epochs // 3)))


def train_ours(options, data, method, x, y):
    trainer, own, _, _ = METHODS[method]
    model, optimizer, scheduler = network(options, data)
    estimator = RandomizedSmoothingPyTorch(
        model, options.sigma, seed=options.seed, optimizer=optimizer, clip_values=(0.0, 1.0), device_type="cpu"
    )
    trainer(
        estimator, nb_epochs=options.epochs, batch_size=options.batch_size, scheduler=scheduler, **own
    ).fit(x, y)  # fmt: skip
    return model


def train_art(options, data, method, x, y):
    from art.estimators.certification import randomized_smoothing

    _, _, name, own = METHODS[method]
    model, optimizer, scheduler = network(options, data)
    smoother = getattr(randomized_smoothing, name)(
        model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=data.input_shape, nb_classes=data.nb_classes,
        optimizer=optimizer, clip_values=(0.0, 1.0), device_type="cpu", scale=options.sigma, alpha=ALPHA, **own,
    )  # fmt: skip
    smoother.fit(x, y, batch_size=options.batch_size, nb_epochs=options.epochs, scheduler=scheduler)
    return model


TRAIN = {"ours": train_ours, "ART": train_art}


def result(options, method, whose):
    """Which test images are certified at each radius, bool (m, radii), and the seconds of an epoch."""
    path = options.out / f"{method}-{whose}.json"
    names = ("data", "model", "sigma", "epochs", "batch_size", "train_images", "images", "n", "seed")
    settings = {
        **{name: getattr(options, name) for name in names},
        "method": [METHODS[method][1], METHODS[method][3]],
        "optimizer": [LR, MOMENTUM, WEIGHT_DECAY],
        "versions": [torch.__version__, art.__version__, art_rs_plugin.__version__],
        "threads": torch.get_num_threads(),
    }
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] != settings:
            sys.exit(f"{path} is of another run: choose another `--out`")
        return np.array(kept["certified"]), kept["seconds"]
    data = datasets.load(options.data, "train", root=options.data_root)
    x, y = data.arrays(None if options.train_images is None else range(options.train_images))
    start = time.perf_counter()
    model = TRAIN[whose](options, data, method, x, y)
    seconds = (time.perf_counter() - start) / options.epochs
    certified = certify(options, model)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path.with_suffix(".pt"))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "seconds": seconds, "certified": certified.tolist()}))
    os.replace(partial, path)
    return certified, seconds


def certify(options, model):
    test = datasets.load(options.data, "test", root=options.data_root)
    indices = list(range(0, len(test), max(1, len(test) // options.images)))[: options.images]
    x, y = test.arrays(indices)
    radii = [share * options.sigma for share in IN_SIGMA]
    estimator = RandomizedSmoothingPyTorch(
        model.eval(), options.sigma, n=options.n, alpha=ALPHA, seed=options.seed, device_type="cpu"
    )
    made = estimator.certificates(x, indices=indices, budget=Looks(radii=radii, n_max=options.n))
    right = np.array([certificate.prediction for certificate in made]) == y
    return right[:, None] & (np.array([certificate.radius for certificate in made])[:, None] >= radii)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="a name in experiments.datasets")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--train-images", type=int, help="only so many")
    parser.add_argument("--images", type=int, default=500, help="test images that are certified")
    parser.add_argument("--n", type=int, default=10_000, help="votes an image at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("training"))
    options = parser.parse_args()
    for name in ("epochs", "batch_size", "images", "n"):
        if getattr(options, name) < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(options, name)}")

    print(
        f"{options.data}, {options.model}, sigma {options.sigma:g}, {options.epochs} epochs; {platform.machine()}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    radii = " | ".join(f"r = {share * options.sigma:g}" for share in IN_SIGMA)
    print(f"| method | whose | {radii} | seconds an epoch |\n| --- | --- |{' ---: |' * (len(IN_SIGMA) + 1)}")
    tests, missed = [], []
    for method in options.methods:
        found = {whose: result(options, method, whose) for whose in TRAIN}
        for whose, (certified, seconds) in found.items():
            shares = " | ".join(f"{share:.3f}" for share in certified.mean(axis=0))
            print(f"| {method} | {whose} | {shares} | {seconds:.3g} |", flush=True)
        (ours, our_seconds), (theirs, their_seconds) = found["ours"], found["ART"]
        tests += [(method, share, mcnemar(theirs[:, at], ours[:, at])) for at, share in enumerate(IN_SIGMA)]
        if our_seconds >= their_seconds:
            missed.append(f"an epoch of {method} takes {our_seconds:.3g} s, ART's {their_seconds:.3g}")
    level = LEVEL / len(tests)
    for method, share, p in tests:
        if p <= level:
            missed.append(f"{method} is significantly worse than ART's at r = {share * options.sigma:g} (p = {p:.2g})")
    print(f"\nSignificant is p <= {level:.3g}; the least of {len(tests)} is {min(p for _, _, p in tests):.3g}.")
    print("\n".join(f"MISSED: {line}" for line in missed) or "reached")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
