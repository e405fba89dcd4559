"""Seconds to certify one input on one NVIDIA GPU, and how much of them a bare loop of forward passes takes.

    python benchmarks/gpu.py

For each network and each arithmetic: `certify` with the paper's budget, and the same forward function on one batch of
the same shape, as often. Medians of interleaved repeats at `--n` votes, scaled to `--full` votes by the number of
forward passes; beside them one run each that casts all of `--full` votes, unscaled, which is what the limits are for.
The claims: the fastest arithmetic stays within the limits below, and forward passes take at least 85% of its time.
Weights are random (He et al. 2015). `--device cpu` shows that the benchmark runs; its limits do not apply there.
"""

import argparse
import statistics
import sys
import time
from typing import NamedTuple


class Subject(NamedTuple):
    """What a network is measured on, and the claims about it."""

    input_shape: tuple[int, int, int]
    nb_classes: int
    limit: float | None = None  # seconds an input at n = 100 000
    paper: float | None = None  # what Cohen et al. 2019, section 4, report of their GPU


SUBJECTS = {
    "resnet110": Subject((3, 32, 32), 10, limit=0.5, paper=15.0),
    "resnet50": Subject((3, 224, 224), 1000, limit=4.0, paper=110.0),
    "resnet20": Subject((3, 32, 32), 10),
    "small-cnn": Subject((1, 28, 28), 10),
}
CONFIGURATIONS = [f"{precision}{how}" for precision in ("fp32", "bf16", "fp16") for how in ("", "+compile")]
LEAST_SHARE = 0.85
LIMITS_ARE_FOR = 100_000
N0, ALPHA, SIGMA = 100, 0.001, 0.25
COLUMNS = (
    "model",
    "arithmetic",
    "rows",
    "set-up s",
    "certify s",
    "forward only s",
    "forward share",
    "full certify s",
    "full forward s",
    "limit s",
)


def network(name):
    """The model with random weights, its batch statistics those of a noisy batch: else fp16 overflows in deep ones."""
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model = models.build(name, input_shape=subject.input_shape, nb_classes=subject.nb_classes)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(0.5 + SIGMA * torch.randn(16, *subject.input_shape))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


