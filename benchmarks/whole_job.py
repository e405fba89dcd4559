"""The whole job: a table of certified accuracy on CIFAR-10, by Looks against ART and against our own Fixed run.

    art-rs train --data cifar10 --model resnet20 --sigma 0.25 --epochs 12 --batch-size 128 --seed 0 --out cifar-0.25
    python benchmarks/whole_job.py --checkpoint cifar-0.25 --out whole-job

Certifies 500 test images (every 20th) at every radius of the paper's table, alpha = .001: by `Looks` up to 100 000
votes in each precision, and 200 of them by `Fixed`, whose decisions the others must repeat. ART is timed on a few
images at n = 100 000 and extrapolated. Ledgers are in `--out`: stopped, the same command goes on.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import torch

from art_rs_plugin import Fixed, Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.experiments import datasets, runs
from art_rs_plugin.experiments.ledger import read_ledger

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
N0, N, ALPHA, SEED = 100, 100_000, 0.001, 0
AT_LEAST = {"bf16": 20, "fp32": 12}  # ART's seconds over ours
ALLOWED = 0.005  # share of the images that may be decided otherwise at a radius by fewer votes of the same f
ALLOWED_ANOTHER_F = 0.01  # and by an f of another precision


def certify(options, data, indices, precision, budget, out):
    """Rows of the ledger `out` for these images, and the seconds that all of them took."""
    model, sigma = runs.open_network(options.checkpoint, data)
    estimator = RandomizedSmoothingPyTorch(
        model, sigma, n0=N0, n=N, alpha=ALPHA, seed=SEED, input_shape=data.input_shape, device_type="cpu",
        precision=precision, compile=True,
    )  # fmt: skip
    start = time.perf_counter()
    arithmetic = estimator.arithmetic
    compiling = time.perf_counter() - start

    def say(row, done, total):
        if done % 20 == 0 or done == total:
            print(f"  {budget.name}, {arithmetic}: {done} of {total}", file=sys.stderr, flush=True)

    runs.certify(estimator, data, indices, out, budget=budget, on_row=say)
    rows = {row["index"]: row for row in read_ledger(out)[1]}
    chosen = [rows[index] for index in indices]
    return chosen, compiling + sum(row["seconds"] for row in chosen)


def art_seconds(options, data, indices):
    """Seconds per image of ART's own certify, at its default batch size."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    model, sigma = runs.open_network(options.checkpoint, data)
    smoother = PyTorchRandomizedSmoothing(
        model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=data.input_shape, nb_classes=data.nb_classes,
        device_type="cpu", sample_size=N0, scale=sigma, alpha=ALPHA,
    )  # fmt: skip
    x, _ = data.arrays(indices)
    start = time.perf_counter()
    smoother.certify(x, n=N)
    return (time.perf_counter() - start) / len(x)


def accuracy(rows, radius):
    return sum(decided(row, radius) for row in rows) / len(rows)


def decided(row, radius):
    """Whether the image counts as certified at this radius."""
    return row["prediction"] == row["label"] and row["radius"] >= radius


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("whole-job"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--fixed", type=int, default=200, help="images that Fixed certifies too")
    parser.add_argument("--art", type=int, default=2, help="images that ART is timed on")
    parser.add_argument("--precisions", nargs="+", choices=AT_LEAST, default=list(AT_LEAST))
    options = parser.parse_args()
    data = datasets.load("cifar10", "test", root=options.data_root)
    indices = list(range(0, len(data), len(data) // options.images))[: options.images]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    art = art_seconds(options, data, indices[: options.art])
    whole = art * len(indices)
    print(f"ART, n = {N}: {art:.1f} s an image, timed on {options.art}; extrapolated to {len(indices)}: {whole:.0f} s")
    missed = 0
    print("\n| | votes an image | seconds | ART / ours | " + " | ".join(f"r = {radius:g}" for radius in RADII) + " |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(RADII))
    looks = {}
    for precision in options.precisions:
        rows, seconds = certify(
            options,
            data,
            indices,
            precision,
            Looks(radii=RADII, n_max=N, n0=N0),
            options.out / f"looks-{precision}.jsonl",
        )
        looks[precision] = rows
        ratio = whole / seconds
        missed += ratio < AT_LEAST[precision]
        votes = sum(row["votes"] for row in rows) / len(rows)
        cells = " | ".join(f"{accuracy(rows, radius):.3f}" for radius in RADII)
        verdict = f"{ratio:.1f} (>= {AT_LEAST[precision]})"
        print(f"| Looks, {precision} compiled | {votes:.0f} | {seconds:.0f} | {verdict} | {cells} |")

    precision = options.precisions[0]
    rows, seconds = certify(
        options, data, indices[: options.fixed], precision, Fixed(n0=N0, n=N), options.out / f"fixed-{precision}.jsonl"
    )
    cells = " | ".join(f"{accuracy(rows, radius):.3f}" for radius in RADII)
    print(f"| Fixed, {precision} compiled, {len(rows)} images | {N0 + N} | {seconds:.0f} | | {cells} |")
    missed += differences(f"Fixed, {precision}", rows, f"Looks, {precision}", looks[precision], ALLOWED)
    for other in options.precisions[1:]:
        names = f"Looks, {precision}", f"Looks, {other}"
        missed += differences(names[0], looks[precision], names[1], looks[other], ALLOWED_ANOTHER_F)
    sys.exit(1 if missed else 0)


def differences(name, rows, other_name, other_rows, allowed):
    """Print which images are decided otherwise at each radius; how many radii have more than `allowed`, or than two."""
    limit, missed = max(2, allowed * len(rows)), 0
    print(
        f"\nDecided otherwise by {other_name} than by {name}, of {len(rows)} images (at most {limit:g} at each radius):"
    )
    for radius in RADII:
        pairs = [
            (one, other)
            for one, other in zip(rows, other_rows, strict=False)
            if decided(one, radius) != decided(other, radius)
        ]
        missed += len(pairs) > limit
        print(f"  r = {radius:g}: {len(pairs)}")
        for one, other in pairs:
            share, again = (row["counts"][row["selected"]] / row["n"] for row in (one, other))
            print(
                f"    image {one['index']}: p_A about {share:.5f} of {one['n']} votes, {again:.5f} of {other['n']}; "
                f"radius {one['radius']:.4f}, {other['radius']:.4f}"
            )
    return missed


if __name__ == "__main__":
    main()
