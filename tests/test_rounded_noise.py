"""Sound mode's noise: bit by bit what its table says, the same floats for the same whole numbers, on the grid alone."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.core.radii import near_gaussian
from art_rs_plugin.core.rounded import table, total_variation
from art_rs_plugin.noise import NOISES, SOUND, Purpose, RoundedGaussian, stream

FALSE_ALARM = 1e-6
SIGMAS = [1e-3, 0.12, 0.25, 1.0]


def drawn(sigma: float, *shape: int, block: int = 0) -> np.ndarray:
    return RoundedGaussian(sigma).draw_(torch.empty(shape), stream(5, Purpose.ESTIMATION, block)).numpy()


def uniforms(sigma: float, count: int, block: int = 0) -> np.ndarray:
    """The 63-bit uniforms that the draws consume, read from the same stream; bits that are not drawn are 0."""
    generator = stream(5, Purpose.ESTIMATION, block)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    prefix = words.numpy().view("<i2")[:count].astype(np.int64) + 2**15
    lowest, thresholds = prefix << 47, table(sigma).thresholds
    # the rest of the bits matters where a threshold lies above the least U with this prefix and not above the most
    amid = np.searchsorted(thresholds, lowest, "right") < np.searchsorted(thresholds, lowest + (2**47 - 1), "right")
    rest = torch.empty(int(amid.sum()), dtype=torch.int64).random_(0, 2**47, generator=generator)
    lowest[amid] += rest.numpy()
    return lowest


class TestDraws:
    @pytest.mark.parametrize("shape", [(64, 8, 8, 3), (64, 2), (1,), (3, 5)])
    @pytest.mark.parametrize("sigma", SIGMAS)
    def test_are_a_plain_look_up_in_the_table_bit_by_bit(self, sigma, shape):
        made = table(sigma)
        u = torch.from_numpy(uniforms(sigma, math.prod(shape)))
        expected = torch.bucketize(u, torch.from_numpy(made.thresholds), right=True) - made.reach
        assert np.array_equal(drawn(sigma, *shape).ravel(), expected.numpy())

    @pytest.mark.parametrize("sigma", SIGMAS)
    def test_whatever_the_bits_that_are_not_drawn(self, sigma):
        made = table(sigma)
        u = uniforms(sigma, 4_096)
        others = u | np.where(u % 2**47 == 0, 2**47 - 1, 0)  # all of them 1
        assert np.array_equal(drawn(sigma, 4_096), np.searchsorted(made.thresholds, others, "right") - made.reach)

    @pytest.mark.parametrize("sigma", SIGMAS)
    def test_have_the_law_of_the_table(self, sigma):
        made, count = table(sigma), 2**21
        counts = sum(
            np.bincount((drawn(sigma, 2**19, block=b) + made.reach).astype(np.int64), minlength=2 * made.reach + 1)
            for b in range(4)
        )
        expected = np.diff(np.concatenate([[0.0], made.thresholds / 2.0**63, [1.0]])) * count
        # neighbours are taken together until 20 are expected of each; what remains goes to the last
        groups = np.floor(np.cumsum(expected) / 20 - 1e-9).astype(int)
        groups = np.minimum(np.unique(groups, return_inverse=True)[1], len(np.unique(groups)) - 2)
        seen, wanted = np.bincount(groups, counts), np.bincount(groups, expected)
        keep = wanted > 1e-3
        statistic = ((seen - wanted)[keep] ** 2 / wanted[keep]).sum()
        assert statistic < chi2.isf(FALSE_ALARM, max(1, keep.sum() - 1))
        assert seen[~keep].sum() <= 1
        assert counts.sum() == count

    def test_the_check_of_the_law_can_fail(self):
        # a generator whose prefix is shorter by four bits, which is no more than 2^-12 off anywhere
        made = table(0.25)
        coarse = uniforms(0.25, 2**21) >> 51 << 51
        z = np.searchsorted(made.thresholds, coarse, "right")
        expected = np.diff(np.concatenate([[0.0], made.thresholds / 2.0**63, [1.0]])) * 2**21
        large = expected > 20
        seen = np.bincount(z, minlength=len(expected))
        assert ((seen - expected)[large] ** 2 / expected[large]).sum() > chi2.isf(FALSE_ALARM, large.sum())

    def test_are_whole_numbers_within_reach(self):
        z = drawn(1.0, 2**20)
        assert np.array_equal(z, np.rint(z))
        assert np.abs(z).max() <= table(1.0).reach
        assert np.abs(z).max() > 4.5 * 255  # of a million normal values the greatest is near 4.9

    def test_in_any_floating_point(self):
        for dtype in (torch.float32, torch.float64):
            z = RoundedGaussian(0.25).draw_(torch.empty(64, 3, dtype=dtype), stream(5, Purpose.ESTIMATION, 0))
            assert z.dtype == dtype
            assert np.array_equal(z.numpy(), drawn(0.25, 64, 3))


class TestNoisy:
    def test_is_the_float_of_a_whole_number_of_255ths(self):
        noise = RoundedGaussian(0.5, 12)
        m = np.random.default_rng(0).integers(-300, 600, 12)
        noisy = noise.noisy_(
            torch.empty(64, 12), torch.from_numpy(np.float32(m / 255)), stream(5, Purpose.ESTIMATION, 0)
        )
        # NumPy divides as IEEE 754 says
        expected = (m + drawn(0.5, 64, 12)).astype(np.float32) / np.float32(255)
        assert np.array_equal(noisy.numpy(), expected)

    def test_the_same_whole_number_is_the_same_float_from_any_input(self):
        # in ordinary mode the sum of floats says where it came from
        noise, seen = RoundedGaussian(0.25, 1), {}
        for m in (0, 1, 2, 37, 128, 255):
            x = torch.full((1,), m / 255)
            out = noise.noisy_(torch.empty(20_000, 1), x, stream(m, Purpose.ESTIMATION, 0)).flatten()
            for value in out.unique().tolist():
                whole = round(value * 255)
                assert seen.setdefault(whole, value) == value == float(np.float32(whole) / np.float32(255))
        assert len(seen) > 500

    def test_noise_alone_is_that_of_an_input_of_zeros(self):
        alone = RoundedGaussian(0.25).fill_(torch.empty(64, 5), stream(5, Purpose.GRADIENT, 0))
        with_zeros = RoundedGaussian(0.25).noisy_(torch.empty(64, 5), torch.zeros(5), stream(5, Purpose.GRADIENT, 0))
        assert torch.equal(alone, with_zeros)


class TestCheck:
    @pytest.mark.parametrize(
        "x",
        [
            np.arange(256) / 255,
            np.arange(256).astype(np.float32) / np.float32(255),
            -np.arange(2_000) / 255,
            np.array([4_112.0, -0.0]),
        ],
        ids=["float64", "float32", "beyond the images' range", "far"],
    )
    def test_takes_the_grid(self, x):
        RoundedGaussian(0.25).check(torch.from_numpy(x).float()[None])

    def test_takes_what_its_message_advises(self):
        x = np.random.default_rng(0).normal(0.5, 2.0, (4, 3, 8, 8)).astype(np.float32)
        noise = RoundedGaussian(0.25)
        with pytest.raises(ValueError, match=r"numpy\.rint\(255 \* x\) / 255 is the nearest such input"):
            noise.check(torch.from_numpy(x))
        for nearest in (np.rint(255 * x) / 255, np.rint(255 * x.astype(np.float64)) / 255):
            noise.check(torch.from_numpy(nearest).float())

    @pytest.mark.parametrize(
        ("value", "got"),
        [
            (0.5, "0.5"),
            (1 / 256, "0.00390625"),
            (float(np.nextafter(np.float32(1 / 255), np.float32(1))), "0.003921569"),
            (4_113.0, "4113.0"),
        ],
    )
    def test_refuses_one_number_off_the_grid(self, value, got):
        x = torch.zeros(3, 2, 4)
        x[1, 0, 3] = value
        rule = r"`x` must hold multiples of 1/255 alone, of at most 4112, for sound=True, got "
        with pytest.raises(ValueError, match=rf"{rule}{got}\d* at x\[1, 0, 3\]"):
            RoundedGaussian(0.25).check(x)


class TestRadius:
    def test_pays_for_the_distance_of_all_entries(self):
        p = np.linspace(0.5, 0.99999, 50)
        for dimension in (1, 3_072, 150_528):
            expected = near_gaussian(p, 1 - p, sigma=0.25, distance=total_variation(0.25, dimension))
            assert np.array_equal(RoundedGaussian(0.25, dimension).radius(p, 1 - p), expected)

    @pytest.mark.parametrize("margin", [0.1, 0.4])
    @pytest.mark.parametrize("name", SOUND)
    def test_is_within_the_margin_of_a_half_space(self, name, margin):
        """As for the distributions in `NOISES`: {x: w.x > -margin} around x = 0."""
        noise, draws, dimension = SOUND[name](0.25, 16), 400_000, 16
        sample = noise.fill_(torch.empty(draws, dimension), stream(3, Purpose.ESTIMATION, 0)).double().numpy()
        normal = np.random.default_rng(4).normal(size=dimension)
        inside = int((sample @ (normal / np.linalg.norm(normal)) > -margin).sum())
        p_lower = float(clopper_pearson_lower(inside, draws, FALSE_ALARM / 2))
        assert 0.95 * margin - 0.01 <= float(noise.radius(p_lower, 1 - p_lower)) <= margin

    def test_needs_the_dimension(self):
        for ask in (lambda noise: noise.radius(0.9, 0.1), RoundedGaussian.about):
            with pytest.raises(ValueError, match="`input_shape` is not known yet, and the radius of sound=True"):
                ask(RoundedGaussian(0.25))

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, 16.5])
    def test_refuses_sigma(self, sigma):
        with pytest.raises(ValueError, match=rf"`sigma` must be .*, got {sigma}"):
            RoundedGaussian(sigma)


def test_every_sound_noise_stands_for_one_in_the_table():
    assert set(SOUND) <= set(NOISES)
    assert all(SOUND[name].norm == NOISES[name].norm for name in SOUND)
