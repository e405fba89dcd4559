"""Noise and its streams against NumPy's own Mersenne Twister, SciPy's tests and a half-space."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from art_rs_plugin.core.bounds import clopper_pearson_lower
from art_rs_plugin.noise import NOISES, Gaussian, NoNoise, Purpose, fresh_seed, seed_generator, stream

# of every statistical check below, for all comparisons that it makes together, by the normal law of its statistic
FALSE_ALARM = 1e-6
# neighbours: what changes from example to example, block to block, purpose to purpose and seed to seed
NEIGHBOURS = list(itertools.product([0, 1, 2**32], Purpose, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (63, 64)]))
# as inputs have them: a block of images, a block of features, fewer values than torch's vector path takes, one row
SHAPES = [(64, 3, 32, 32), (64, 2), (3, 5), (1, 100_000)]


def raw32(generator: torch.Generator, count: int) -> np.ndarray:
    """The next outputs of a CPU generator, 32 bits each: torch makes a 64-bit integer of two, the high half first."""
    pairs = torch.empty(count // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = pairs.numpy().view(np.uint64)
    return np.stack([bits >> np.uint64(32), bits & np.uint64(2**32 - 1)], axis=1).reshape(-1)


def twister(key: bytes) -> np.random.MT19937:
    """NumPy's Mersenne Twister with the 624 words that SHAKE-128 makes of a key, before its first twist."""
    words = np.frombuffer(hashlib.shake_128(key).digest(4 * 624), dtype="<u4")
    generator = np.random.MT19937()
    generator.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    return generator


def gaussians(generator: torch.Generator, *shape: int, sigma: float = 1.0) -> torch.Tensor:
    return Gaussian(sigma).fill_(torch.empty(shape), generator)


class TestStream:
    @pytest.mark.parametrize(
        ("key", "seed", "purpose", "position"),
        [
            (b"art-rs-plugin:0:selection", 0, Purpose.SELECTION, ()),
            (b"art-rs-plugin:5:estimation:3:4", 5, Purpose.ESTIMATION, (3, 4)),
            (b"art-rs-plugin:9223372036854775807:training:0:0:1", 2**63 - 1, Purpose.TRAINING, (0, 0, 1)),
        ],
    )
    def test_is_the_mersenne_twister_on_all_the_words_of_its_key(self, key, seed, purpose, position):
        # 2000 outputs take the 624 words through four twists
        expected = twister(key).random_raw(2_000)
        assert np.array_equal(raw32(stream(seed, purpose, *position), 2_000), expected)

    def test_means_the_same_in_every_release(self):
        # a ledger that is resumed, or a certificate that is replayed, relies on these numbers
        first = raw32(stream(5, Purpose.ESTIMATION, 3, 4), 4)
        assert first.tolist() == [3753036994, 1737823384, 3768497327, 646953197]
        assert [purpose.value for purpose in Purpose] == [
            "selection",
            "pilot",
            "estimation",
            "prediction",
            "gradient",
            "judging",
            "training",
            "shuffling",
            "splitting",
            "validation",
            "labelling",
            "initialisation",
            "bound",
        ]

    @pytest.mark.parametrize("shape", [(1,), (15,), (64, 7)])
    def test_starts_anew_whatever_the_generator_drew_before(self, shape):
        # torch keeps the second of two normal values for later, and the state of an unfinished twist
        used = torch.Generator().manual_seed(1)
        torch.empty(shape).normal_(generator=used)
        torch.empty(shape, dtype=torch.float64).normal_(generator=used)
        again = seed_generator(used, 11, Purpose.GRADIENT, 2)
        assert again is used
        fresh = stream(11, Purpose.GRADIENT, 2)
        for dtype in (torch.float32, torch.float64, torch.float32):
            values = (torch.empty(100, dtype=dtype).normal_(generator=generator) for generator in (again, fresh))
            assert torch.equal(*values)

    def test_leaves_global_generators_alone(self):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        gaussians(stream(1, Purpose.SELECTION, 0), 64, 3)
        fresh_seed()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002

    @pytest.mark.parametrize("period", [2**31, 2**32, 2**63, 2**64])
    def test_seeds_that_agree_in_their_low_bits_differ(self, period):
        first, second = (raw32(stream(seed, Purpose.SELECTION, 0, 0), 100) for seed in (7, 7 + period))
        assert (first != second).all()

    def test_names_are_not_run_together(self):
        names = [(1, (23,)), (12, (3,)), (1, (2, 3)), (123, ()), (1, (23, 0)), (1, (0, 23)), (1, (2, 30)), (1, (22, 3))]
        starts = {tuple(raw32(stream(seed, Purpose.SELECTION, *position), 4)) for seed, position in names}
        assert len(starts) == len(names)

    def test_are_uncorrelated(self):
        values = 4_096
        drawn = np.stack([gaussians(stream(seed, purpose, *at), values).numpy() for seed, purpose, at in NEIGHBOURS])
        correlation = np.corrcoef(drawn.astype(np.float64))[np.triu_indices(len(NEIGHBOURS), k=1)]
        # of independent Gaussian rows, correlation times sqrt(values) is N(0, 1), up to lighter tails
        limit = norm.isf(FALSE_ALARM / 2 / correlation.size) / math.sqrt(values)
        assert correlation.size == 234 * 233 // 2
        assert np.abs(correlation).max() < limit < 0.11

    def test_do_not_overlap(self):
        outputs = np.stack([raw32(stream(seed, purpose, *at), 4_096) for seed, purpose, at in NEIGHBOURS])
        # two streams that ran into each other at any offset would share runs of outputs; by chance one of these
        # 958 000 pairs of neighbours comes twice with probability 2.5e-8
        windows = outputs[:, :-1] << np.uint64(32) | outputs[:, 1:]
        assert windows.size**2 / 2 / 2.0**64 < FALSE_ALARM
        assert np.unique(windows).size == windows.size