class Contender:
    """One network in one arithmetic: how to certify with it, and how to do nothing but its forward passes."""

    def __init__(self, name, configuration, model, device):
        import numpy as np
        import torch

        from art_rs_plugin import RandomizedSmoothingPyTorch
        from art_rs_plugin.votes import automatic_batch_size, example_batch

        subject = SUBJECTS[name]
        precision, _, how = configuration.partition("+")
        self.name = name
        self.estimator = RandomizedSmoothingPyTorch(
            model,
            SIGMA,
            precision=precision,
            compile=how == "compile",
            alpha=ALPHA,
            seed=0,
            input_shape=subject.input_shape,
            nb_classes=subject.nb_classes,
            device_type=device,
        )
        self.x = np.random.default_rng(0).random((1, *subject.input_shape), dtype=np.float32)
        start = time.perf_counter()
        self.arithmetic = self.estimator.arithmetic  # compiles
        self.certify(N0)  # what cuDNN and CUDA graphs prepare at their first passes
        self.certify(N0)
        self.set_up = time.perf_counter() - start
        x = torch.from_numpy(self.x).to(self.estimator.device)
        # the very function and batch that certify uses
        self._forward = self.estimator._forwards(1)[0]
        self._batch = example_batch(x, self.estimator.noise, automatic_batch_size(x.shape[1:], x.device))
        self.rows = len(self._batch)

    def passes(self, votes):
        """Forward passes for so many votes of one purpose."""
        return -(-votes // self.rows)

    def certify(self, n):
        """The paper's CERTIFY at one input."""
        from art_rs_plugin import Fixed

        self.estimator.certificates(self.x, budget=Fixed(n0=N0, n=n))

    def forward(self, n):
        """Forward passes for `n` votes, as workers make them but for noise and counting."""
        from art_rs_plugin.arithmetic import _alone

        def loop():
            for _ in range(self.passes(n)):
                self._forward(self._batch)

        with self.estimator._arithmetic.as_is():
            _alone(loop, self._batch.device)

    def seconds(self, what, n):
        """Seconds of one `what`, "certify" or "forward", with nothing left to do on the device before or after."""
        import torch

        on_gpu = self._batch.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        getattr(self, what)(n)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def scale(self, what, n, full):
        """Forward passes at `full` votes for each one at `n`: cost is linear in passes, and the last one is padded."""
        selection = self.passes(N0) if what == "certify" else 0
        return (selection + self.passes(full)) / (selection + self.passes(n))


def rows_of_table(contenders, n, full, repeats):
    """A row for each contender; repeats interleave, so that what else the machine does meets all of them alike."""
    subjects = [(contender, what) for contender in contenders for what in ("certify", "forward")]
    seconds = {subject: [] for subject in subjects}
    for contender, what in subjects:
        contender.seconds(what, n)  # the clock of a GPU rises under load
    for _ in range(repeats):
        for contender, what in subjects:
            seconds[contender, what].append(contender.seconds(what, n) * contender.scale(what, n, full))
    rows = []
    for contender in contenders:
        certify, forward = (statistics.median(seconds[contender, what]) for what in ("certify", "forward"))
        whole = [contender.seconds(what, full) for what in ("certify", "forward")]
        start = [contender.name, contender.arithmetic, contender.rows, contender.set_up]
        limit = SUBJECTS[contender.name].limit if full == LIMITS_ARE_FOR else None
        rows.append([*start, certify, forward, forward / certify, *whole, "" if limit is None else limit])
    return rows


def environment(device):
    """What the figures depend on besides the code, in a line."""
    import torch

    said = [f"torch {torch.__version__}", f"float32 matmul {torch.get_float32_matmul_precision()}"]
    if device == "cpu":
        return ", ".join([f"CPU, {torch.get_num_threads()} threads", *said])
    gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    tf32, tuned = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    return ", ".join([gpu, *said, f"TF32 convolutions {tf32}, cuDNN benchmark {tuned}"])


def verdict(name, rows, full):
    """What the network's fastest row comes to in words, and whether it is within the limits."""
    best = dict(zip(COLUMNS, min(rows, key=lambda row: row[COLUMNS.index("full certify s")]), strict=True))
    subject, took, share = SUBJECTS[name], best["full certify s"], best["forward share"]
    said = f"{name}: fastest in {best['arithmetic']}: {took:.3g} s at n = {full}, forward share {share:.0%}"
    if subject.limit is None or full != LIMITS_ARE_FOR:
        return said, True
    reached = took <= subject.limit and share >= LEAST_SHARE
    said += f" (at most {subject.limit:g} s, at least {LEAST_SHARE:.0%}; the paper's GPU: {subject.paper:g} s)"
    return f"{said}: {'reached' if reached else 'MISSED'}", reached


def cell(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["resnet110", "resnet50"])
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=CONFIGURATIONS)
    parser.add_argument("--n", type=int, default=20_000, help="votes of each timed repeat")
    parser.add_argument("--full", type=int, default=LIMITS_ARE_FOR, help="votes of the one full run, scaled to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    arguments = parser.parse_args()
    import torch

    if arguments.device == "gpu" and not (torch.cuda.is_available() and torch.version.cuda):
        parser.exit(2, "this benchmark needs an NVIDIA GPU, and torch finds none; --device cpu shows that it runs\n")
    print(environment(arguments.device))
    print(
        f"medians of {arguments.repeats} interleaved repeats at n = {arguments.n}, scaled to n = {arguments.full} by "
        f"the number of forward passes; full: one run at n = {arguments.full}, not scaled\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"| --- | --- |{' ---: |' * (len(COLUMNS) - 2)}", flush=True)
    verdicts = []
    for name in arguments.models:
        model = network(name)
        contenders = []
        for words in arguments.configurations:
            try:
                contenders.append(Contender(name, words, model, arguments.device))
            except RuntimeError as error:  # one that cannot be compiled costs the others nothing
                verdicts.append((f"{name}: {words} is left out: {error}", False))
        if not contenders:
            continue
        rows = rows_of_table(contenders, arguments.n, arguments.full, arguments.repeats)
        for row in rows:
            print(f"| {' | '.join(map(cell, row))} |", flush=True)
        verdicts.append(verdict(name, rows, arguments.full))
    print()
    for said, _ in verdicts:
        print(said)
    if arguments.device == "gpu" and not all(reached for _, reached in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
