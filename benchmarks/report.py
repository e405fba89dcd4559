"""How long `art-rs report` takes, and how large its page is.

    python benchmarks/report.py --examples 10000 --ledgers 1

The ledgers are of the CIFAR-10 test set, if `ART_RS_DATA` holds it, with made-up votes at n = 100 000; every run is a
process of its own, so that imports count. The claim: 10 000 examples take less than 20 s and give less than 10 MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from art_rs_plugin.core.radii import cohen

N, SIGMA = 100_000, 0.5


def write(path, examples, seed):
    """A ledger of votes for one class and its rivals; p_lower is rough, for a report takes rows as they are."""
    chance = np.random.default_rng(seed)
    share = chance.beta(3, 0.6, size=examples)
    header = {
        "format": "art-rs-ledger/1", "kind": "certify", "model": {"hash": "sha256:" + 64 * "0"},
        "noise": {"name": "gaussian", "sigma": SIGMA}, "seed": seed, "rule": {"name": "fixed", "n": N, "alpha": 0.001},
        "data": {"name": "cifar10", "split": "test", "images": 10_000}, "versions": {}, "precision": "fp32",
    }  # fmt: skip
    lines = [header]
    for index, p in enumerate(share.tolist()):
        counts = chance.multinomial(N, [p, *[(1 - p) / 9] * 9]).tolist()
        lower = max(p - 0.005, 0.0)
        radius = float(cohen(lower, 1 - lower, sigma=SIGMA))
        lines.append(
            {
                "index": index,
                "label": 0 if chance.random() < 0.8 else 1,
                "prediction": 0 if radius else -1,
                "radius": radius,
                "counts": counts,
                "selected": 0,
                "p_lower": lower,
                "p_upper": 1 - lower,
                "n0": 100,
                "n": N,
                "alpha": 0.001,
                "seconds": 1.5,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--ledgers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"ledger-{seed}.jsonl" for seed in range(options.ledgers)]
        for seed, path in enumerate(paths):
            write(path, options.examples, seed)
        out = Path(folder) / "report.html"
        words = [sys.executable, "-m", "art_rs_plugin", "report", *map(str, paths), "--out", str(out)]
        taken = []
        for _ in range(options.runs):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            taken.append((time.perf_counter() - start, used))
        passed, used = np.median(taken, axis=0)
        size = out.stat().st_size / 1e6
    print(f"{options.ledgers} x {options.examples} examples, medians of {options.runs}")
    print(f"{passed:.1f} s, {used:.1f} s of them on a processor; {size:.2f} MB")


if __name__ == "__main__":
    main()
