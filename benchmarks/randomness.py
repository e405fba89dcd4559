"""Is the noise of votes what it should be? A battery of tests on it, and on generators that are spoilt on purpose.

    python benchmarks/randomness.py [--draws 100000000] [--only torch chacha20 sound ...]
    python benchmarks/randomness.py --cost

Numbers come from streams as votes name them, by seed, example and block. Every test is one number that is N(0, 1) or
chi-square if all is well; a generator is told from a good one where any of them has a probability below 1e-6, shared
out among all tests of the generator. Spoilt ones are of the kinds of Dahiya, Shumailov and Anderson 2023
(arXiv 2306.14043), who attack randomized smoothing through its random numbers: another distribution of the same mean
and variance, one that is skewed or has heavier tails, bits that are flipped now and then; and streams that are not
independent. What passes is not shown to be random: a test tells only what it looks for.
"""

import argparse
import math
import sys
import time
from itertools import count, islice

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom, chi2, kstwobign, norm

FALSE_ALARM = 1e-6
BINS = 4096
LAGS = (1, 2, 3, 4, 8, 16, 3_072)
TAILS = (3.0, 3.5, 4.0, 4.5)
LENGTH = 2**18  # numbers of one stream
KEPT = 2**14  # of which these are correlated with those of all other streams
SEEDS, EXAMPLES = 3, 4
SIGMA = 0.25


def names():
    """(seed, example, block) of one stream after the other: neighbours in each of the three."""
    for block in count():
        for example in range(EXAMPLES):
            for seed in range(SEEDS):
                yield seed, example, block


def votes(kind):
    """The noise of votes in units of sigma, by the name of its stream."""
    import torch

    from art_rs_plugin.noise import Gaussian, Purpose, RoundedGaussian, seed_generator

    noise = RoundedGaussian(SIGMA, 1) if kind == "sound" else Gaussian(1.0, randomness=kind)
    out, generator = torch.empty(LENGTH), noise.generator(torch.device("cpu"))

    def draw(seed, example, block):
        seed_generator(generator, seed, Purpose.ESTIMATION, example, block)
        drawn = noise.draw_(out, generator) if kind == "sound" else noise.fill_(out, generator)
        return drawn.double().numpy()

    return draw


def good(seed, *name):
    """Numbers to spoil, by NumPy's PCG64."""
    return np.random.default_rng([seed, *name]).standard_normal(LENGTH)


def transformed(function):
    return lambda *name: function(good(*name), np.random.default_rng([*name, 1]))


def skewed(shape):
    """Skew-normal of mean 0 and variance 1: skewness .0017 at shape .2, .137 at 1."""
    d = shape / math.sqrt(1 + shape**2)
    mean = d * math.sqrt(2 / math.pi)

    def spoil(z, rng):
        return (d * np.abs(z) + math.sqrt(1 - d**2) * rng.standard_normal(z.size) - mean) / math.sqrt(1 - mean**2)

    return transformed(spoil)


def student(freedom):
    def spoil(z, rng):
        return rng.standard_t(freedom, z.size) * math.sqrt((freedom - 2) / freedom)

    return transformed(spoil)


def flipped(share):
    """The sign of this share of the negative numbers is flipped."""
    return transformed(lambda z, rng: np.where((z < 0) & (rng.random(z.size) < share), -z, z))


def mixed(share):
    """Each number has a part of the number before it, as in a feedback of output bits."""
    return transformed(lambda z, rng: (z + share * np.roll(z, 1)) / math.sqrt(1 + share**2))


def alike(share):
    """A part of all examples' noise is common to them."""

    def draw(seed, example, block):
        own, common = good(seed, example, block, 2), good(seed, block, 3)
        return math.sqrt(1 - share**2) * own + share * common

    return draw


