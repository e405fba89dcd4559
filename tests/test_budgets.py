"""Budgets through the estimator: side by side in packed batches, and still a function of (seed, example) alone."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from art_rs_plugin import Fixed, Looks, Pilot, RandomizedSmoothingPyTorch
from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.experiments.ledger import rebound, row_of
from art_rs_plugin.noise import Purpose, uniform

SIGMA = 0.5
BUDGETS = [
    Fixed(n0=20, n=300),
    Looks(radii=(0.25, 0.75), n_max=2_000),
    Looks(radii=(0.5,), n_max=1_000, first=70, bound="runner-up"),
    Pilot(n_pilot=100, n_max=1_000, cost=1e-4),
    Fixed(n0=20, n=300, bound="randomized"),
    Looks(radii=(0.25, 0.75), n_max=2_000, bound="randomized"),
]
IDS = ["fixed", "looks", "looks-runner-up", "pilot", "fixed-randomized", "looks-randomized"]


class HalfSpace(nn.Module):
    """Two logits in float64 whose difference is x[0]: a margin that is known, and a sum without rounding."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(first), first], dim=1)


def estimator(alpha=0.001, seed=5):
    return RandomizedSmoothingPyTorch(HalfSpace(), SIGMA, n0=20, n=1_000, alpha=alpha, seed=seed, device_type="cpu")


def inputs(margins):
    x = np.zeros((len(margins), 2), dtype=np.float32)
    x[:, 0] = margins
    return x


X = inputs(np.linspace(-2, 2, 41))


def test_fixed_is_what_certify_does_without_a_budget():
    assert estimator().certificates(X, budget=Fixed(n0=20, n=700)) == estimator().certificates(X, n=700)


@pytest.mark.parametrize("budget", BUDGETS, ids=IDS)
def test_the_same_certificates_for_any_batch_size_order_and_company(budget):
    whole = estimator().certificates(X, budget=budget)
    assert estimator().certificates(X, budget=budget, batch_size=7) == whole
    backwards = estimator().certificates(X[::-1], indices=np.arange(len(X))[::-1], budget=budget)
    assert backwards[::-1] == whole
    alone = [estimator().certificates(X[i : i + 1], indices=[i], budget=budget)[0] for i in (0, 19, 40)]
    assert alone == [whole[i] for i in (0, 19, 40)]


def test_looks_go_on_in_the_stream_where_they_stopped():
    """Their T votes are the first T of the stream that a fixed n draws from, whatever the looks in between."""
    for certificate in estimator().certificates(X, budget=Looks(radii=(0.25,), n_max=2_000)):
        (fixed,) = estimator().certificates(X[[certificate.index]], n=certificate.n, indices=[certificate.index])
        assert fixed.counts == certificate.counts
        assert fixed.selected == certificate.selected
        assert [sum(look) for look in certificate.looks] == list(certificate.schedule[: len(certificate.looks)])


def test_a_randomized_bound_has_a_uniform_of_its_own_for_each_example_and_records_it():
    budget = Fixed(n0=20, n=300, bound="randomized")
    randomized = estimator().certificates(X, budget=budget)
    uniforms = [certificate.uniform for certificate in randomized]
    assert uniforms == [uniform(5, Purpose.BOUND, index) for index in range(len(X))]
    assert len(set(uniforms)) == len(X)
    assert all(c.uniform is None for c in estimator().certificates(X, budget=Fixed(n0=20, n=300)))
    for certificate, plain in zip(randomized, estimator().certificates(X, n=300), strict=True):
        assert certificate.counts == plain.counts
        assert certificate.p_lower == clopper_pearson_lower(
            certificate.counts[certificate.selected], 300, 0.001, certificate.uniform
        )
        assert certificate.p_lower > plain.p_lower


