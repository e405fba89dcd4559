"""How long a vote takes: ours against an eager loop, ART's own smoother and the paper's, in one interleaved run.

    python benchmarks/certify.py [--models small-cnn resnet20 resnet110] [--smooth path/to/smoothing] [--repeats 5]

Every subject lives in a process of its own, so that nobody profits from what another did to the allocator, and they
take turns; a figure is the ratio of two medians of wall-clock time per vote, selection votes included. `--smooth` is a
checkout of the paper's code (github.com/locuslab/smoothing), whose `Smooth.certify` is timed beside the rest; it is
written for a GPU, and is run here with its device renamed. Networks have random weights: time does not depend on them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIGMA, ALPHA, N0 = 0.25, 0.001, 128
SHAPES = {"small-cnn": (1, 28, 28), "resnet20": (3, 32, 32), "resnet110": (3, 32, 32)}
VOTES = {"small-cnn": 20_480, "resnet20": 4_096, "resnet110": 1_024}  # whole passes, as 100 000 nearly are
# ART draws the noise of all its votes at once, so that their number matters; the paper's 100 000 would take it a minute
# for ResNet-20, and eight for ResNet-110.
ART_VOTES = {"small-cnn": 100_000, "resnet20": 30_000, "resnet110": 3_000}
EAGER_BATCHES = (32, 64, 128, 256, 512)
CONFIGURATIONS = {"fp32": ("fp32", False), "fp32 compiled": ("fp32", True), "bf16 compiled": ("bf16", True)}

# (what is compared, over what, limit by network); "at most" where the figure is a share of the time of another
AT_MOST = [
    ("ours fp32", "eager loop", {"small-cnn": 0.50, "resnet20": 0.75, "resnet110": 0.90}),
    ("ours fp32", "forward only fp32", {"small-cnn": 1.10, "resnet20": 1.03, "resnet110": 1.01}),
    ("ours fp32 compiled", "forward only fp32 compiled", {"small-cnn": 1.10, "resnet20": 1.03, "resnet110": 1.01}),
    ("ours bf16 compiled", "forward only bf16 compiled", {"small-cnn": 1.10, "resnet20": 1.03, "resnet110": 1.01}),
    ("ours sound fp32", "ours fp32", {"resnet20": 1.25}),
    ("ours sound bf16 compiled", "ours bf16 compiled", {}),
]
AT_LEAST = [
    ("ART", "ours fp32 compiled", {"small-cnn": 5, "resnet20": 1.8, "resnet110": 1.4}),
    ("ART", "ours bf16 compiled", {"small-cnn": 8, "resnet20": 3.4, "resnet110": 2}),
    ("paper's Smooth", "ours fp32 compiled", {"resnet20": 3}),
    ("paper's Smooth", "ours bf16 compiled", {"resnet20": 5}),
]


def network_and_input(name):
    """The network in evaluation mode, and one image."""
    import numpy as np
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    model = models.build(name, input_shape=SHAPES[name], nb_classes=10).eval()
    x = np.random.default_rng(0).integers(0, 256, (1, *SHAPES[name])) / 255  # as sound mode wants it
    return model, x.astype(np.float32)


def estimator(name, configuration, n):
    from art_rs_plugin import RandomizedSmoothingPyTorch

    model, x = network_and_input(name)
    precision, compile = CONFIGURATIONS[configuration.removeprefix("sound ")]
    smoothed = RandomizedSmoothingPyTorch(
        model,
        SIGMA,
        n0=N0,
        n=n,
        alpha=ALPHA,
        seed=0,
        device_type="cpu",
        precision=precision,
        compile=compile,
        sound=configuration.startswith("sound "),
    )
    return smoothed, x


def ours(name, configuration, n):
    """Our certify, at its automatic batch size."""
    smoothed, x = estimator(name, configuration, n)
    return lambda: smoothed.certify(x), N0 + n


def forward_only(name, configuration, n):
    """What our certify spends at least: its workers' forward passes, of the same rows, over a batch that is there."""
    import torch

    from art_rs_plugin.votes import automatic_batch_size, example_batch, mode

    smoothed, x = estimator(name, configuration, n)
    smoothed.predict(x, n=100)
    x = torch.from_numpy(x)
    threads = torch.get_num_threads()
    rows = automatic_batch_size(x.shape[1:], x.device)
    passes = -(-n // rows)

    def work(forward, share):
        torch.set_num_threads(1)
        batch = example_batch(x, smoothed.noise, rows)
        with torch.inference_mode():
            for _ in range(share):
                forward(batch)

    def run():
        shares = [passes // threads + (worker < passes % threads) for worker in range(threads)]
        with mode(smoothed.model, training=False), ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, smoothed._forwards(threads), shares))
        torch.set_num_threads(threads)

    return run, passes * rows


