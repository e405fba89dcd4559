"""The law of every certifier, on a trained network: no attack succeeds inside a radius, or no oftener than was said."""

import math

import digit_networks
import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from art_rs_plugin import ABSTAIN, RandomizedSmoothingPyTorch, SmoothedPGD
from art_rs_plugin.certifiers import Certifier, available, get
from art_rs_plugin.core.certificate import Certificate, predict_from_counts
from art_rs_plugin.experiments.models import Normalize
from art_rs_plugin.noise import Purpose

pytestmark = pytest.mark.slow

SIGMA, ALPHA, STRICT, IMAGES = 0.25, 0.001, 1e-6, 40
# votes that judge an attack, and of what they leave open fresh ones, each at half of STRICT: .02 sigma past a boundary
# the second name the other class with probability .98
JUDGING, SEEING = 10_000, 200_000
VOTES = {"sigma": SIGMA, "n": 2_000, "alpha": ALPHA, "seed": 0}
# how each is built here: a new certifier adds its own
OF_F = {
    "crown": [{"norm": 2}, {"norm": math.inf}],
    "fast-lin": [{"norm": 2}, {"norm": math.inf}],
    "wong-kolter": [{"norm": 2}, {"norm": math.inf}],
    "lipschitz-margin": [{}],
    "art-deepz": [{}],
    "art-ibp": [{}],
}
OF_G = {
    name: [VOTES]
    for name in (
        "smoothing",
        "smoothing-li",
        "smoothing-lecuyer",
        "art-smoothing",
        "art-smoothadv",
        "art-macer",
        "art-smoothmix",
    )
}
ELSEWHERE = {"art-derandomized", "attack-bound"}  # patches have a test of their own; an upper bound is none


def cases(table):
    return [(name, options) for name, several in table.items() for options in several]


