"""How long a step of SmoothedPGD takes, against the bare gradients it is made of; and its peak memory.

    python benchmarks/attack_step.py

Time: a step on one input with `--samples` noise draws, over as many forward-backward passes of the plain model in one
batch (cross-entropy, gradient with respect to the input). Both run in turn on the same threads; medians of `--repeats`
are compared. Weights are random: time does not depend on them. Memory: the peak resident size of a process of its own
that makes two steps at batch size 64, with 64 draws and with 4 096. The claims: a step takes at most 1.1 times its
gradients, and 4 096 draws stay within 50 MiB of 64. Status 1 if one is missed.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

SHAPES = {"small-cnn": (1, 28, 28), "resnet20": (3, 32, 32)}
SIGMA, EPS, STEPS = 0.25, 0.5, 10
ALLOWED_RATIO = 1.1
BATCH, DRAWS, ALLOWED_MIB = 64, (64, 4_096), 50


def network_and_input(name):
    """The network in evaluation mode, one image, and its label."""
    import numpy as np
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    model = models.build(name, input_shape=SHAPES[name], nb_classes=10).eval()
    return model, np.random.default_rng(0).random((1, *SHAPES[name]), dtype=np.float32), np.array([3])


def attack(name, samples, steps, batch_size):
    """A function that makes `steps` steps of SmoothedPGD."""
    from art_rs_plugin import RandomizedSmoothingPyTorch
    from art_rs_plugin.attacks import SmoothedPGD

    model, x, y = network_and_input(name)
    estimator = RandomizedSmoothingPyTorch(
        model, SIGMA, seed=0, input_shape=x.shape[1:], nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    pgd = SmoothedPGD(estimator, eps=EPS, max_iter=steps, num_samples=samples, batch_size=batch_size)
    return lambda: pgd.generate(x, y)


def gradients(name, samples, steps):
    """A function that takes the gradients of so many steps, and nothing else."""
    import torch

    model, x, y = network_and_input(name)
    batch = torch.from_numpy(x).repeat(samples, 1, 1, 1).requires_grad_(True)
    labels = torch.from_numpy(y).repeat(samples)

    def run():
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(model(batch), labels, reduction="sum")
            torch.autograd.grad(loss, batch)

    return run


def milliseconds(name, samples, repeats):
    """Of a step and of its gradients, one of each a repeat."""
    subjects = attack(name, samples, STEPS, samples), gradients(name, samples, STEPS)
    for run in subjects:
        run()
    taken = [], []
    for _ in range(repeats):
        for run, mine in zip(subjects, taken, strict=True):
            start = time.perf_counter()
            run()
            mine.append(1e3 * (time.perf_counter() - start) / STEPS)
    return taken


def peak_mib(name, samples):
    """Peak resident size of a fresh process that makes two steps with so many draws."""
    words = [sys.executable, __file__, "--measure", name, "--samples", str(samples)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--samples", type=int, default=64, help="noise draws of a step that is timed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", choices=SHAPES, help="measure memory in this process (used by itself)")
    options = parser.parse_args()
    for name in ("samples", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(options, name)}")
    if options.measure:
        attack(options.measure, options.samples, 2, BATCH)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return

    # first: a process begins with the peak of the one that starts it, and torch is not loaded here yet
    peaks = {name: [peak_mib(name, samples) for samples in DRAWS] for name in options.models}

    import torch

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    what = f"{options.samples} draws, median (least to most) of {options.repeats}"
    print(f"\n| {what} | step ms | gradients ms | ratio |\n| --- | ---: | ---: | ---: |")
    missed = []
    for name in options.models:
        step, bare = milliseconds(name, options.samples, options.repeats)
        ratio = statistics.median(step) / statistics.median(bare)
        cells = " | ".join(f"{statistics.median(ms):.3g} ({min(ms):.3g} to {max(ms):.3g})" for ms in (step, bare))
        print(f"| {name} | {cells} | {ratio:.3f} (at most {ALLOWED_RATIO}) |", flush=True)
        if ratio > ALLOWED_RATIO:
            missed.append(f"a step takes {ratio:.3f} times its gradients on {name}")
    print(f"\n| peak resident MiB, batch size {BATCH} | {' | '.join(f'{m} draws' for m in DRAWS)} | growth |")
    print("| --- | ---: | ---: | ---: |")
    for name, (few, many) in peaks.items():
        print(f"| {name} | {few:.0f} | {many:.0f} | {many - few:.0f} (at most {ALLOWED_MIB}) |")
        if many - few > ALLOWED_MIB:
            missed.append(f"memory grows by {many - few:.0f} MiB on {name}")
    print("\n" + ("\n".join(f"MISSED: {line}" for line in missed) or "reached"))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