def eager(name, batch, n):
    """Forward passes as anyone writes them: contiguous images, all threads on one batch, no gradient."""
    import torch

    model, x = network_and_input(name)
    images = torch.from_numpy(x).repeat(batch, 1, 1, 1)

    def run():
        with torch.no_grad():
            for _ in range(n // batch):
                model(images)

    return run, n // batch * batch


def art(name, n):
    """ART's own certify, at its default batch size."""
    import torch
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    model, x = network_and_input(name)
    smoother = PyTorchRandomizedSmoothing(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=SHAPES[name],
        nb_classes=10,
        device_type="cpu",
        sample_size=N0,
        scale=SIGMA,
        alpha=ALPHA,
    )
    return lambda: smoother.certify(x, n=n), N0 + n


def smooth(name, path, n):
    """The paper's `Smooth.certify` at its default batch size of 1000, from a checkout, on the CPU."""
    import types

    import scipy.stats
    import torch

    if not hasattr(scipy.stats, "binom_test"):  # it is imported there, for predict
        scipy.stats.binom_test = scipy.stats.binomtest
    source = (Path(path) / "code" / "core.py").read_text()
    core = types.ModuleType("core")
    exec(compile(source.replace("'cuda'", "'cpu'"), "core.py", "exec"), core.__dict__)
    model, x = network_and_input(name)
    smoother = core.Smooth(model, 10, SIGMA)
    image = torch.from_numpy(x[0])
    return lambda: smoother.certify(image, N0, n, ALPHA, 1000), N0 + n


def serve(connection, maker, arguments):
    """Make a subject, and send its microseconds per vote for every message."""
    run, votes = globals()[maker](*arguments)
    run()
    connection.send("ready")
    while connection.recv():
        start = time.perf_counter()
        run()
        connection.send(1e6 * (time.perf_counter() - start) / votes)


def subjects(name, smooth_path):
    n = VOTES[name]
    made = {f"eager loop, {batch}": ("eager", (name, batch, n)) for batch in EAGER_BATCHES}
    for configuration in CONFIGURATIONS:
        made[f"ours {configuration}"] = "ours", (name, configuration, n)
        made[f"forward only {configuration}"] = "forward_only", (name, configuration, n)
    for configuration in ("fp32", "bf16 compiled"):
        made[f"ours sound {configuration}"] = "ours", (name, f"sound {configuration}", n)
    made["ART"] = "art", (name, ART_VOTES[name])
    if smooth_path is not None:
        made["paper's Smooth"] = "smooth", (name, str(smooth_path), n)
    return made


def measure(name, smooth_path, repeats, only=None):
    """Median microseconds per vote of each subject (of `only` these), and all of them."""
    context = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    chosen = subjects(name, smooth_path)
    for subject, (maker, arguments) in chosen.items() if only is None else ((one, chosen[one]) for one in only):
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, maker, arguments), daemon=True)
        process.start()
        processes.append(process)
        if mine.recv() != "ready":
            raise RuntimeError(f"{subject} did not start")
        lines[subject] = mine
    micro = {subject: [] for subject in lines}
    for _ in range(repeats):
        for subject, line in lines.items():
            line.send(True)
            micro[subject].append(line.recv())
    for line, process in zip(lines.values(), processes, strict=True):
        line.send(False)
        process.join()
    median = {subject: statistics.median(values) for subject, values in micro.items()}
    best = min((subject for subject in median if subject.startswith("eager loop")), key=median.get, default=None)
    if best is not None:
        median["eager loop"] = median[best]
    return median, micro, best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--smooth", type=Path, help="checkout of github.com/locuslab/smoothing")
    parser.add_argument("--only", nargs="+", help="subjects to time, such as 'ours fp32'; all if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all times there")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"`--repeats` must be at least 1, got {options.repeats}")

    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    medians, raw = {}, {}
    for name in options.models:
        medians[name], raw[name], best = measure(name, options.smooth, options.repeats, options.only)
        print(f"\n{name}: microseconds per vote, median (least to most) of {options.repeats}")
        for subject, values in raw[name].items():
            mark = "  <- best batch" if subject == best else ""
            print(f"  {subject:28} {statistics.median(values):8.1f}  ({min(values):.1f} to {max(values):.1f}){mark}")
    if options.json is not None:
        options.json.write_text(json.dumps(raw, indent=1))

    print("\n| time / time | " + " | ".join(options.models) + " |")
    print("| --- |" + " ---: |" * len(options.models))
    missed = 0
    for rule, table in (("<=", AT_MOST), (">=", AT_LEAST)):
        for subject, over, limits in table:
            if any(not {subject, over} <= medians[name].keys() for name in options.models):
                continue
            cells = []
            for name in options.models:
                ratio = medians[name][subject] / medians[name][over]
                limit = limits.get(name)
                met = limit is None or (ratio <= limit if rule == "<=" else ratio >= limit)
                missed += not met
                cells.append(
                    f"{ratio:.2f}" + ("" if limit is None else f" ({rule} {limit}{'' if met else ', missed'})")
                )
            print(f"| {subject} / {over} | " + " | ".join(cells) + " |")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
