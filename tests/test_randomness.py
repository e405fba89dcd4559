"""ChaCha20 as a source of votes: RFC 8439's cipher by a second implementation, Gaussian, replayable, and said."""

import hashlib
import itertools
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from made_images import Made, data_of
from scipy.stats import kstest, norm

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.core.rounded import table
from art_rs_plugin.experiments import runs
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger, rebound
from art_rs_plugin.noise import Gaussian, Purpose, RoundedGaussian, distribution, seed_generator, stream
from art_rs_plugin.randomness import ChaCha20

FALSE_ALARM = 1e-6


def chacha20(key: bytes, nonce: bytes, counter: int) -> bytes:
    """One block of the key stream, as RFC 8439 section 2.3 says it: 64 bytes."""
    words = np.frombuffer(b"expand 32-byte k" + key + counter.to_bytes(4, "little") + nonce, "<u4").tolist()
    state = list(words)

    def quarter(a, b, c, d):
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) % 2**32
            mixed = state[z] ^ state[x]
            state[z] = (mixed << by | mixed >> 32 - by) % 2**32

    for _ in range(10):
        for at in range(4):
            quarter(at, 4 + at, 8 + at, 12 + at)
        for at in range(4):
            quarter(at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
    return np.array([(a + b) % 2**32 for a, b in zip(words, state, strict=True)], "<u4").tobytes()


def test_the_second_implementation_is_the_rfcs():
    # RFC 8439, section 2.3.2
    block = chacha20(bytes(range(32)), bytes.fromhex("000000090000004a00000000"), 1)
    assert block.hex().startswith("10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e")


def key_stream(key: bytes, count: int) -> bytes:
    secret = hashlib.shake_256(key).digest(32)
    return b"".join(chacha20(secret, bytes(12), block) for block in range(-(-count // 64)))[:count]


def chacha(*position, seed=5, purpose=Purpose.ESTIMATION):
    return seed_generator(ChaCha20(), seed, purpose, *position)


def normals(*shape, sigma=1.0, dtype=torch.float32, **options):
    return Gaussian(sigma).fill_(torch.empty(shape, dtype=dtype), chacha(0, 0, **options))


class TestStream:
    def test_is_the_ciphers_by_the_names_key(self):
        generator, expected = chacha(3, 4), key_stream(b"art-rs-plugin:5:estimation:3:4", 8 * 40)
        drawn = torch.cat([generator.bits_(torch.empty(count, dtype=torch.int64)) for count in (1, 7, 32)])
        assert drawn.numpy().tobytes() == expected

    def test_starts_anew_whatever_was_drawn_before(self):
        used = chacha(1)
        used.bits_(torch.empty(5, dtype=torch.int64))
        used.normal_(torch.empty(3), 1.0)
        again = seed_generator(used, 5, Purpose.ESTIMATION, 2)
        assert again is used
        assert torch.equal(again.normal_(torch.empty(9), 1.0), chacha(2).normal_(torch.empty(9), 1.0))

    def test_neighbours_are_uncorrelated(self):
        names = list(itertools.product([0, 1, 2**32], Purpose, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0)]))
        drawn = [chacha(*at, seed=s, purpose=p).normal_(torch.empty(4_096), 1.0).numpy() for s, p, at in names]
        correlation = np.corrcoef(np.array(drawn, np.float64))[np.triu_indices(len(names), k=1)]
        assert np.abs(correlation).max() < norm.isf(FALSE_ALARM / 2 / correlation.size) / 64

    def test_is_no_other_sources(self):
        torchs = Gaussian(1.0).fill_(torch.empty(4_096), stream(5, Purpose.ESTIMATION, 0, 0)).double()
        ours = normals(4_096).double()
        assert abs(float(torch.corrcoef(torch.stack([torchs, ours]))[0, 1])) < norm.isf(FALSE_ALARM / 2) / 64


class TestNormals:
    @pytest.mark.parametrize("shape", [(64, 3, 32, 32), (64, 3, 5), (3, 5), (1,)])
    def test_are_box_and_mullers_of_the_bits(self, shape):
        count = math.prod(shape)
        pairs = -(-count // 2)
        words = np.frombuffer(chacha(0, 0)._next(2 * pairs, "<u4").tobytes(), "<u4").astype(np.float64)
        radius = np.sqrt(-2 * np.log((words[:pairs] // 2 + 0.5) / 2**31))
        angle = 2 * np.pi * words[pairs:] / 2**32
        expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        np.testing.assert_allclose(normals(*shape).double().numpy().ravel(), expected, rtol=0, atol=4e-6)

    @pytest.mark.parametrize("sigma", [0.12, 50.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_are_what_they_say(self, sigma, dtype):
        z = normals(2**20, sigma=sigma, dtype=dtype).double().numpy() / sigma
        assert kstest(z, norm.cdf).pvalue > FALSE_ALARM
        for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
            assert abs((z**power).mean() - moment) < norm.isf(FALSE_ALARM / 16) * math.sqrt(variance / z.size), power

    def test_the_least_and_the_greatest_bits_are_finite(self, monkeypatch):
        generator = ChaCha20()
        for word in (0, 1, 2**32 - 1):
            monkeypatch.setattr(generator, "_next", lambda count, kind, word=word: np.full(count, word, kind))
            z = generator.normal_(torch.empty(4), 1.0)
            assert z.isfinite().all()
            assert (z.abs().max() > 6.6) == (word < 2)


@pytest.mark.parametrize("shape", [(64, 8, 8, 3), (3, 5)])
@pytest.mark.parametrize("sigma", [0.12, 1.0])
def test_sound_mode_looks_its_bits_up_in_the_table(sigma, shape):
    made, count = table(sigma), math.prod(shape)
    drawn = RoundedGaussian(sigma).draw_(torch.empty(shape), chacha(7)).numpy().ravel()
    generator = chacha(7)
    words = generator.bits_(torch.empty(-(-count // 4), dtype=torch.int64)).numpy()
    lowest = words.view("<i2")[:count].astype(np.int64) + 2**15 << 47
    amid = np.searchsorted(made.thresholds, lowest, "right") < np.searchsorted(
        made.thresholds, lowest + (2**47 - 1), "right"
    )
    rest = generator.bits_(torch.empty(int(amid.sum()), dtype=torch.int64)).numpy()
    lowest[amid] += rest & 2**47 - 1
    assert np.array_equal(drawn, np.searchsorted(made.thresholds, lowest, "right") - made.reach)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def smoothed(**options):
    return RandomizedSmoothingPyTorch(
        network(), 0.25, **{"n": 300, "n0": 20, "seed": 3, "randomness": "chacha20", **options}
    )


@pytest.fixture
def x():
    return (np.random.default_rng(0).integers(0, 256, (4, 16)) / 255).astype(np.float32)


@pytest.mark.parametrize("sound", [False, True])
class TestEstimator:
    def test_is_a_parameter_like_the_others(self, sound, x):
        estimator = smoothed(sound=sound)
        expected = estimator.certificates(x)
        assert estimator.get_params()["randomness"] == "chacha20"
        assert pickle.loads(pickle.dumps(estimator)).certificates(x) == expected
        assert estimator.clone_for_refitting().randomness == "chacha20"
        assert smoothed(sound=sound, randomness="torch").certificates(x) != expected
        assert all(certificate.seed == 3 for certificate in expected)

    @pytest.mark.parametrize("batch_size", [7, 64, 300])
    def test_votes_are_those_of_any_batch_size_and_order(self, sound, x, batch_size):
        expected = smoothed(sound=sound).votes(x, 200, indices=[5, 2, 9, 4])
        found = smoothed(sound=sound).votes(x[::-1], 200, indices=[4, 9, 2, 5], batch_size=batch_size)
        assert np.array_equal(found[::-1], expected)
        assert (expected.max(axis=1) < 200).any()

    def test_its_ledger_says_so_and_is_not_continued_by_another(self, sound, tmp_path):
        images = Made(samples=6)
        images.x = torch.round(255 * images.x) / 255
        data, path = data_of(images), tmp_path / "run.jsonl"
        runs.certify(smoothed(sound=sound), data, range(3), path)
        header, rows = read_ledger(path)
        assert header["noise"]["randomness"] == "chacha20"
        assert distribution(header["noise"]).about() == header["noise"]
        assert all(rebound(header, row).radius == row["radius"] for row in rows)
        with pytest.raises(LedgerMismatch, match=r'`noise\.randomness` is "chacha20" there, null here'):
            runs.certify(smoothed(sound=sound, randomness="torch"), data, range(6), path)
        runs.certify(smoothed(sound=sound), data, range(6), path)
        assert len(read_ledger(path)[1]) == 6


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ImportError, match=r"`randomness` 'chacha20' needs the package cryptography.*\[crypto\]"):
        smoothed()
    smoothed(randomness="torch")


def test_refuses_other_names():
    with pytest.raises(ValueError, match="`randomness` must be one of 'torch', 'chacha20', got 'dice'"):
        smoothed(randomness="dice")
    estimator = smoothed()
    with pytest.raises(ValueError, match="`randomness` must be one of"):
        estimator.set_params(randomness="dice")
    assert estimator.randomness == "chacha20"
