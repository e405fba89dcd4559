"""Votes that budgets spend on the inputs of published logs (Cohen et al. 2019), simulated from the p_A they show.

A certified input's p_A is taken as k / n for the k of n = 100 000 votes that give its radius; what an abstention's may
be, the logs do not say, so it is stated. The class is chosen by n0 = 100 votes, which count. alpha = 0.001.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import betaincinv
from scipy.stats import norm

from art_rs_plugin.core.budgets import Budget, Fixed, Looks, Pilot, Task, drive
from art_rs_plugin.core.certificate import ABSTAIN, VoteCertificate
from art_rs_plugin.core.radii import cohen
from art_rs_plugin.experiments.logs import read_log

ALPHA, N = 0.001, 100_000
CIFAR, IMAGENET = "cifar10/resnet110", "imagenet/resnet50"
RADII = {CIFAR: tuple(np.arange(0, 1.51, 0.25)), IMAGENET: tuple(np.arange(0, 3.01, 0.5))}
LOGS = [
    *(f"{CIFAR}/noise_{noise}/test/sigma_{sigma}" for noise, sigma in [("0.12", "0.12"), ("0.12", "0.50")]),
    *(f"{CIFAR}/noise_{noise}/test/sigma_{sigma}" for noise, sigma in [("0.25", "0.25"), ("0.25", "0.50")]),
    *(f"{CIFAR}/noise_{noise}/test/sigma_{sigma}" for noise, sigma in [("0.50", "0.50"), ("1.00", "0.50")]),
    *(f"{IMAGENET}/noise_{noise}/test/sigma_{sigma}" for noise, sigma in [("0.25", "0.25"), ("0.25", "0.50")]),
    *(f"{IMAGENET}/noise_{noise}/test/sigma_{sigma}" for noise, sigma in [("0.50", "0.50"), ("1.00", "0.50")]),
    f"{IMAGENET}/noise_0.50/train/sigma_0.50",
    *(f"{folder}/noise_1.00/test/sigma_1.00" for folder in (CIFAR, IMAGENET)),
]


class Inputs:
    """The inputs of one log: whether each was certified, and the p_A that this shows."""

    def __init__(self, reference: Path, name: str) -> None:
        log = read_log(reference / "certlogs/cohen2019/certify" / name)
        self.sigma = float(name.rpartition("_")[2])
        radius = log["radius"].to_numpy()
        self.right = (log["label"] == log["prediction"]).to_numpy()
        self.abstained = (log["prediction"] == ABSTAIN).to_numpy()
        # most logs hold radii that only alpha = 0.01 allows
        alpha = 0.01 if radius.max() > self.sigma * norm.ppf(ALPHA ** (1 / N)) + 0.001 else ALPHA
        k = np.arange(N // 2, N + 1)
        found = np.searchsorted(betaincinv(k, N - k + 1, alpha), norm.cdf(radius / self.sigma))
        self.p = k[np.minimum(found, k.size - 1)] / N

    def drive(self, budget: Budget, abstentions: float, *, labels: bool = False) -> list[VoteCertificate]:
        """Certificates of all inputs; an abstention's p_A as given, every other vote for one other class."""
        rng = np.random.default_rng(0)
        radius = partial(cohen, sigma=self.sigma)
        found = []
        for p, abstained, right in zip(self.p, self.abstained, self.right, strict=True):
            probability = abstentions if abstained else p

            def draw(_, votes, probability=probability):
                hits = rng.binomial(votes, probability)
                return np.array([hits, votes - hits])

            label = None if not labels else 0 if right or abstained else 1
            found.append(drive(budget.steps(Task(radius=radius, alpha=ALPHA, label=label)), draw))
        return found


def mean_votes(found: list[VoteCertificate]) -> float:
    return float(np.mean([certificate.votes for certificate in found]))


def certified(found: list[VoteCertificate], radius: float) -> int:
    return sum(certificate.prediction != ABSTAIN and certificate.radius >= radius for certificate in found)


@pytest.mark.parametrize("abstentions", [0.5, 0.45])
def test_one_radius(reference, abstentions):
    inputs = Inputs(reference, f"{CIFAR}/noise_0.50/test/sigma_0.50")
    found = inputs.drive(Looks(radii=(0.5,)), abstentions)
    assert mean_votes(found) <= 2_250
    assert abs(certified(found, 0.5) - certified(inputs.drive(Fixed(), abstentions), 0.5)) <= 2


@pytest.mark.parametrize(("abstentions", "most"), [(0.5, 13_200), (0.45, 11_000)])
def test_all_radii(reference, abstentions, most):
    """At p_A = 1/2 the radius 0 is never settled but by giving up: the hardest that an abstention can be."""
    inputs = Inputs(reference, f"{CIFAR}/noise_0.25/test/sigma_0.25")
    found, fixed = (inputs.drive(budget, abstentions) for budget in (Looks(radii=RADII[CIFAR]), Fixed()))
    assert mean_votes(found) <= most
    for radius in (0.25, 0.5, 0.75):
        assert abs(certified(found, radius) - certified(fixed, radius)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
class TestEveryLog:
    def test_looks(self, reference, name):
        """Against 100 100 votes: one radius, all of the paper's table, and all with the label known."""
        inputs = Inputs(reference, name)
        one = Looks(radii=(0.25 if inputs.sigma < 0.2 else 0.5,))
        every = Looks(radii=RADII[CIFAR if name.startswith(CIFAR) else IMAGENET])
        assert 100_100 / mean_votes(inputs.drive(one, 0.45)) > 40
        assert 100_100 / mean_votes(inputs.drive(every, 0.45)) > 7
        assert 100_100 / mean_votes(inputs.drive(every, 0.45, labels=True)) > 10
        assert 100_100 / mean_votes(inputs.drive(every, 0.5)) > 3.5

    def test_pilot(self, reference, name):
        """A pilot saves two votes in five at least, at no more than its price on the average radius."""
        inputs = Inputs(reference, name)
        found, fixed = inputs.drive(Pilot(), 0.45), inputs.drive(Fixed(), 0.45)
        saved = mean_votes(fixed) - mean_votes(found)
        assert mean_votes(found) < 100_100 * 0.6
        average, full = (np.mean([certificate.radius for certificate in group]) for group in (found, fixed))
        assert 0.96 * full < average
        # votes that were left out would have won less than `cost` each, in units of sigma
        assert (full - average) / inputs.sigma < Pilot().cost * saved
