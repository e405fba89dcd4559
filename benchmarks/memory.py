"""Peak memory of certifying one 3x32x32 input against the number of votes, ours and ART's own smoother beside it.

    python benchmarks/memory.py

Every figure is the peak resident size of a process of its own (the operating system's account of it), so that one
measurement cannot hide behind another. The claim: ours at n = 100 000 stays within 50 MiB of ours at n = 1 000.
"""

import argparse
import resource
import subprocess
import sys

ALLOWED_MIB = 50
N0, ALPHA, SIGMA = 100, 0.001, 0.25


def ours(n: int) -> None:
    from art_rs_plugin import RandomizedSmoothingPyTorch

    model, x = _network_and_input()
    RandomizedSmoothingPyTorch(model, SIGMA, n0=N0, n=n, alpha=ALPHA, seed=0, device_type="cpu").certify(x)


def art(n: int) -> None:
    import torch
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    model, x = _network_and_input()
    PyTorchRandomizedSmoothing(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=x.shape[1:],
        nb_classes=10,
        device_type="cpu",
        sample_size=N0,
        scale=SIGMA,
        alpha=ALPHA,
    ).certify(x, n=n)


def _network_and_input():
    import numpy as np
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    model = models.build("small-cnn", input_shape=(3, 32, 32), nb_classes=10)
    return model, np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)


SUBJECTS = {"ours": ours, "art": art}


def peak_mib(subject: str, n: int) -> float:
    """Peak resident size of a fresh process that certifies once with `n` votes."""
    words = [sys.executable, __file__, "--measure", subject, "--n", str(n)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=SUBJECTS, help="measure one subject in this process (used by itself)")
    parser.add_argument("--n", type=int)
    arguments = parser.parse_args()
    if arguments.measure:
        SUBJECTS[arguments.measure](arguments.n)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    table = {subject: [peak_mib(subject, n) for n in (1_000, 100_000)] for subject in SUBJECTS}
    print("| peak resident MiB | n = 1 000 | n = 100 000 | growth |")
    print("| --- | ---: | ---: | ---: |")
    for subject, (small, large) in table.items():
        print(f"| {subject} | {small:.0f} | {large:.0f} | {large - small:.0f} |")
    small, large = table["art"]
    for shape, factor in (("3x32x32", 1), ("3x224x224", 49)):
        most = (24 * 1024 - small) / ((large - small) / 99_000) / factor
        print(f"ART leaves 24 GiB at n = {most:.0f} for {shape} (its growth above, extrapolated)")
    small, large = table["ours"]
    if large - small > ALLOWED_MIB:
        sys.exit(f"ours grows by {large - small:.0f} MiB, more than {ALLOWED_MIB}")


if __name__ == "__main__":
    main()
