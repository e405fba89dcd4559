"""Certificates against the truth: a linear classifier, whose smoothed classifier and radii are known.

Cohen et al. 2019, Appendix B: for f(x) = 1 if w.x + b > 0 else 0, the smoothed classifier g equals f, class 1 has
probability Phi((w.x + b) / (sigma |w|)) under noise, and g's true radius is the distance |w.x + b| / |w| to the plane.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom, norm

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.core.certificate import ABSTAIN, certify
from art_rs_plugin.noise import Gaussian

SIGMA = 0.5
ALPHA = 0.01
N0 = 20
# (channels, height, width), votes n, number of random planes, inputs for each: 20 400 certificates in 2 to 3072
# dimensions. No width equals its number of channels: ART would take means of channels for means of columns.
CASES = [
    ((2, 1, 1), 300, 5, 2_000),
    ((2, 2, 3), 192, 4, 1_500),
    ((3, 6, 6), 150, 3, 1_000),
    ((1, 28, 28), 128, 2, 400),
    ((3, 32, 32), 128, 2, 300),
]
# Float slack of a margin, in sigma: a float32 network may name the other class within this distance of the plane
# (`test_slack_covers_what_float32_moves`). Radii come in steps hundreds of times as long.
SLACK = 1e-5
FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class HalfSpaces:
    """A linear classifier and inputs at chosen distances from its plane; lengths in sigma but for `x`, w and b."""

    shape: tuple[int, int, int]
    n: int
    x: np.ndarray
    weight: np.ndarray  # of the layer, float32
    bias: np.float32
    mean: np.ndarray  # of each channel, float32; 0 and 1 if the layer sees x as it is
    std: np.ndarray
    nominal: np.ndarray  # signed distances that were asked for: positive on the side of class 1
    first_index: int

    def signed_margin(self, x: np.ndarray) -> np.ndarray:
        """Signed distance of float32 inputs to the plane, computed in float64 and in input coordinates."""
        mean, std = (np.repeat(v.astype(np.float64), math.prod(self.shape[1:])) for v in (self.mean, self.std))
        w = self.weight.astype(np.float64) / std
        value = (x.reshape(len(x), -1).astype(np.float64) - mean) @ w + self.bias
        return value / np.linalg.norm(w) / SIGMA

    def model(self) -> torch.nn.Module:
        """Two logits, of which the second is the larger one where w.x + b > 0."""
        layer = torch.nn.Linear(self.weight.size, 2)
        with torch.no_grad():
            layer.weight[0] = layer.bias[0] = 0.0
            layer.weight[1] = torch.from_numpy(self.weight)
            layer.bias[1] = float(self.bias)
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    def estimator(self, **kwargs) -> RandomizedSmoothingPyTorch:
        return RandomizedSmoothingPyTorch(self.model(), SIGMA, n0=N0, n=self.n, alpha=ALPHA, seed=1, **kwargs)


def half_spaces(standardised: bool) -> list[HalfSpaces]:
    rng = np.random.default_rng(2019)
    made, first_index = [], 0
    for shape, n, planes, m in CASES:
        for _ in range(planes):
            size, channels = math.prod(shape), shape[0]
            space = HalfSpaces(
                shape=shape,
                n=n,
                x=np.zeros(0),
                weight=rng.normal(size=size).astype(np.float32),
                bias=np.float32(rng.normal()),
                mean=(rng.uniform(0.3, 0.6, channels) * standardised).astype(np.float32),
                std=(rng.uniform(0.1, 0.4, channels) ** standardised).astype(np.float32),
                # on both sides alike
                nominal=np.linspace(0.0, 4.0, m) * np.resize([1.0, -1.0], m),
                first_index=first_index,
            )
            direction = space.weight / np.repeat(space.std, size // channels).astype(np.float64)
            direction /= np.linalg.norm(direction)
            x = rng.uniform(0.0, 1.0, (m, size))
            x += np.outer((space.nominal - space.signed_margin(x)) * SIGMA, direction)
            made.append(replace(space, x=x.reshape(m, *shape).astype(np.float32)))
            first_index += m  # an index of its own for every input: the bounds below need independent noise
    return made


@dataclass(frozen=True)
class Outcome:
    """What was certified, beside the truth and what enumeration expects; lengths in sigma."""

    margin: np.ndarray  # signed
    prediction: np.ndarray
    radius: np.ndarray
    expected_radius: np.ndarray
    variance_of_radius: np.ndarray
    expected_false: np.ndarray

    def false(self, inflated: float = 1.0) -> int:
        """Certificates beyond the true margin: of the wrong class, or too long."""
        own = np.where(self.prediction == 1, self.margin, -self.margin)
        return int(((self.prediction != ABSTAIN) & (inflated * self.radius > own + SLACK)).sum())


def enumerated(nominal: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of the radius, and probability of a false certificate, over all that CERTIFY can draw.

    `nominal` are signed margins; lengths in sigma. Written down from the paper, with SciPy's distributions.
    """
    p = norm.cdf(nominal)[:, None]
    k = np.arange(n + 1)
    votes = binom.pmf(k, n, p)  # for class 1
    lower = np.where(k > 0, beta.ppf(ALPHA, np.maximum(k, 1), n - k + 1), 0.0)
    one = np.where(lower > 0.5, norm.ppf(lower), 0.0)  # the radius of class 1 at k votes
    zero = one[::-1]
    select_one = binom.sf(N0 // 2, N0, p)  # a tie selects class 0, the first
    mean = select_one * (votes * one) + (1 - select_one) * (votes * zero)
    square = select_one * (votes * one**2) + (1 - select_one) * (votes * zero**2)
    beyond = select_one * (votes * ((one > 0) & (one > nominal[:, None])))
    beyond += (1 - select_one) * (votes * ((zero > 0) & (zero > -nominal[:, None])))
    expected = mean.sum(axis=1)
    return expected, square.sum(axis=1) - expected**2, beyond.sum(axis=1)


def through_core(space: HalfSpaces, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CERTIFY with NumPy for a classifier: votes drawn from their known distribution."""
    rng = np.random.default_rng(space.first_index)
    certificates = []
    for p in norm.cdf(margin):

        def draw(purpose, votes, p=p):
            named_one = rng.binomial(votes, p)
            return np.array([votes - named_one, named_one])

        certificates.append(certify(draw, radius=Gaussian(SIGMA).radius, n0=N0, n=space.n, alpha=ALPHA))
    return np.array([(c.prediction, c.radius) for c in certificates]).T


def through_estimator(space: HalfSpaces, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return certified(space, space.estimator())


def through_preprocessing(space: HalfSpaces, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return certified(space, space.estimator(preprocessing=(space.mean, space.std)))


def certified(space: HalfSpaces, estimator: RandomizedSmoothingPyTorch) -> tuple[np.ndarray, np.ndarray]:
    indices = space.first_index + np.arange(len(space.x))
    certificates = estimator.certificates(space.x, indices=indices, batch_size=1_000)
    return np.array([(c.prediction, c.radius) for c in certificates]).T


PATHS = {"core": through_core, "estimator": through_estimator, "preprocessing": through_preprocessing}


@pytest.fixture(scope="module", params=PATHS)
def outcome(request) -> Outcome:
    parts = []
    for space in half_spaces(standardised=request.param == "preprocessing"):
        margin = space.signed_margin(space.x)
        prediction, radius = PATHS[request.param](space, margin)
        parts.append((margin, prediction, radius / SIGMA, *enumerated(space.nominal, space.n)))
    return Outcome(*map(np.concatenate, zip(*parts, strict=True)))


class TestHalfSpace:
    def test_at_most_alpha_of_the_radii_exceed_the_margin(self, outcome):
        certificates = len(outcome.radius)
        assert certificates >= 20_000
        assert outcome.false() <= binom.isf(FALSE_ALARM, certificates, ALPHA)

    def test_no_more_radii_exceed_the_margin_than_enumeration_expects(self, outcome):
        # Clopper-Pearson errs less than alpha here, so that this is the sharper check. Of all ways to spread a mean
        # over independent events, equal shares have the heaviest tail (Hoeffding 1956).
        certificates, expected = len(outcome.radius), outcome.expected_false.sum()
        assert expected < 0.5 * certificates * ALPHA
        assert outcome.false() <= binom.isf(FALSE_ALARM, certificates, expected / certificates)
        assert outcome.false() >= binom.ppf(FALSE_ALARM, certificates, expected / certificates)

    def test_mean_radius_is_the_expected_one(self, outcome):
        mean, expected = outcome.radius.mean(), outcome.expected_radius.mean()
        assert mean == pytest.approx(expected, rel=0.01)
        error = math.sqrt(outcome.variance_of_radius.sum()) / len(outcome.radius)
        assert abs(mean - expected) < norm.isf(FALSE_ALARM / 2) * error

    def test_an_abstention_has_no_radius(self, outcome):
        abstained = outcome.prediction == ABSTAIN
        assert np.array_equal(abstained, outcome.radius == 0.0)
        assert abstained.any()
        assert set(outcome.prediction) == {ABSTAIN, 0, 1}

    def test_radii_inflated_by_a_tenth_are_caught(self, outcome):
        assert outcome.false(inflated=1.1) > binom.isf(FALSE_ALARM, len(outcome.radius), ALPHA)
        assert 1.1 * outcome.radius.mean() != pytest.approx(outcome.expected_radius.mean(), rel=0.01)


def test_noise_added_after_preprocessing_is_caught():
    # what the check with preprocessing would see if sigma meant standardised coordinates
    space = next(s for s in half_spaces(standardised=True) if s.shape == (3, 6, 6))
    after = replace(space, x=(space.x - space.mean[:, None, None]) / space.std[:, None, None])
    prediction, radius = certified(after, after.estimator())
    margin = space.signed_margin(space.x)
    wrong = Outcome(margin, prediction, radius / SIGMA, *enumerated(space.nominal, space.n))
    assert wrong.false() > binom.isf(FALSE_ALARM, len(space.x), ALPHA)
    assert wrong.radius.mean() > 1.01 * wrong.expected_radius.mean()


@pytest.mark.parametrize("standardised", [False, True])
def test_slack_covers_what_float32_moves(standardised):
    for space in half_spaces(standardised):
        margin = space.signed_margin(space.x)
        # inputs are rounded to float32, so that they lie not quite where they were asked to
        assert np.abs(margin - space.nominal).max() < SLACK
        estimator = space.estimator(preprocessing=(space.mean, space.std))
        noise = np.random.default_rng(space.first_index).normal(0.0, SIGMA, space.x.shape)
        noisy = (space.x + noise).astype(np.float32)
        with torch.no_grad():
            logits = estimator._logits(torch.from_numpy(noisy).to(estimator.device)).cpu().double().numpy()
        length = np.linalg.norm(space.weight.astype(np.float64) / np.repeat(space.std, math.prod(space.shape[1:])))
        seen = (logits[:, 1] - logits[:, 0]) / length / SIGMA
        assert np.abs(seen - space.signed_margin(noisy)).max() < SLACK
