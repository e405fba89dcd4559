"""Printed radii back to counts: against every count, printed as the authors' code prints it."""

import numpy as np
import pytest
from paper_logs import printed, radius_of

from art_rs_plugin.core.projection import (
    counts_behind,
    counts_between,
    inferred_alphas,
    printed_digits,
    rounding_interval,
    scaled_counts,
)


def test_rounding_intervals_hold_what_prints_so_and_nothing_else():
    random = np.random.default_rng(0)
    values = 10 ** random.uniform(-5, 1, 20_000)
    texts = np.array([printed(value) for value in values])
    low, high = rounding_interval(texts.astype(float))
    assert np.all((low <= values) & (values <= high))
    for outside in (low * (1 - 1e-9), high * (1 + 1e-9)):
        assert all(printed(value) != text for value, text in zip(outside, texts, strict=True))


def test_rounding_intervals_by_hand():
    low, high = rounding_interval([1.0, 0.1, 0.978, 1.95, 0.0125, 0.0])
    np.testing.assert_allclose(low, [0.9995, 0.09995, 0.9775, 1.945, 0.01245, 0], rtol=1e-15)
    np.testing.assert_allclose(high, [1.005, 0.1005, 0.9785, 1.955, 0.01255, 0], rtol=1e-15)


def test_digits_are_those_of_the_longest_radius():
    assert printed_digits([0.0, 0.5, 1.0]) == 3
    assert printed_digits([0.0, 0.012345, 1.0]) == 5
    assert printed_digits([1e-05, 0.978]) == 3


@pytest.mark.parametrize("alpha", [0.001, 0.01])
@pytest.mark.parametrize(("n", "sigma"), [(200, 0.25), (1000, 1.0)])
def test_the_counts_behind_a_printed_radius_are_those_that_print_it(n, sigma, alpha):
    radii = {k: radius_of(k, n, alpha, sigma) for k in range(n // 2, n + 1)}
    texts = {k: printed(radius) for k, radius in radii.items() if radius > 0}
    silent = max(k for k, radius in radii.items() if radius == 0)
    assert [int(end) for end in counts_behind(0.0, sigma=sigma, n=n, alpha=alpha)] == [0, silent]
    for text in set(texts.values()):
        least, largest = counts_behind(float(text), sigma=sigma, n=n, alpha=alpha)
        assert list(range(int(least), int(largest) + 1)) == [k for k in texts if texts[k] == text]


def test_the_counts_between_cover_every_count_once():
    """Cut anywhere, each count that certifies lies in exactly one piece."""
    n, alpha, sigma = 500, 0.001, 0.5
    cuts = np.linspace(0, 3, 301)
    least, largest = counts_between(cuts[:-1], cuts[1:], sigma=sigma, n=n, alpha=alpha)
    found = [k for one, other in zip(least, largest, strict=True) for k in range(one, other + 1)]
    assert found == [k for k in range(n + 1) if radius_of(k, n, alpha, sigma) > 0]


def test_an_alpha_is_inferred_where_the_radii_tell_it_and_not_where_they_do_not():
    n, sigma = 1000, 0.25
    for alpha, other in ((0.001, 0.01), (0.01, 0.001)):
        radii = [float(printed(radius_of(k, n, alpha, sigma))) for k in range(501, n + 1)]
        assert inferred_alphas(radii, sigma=sigma, n=n) == (alpha,)
        least, largest = counts_behind(radii, sigma=sigma, n=n, alpha=other)
        assert (least > largest).any()
    # of votes by the hundred thousand neither nearly unanimous nor nearly split, every printed radius is attainable
    middle = [float(printed(radius_of(k, 100_000, 0.001, sigma))) for k in range(60_000, 95_000, 1000)]
    assert inferred_alphas(middle, sigma=sigma, n=100_000) == (0.001, 0.01)
    assert inferred_alphas([0.0, 0.0], sigma=sigma, n=n) == (0.001, 0.01)
    assert inferred_alphas([1.25], sigma=sigma, n=10, candidates=(0.01,)) == ()


def test_shares_are_kept_in_whole_numbers():
    assert scaled_counts([0, 1, 999, 1000], 1000, 100_000).tolist() == [0, 100, 99_900, 100_000]
    assert scaled_counts([667, 1], 1000, 100).tolist() == [66, 0]
    assert scaled_counts([667, 1], 1000, 100, up=True).tolist() == [67, 1]
    # 29 / 100 * 10^9 is 289999999.99999994 in floating point
    assert scaled_counts(29, 100, 10**9).tolist() == 290_000_000


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"`radius` must have at most 3 significant digits, got 0.1234"):
        rounding_interval([0.1234])
    with pytest.raises(ValueError, match=r"`radius` must be finite numbers of at least 0, got -0.1"):
        rounding_interval([-0.1])
    with pytest.raises(ValueError, match=r"`k` must be in \[0, 10\], got 0 to 11"):
        scaled_counts([0, 11], 10, 100)
    with pytest.raises(TypeError, match="`k` must be whole numbers, got dtype float64"):
        scaled_counts([0.5], 10, 100)
    with pytest.raises(ValueError, match="`sigma` must be a finite number above 0, got 0"):
        counts_between(0.1, 0.2, sigma=0, n=10, alpha=0.001)
