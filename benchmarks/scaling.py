"""Cost of certifying against the number of votes and the number of inputs: both linear, and many small inputs packed.

    python benchmarks/scaling.py

Seconds are medians of interleaved repeats; the lines are least squares of relative errors. The claim: an input
certified with n = 1 000 among many costs at most 1.2 times its n0 + n = 1 100 votes at what a vote costs one input
with many. Costs are the lines' slopes, so that neither side hides behind what a call costs once.
Writes docs/images/scaling.svg. Measure on a machine that does nothing else.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ALLOWED_RATIO = 1.2
N0, N, ALPHA, SIGMA = 100, 1_000, 0.001, 0.25
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "scaling.svg"


def estimator_and_inputs(model, input_shape, count):
    """The smoothed network with random weights, warmed up, and inputs to certify: what a vote costs is the same."""
    import torch

    from art_rs_plugin import RandomizedSmoothingPyTorch
    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    network = models.build(model, input_shape=input_shape, nb_classes=10)
    estimator = RandomizedSmoothingPyTorch(network, SIGMA, n0=N0, alpha=ALPHA, seed=0, input_shape=input_shape)
    inputs = np.random.default_rng(0).random((count, *input_shape), dtype=np.float32)
    estimator.certify(inputs[:1], n=N)
    return estimator, inputs


def measured(estimator, inputs, counts, votes, repeats):
    """Median seconds of `counts` inputs at n = `N`, and of one input with each of `votes`; repeats interleave."""
    runs = [(count, N) for count in counts] + [(1, n) for n in votes]
    seconds = [[] for _ in runs]
    for _ in range(repeats):
        for (count, n), taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            estimator.certify(inputs[:count], n=n)  # ends with counts on the CPU: no device is still at work
            taken.append(time.perf_counter() - start)
    medians = np.array([statistics.median(taken) for taken in seconds])
    return medians[: len(counts)], medians[len(counts) :]


def line(x, seconds):
    """(slope, intercept) of the line through the seconds, by least squares of its relative errors."""
    slope, intercept = np.polyfit(x, seconds, 1, w=1 / seconds)
    return float(slope), float(intercept)


def table(head, x, seconds):
    """Measured beside fitted, in Markdown."""
    slope, intercept = line(x, seconds)
    print(f"| {head} | seconds | line | off by |")
    print("| ---: | ---: | ---: | ---: |")
    for at, took in zip(x, seconds, strict=True):
        fitted = slope * at + intercept
        print(f"| {at:,} | {took:.3g} | {fitted:.3g} | {took / fitted - 1:+.1%} |".replace(",", " "))
    print()


def picture(panels, title):
    """Two panels of (what, slope in words, x, seconds), log-log: measured points on the fitted line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (what, says, x, seconds) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        slope, intercept = line(x, seconds)
        along = np.geomspace(min(x), max(x), 200)
        axes.plot(along, slope * along + intercept, color="#0072B2", linewidth=1.5, label=says(slope))
        axes.plot(x, seconds, "o", color="#D55E00", markersize=5, label="measured")
        axes.set(xscale="log", yscale="log", xlabel=what)
        axes.set_xticks(x, [f"{at:,}".replace(",", "\u2009") for at in x], fontsize="small")
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    figure.axes[0].set_ylabel("time (s)")
    figure.axes[0].yaxis.set_major_formatter("{x:g}")
    figure.suptitle(title, fontsize="medium")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small-cnn", help="a name in experiments.models, or module:factory")
    parser.add_argument("--input-shape", type=int, nargs=3, default=[1, 28, 28], metavar="SIZE")
    parser.add_argument("--votes", type=int, nargs="+", default=[1_000 * 2**k for k in range(6)], metavar="N")
    parser.add_argument("--inputs", type=int, nargs="+", default=[2**k for k in range(6)], metavar="M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    counts, votes = sorted(set(arguments.inputs)), sorted(set(arguments.votes))
    if min(len(counts), len(votes)) < 2:
        parser.error("a line takes at least two different numbers in `--inputs` and in `--votes`")
    import torch

    from art_rs_plugin.experiments.curve import save_figure

    shape = tuple(arguments.input_shape)
    estimator, inputs = estimator_and_inputs(arguments.model, shape, counts[-1])
    at_inputs, at_votes = measured(estimator, inputs, counts, votes, arguments.repeats)
    size = "x".join(map(str, shape))
    subject = f"{arguments.model} on {size}, {estimator.arithmetic}"
    threads = torch.get_num_threads()
    print(f"{subject}, {estimator.device_type}, {threads} threads; medians of {arguments.repeats}\n")
    table("votes n of one input", votes, at_votes)
    table(f"inputs at n = {N}", counts, at_inputs)
    per_input, per_vote = line(counts, at_inputs)[0], line(votes, at_votes)[0]
    ratio = per_input / (per_vote * (N0 + N))
    print(f"an input at n = {N}: {1e3 * per_input:.3g} ms; {N0 + N} votes: {1e3 * per_vote * (N0 + N):.3g} ms")
    print(f"ratio {ratio:.3f} (at most {ALLOWED_RATIO})")
    panels = [
        (f"votes n (one input, n0 = {N0})", lambda slope: f"line: {1e6 * slope:.3g} µs a vote", votes, at_votes),
        (f"inputs (n = {N}, n0 = {N0})", lambda slope: f"line: {1e3 * slope:.3g} ms an input", counts, at_inputs),
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(picture(panels, f"Cost of certifying ({subject})"), arguments.out)
    if not ratio <= ALLOWED_RATIO:
        sys.exit(f"an input at n = {N} costs {ratio:.3f} times its votes, more than {ALLOWED_RATIO}")


if __name__ == "__main__":
    main()
