"""What torchrun's ranks gain and cost: two ranks against one, the queue of examples, and how many devices stay at work.

    python benchmarks/ranks.py speedup
    python benchmarks/ranks.py queue
    python benchmarks/ranks.py simulate [--ledger LOOKS.jsonl]
    python benchmarks/ranks.py training [--train-images 50000 --epochs 12]

`speedup`: the same certificates by one rank and by two, one thread each, in turn: from the first image to the
merged ledger; claim: at least 1.8 times faster. `queue`: examples that take 10 ms and no processor; what two ranks,
which deal, tell and merge, add to these beyond what one process adds, which only writes; claim: at most 1%.
`simulate`: 50 000 images by `Looks` on 64 and 1 024 devices, dealt and helped as `experiments.dealing` and
`experiments.helping` do, with the votes an image of a ledger, or those that `Looks` draws at the class
probabilities of published logs; claims: devices cast votes for at least 98% and 95% of the time. `training`:
ResNet-20 trained on CIFAR-10 (ART_RS_DATA) by one process and by two ranks with the same global batch and rate,
over seeds, and how often it is right under noise on test images; claim: means differ by at most four standard
errors, estimated from the seeds. Status 1 if a claim is missed. Measure on a machine that does nothing else.
"""

import argparse
import heapq
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

LEAST_SPEEDUP, MOST_OVERHEAD, LEAST_IN_USE = 1.8, 0.01, {64: 0.98, 1024: 0.95}
IMAGES, SIGMA, EXAMPLE_SECONDS, EXAMPLES = 50_000, 0.25, 0.01, 400
ANSWER = 50  # votes that a device would cast while a question or an answer is on its way: 20 ms at 2 500 a second


