"""evaluate_attack: three outcomes, fresh votes, intervals."""

from functools import partial

import numpy as np
import planes
import pytest
import torch
from scipy.stats import binom, binomtest, norm

from art_rs_plugin import ABSTAIN, evaluate_attack
from art_rs_plugin.noise import Purpose

plane, zeros = partial(planes.plane, size=6), partial(planes.zeros, size=6)


def at_margins(model, margins):
    """Inputs at these signed distances from the boundary."""
    way = model.w.numpy() * (np.asarray(margins, dtype=np.float32) - model.offset)[:, None]
    return way.reshape(-1, 3, 6, 6).astype(np.float32)


def test_right_wrong_and_abstaining_are_three_outcomes():
    model, estimator = plane(0.5)
    x_adv = at_margins(model, [0.4, 0.3, 0.0, -0.3, -0.4, -0.5])
    judged = evaluate_attack(estimator, zeros(6), x_adv, np.ones(6, dtype=int), n=500, alpha=1e-9)
    assert judged.clean.tolist() == [1] * 6
    assert judged.attacked.tolist() == [1, 1, ABSTAIN, 0, 0, 0]
    assert (judged.right.value, judged.abstain.value, judged.wrong.value) == (2 / 6, 1 / 6, 3 / 6)
    assert judged.clean_right.value == 1.0
    assert judged.success.value == 0.5
    np.testing.assert_allclose(judged.l2, [0.1, 0.2, 0.5, 0.8, 0.9, 1.0], rtol=1e-5)
    np.testing.assert_allclose(judged.linf, np.abs(x_adv).reshape(6, -1).max(axis=1), rtol=1e-6)
    assert "| wrong after it | 0.500" in str(judged)
    assert "of 6 inputs" in str(judged)


def test_success_counts_only_what_was_right_before():
    model, estimator = plane(0.5)
    x = at_margins(model, [0.5, -0.5, 0.0, 0.5])
    x_adv = at_margins(model, [-0.5, -0.5, -0.5, 0.5])
    judged = evaluate_attack(estimator, x, x_adv, np.ones(4, dtype=int), n=500, alpha=1e-9)
    assert judged.clean.tolist() == [1, 0, ABSTAIN, 1]
    assert judged.wrong.value == 0.75
    assert judged.success.value == 0.5
    nothing = evaluate_attack(estimator, zeros(0), zeros(0), np.zeros(0, dtype=int))
    assert np.isnan(nothing.right.value)
    assert nothing.right[1:] == (0.0, 1.0)


def test_intervals_are_clopper_and_pearsons():
    model, estimator = plane(0.5)
    x_adv = at_margins(model, [0.5] * 7 + [-0.5] * 13)
    for confidence in (0.9, 0.95):
        judged = evaluate_attack(estimator, zeros(20), x_adv, np.ones(20, dtype=int), n=50, confidence=confidence)
        for share, k in ((judged.right, 7), (judged.wrong, 13), (judged.abstain, 0), (judged.clean_right, 20)):
            expected = binomtest(k, 20).proportion_ci(confidence, method="exact")
            np.testing.assert_allclose(share, (k / 20, expected.low, expected.high), atol=1e-12)


def test_judges_by_votes_that_nothing_else_has_seen():
    _, estimator = plane(0.0)  # every vote is a fair coin
    x, n = zeros(1), 2_000
    judged = estimator.votes(x, n, purpose=Purpose.JUDGING)[0, 1]
    assert judged == estimator.votes(x, n, purpose=Purpose.JUDGING)[0, 1], "a seed repeats them"
    others = [estimator.votes(x, n, purpose=purpose)[0, 1] for purpose in Purpose if purpose is not Purpose.JUDGING]
    assert judged not in others
    seen = []
    votes, estimator.votes = estimator.votes, lambda *args, **kwargs: seen.append(kwargs) or votes(*args, **kwargs)
    evaluate_attack(estimator, x, x, [1], n=300, indices=[7])
    assert [(kwargs["purpose"], kwargs["indices"]) for kwargs in seen] == [(Purpose.JUDGING, [7])] * 2


def test_takes_predictions_at_the_inputs_from_another_evaluation_and_then_votes_there_no_more():
    model, estimator = plane(0.0)
    x, y = at_margins(model, [0.5, -0.5, 0.0]), np.ones(3, dtype=int)
    first = evaluate_attack(estimator, x, x, y, n=500, alpha=1e-9)
    assert first.clean.tolist() == [1, 0, ABSTAIN]
    seen = []
    votes, estimator.votes = estimator.votes, lambda x, *args, **kwargs: seen.append(x) or votes(x, *args, **kwargs)
    again = evaluate_attack(estimator, x, -x, y, n=500, alpha=1e-9, clean=first.clean)
    assert again.clean.tolist() == [1, 0, ABSTAIN]
    assert again.attacked.tolist() == [0, 1, ABSTAIN]
    (only,) = seen
    assert torch.equal(only, torch.from_numpy(-x))


def test_a_wrong_class_is_said_no_more_often_than_alpha():
    """At p = 1/2 + .02 PREDICT may say the other class with probability alpha at most; false alarm below 1e-6."""
    alpha, m = 0.05, 2_000
    _, estimator = plane(0.25 * norm.ppf(0.52))
    judged = evaluate_attack(estimator, zeros(m), zeros(m), np.ones(m, dtype=int), n=100, alpha=alpha)
    assert 0 < (judged.attacked == 0).sum() <= binom.isf(1e-6, m, alpha)
    assert (judged.attacked == ABSTAIN).mean() > 0.5


def test_takes_tensors():
    _, estimator = plane(0.5)
    arrays = evaluate_attack(estimator, zeros(3), zeros(3), np.ones(3, dtype=int), n=50)
    tensors = evaluate_attack(estimator, torch.zeros(3, 3, 6, 6), torch.zeros(3, 3, 6, 6), torch.ones(3), n=50)
    assert np.array_equal(arrays.attacked, tensors.attacked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_adv": zeros(2)}, r"`x_adv` must have the shape of `x`, \(3, 3, 6, 6\), got \(2, 3, 6, 6\)"),
        ({"x_adv": zeros(3) + 1.2}, r"`x_adv` must lie within .*`clip_values` = \[0. 1.\], got values beyond .* 0.2"),
        ({"y": [1, 1]}, r"`y` must have shape \(3,\)"),
        ({"y": np.full((3, 2), 0.5)}, "`y` must name one class per input to judge an attack"),
        ({"clean": [1, 1]}, r"`clean` must be 3 whole numbers, got int64 of shape \(2,\)"),
        ({"clean": [1.0, 1.0, 1.0]}, r"`clean` must be 3 whole numbers, got float64 of shape \(3,\)"),
        ({"n": 3}, "`n` must be at least"),
        ({"alpha": 0.0}, r"`alpha` must be in \(0, 1\), got 0.0"),
        ({"confidence": 1.0}, r"`confidence` must be in \(0, 1\), got 1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:3 of 3 labels name no class")
def test_bad_calls(change, message):
    _, estimator = plane(0.5, clip_values=(0.0, 1.0))
    with pytest.raises(ValueError, match=message):
        evaluate_attack(estimator, **{"x": zeros(3), "x_adv": zeros(3), "y": [1, 1, 1], **change})