def test_with_known_labels_that_class_is_certified_or_none_and_no_vote_selects():
    labels = (X[:, 0] > 0.1).astype(np.int64)
    plain = estimator().certificates(X)
    for y in (labels, np.eye(2)[labels], torch.from_numpy(labels)):
        made = estimator().certificates(X, y=y)
        assert [certificate.selected for certificate in made] == labels.tolist()
        assert {certificate.n0 for certificate in made} == {0}
        assert [certificate.counts for certificate in made] == [certificate.counts for certificate in plain]
        for certificate, other in zip(made, plain, strict=True):
            right = certificate.selected == other.selected
            assert (certificate.prediction, certificate.radius) == (
                (other.prediction, other.radius) if right else (-1, 0.0)
            )
    assert sum(label == other.selected for label, other in zip(labels, plain, strict=True)) > 30
    prediction, radius = estimator().certify(X, y=labels, budget=Looks(radii=(0.25,), n_max=2_000))
    assert ((prediction == labels) | ((prediction == -1) & (radius == 0.0))).all()
    with pytest.raises(ValueError, match="`y` must hold classes from 0 to 1, got 2"):
        estimator().certify(X, y=np.full(len(X), 2))
    with pytest.raises(ValueError, match=r"`y` must name one class per input to certify, got 0.7 of one at y\[0\]"):
        estimator().certify(X, y=np.tile([0.7, 0.3], (len(X), 1)))
    with (
        pytest.warns(UserWarning, match="41 of 41 labels name no class"),
        pytest.raises(ValueError, match=r"to certify, got 0.5 of one at y\[0\]"),
    ):
        estimator().certify(X, y=np.zeros((len(X), 2)))


def test_looks_spend_few_votes_where_little_is_to_be_settled():
    certificates = estimator().certificates(X, budget=Looks(radii=(0.25,), n_max=20_000))
    far = [c.votes for c, x in zip(certificates, X[:, 0], strict=True) if abs(x) >= 1]
    near = [c.votes for c, x in zip(certificates, X[:, 0], strict=True) if abs(abs(x) - 0.25) < 0.11]
    assert max(far) <= 800
    assert np.mean(near) > 1_500


@pytest.mark.parametrize("budget", BUDGETS, ids=IDS)
def test_no_radius_beyond_the_margin_more_often_than_alpha_allows(budget):
    """2 000 certificates at alpha = .05; false alarm below 1e-6 if each is false with probability at most alpha."""
    alpha, margins = 0.05, np.random.default_rng(0).uniform(-1.2, 1.2, 2_000).astype(np.float32)
    certificates = estimator(alpha=alpha).certificates(inputs(margins), budget=budget)
    false = sum(
        c.radius > abs(margin) * (1 + 1e-5) or (c.prediction >= 0 and c.prediction != (margin > 0))
        for c, margin in zip(certificates, margins, strict=True)
    )
    limit = binom.isf(1e-6, len(margins), alpha)
    assert false <= limit
    inflated = sum(1.5 * c.radius > abs(margin) for c, margin in zip(certificates, margins, strict=True))
    assert inflated > limit, "the check sees radii that are too large"


def test_votes_that_decided_when_to_stop_are_not_bounded_as_if_their_number_had_been_fixed():
    (certificate,) = estimator().certificates(X[:1], budget=Looks(radii=(0.25,), n_max=2_000))
    row = row_of(certificate, label=0, seconds=0.0)
    header = {
        "kind": "certify",
        "noise": {"name": "gaussian", "sigma": SIGMA},
        "rule": {"name": "fixed", "bound": "clopper-pearson"},
    }
    with pytest.raises(ValueError, match="optional stopping"):
        rebound(header, row, alpha=0.01)


def test_a_budget_and_an_n_are_one_too_many():
    with pytest.raises(ValueError, match=r"`n` must not be given with a `budget`.* got 500"):
        estimator().certificates(X, n=500, budget=Pilot())
    with pytest.raises(ValueError, match="`radii` must hold one that 100000 votes can certify"):
        estimator().certify(X, budget=Looks(radii=(9.0,)))
