"""Logs as the authors' code prints them, from counts: by statsmodels and SciPy, and by none of our own code."""

from pathlib import Path

from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
HEADER_PREDICT = "idx\tlabel\tpredict\tcorrect\ttime\n"


def radius_of(k: int, n: int, alpha: float, sigma: float) -> float:
    """CERTIFY's radius for k of n votes, 0.0 for an abstention: the code that the paper's logs were made by."""
    lower = proportion_confint(k, n, alpha=2 * alpha, method="beta")[0] if k else 0.0
    return float(sigma * norm.ppf(lower)) if lower > 0.5 else 0.0


def printed(radius: float) -> str:
    return f"{radius:.3}"


def write_certified(path: Path, counts: list[int], *, n: int, alpha: float, sigma: float, wrong: int = 0) -> Path:
    """A certification log of one image for each count, of class 1, the last `wrong` of them labelled otherwise."""
    lines = []
    for index, k in enumerate(counts):
        radius = radius_of(k, n, alpha, sigma)
        predicted, label = (1 if radius else -1), (2 if index >= len(counts) - wrong else 1)
        lines.append(f"{index}\t{label}\t{predicted}\t{printed(radius)}\t{int(predicted == label)}\t0:00:15.5\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(lines))
    return path


def write_predicted(path: Path, labels: list[int], predictions: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{i}\t{y}\t{p}\t{int(y == p)}\t1.5\n" for i, (y, p) in enumerate(zip(labels, predictions, strict=True)))
    path.write_text(HEADER_PREDICT + "".join(rows))
    return path


def checkout(folder: Path, *, n: int = 1000, alpha: float = 0.01) -> Path:
    """A small checkout in the authors' layout: CIFAR-10 and ImageNet, certified and predicted."""
    for data, network, sigmas in (("cifar10", "resnet110", (0.12, 0.25)), ("imagenet", "resnet50", (0.25, 0.5))):
        for place, sigma in enumerate(sigmas):
            counts = [n, n, n - 1, 950 - 40 * place, 800, 700, 600, 520, 400]
            path = folder / f"certify/{data}/{network}/noise_{sigma:.2f}/test/sigma_{sigma:.2f}"
            write_certified(path, counts, n=n, alpha=alpha, sigma=sigma, wrong=1)
        other = folder / f"certify/{data}/{network}/noise_0.25/test/sigma_0.50"
        write_certified(other, [n, 700, 600, 500, 400, 300, 200, 100, 0], n=n, alpha=alpha, sigma=0.5)
    labels = [0, 1, 2, 3]
    for votes, predictions in ((100, [0, -1, 1, -1]), (1000, [0, 1, 1, 2]), (100_000, [0, 1, 1, 3])):
        write_predicted(folder / f"predict/imagenet/resnet50/noise_0.25/test/N_{votes}", labels, predictions)
    (folder / "README.md").write_text("not a log\n")
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "sigma_0.25").write_text(HEADER)
    return folder