class TestGaussian:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("sigma", [0.12, 1.0, 50.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_what_it_says(self, shape, sigma, dtype):
        blocks = max(1, 20_000 // math.prod(shape))
        drawn = []
        for block in range(blocks):
            out = torch.full(shape, math.nan, dtype=dtype)
            assert Gaussian(sigma).fill_(out, stream(2024, Purpose.ESTIMATION, 0, block)) is out
            drawn.append(out.double().numpy().ravel())
        z = np.concatenate(drawn) / sigma
        assert kstest(z, norm.cdf).pvalue > FALSE_ALARM
        # mean, variance, skewness and kurtosis of N(0, 1), each with its standard error
        limit = norm.isf(FALSE_ALARM / 8)
        for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
            assert abs((z**power).mean() - moment) < limit * math.sqrt(variance / z.size), power

    def test_values_of_a_block_are_uncorrelated(self):
        block = gaussians(stream(3, Purpose.SELECTION, 0, 0), 64, 4_096).double().numpy()
        between_rows = np.corrcoef(block)[np.triu_indices(64, k=1)]
        limit = norm.isf(FALSE_ALARM / 4 / between_rows.size) / math.sqrt(block.shape[1])
        assert np.abs(between_rows).max() < limit
        flat = block.ravel()
        for lag in (1, 2, 3, 4, 8, 16, 32):
            correlation = np.corrcoef(flat[:-lag], flat[lag:])[0, 1]
            assert abs(correlation) < norm.isf(FALSE_ALARM / 28) / math.sqrt(flat.size - lag), lag

    @pytest.mark.parametrize("sigma", [0.12, 0.25, 3.0])
    def test_radius_is_the_margin_of_a_half_space(self, sigma):
        # Appendix B: at distance m from the plane the likelier class has probability Phi(m / sigma)
        margin = np.linspace(0.01, 4.0, 400) * sigma
        p = norm.cdf(margin / sigma)
        radius = Gaussian(sigma).radius(p, norm.sf(margin / sigma))
        # Phi rounds to a float near 1, which is worth this much of a radius
        slack = sigma * 2.0**-53 / norm.pdf(margin / sigma)
        assert (radius <= margin + slack).all()
        assert (radius >= margin - slack - 1e-9 * sigma).all()
        assert Gaussian(sigma).norm == 2

    @pytest.mark.parametrize("sigma", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
    def test_refuses_values(self, sigma):
        with pytest.raises(ValueError, match=rf"`sigma` must be a finite number above 0, got {sigma}"):
            Gaussian(sigma)

    @pytest.mark.parametrize("sigma", ["0.5", None, True, [0.5, 1.0], 1j])
    def test_refuses_types(self, sigma):
        with pytest.raises(TypeError, match="`sigma` must be a number, got"):
            Gaussian(sigma)

    @pytest.mark.parametrize("sigma", [1, np.float32(0.25), np.array(0.5), torch.tensor(2.0)])
    def test_takes_any_number(self, sigma):
        assert type(Gaussian(sigma).sigma) is float
        assert Gaussian(sigma).sigma == float(sigma)


def test_no_noise_is_zero_and_draws_nothing():
    generator = stream(1, Purpose.GRADIENT)
    before = generator.get_state()
    out = torch.full((5, 3), math.nan)
    assert NoNoise().fill_(out, generator) is out
    assert not out.any()
    assert torch.equal(generator.get_state(), before)


def test_fresh_seeds_use_63_bits():
    seeds = [fresh_seed() for _ in range(1_000)]
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    # by chance two of them agree with probability 5e-14, and one of 63 bits stands still with 1e-299
    assert len(set(seeds)) == 1_000
    bits = np.array(seeds, dtype=np.int64)
    assert np.bitwise_or.reduce(bits) == 2**63 - 1
    assert np.bitwise_and.reduce(bits) == 0


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
@pytest.mark.parametrize("name", NOISES)
def test_no_noise_certifies_beyond_the_margin_of_a_half_space(name, margin):
    """Every distribution in the table: the class of {x: w.x > -margin} at x = 0 changes at the margin, in any norm."""
    noise = NOISES[name](0.5)
    draws, dimension = 400_000, 16
    sample = noise.fill_(torch.empty(draws, dimension), stream(3, Purpose.ESTIMATION, 0)).double().numpy()
    # the plane's normal has dual norm 1, so that the margin is its distance in the noise's own norm
    normal = np.random.default_rng(4).normal(size=dimension)
    dual = 1 / (1 - 1 / noise.norm) if 1 < noise.norm < np.inf else (np.inf if noise.norm == 1 else 1)
    normal /= np.linalg.norm(normal, dual)
    inside = int((sample @ normal > -margin).sum())
    p_lower = float(clopper_pearson_lower(inside, draws, FALSE_ALARM / 3))
    radius = float(noise.radius(p_lower, 1 - p_lower))
    assert 0 < radius <= margin
    # and it is no idle promise: the bound costs 5 standard errors of p, which move the radius by less than this
    assert name != "gaussian" or radius >= 0.95 * margin - 0.01
