"""SmoothedDDN on networks whose smoothed boundary is known."""

from functools import partial

import numpy as np
import planes
import pytest
from planes import SIGMA, cosine

from art_rs_plugin import SmoothedDDN

ONES = np.ones(3, dtype=np.int64)


def lengths(made, x) -> np.ndarray:
    return np.linalg.norm((made - x).reshape(len(x), -1).astype(np.float64), axis=1)


plane, zeros = partial(planes.plane, size=6), partial(planes.zeros, size=6)


@pytest.mark.parametrize(
    ("objective", "margin", "size"),
    [pytest.param("smoothadv", 0.5, 32, marks=pytest.mark.slow), ("smoothadv", 0.2, 6), ("expected_loss", 0.5, 6)],
)
def test_finds_where_p_crosses_one_half_on_a_half_space(objective, margin, size):
    model, estimator = planes.plane(margin, size=size)
    attack = SmoothedDDN(
        estimator, max_iter=20, num_samples=8, num_votes=20_000, overshoot=0.0, objective=objective, init_eps=0.3
    )
    x = planes.zeros(1, size)
    made = attack.generate(x, ONES[:1])
    # p is settled to .5 +- .018 (five standard deviations), which is a margin of .045 sigma
    np.testing.assert_allclose(model.margin(made), 0.0, atol=0.045 * SIGMA)
    assert (cosine(made, model.w) < -0.99).all()
    np.testing.assert_allclose(lengths(made, x), margin, rtol=0.02, atol=0.045 * SIGMA if margin < 0.5 else 0)


def test_finds_it_where_the_base_gradient_misleads():
    model, estimator = plane(0.5, omega=6 / SIGMA, ripple=6 / (6 / SIGMA))
    made = SmoothedDDN(estimator, max_iter=40, num_samples=64, num_votes=10_000, overshoot=0.0).generate(zeros(3), ONES)
    assert (cosine(made, model.w) < -0.8).all()
    assert (np.abs(model.margin(made)) < 0.1).all()
    assert (lengths(made, zeros(3)) < 0.65).all()


def test_overshoot_goes_beyond_the_boundary_by_that_share():
    at, over = (
        SmoothedDDN(plane(0.5)[1], max_iter=10, num_samples=8, overshoot=share).generate(zeros(3), ONES)
        for share in (0.0, 0.1)
    )
    np.testing.assert_allclose(lengths(over, zeros(3)) / lengths(at, zeros(3)), 1.1, rtol=1e-4)
    assert (cosine(over, at.reshape(3, -1)[0]) > 0.99).all()


def test_an_input_that_is_fooled_already_stays_and_so_does_one_that_cannot_be():
    _, wrong = plane(-0.5)
    assert np.array_equal(SmoothedDDN(wrong, max_iter=5, num_samples=4).generate(zeros(3), ONES), zeros(3))
    _, flat = plane(0.5, scale=0.0)  # ties name class 0, and no step leads anywhere
    assert np.array_equal(
        SmoothedDDN(flat, max_iter=5, num_samples=4).generate(zeros(3), np.zeros(3, dtype=int)), zeros(3)
    )


def test_stays_in_the_box_and_under_the_mask():
    model, estimator = plane(0.15, clip_values=(-0.05, 0.05))
    mask = np.zeros((3, 6, 6), dtype=np.float32)
    mask[:2] = 1
    made = SmoothedDDN(estimator, max_iter=30, num_samples=8, num_votes=5_000).generate(zeros(3), ONES, mask=mask)
    assert (made[:, 2] == 0).all()
    assert -0.05 - 1e-6 <= made.min() <= made.max() <= 0.05 + 1e-6
    assert (model.p(made) < 0.52).all()


def test_targeted_seeks_the_class():
    model, estimator = plane(-0.3)  # x is in class 0
    made = SmoothedDDN(estimator, targeted=True, max_iter=20, num_samples=8, num_votes=5_000).generate(zeros(3), ONES)
    assert (model.p(made) > 0.49).all()
    np.testing.assert_allclose(lengths(made, zeros(3)), 0.3, rtol=0.08)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_eps": 0.0}, "`init_eps` must be a finite number above 0, or one for each input, got 0.0"),
        ({"gamma": 1.0}, r"`gamma` must be in \(0, 1\), got 1.0"),
        ({"num_votes": 0}, "`num_votes` must be at least 1, got 0"),
        ({"overshoot": -0.1}, "`overshoot` must be a finite number of at least 0, got -0.1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothedDDN(plane(0.5)[1], **options)


def test_every_input_may_begin_at_a_norm_of_its_own():
    settings = {"max_iter": 1, "num_samples": 8, "num_votes": 100, "overshoot": 0.0}
    _, estimator = plane(5.0)  # too far to be reached: five doublings of what one step made
    made = SmoothedDDN(estimator, init_eps=np.array([0.1, 0.2, 1.0]), **settings)
    last = []
    made._shortest = lambda batch, direction: last.append(direction) or batch.x
    made.generate(zeros(3), ONES)
    np.testing.assert_allclose(lengths(last[0].numpy(), zeros(3)), [0.105, 0.21, 1.05], rtol=1e-5)
    with pytest.raises(ValueError, match="`init_eps` must be one number, or one for each of the 2 inputs, got 3"):
        SmoothedDDN(estimator, init_eps=np.array([0.1, 0.2, 1.0])).generate(zeros(2), ONES[:2])


def test_has_params_of_art():
    attack = SmoothedDDN(plane(0.5)[1])
    assert all(hasattr(attack, name) for name in attack.attack_params)
    attack.set_params(gamma=0.1)
    assert attack.gamma == 0.1