@pytest.fixture(scope="module")
def trained():
    """A convolutional network, trained under noise."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
    second = nn.Conv2d(6, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    model = nn.Sequential(Normalize(1, [0.3], [0.37]), *first, *second)
    x, y = digit_networks.digits("train", 1_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    RandomizedSmoothingPyTorch(model, SIGMA, optimizer=optimizer, seed=0, device_type="cpu").fit(x, y, nb_epochs=8)
    return model.eval()


def pgd(model, x, prediction, radius, norm, clip=None, steps=40, restarts=8):
    """Whether steps up the margin of the best other class, within the radius, lead to another class, from any start."""
    generator = torch.Generator().manual_seed(0)
    image = torch.from_numpy(x)
    delta = torch.randn(restarts, *x.shape, generator=generator)
    axes = tuple(range(1, delta.ndim))

    def shrink(delta):
        if norm == 2:
            delta = delta * (radius / torch.linalg.vector_norm(delta, dim=axes, keepdim=True)).clamp_max(1.0)
        else:
            delta = delta.clamp(-radius, radius)
        return delta if clip is None else (image + delta).clamp(*clip) - image

    delta = shrink(delta * radius)
    for _ in range(steps):
        delta.requires_grad_(True)
        logits = model(image + delta)
        others = logits.scatter(1, torch.full((restarts, 1), prediction), -math.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - logits[:, prediction]).sum(), delta)
        with torch.no_grad():
            if norm == 2:
                step = gradient / torch.linalg.vector_norm(gradient, dim=axes, keepdim=True).clamp_min(1e-30)
            else:
                step = gradient.sign()
            delta = shrink(delta + 0.2 * radius * step)
    with torch.no_grad():
        return bool((model(image + delta).argmax(1) != prediction).any())


def fooled_f(model, x, certificates, clip=None):
    """How many certificates of f an attack refutes, and of how many."""
    sure = [(image, c) for image, c in zip(x, certificates, strict=True) if c.prediction != ABSTAIN and c.radius > 0]
    return sum(pgd(model, image, c.prediction, c.radius, c.norm, clip) for image, c in sure), len(sure)


def fooled_g(model, x, certificates):
    """The same of g: attacked at .99 of the radius, judged by votes that see .02 sigma past a boundary."""
    estimator = RandomizedSmoothingPyTorch(model, SIGMA, seed=1, device_type="cpu")
    sure = [at for at, c in enumerate(certificates) if c.prediction != ABSTAIN and c.radius > 0]
    labels = np.array([certificates[at].prediction for at in sure])
    eps = np.array([0.99 * certificates[at].radius for at in sure])
    made = SmoothedPGD(estimator, eps=eps, max_iter=10, num_samples=16).generate(x[sure], labels)
    counts = estimator.votes(made, JUDGING, purpose=Purpose.PREDICTION)
    named = np.array([predict_from_counts(row, STRICT / 2) for row in counts])
    left = np.flatnonzero(named == ABSTAIN)
    counts = estimator.votes(made[left], SEEING, purpose=Purpose.JUDGING)
    named[left] = [predict_from_counts(row, STRICT / 2) for row in counts]
    return int(((named != labels) & (named != ABSTAIN)).sum()), len(sure)


def test_every_certifier_has_its_case():
    assert {*OF_F, *OF_G, *ELSEWHERE} == set(available())


@pytest.mark.parametrize(("name", "options"), cases(OF_F))
def test_nothing_inside_a_certified_ball_of_f_is_named_otherwise(name, options, trained):
    x, _ = digit_networks.digits("test", IMAGES)
    certifier = get(name).build(trained, input_shape=(1, 8, 8), nb_classes=10, **options)
    assert (certifier.certifies, certifier.alpha) == ("f", 0.0)
    certificates = certifier.certify(x)
    assert [c.prediction for c in certificates] == trained(torch.from_numpy(x)).argmax(1).tolist()
    # what ART certifies ends at the data's range
    wrong, sure = fooled_f(trained, x, certificates, clip=(0, 1) if name.startswith("art-") else None)
    assert sure > IMAGES / 2
    assert wrong == 0


@pytest.mark.parametrize(("name", "options"), cases(OF_G))
def test_g_inside_its_radius_is_attacked_no_oftener_with_success_than_alpha_allows(name, options, trained):
    """False alarm below 1e-6 for each (binomial, over all inputs submitted)."""
    x, y = digit_networks.digits("train", 1_000)
    certifier = get(name).build(trained, input_shape=(1, 8, 8), nb_classes=10, **options)
    if hasattr(certifier, "fit"):
        certifier.fit(x[:300], y[:300], epochs=1)
    x, _ = digit_networks.digits("test", IMAGES)
    assert (certifier.certifies, certifier.alpha) == ("g", ALPHA)
    wrong, sure = fooled_g(getattr(certifier, "model", trained), x, certifier.certify(x))
    assert sure > IMAGES / 3
    assert wrong <= binom.isf(1e-6, IMAGES, ALPHA + STRICT)


class Plane(nn.Module):
    """Two logits whose difference is the first entry: the margin of f, and of g."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(first), first], dim=1)


class TooLong(Certifier):
    """A half-space's margins, half as long again."""

    def __init__(self, certifies):
        self.certifies = certifies

    @classmethod
    def build(cls, model, *, input_shape, nb_classes, certifies="f"):
        return cls(certifies)

    def certify(self, x, y=None, *, indices=None):
        margins = x.reshape(len(x), -1)[:, 0]
        return [
            Certificate(prediction=int(m > 0), radius=1.5 * abs(float(m)), index=i, certifies=self.certifies, alpha=0.0)
            for i, m in enumerate(margins)
        ]


@pytest.mark.parametrize("certifies", ["f", "g"])
def test_a_certifier_whose_radii_are_half_as_long_again_is_caught(certifies):
    x = np.zeros((IMAGES, 1, 2, 2), dtype=np.float32)
    x[:, 0, 0, 0] = np.random.default_rng(0).uniform(0.1, 0.4, IMAGES)
    certificates = TooLong(certifies).certify(x)
    wrong, sure = fooled_f(Plane(), x, certificates) if certifies == "f" else fooled_g(Plane(), x, certificates)
    assert sure == IMAGES
    assert wrong > 0.9 * IMAGES