GOOD = {kind: lambda kind=kind: votes(kind) for kind in ("torch", "chacha20", "sound")}
SPOILT = {
    "uniform, same variance": transformed(lambda z, rng: (ndtr(z) - 0.5) * math.sqrt(12)),
    "Laplace, same variance": transformed(lambda z, rng: -np.sign(z) * np.log(2 * ndtr(-np.abs(z))) / math.sqrt(2)),
    "skew-normal, shape 1": skewed(1.0),
    "skew-normal, shape .2": skewed(0.2),
    "Student's t, 30 degrees": student(30),
    "Student's t, 1000 degrees": student(1000),
    "variance .999": transformed(lambda z, rng: z * math.sqrt(0.999)),
    "cut at 4 sigma": transformed(lambda z, rng: np.clip(z, -4, 4)),
    "cut at 5.5 sigma": transformed(lambda z, rng: np.clip(z, -5.5, 5.5)),
    "sign flipped, 1 of 100": flipped(1e-2),
    "sign flipped, 1 of 1000": flipped(1e-3),
    "sign flipped, 1 of 10000": flipped(1e-4),
    "8-bit uniforms": transformed(lambda z, rng: ndtri((np.floor(ndtr(z) * 256) + 0.5) / 256)),
    "16-bit uniforms": transformed(lambda z, rng: ndtri((np.floor(ndtr(z) * 65536) + 0.5) / 65536)),
    "neighbours correlated, .01": mixed(0.01),
    "neighbours correlated, .0001": mixed(1e-4),
    "examples share their noise": lambda seed, example, block: good(seed, block),
    "blocks share their noise": lambda seed, example, block: good(seed, example),
    "seeds share their noise": lambda seed, example, block: good(example, block),
    "examples correlated, .1": alike(math.sqrt(0.1)),
    "examples correlated, .01": alike(0.1),
}


def law(kind):
    """Ends of bins, probability up to each, second and fourth moment, tails, scale: of N(0, 1), or of Z."""
    if kind != "sound":
        edges = ndtri(np.arange(1, BINS) / BINS)
        return edges, np.arange(1, BINS) / BINS, 1.0, 3.0, {t: norm.sf(t) for t in TAILS}, 1.0
    from art_rs_plugin.core.rounded import table

    made, scale = table(SIGMA), 255 * SIGMA
    cumulative = np.concatenate([made.thresholds / 2.0**63, [1.0]])
    at = np.arange(-made.reach, made.reach + 1.0)
    p = np.diff(cumulative, prepend=0.0)
    wide = np.flatnonzero((cumulative > 1e-6) & (cumulative < 1 - 1e-6))  # a bin a number, the tails together
    tails = {t: float(p[at > t * scale].sum()) for t in TAILS}
    return at[wide] + 0.5, cumulative[wide], float((p * at**2).sum()), float((p * at**4).sum()), tails, scale


def battery(kind, draw, draws):
    """Every test of a generator: (name, probability under the null)."""
    edges, cumulative, second, fourth, tails, scale = law(kind)
    counts, beyond = np.zeros(len(edges) + 1), dict.fromkeys([(t, side) for t in TAILS for side in (-1, 1)], 0)
    sums, lagged, kept, first = np.zeros(4), np.zeros(len(LAGS)), [], set()
    streams = max(2 * SEEDS * EXAMPLES, -(-draws // LENGTH))
    for name in islice(names(), streams):
        z = draw(*name)
        counts += np.bincount(np.searchsorted(edges, z), minlength=len(counts))
        square = z * z
        sums += z.sum(), square.sum(), (square * z).sum(), (square * square).sum()
        for t, side in beyond:
            beyond[t, side] += int((side * z > t * scale).sum())
        lagged += [z[:-lag] @ z[lag:] for lag in LAGS]
        kept.append(z[:KEPT].astype(np.float32))
        first.add(z[:64].tobytes())
    n = streams * LENGTH
    sd = math.sqrt(second)

    def two_sided(value, deviation):
        return 2 * float(norm.sf(abs(value) / deviation))

    skewness, kurtosis = sums[2] / n / sd**3, sums[3] / n / second**2 - fourth / second**2
    # of a normal distribution, or one as near to it as Z's: moments of order 2, 6 and 8 are 1, 15 and 105
    yield "mean", two_sided(sums[0] / n, sd / math.sqrt(n))
    yield "variance", two_sided(sums[1] / n / second - 1, math.sqrt(2 / n))
    yield "skewness", two_sided(skewness, math.sqrt(15 / n))
    yield "kurtosis", two_sided(kurtosis, math.sqrt(96 / n))
    expected = np.diff(np.concatenate([[0.0], cumulative, [1.0]])) * n
    yield "histogram", float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))
    # at the bins' ends alone, where the statistic can only be less than over all numbers
    yield "KS", float(kstwobign.sf(np.abs(np.cumsum(counts)[:-1] / n - cumulative).max() * math.sqrt(n)))
    for (t, side), seen in beyond.items():
        p = tails[t]
        yield f"tail {side * t:+g}", min(1.0, 2 * float(min(binom.sf(seen - 1, n, p), binom.cdf(seen, n, p))))
    for lag, total in zip(LAGS, lagged, strict=True):
        pairs = streams * (LENGTH - lag)
        yield f"lag {lag}", two_sided(total / pairs / second, 1 / math.sqrt(pairs))
    yield "streams that come twice", 1.0 if len(first) == streams else 0.0
    yield from between(np.array(kept), list(islice(names(), streams)))


