"""False certificates of the whole pipeline, counted where the truth is known: half-spaces, at their hardest inputs.

    python benchmarks/soundness.py --out soundness.jsonl [--modes ordinary sound] [--minutes 60]
    python benchmarks/soundness.py --report soundness.jsonl [more.jsonl ...]

Inputs lie a hair closer to the plane than a radius that the rule can return, where it errs most: about alpha of such
certificates are false, and more than that is a bug. A piece of work is one line in the file, and the same command goes
on where it stopped. Truth is the distance to the plane; in sound mode, where inputs are whole 255ths and weights +1, -1
and 0, the least l2 norm of whole 255ths that crosses it, and a class's probability follows from the integer table.
Beside the count stands what enumeration of the binomial says at these inputs, by SciPy.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import beta, binom, norm

SIGMA = 0.25
SCALE = 255 * SIGMA
N0, N = 16, 64  # one block of noise each
FIRST, GROWTH = 32, 2.0  # looks at 32, 64 and 128 votes
SHAPES = {2: (2, 1, 1), 12: (3, 2, 2), 108: (3, 6, 6), 784: (1, 28, 28), 3072: (3, 32, 32)}
# how many of a thousand certificates are in so many dimensions, and how many are made at once
SHARE = {2: 350, 12: 300, 108: 280, 784: 50, 3072: 20}
AT_ONCE = {2: 4_000, 12: 4_000, 108: 4_000, 784: 1_000, 3072: 500}
MODES = ("ordinary", "sound")
ALPHAS = (0.001, 0.01, 0.05)
WANTED = {
    "fixed": (1_000_000, 100_000, 100_000),
    "runner-up": (100_000, 40_000, 40_000),
    "randomized": (100_000, 40_000, 40_000),
    "looks": (40_000, 20_000, 20_000),
    "pilot": (40_000, 20_000, 20_000),
}
RULES = tuple(WANTED)
# weights that are not 0 in sound mode, at most: steps are whole, so that in more directions at once they cross a plane
# only far beyond its distance, and errors are far rarer than alpha
ACTIVE = 12
# a float32 network may name the other class within this distance of the plane, in sigma
SLACK = 1e-5
FALSE_ALARM = 1e-6
LONGER = 1.25  # what the count would be if radii were longer by so much: it must not pass


def target(rule, alpha, dimension):
    """Certificates wanted."""
    return WANTED[rule][ALPHAS.index(alpha)] * SHARE[dimension] // 1_000


def budget(rule):
    from art_rs_plugin.core.budgets import Fixed, Looks, Pilot

    if rule == "looks":
        return Looks(radii=(0.0, 0.1, 0.2, 0.3, 0.4), first=FIRST, growth=GROWTH, n_max=4 * FIRST, n0=N0)
    if rule == "pilot":
        return Pilot(n_pilot=48, cost=0.002, n_max=2 * N, n0=N0)
    return Fixed(n0=N0, n=N, bound={"fixed": "clopper-pearson"}.get(rule, rule))


@cache
def plans(rule, alpha):
    """What the rule may bound by: tuples of (votes, alpha of these votes), looked at one after the other."""
    from art_rs_plugin.core.looks import growing, spending

    if rule == "looks":
        schedule = (FIRST, 2 * FIRST, 4 * FIRST)
        return [tuple(zip(schedule, spending(alpha, 3), strict=True))]
    if rule == "pilot":
        least = next(n for n in range(1, 100) if 0.5**n <= alpha)
        return [((n, alpha),) for n in growing(least, 1.25, 2 * N)]
    return [((N, 0.9 * alpha if rule == "runner-up" else alpha),)]


@cache
def lower(n, alpha):
    """Clopper-Pearson lower bounds at k = 0, ..., n."""
    k = np.arange(n + 1)
    return np.where(k > 0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0)


@cache
def radii(rule, alpha):
    """Radii that the rule can return, in sigma."""
    bounds = np.concatenate([lower(*look)[look[0] // 2 :] for plan in plans(rule, alpha) for look in plan])
    return np.unique(norm.ppf(bounds[bounds > 0.55]))


@cache
def error(rule, alpha, p, q):
    """P(p_lower > q) for a class of probability p: exact, or for `pilot` the most over what a pilot can choose."""
    if rule == "randomized":
        return alpha  # at p = q, and less below
    worst = 0.0
    for plan in plans(rule, alpha):
        mass, seen, wrong = np.ones(1), 0, 0.0
        for n, share in plan:
            mass, seen = np.convolve(mass, binom.pmf(np.arange(n - seen + 1), n - seen, p)), n
            wrong += mass[lower(n, share) > q].sum()
            mass = np.where(lower(n, share) > q, 0.0, mass)
        worst = max(worst, wrong)
    return worst


@cache
def false_probability(rule, alpha, p, q, side):
    """Of a false certificate, where class `side` has probability p and a radius is too long if p_lower > q."""
    selected = binom.sf((N0 - 1 + side) // 2, N0, p)  # N0 is even, and a tie selects class 0
    return selected * error(rule, alpha, p, q) + (1 - selected) * error(rule, alpha, 1 - p, 0.5)


def steps(k, count):
    """Least l2 norm of so many whole numbers that add up to k."""
    each, rest = divmod(k, count)
    return math.sqrt(rest * (each + 1) ** 2 + (count - rest) * each**2)


@cache
def sums(count):
    """Law of a sum of so many Z from the integer table: (least i, P(sum <= i) for each i from there on)."""
    from art_rs_plugin.core.rounded import table

    made = table(SIGMA)
    cumulative = np.concatenate([made.thresholds / 2.0**63, [1.0]])
    reach = int(40 * SCALE * math.sqrt(count)) + made.reach
    length = 2 * reach + 1
    pmf = np.zeros(length)
    pmf[: 2 * made.reach + 1] = np.diff(cumulative, prepend=0.0)
    pmf = np.fft.irfft(np.fft.rfft(np.roll(pmf, -made.reach)) ** count, length)
    return -reach, np.cumsum(np.roll(pmf, reach))


class Plane:
    """A half-space, inputs near it, and the truth about them: `own` distance in sigma, p and q as in `error`."""

    def __init__(self, mode, dimension, nominal, rng):
        sign = rng.choice([-1, 1], len(nominal))  # on which side
        self.side = (sign > 0).astype(int)
        if mode == "sound":
            active = min(dimension, ACTIVE)
            chosen = rng.permutation(dimension)[:active]
            self.weight = np.zeros(dimension)
            self.weight[chosen] = rng.choice([-1.0, 1.0], active)
            self.offset = float(rng.integers(-50, 50))
            # the most steps to cross that are shorter than asked for; it takes at least one
            least = np.maximum(1, np.floor(nominal * SCALE * math.sqrt(active)).astype(int))
            shorter = np.array([steps(k, active) for k in least]) <= nominal * SCALE
            crossing = np.maximum(1, np.where(shorter, least, least - 1))
            value = np.where(sign > 0, crossing, 1 - crossing)
            whole = rng.integers(0, 256, (len(nominal), dimension))
            missing = (value - self.offset - whole @ self.weight).astype(int)
            each, rest = np.divmod(missing, active)
            whole[:, chosen] += (each[:, None] + (np.arange(active) < rest[:, None])) * self.weight[chosen].astype(int)
            assert np.array_equal(whole @ self.weight + self.offset, value)
            self.x = (whole / 255).astype(np.float32)
            self.own = np.array([steps(k, active) for k in crossing]) / SCALE
            first, cumulative = sums(active)
            self.p, self.q = cumulative[crossing - 1 - first], norm.cdf(self.own)
            self.slack = 0.0
        else:
            direction = rng.normal(size=dimension)
            direction /= np.linalg.norm(direction)
            self.weight = direction.astype(np.float32).astype(np.float64)
            self.offset = float(np.float32(rng.normal()))
            x = rng.uniform(0.0, 1.0, (len(nominal), dimension))
            asked = sign * (nominal - 2 * SLACK) * SIGMA
            x += np.outer(asked - x @ self.weight - self.offset, self.weight)
            self.x = x.astype(np.float32)
            margin = (self.x.astype(np.float64) @ self.weight + self.offset) / np.linalg.norm(self.weight) / SIGMA
            self.own = sign * margin
            self.p = self.q = norm.cdf(nominal - 2 * SLACK)  # but for what float32 moves x, less than the slack
            self.slack = SLACK

    def model(self, mode):
        """A network that names class 1 beyond the plane."""
        import torch

        class Linear(torch.nn.Module):
            def __init__(self, weight, offset):
                super().__init__()
                self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))
                self.offset = offset

            def forward(self, x):
                flat = x.flatten(1)
                # whole numbers, whose sums float32 has exactly
                value = (torch.round(255 * flat) if mode == "sound" else flat) @ self.weight + self.offset
                return torch.stack([torch.zeros_like(value), value - (0.5 if mode == "sound" else 0.0)], dim=1)

        return Linear(self.weight, self.offset)


def work(mode, rule, alpha, dimension, piece):
    """Certify one piece of inputs, and count."""
    from art_rs_plugin import RandomizedSmoothingPyTorch

    start = time.perf_counter()
    rng = np.random.default_rng([MODES.index(mode), RULES.index(rule), ALPHAS.index(alpha), dimension, piece])
    count = AT_ONCE[dimension]
    plane = Plane(mode, dimension, rng.choice(radii(rule, alpha), count), rng)
    estimator = RandomizedSmoothingPyTorch(
        plane.model(mode),
        SIGMA,
        n0=N0,
        n=2 * N,
        alpha=alpha,
        seed=int(rng.integers(2**62)),
        sound=mode == "sound",
        input_shape=SHAPES[dimension],
        nb_classes=2,
        device_type="cpu",
        compile=False,
    )
    prediction, radius = estimator.certify(
        plane.x.reshape(count, *SHAPES[dimension]), batch_size=512 if dimension > 1_000 else 2_048, budget=budget(rule)
    )
    certified, wrong = prediction != -1, prediction != plane.side
    cases = zip(plane.p.tolist(), plane.q.tolist(), plane.side.tolist(), strict=True)
    enumerated = [false_probability(rule, alpha, *case) for case in cases]

    def false(longer):
        return int((certified & (wrong | (longer * radius / SIGMA > plane.own + plane.slack))).sum())

    return {
        "mode": mode,
        "rule": rule,
        "alpha": alpha,
        "dimension": dimension,
        "piece": piece,
        "certifications": count,
        "certified": int(certified.sum()),
        "false": false(1.0),
        "false_if_longer": false(LONGER),
        "enumerated_mean": float(np.mean(enumerated)),
        "enumerated_most": float(np.max(enumerated)),
        "seconds": round(time.perf_counter() - start, 3),
    }


def run(out, modes, rules, minutes):
    """Work until there is enough of everything or time is over, what is furthest behind first."""
    rows = read([out]) if out.exists() else []
    done, pieces = Counter(), Counter()
    for row in rows:
        cell = row["mode"], row["rule"], row["alpha"], row["dimension"]
        done[cell] += row["certifications"]
        pieces[cell] += 1
    cells = [(mode, rule, alpha, d) for mode in modes for rule in rules for alpha in ALPHAS for d in SHAPES]
    end = time.monotonic() + 60 * minutes
    with out.open("a") as file:
        while time.monotonic() < end:
            cell = min(cells, key=lambda cell: done[cell] / target(*cell[1:]))
            if done[cell] >= target(*cell[1:]):
                break
            row = work(*cell, pieces[cell])
            file.write(json.dumps(row) + "\n")
            file.flush()
            done[cell] += row["certifications"]
            pieces[cell] += 1


def read(paths):
    """Rows of files, a torn last line left out."""
    lines = [line for path in paths for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def report(rows):
    """Print the table; whether all of it is as it must be."""
    cells = defaultdict(list)
    for row in rows:
        cells[row["mode"], row["rule"], row["alpha"]].append(row)
    print("| mode | rule | alpha | inputs | certified | false | at most | rate / alpha [.95] | enumerated / alpha |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    fine = True
    for (mode, rule, alpha), some in sorted(
        cells.items(), key=lambda item: (item[0][0], RULES.index(item[0][1]), item[0][2])
    ):
        total = {
            key: sum(row[key] for row in some) for key in ("certifications", "certified", "false", "false_if_longer")
        }
        n, false = total["certifications"], total["false"]
        limit = int(binom.isf(FALSE_ALARM, n, alpha))
        expected = sum(row["enumerated_mean"] * row["certifications"] for row in some) / n
        most = max(row["enumerated_most"] for row in some)
        low, high = (beta.ppf(0.025, false, n - false + 1) if false else 0.0), beta.ppf(0.975, false + 1, n - false)
        met, blunt = false <= limit and most <= alpha * (1 + 1e-9), total["false_if_longer"] <= limit
        fine &= met and not blunt
        marks = (" MISSED" if not met else "") + (" TOO BLUNT" if blunt else "")
        rate = f"{false / n / alpha:.3f} [{low / alpha:.3f}, {high / alpha:.3f}]"
        print(
            f"| {mode} | {rule} | {alpha:g} | {n} | {total['certified']} | {false}{marks} | {limit} | {rate} "
            f"| {expected / alpha:.3f} |"
        )
    made, seconds = sum(row["certifications"] for row in rows), sum(row["seconds"] for row in rows)
    print(f"\n{made} certifications, {seconds:.0f} seconds")
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file of what is done, a line a piece; if it exists, the run goes on")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--report", nargs="+", type=Path, help="only print what these files hold")
    options = parser.parse_args()
    if (options.out is None) == (options.report is None):
        parser.error("`--out` or `--report` must be given, and not both")
    if options.out is not None:
        run(options.out, options.modes, options.rules, options.minutes)
    sys.exit(0 if report(read(options.report or [options.out])) else 1)


if __name__ == "__main__":
    main()
