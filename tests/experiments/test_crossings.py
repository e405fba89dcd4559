"""Where curves cross: by hand, and against curves that are looked at in steps finer than their own."""

import numpy as np
import pandas as pd
import pytest

from art_rs_plugin.experiments.crossings import crossing_table, crossings, leads


def log(*radii, wrong=0):
    labels = [1] * len(radii) + [0] * wrong
    return pd.DataFrame({"prediction": 1, "radius": [*radii, *([9.0] * wrong)], "label": labels})


def test_a_tall_and_short_curve_crosses_a_low_and_long_one_where_it_falls_below():
    tall, long = log(0.2, 0.2, 0.2, 0.3), log(1.0, 1.0, wrong=2)
    assert crossings(tall, long) == crossings(long, tall) == [0.2]
    table = crossing_table({"tall": tall, "long": long})
    assert table.to_dict("records") == [
        {"below it": "tall", "beyond it": "long", "radius": 0.2, "certified accuracy": 0.5}
    ]


def test_curves_that_touch_or_never_meet_do_not_cross():
    upper, lower = log(0.5, 0.6, 0.7), log(0.5, 0.5, 0.6)
    assert crossings(upper, lower) == crossings(upper, upper) == []
    assert len(crossing_table({"one": upper, "two": lower})) == 0
    assert leads({"one": lower, "two": upper}).values.tolist() == [["two", "one"]]


def test_a_curve_that_crosses_or_equals_another_does_not_lead():
    assert leads({"tall": log(0.2, 0.2), "long": log(1.0, wrong=1)}).empty
    assert leads({"one": log(0.2, 0.4), "same": log(0.4, 0.2)}).empty


def test_where_both_are_equal_in_between_the_crossing_is_the_end_of_that():
    assert crossings(log(0.1, 0.4, wrong=1), log(0.4, 0.6, wrong=1)) == []
    assert crossings(log(0.3, 0.3, 0.5, 0.5), log(1.0, 1.0, wrong=2)) == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_against_fine_steps(seed):
    random = np.random.default_rng(seed)
    first, second = (log(*np.round(random.gamma(shape, 0.5, 40), 2), wrong=wrong) for shape, wrong in ((1, 0), (2, 9)))
    at = np.arange(0, 6, 0.001) + 0.0005
    shares = [
        ((frame.radius.to_numpy() >= at[:, None]) & (frame.label == 1).to_numpy()).mean(axis=1)
        for frame in (first, second)
    ]
    sign = np.sign(shares[0] - shares[1])
    led, changed = 0.0, []
    for radius, ahead in zip(at, sign, strict=True):
        if ahead and led and ahead != led:
            changed.append(radius)
        led = ahead or led
    found = crossings(first, second)
    assert len(found) == len(changed) > 0
    np.testing.assert_allclose(found, changed, atol=0.0006)