def between(kept, named):
    """Correlations of streams: by what their names differ in, all together, and the largest."""
    kept = (kept - kept.mean(axis=1, keepdims=True)) / kept.std(axis=1, keepdims=True)
    named = np.array(named)
    z = (kept @ kept.T) / math.sqrt(kept.shape[1])  # N(0, 1) off the diagonal
    row, column = np.triu_indices(len(kept), k=1)
    z, differ = z[row, column].astype(np.float64), np.abs(named[row] - named[column])
    for what, at in (("seeds", 0), ("examples", 1), ("blocks", 2)):
        neighbours = (differ[:, at] == 1) & (differ.sum(axis=1) == 1)
        some = z[neighbours]
        yield f"neighbouring {what}, sum", 2 * float(norm.sf(abs(some.sum()) / math.sqrt(len(some))))
        yield f"neighbouring {what}, squares", float(chi2.sf((some**2).sum(), len(some)))
    yield "any two streams", min(1.0, 2 * len(z) * float(norm.sf(np.abs(z).max())))


def told(tests):
    """The tests that tell it from a good one."""
    tests = dict(tests)
    return {name: p for name, p in tests.items() if p < FALSE_ALARM / len(tests)}, min(tests.values()), len(tests)


def cost():
    """Nanoseconds a number, by one thread, over blocks of 64 images of 3 x 32 x 32; medians of interleaved runs."""
    import torch

    from art_rs_plugin.noise import Gaussian, Purpose, RoundedGaussian, seed_generator

    torch.set_num_threads(1)
    kinds = {
        f"{mode}, {source}": noise(SIGMA, randomness=source)
        for mode, noise in (("ordinary", Gaussian), ("sound", RoundedGaussian))
        for source in ("torch", "chacha20")
    }
    out, x = torch.empty(64, 32, 32, 3), torch.zeros(32, 32, 3)
    seconds = {name: [] for name in kinds}
    for turn in range(60):
        for name, noise in kinds.items():
            generator = noise.generator(torch.device("cpu"))
            start = time.perf_counter()
            noise.noisy_(out, x, seed_generator(generator, 0, Purpose.ESTIMATION, turn))
            seconds[name].append(time.perf_counter() - start)
    base = np.median(seconds["ordinary, torch"])
    print("| noise | ns a number | against ordinary, torch |\n| --- | ---: | ---: |")
    for name, taken in seconds.items():
        print(f"| {name} | {np.median(taken) / out.numel() * 1e9:.1f} | {np.median(taken) / base:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=float, default=1e8, help="numbers of each generator")
    parser.add_argument("--only", nargs="+", choices=[*GOOD, "spoilt"], default=[*GOOD, "spoilt"])
    parser.add_argument("--cost", action="store_true", help="only what the sources cost")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
    fine = True
    print("| generator | told apart | by | least probability |\n| --- | --- | --- | ---: |", flush=True)
    subjects = {name: make() for name, make in GOOD.items() if name in options.only}
    subjects |= SPOILT if "spoilt" in options.only else {}
    for name, draw in subjects.items():
        found, least, tests = told(battery(name, draw, int(options.draws)))
        fine &= not (name in GOOD and found)
        by = ", ".join(sorted(found, key=found.get)[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        print(f"| {name} | {'yes' if found else 'no'} | {by} | {least:.2g} |", flush=True)
    print(f"\n{options.draws:.0e} numbers each, {tests} tests; told apart: one below {FALSE_ALARM / tests:.1e}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