def by_ranks(size, *work):
    """What each of so many ranks, a process of one thread each, reports of its work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "work", *map(str, work)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **names, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a rank failed")
    return [json.loads(text.splitlines()[-1]) for text in said]


def certify(out, model, votes, images):
    """Seconds from the first image to the merged ledger."""
    import torch

    from art_rs_plugin import RandomizedSmoothingPyTorch, ranks
    from art_rs_plugin.experiments import datasets, models, runs

    torch.manual_seed(0)
    data = datasets.load("digits", "test")
    network = models.build(model, input_shape=data.input_shape, nb_classes=10)
    estimator = RandomizedSmoothingPyTorch(network, SIGMA, n=votes, seed=0, device_type="cpu", compile=False)
    estimator.certify(data.arrays([0])[0], n=100)  # warm
    with ranks.joined() as company:
        company.agree({"warm": True})  # nobody starts before all are
        start = time.perf_counter()
        runs.certify(estimator, data, range(images), Path(out), ranks=company)
        return time.perf_counter() - start


def wait(out):
    """What is added to examples that only take time: seconds of the whole loop over those of its examples, less one."""
    from art_rs_plugin import ranks
    from art_rs_plugin.experiments import dealing
    from art_rs_plugin.experiments.ledger import Ledger

    spans = []

    def make(seed, names):
        for name in names:
            start = time.perf_counter()
            time.sleep(EXAMPLE_SECONDS)
            spans.append((start, time.perf_counter()))
            yield {"index": name, "label": 0, "seconds": 0.0, "distance": 0.0, "counts": [0] * 1_000}

    with ranks.joined() as company:
        header, names = {"kind": "distance", "seed": 0}, list(range(EXAMPLES))
        if company.size == 1:  # the floor: who is alone deals nothing
            with Ledger.open(out, header) as ledger:
                for row in make(0, names):
                    ledger.append(row)
        else:
            dealing.fill(company, Path(out), header, names, {}, make, at_once=256)
    return (spans[-1][1] - spans[0][0]) / sum(end - start for start, end in spans) - 1


def train(out, count, epochs, seed):
    """The share of right votes on 1 000 test images, 20 an image; of rank 0, None of others."""
    import dataclasses

    import numpy as np

    from art_rs_plugin import RandomizedSmoothingPyTorch, ranks
    from art_rs_plugin.experiments import datasets, recipes, training

    class Some(datasets.Images):
        def __init__(self, images):
            self.images, self.shape, self.nb_classes = images, images.shape, images.nb_classes

        def __len__(self):
            return min(count, len(self.images))

        def __getitem__(self, index):
            return self.images[index]

    recipe = recipes.Recipe(epochs=epochs, batch_size=128, precision="bf16", schedule="cosine")
    with ranks.joined() as company:
        whole = datasets.load("cifar10", "train")
        data = dataclasses.replace(whole, images=Some(whole.images))
        network = training.train(data, "resnet20", SIGMA, Path(out), recipe=recipe, seed=seed, ranks=company)
        if not company.first:
            return None
    x, y = datasets.load("cifar10", "test").arrays(range(1_000))
    votes = RandomizedSmoothingPyTorch(network, SIGMA, seed=0, device_type="cpu", compile=False).votes(x, 20)
    return float(votes[np.arange(len(y)), y].mean() / 20)


def training(arguments):
    right = {1: [], 2: []}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for size, shares in right.items():
                out = Path(folder) / f"{size}-{seed}"
                shares.append(by_ranks(size, "train", out, arguments.train_images, arguments.epochs, seed)[0])
    means = {size: statistics.mean(shares) for size, shares in right.items()}
    print(f"ResNet-20, {arguments.train_images} images, sigma {SIGMA}, {arguments.epochs} epochs, right votes by seed:")
    for size, shares in right.items():
        print(f"  {size} rank(s): {means[size]:.4f} ({', '.join(f'{share:.4f}' for share in shares)})")
    error = (sum(statistics.variance(shares) for shares in right.values()) / arguments.seeds) ** 0.5
    print(f"  difference {means[2] - means[1]:+.4f}, standard error {error:.4f}; {time.perf_counter() - start:.0f} s")
    return abs(means[2] - means[1]) <= 4 * error


def speedup(arguments):
    seconds = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for size, taken in seconds.items():
                out = Path(folder) / f"{size}-{repeat}.jsonl"
                taken.append(max(by_ranks(size, "certify", out, arguments.model, arguments.votes, arguments.images)))
    one, two = (statistics.median(taken) for taken in seconds.values())
    print(
        f"{arguments.model}, {arguments.images} digits of {arguments.votes} votes, medians of {arguments.repeats}: ",
        end="",
    )
    print(f"1 rank {one:.2f} s, 2 ranks {two:.2f} s, one thread each: {one / two:.2f} times (at least {LEAST_SPEEDUP})")
    return one / two >= LEAST_SPEEDUP


def queue(arguments):
    with tempfile.TemporaryDirectory() as folder:
        one, two = (
            [max(by_ranks(size, "wait", Path(folder) / f"{size}-{k}.jsonl")) for k in range(arguments.repeats)]
            for size in (1, 2)
        )
    overhead = statistics.median(two) - statistics.median(one)
    print(f"{EXAMPLES} examples of 10 ms and 1 000 classes, medians of {arguments.repeats}: added to these ", end="")
    print(f"{statistics.median(one):.2%} by one process, {statistics.median(two):.2%} by each of 2 ranks, ", end="")
    print(f"{overhead:.2%} more (at most {MOST_OVERHEAD:.0%})")
    return overhead <= MOST_OVERHEAD


def simulate(arguments):
    import numpy as np

    from art_rs_plugin.core.budgets import Looks
    from art_rs_plugin.experiments import plan
    from art_rs_plugin.experiments.ledger import read_ledger

    met = True
    if arguments.ledger is not None:
        header, rows = read_ledger(arguments.ledger)
        sources = {
            f"{len(rows)} images of {arguments.ledger.name}": (np.array([row["votes"] for row in rows]), header["rule"])
        }
    else:
        sources = {}
        for data, sigma, radii in (("cifar10", 0.25, (0, 0.25, 0.5, 0.75)), ("imagenet", 0.5, (0, 0.5, 1.0, 1.5))):
            budget = Looks(radii=radii)
            p, source = plan.probabilities_like(data, sigma, None)
            sources[source] = plan.simulated_votes(budget, p, sigma, 0.001), {"n0": budget.n0, "first": budget.first}
    for source, (votes, rule) in sources.items():
        each = np.random.default_rng(0).choice(votes, IMAGES)
        print(f"{source}: {votes.mean():.0f} votes an image, at most {votes.max()}")
        for devices, least in LEAST_IN_USE.items():
            alone, helped = (in_use(each, devices, rule["n0"], rule["first"], help_) for help_ in (False, True))
            print(f"  {devices} devices: {helped:.1%} in use (at least {least:.0%}); without help {alone:.1%}")
            met &= helped >= least
    return met


def calls(votes, n0, first):
    """Votes that are asked for together, one time after another, for a piece of images of so many votes each."""
    wanted, total, at = [n0], n0, 0.0
    while total < max(votes):
        at = first if not at else at * 1.5
        step = int(at) - (total - n0)
        wanted.append(max(1, step))
        total += wanted[-1]
    left, made = list(votes), []
    for step in wanted:
        taken = [min(step, some) for some in left]
        left = [some - took for some, took in zip(left, taken, strict=True)]
        made.append(sum(taken))
    return [some for some in made if some]


def in_use(each, devices, n0, first, help_):
    """The share of their time that devices cast votes, a unit of time being what a vote takes."""
    from art_rs_plugin.experiments import dealing, helping

    class Device:
        looked, pending, calls = 0, 0, ()

    workers = [Device() for _ in range(devices)]
    for number, worker in enumerate(workers):
        worker.looked = number
    todo = dealing.pieces(len(each), devices, 256)
    questions, free, idle = deque(), deque(), 0
    events = [(0.0, number, number, None) for number in range(devices)]  # (time, order, who, for whom it cast)
    heapq.heapify(events)
    order = devices

    def at(when, who, owner):
        nonlocal order
        order += 1
        heapq.heappush(events, (when, order, who, owner))

    def ask(now, votes, owner):
        if free:
            at(now + votes + 2 * ANSWER, free.popleft(), owner)
        else:
            questions.append((votes, owner))

    now = 0.0
    while events:
        now, _, who, owner = heapq.heappop(events)
        worker = workers[who]
        if owner is not None:  # it has helped
            if questions:
                votes, other = questions.popleft()
                at(now + votes + 2 * ANSWER, who, other)
            else:
                free.append(who)
            who, worker = owner, workers[owner]
        if worker.pending:
            worker.pending -= 1
            if worker.pending:
                continue
        if not worker.calls:
            piece = next(todo, None)
            if piece is None:
                idle += 1
                if questions:
                    votes, other = questions.popleft()
                    at(now + votes + 2 * ANSWER, who, other)
                else:
                    free.append(who)
                continue
            worker.calls = deque(calls(each[piece].tolist(), n0, first))
        left = worker.calls[0]
        worker.looked += 1
        helpers = 0
        if help_ and min(left, helping.AT_ONCE) >= 2 * helping.LEAST:
            helpers = int(idle / max(1, devices - idle) + worker.looked * 0.6180339887 % 1.0)
        asked = min(left, helping.AT_ONCE * (helpers + 1))
        share = max(helping.LEAST, -(-asked // (helpers + 1)))
        shares = [min(share, asked - begin) for begin in range(0, asked, share)]
        worker.calls[0] -= asked
        if not worker.calls[0]:
            worker.calls.popleft()
        worker.pending = len(shares)
        for votes in shares[1:]:
            ask(now, votes, who)
        at(now + shares[0], who, None)
    return float(each.sum()) / (devices * now)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speedup", "queue", "simulate", "training", "work"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="small-cnn", help="of speedup: a name in experiments.models")
    parser.add_argument("--votes", type=int, default=20_000, help="of speedup, an image")
    parser.add_argument("--images", type=int, default=40, help="of speedup")
    parser.add_argument("--train-images", type=int, default=5_000, help="of training")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument("--seeds", type=int, default=4, help="of training, at least 2")
    parser.add_argument("--ledger", type=Path, help="of simulate: images certified by looks")
    arguments = parser.parse_args()
    if arguments.what == "work":
        kind, out, *rest = arguments.rest
        texts, numbers = [word for word in rest if not word.isdigit()], [int(word) for word in rest if word.isdigit()]
        print(json.dumps({"certify": certify, "wait": wait, "train": train}[kind](out, *texts, *numbers)))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}")
    if not {"speedup": speedup, "queue": queue, "simulate": simulate, "training": training}[arguments.what](arguments):
        sys.exit("a claim is missed")


if __name__ == "__main__":
    main()
