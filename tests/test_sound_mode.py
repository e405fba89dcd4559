"""Sound mode from the estimator to the ledger: certificates that hold to the last bit, where ordinary ones may not."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from made_images import Made, data_of
from scipy.stats import binom
from torch import nn

from art_rs_plugin import CertificationError, Looks, RandomizedSmoothingPyTorch, certifiers, evaluate_attack
from art_rs_plugin.core.radii import near_gaussian
from art_rs_plugin.core.rounded import table, total_variation
from art_rs_plugin.experiments import runs
from art_rs_plugin.experiments.ledger import LedgerMismatch, read_ledger, rebound
from art_rs_plugin.noise import Gaussian, RoundedGaussian

FALSE_ALARM = 1e-6
OFF_GRID = r"`x` must hold multiples of 1/255 alone, of at most 4112, for sound=True, got 0\.5 at x\[1, 0\]"


class FineBits(nn.Module):
    """Names class 1 if any entry has bits below `unit`, a power of two, and class 0 else."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x):
        units = x.flatten(1) / self.unit
        fine = (units != torch.round(units)).any(dim=1).float()
        return torch.stack([torch.full_like(fine, 0.5), fine], dim=1)


class TestFloatingPoint:
    """A network in the manner of Jin et al. 2022 and Voracek and Hein 2023, that sees how a float came about.

    Around a black image the noise is seen as it was drawn, small values with their fine bits. Around an image of grey
    level 4 of 255 every sum is a multiple of half the spacing of floats there: where the noise is small the sum is not,
    and is rounded to that, and where it is not small it has no finer bits itself.
    """

    BLACK, GREY = np.zeros((1, 1, 28, 28), np.float32), np.full((1, 1, 28, 28), 4 / 255, np.float32)

    def smoothed(self, sound: bool) -> RandomizedSmoothingPyTorch:
        unit = float(np.spacing(np.float32(4 / 255))) / 2
        return RandomizedSmoothingPyTorch(FineBits(unit), 0.25, n=2_000, seed=1, nb_classes=2, sound=sound)

    @property
    def distance(self) -> float:
        return float(np.linalg.norm(self.GREY - self.BLACK))

    def test_ordinary_mode_certifies_a_radius_in_which_the_prediction_changes(self):
        # a known limit of ordinary mode: both certificates cannot be true
        estimator = self.smoothed(sound=False)
        (black,), (radius,) = estimator.certify(self.BLACK)
        (grey,), (other,) = estimator.certify(self.GREY)
        assert (black, grey) == (1, 0)
        assert min(radius, other) > 0.67 > 0.44 > self.distance
        assert estimator.predict(self.BLACK).argmax() == 1
        assert estimator.predict(self.GREY).argmax() == 0

    def test_sound_mode_does_not(self):
        estimator = self.smoothed(sound=True)
        (black,), (radius,) = estimator.certify(self.BLACK)
        (grey,), _ = estimator.certify(self.GREY)
        assert radius > self.distance
        assert black == grey == estimator.predict(self.GREY).argmax()


class Whole(nn.Module):
    """Names class 1 if w.(255 x) + b > 0, in whole numbers that float64 has exactly."""

    def __init__(self, weight, offset: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float64))
        self.offset = offset

    def forward(self, x):
        value = torch.round(255 * x.flatten(1).double()) @ self.weight + self.offset
        return torch.stack([torch.full_like(value, 0.5), value], dim=1)


def convolved(sigma: float, weight) -> tuple[int, list[int]]:
    """Law of w.Z in units of 2^-63 for each of its terms, exact: (least value, weights of it and the next)."""
    made = table(sigma)
    ends = [0, *made.thresholds.tolist(), 2**63]
    one = [end - start for start, end in itertools.pairwise(ends)]
    law = {0: 1}
    for w in weight:
        added: dict[int, int] = {}
        for value, mass in law.items():
            for i, p in enumerate(one, -made.reach):
                if p:
                    added[value + w * i] = added.get(value + w * i, 0) + mass * p
        law = added
    least = min(law)
    return least, [law.get(value, 0) for value in range(least, max(law) + 1)]


SIGMA, WEIGHT = 0.03, (1, -2, 2)  # of length 3: the plane's distance from M is M / 3 steps, or more


@pytest.fixture(scope="module")
def p_one():
    """M -> P(class 1), the float next to an exact fraction."""
    least, law = convolved(SIGMA, WEIGHT)
    total = 2 ** (63 * len(WEIGHT))
    assert sum(law) == total
    above = list(itertools.accumulate(reversed(law)))[::-1]  # P(w.Z >= least + i)
    return lambda value: above[1 - value - least] / total


class TestHalfSpace:
    """Truth from the integer table: P(w.Z > -M) at a value M of the plane, by exact convolution."""

    def test_votes_have_the_probability_of_the_table(self, p_one):
        estimator = self.smoothed()
        values, n = np.array([-30, -8, -1, 0, 1, 2, 5, 12, 40]), 10_000
        counts = estimator.votes(self.at(values), n)
        for value, (_, ones) in zip(values, counts, strict=True):
            p = p_one(value)
            assert binom.isf(1 - FALSE_ALARM / 18, n, p) <= ones <= binom.isf(FALSE_ALARM / 18, n, p)

    def test_the_radius_of_the_true_probability_never_reaches_across(self, p_one):
        distance = total_variation(SIGMA, 3)
        assert p_one(0) < 0.5 < p_one(1)
        for value in range(1, 80):
            # a step of (-1, 2, -2) lowers the value by 9 at a length of 3; nothing does it faster
            nearest = value / 3 / 255
            radius = float(near_gaussian(p_one(value), 1 - p_one(value), sigma=SIGMA, distance=distance))
            assert radius <= nearest
            # rounding to whole numbers costs half a step at most, in each of two places
            assert radius >= nearest - 0.5 / 255

    def test_certificates(self, p_one):
        values = np.arange(-60, 61)
        estimator = self.smoothed(n=500, alpha=FALSE_ALARM / len(values))
        prediction, radius = estimator.certify(self.at(values))
        assert set(prediction) == {-1, 0, 1}
        certified = prediction != -1
        assert np.array_equal(prediction[certified], (values > 0)[certified].astype(int))
        # from class 0 it takes 1 - value to cross, for class 1 begins above 0
        steps = np.where(values > 0, values, 1 - values)
        assert (radius <= steps / 3 / 255).all()
        assert radius.max() > 8 / 255

    def smoothed(self, **options) -> RandomizedSmoothingPyTorch:
        return RandomizedSmoothingPyTorch(
            Whole(WEIGHT, 7), SIGMA, sound=True, seed=3, **{"n": 1_000, **options}, nb_classes=2
        )

    def at(self, values: np.ndarray) -> np.ndarray:
        """Inputs (m, 3) with w.(255 x) + 7 = value."""
        whole = np.random.default_rng(0).integers(0, 100, (len(values), 3))
        whole[:, 0] += values - 7 - whole @ np.array(WEIGHT)
        return whole / 255


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def smoothed(**options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(network(), 0.25, **{"n": 300, "n0": 20, "seed": 3, "sound": True, **options})


@pytest.fixture
def x() -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 256, (4, 16)) / 255).astype(np.float32)


class TestEstimator:
    def test_off_the_grid_no_vote_is_cast(self, x):
        estimator, off = smoothed(), x.copy()
        off[1, 0] = 0.5
        asked = [
            estimator.certify,
            estimator.certificates,
            estimator.predict,
            lambda x: estimator.votes(x, 100),
            lambda off: evaluate_attack(estimator, x, off, [0, 1, 2, 0]),
        ]
        for ask in asked:
            with pytest.raises(ValueError, match=OFF_GRID):
                ask(off)
        estimator.certify(np.rint(255 * off) / 255)

    def test_gradients_and_training_take_any_input(self, x):
        estimator = smoothed()
        estimator.set_params(optimizer=torch.optim.SGD(estimator.model.parameters(), lr=0.1))
        assert np.isfinite(estimator.loss_gradient(x + 0.001, [0, 1, 2, 0])).all()
        estimator.fit(x + 0.001, np.array([0, 1, 2, 0]), nb_epochs=1, batch_size=4)

    def test_is_a_parameter_like_the_others(self, x):
        estimator = smoothed()
        expected = estimator.certificates(x)
        assert isinstance(estimator.noise, RoundedGaussian)
        assert estimator.noise.dimension == 16
        assert estimator.get_params()["sound"] is True
        assert pickle.loads(pickle.dumps(estimator)).certificates(x) == expected
        assert RandomizedSmoothingPyTorch(**estimator.get_params()).certificates(x) == expected
        assert estimator.clone_for_refitting().sound is True
        estimator.set_params(sound=False)
        assert isinstance(estimator.noise, Gaussian)
        assert estimator.certificates(x) != expected
        assert not RandomizedSmoothingPyTorch(network(), 0.25).sound

    @pytest.mark.parametrize("batch_size", [1, 7, 64, None])
    def test_votes_are_those_of_any_batch_size_and_order(self, x, batch_size):
        indices = [5, 2, 9, 4]
        expected = smoothed().votes(x, 200, indices=indices)
        found = smoothed().votes(x[::-1], 200, indices=indices[::-1], batch_size=batch_size)
        assert np.array_equal(found[::-1], expected)
        assert (expected.max(axis=1) < 200).any()

    def test_votes_are_those_of_any_number_of_threads(self):
        # whole numbers, whose sums no order of summation can change; both inputs lie on the plane
        whole, weight = (
            np.random.default_rng(0).integers(0, 256, 3_072),
            np.random.default_rng(1).integers(-3, 4, 3_072),
        )
        x = np.tile((whole / 255).astype(np.float32), (2, 1)).reshape(2, 3, 32, 32)
        before, found = torch.get_num_threads(), []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            model = Whole(weight, -int(whole @ weight))
            smoothed = RandomizedSmoothingPyTorch(model, 0.25, n=100, seed=2, sound=True, nb_classes=2)
            found.append(smoothed.votes(x, 400))
        torch.set_num_threads(before)
        assert np.array_equal(*found)
        assert (found[0] > 0).all()

    def test_the_radius_is_less_than_that_of_the_same_bounds_in_ordinary_mode_and_hardly(self, x):
        for certificate in smoothed(n=5_000).certificates(x):
            ordinary = float(Gaussian(0.25).radius(certificate.p_lower, certificate.p_upper))
            assert certificate.radius <= ordinary <= certificate.radius + 1e-9
        assert certificate.radius > 0

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"sound": 1}, TypeError, "`sound` must be True or False, got 1"),
            ({"sound": "no"}, TypeError, "`sound` must be True or False, got 'no'"),
            ({"sigma": 17.0}, ValueError, r"`sigma` must be at most 16 for sound=True, got 17\.0"),
        ],
    )
    def test_refuses(self, options, error, message):
        with pytest.raises(error, match=message):
            RandomizedSmoothingPyTorch(network(), **{"sigma": 0.25, "sound": True, **options})
        estimator = smoothed()
        with pytest.raises(error, match=message):
            estimator.set_params(**options)
        assert (estimator.sound, estimator.sigma) == (True, 0.25)

    def test_an_error_of_the_model_is_still_no_certificate(self, x):
        class Fails(nn.Module):
            def forward(self, x):
                if (x[:, :1].mean() > 5).item():
                    raise RuntimeError("too bright")
                return torch.stack([x.sum(dim=1), -x.sum(dim=1)], dim=1)

        x[3, 0] = 2_550 / 255
        with pytest.raises(CertificationError, match="too bright") as caught:
            RandomizedSmoothingPyTorch(Fails(), 0.25, n=100, seed=0, sound=True).certificates(x)
        assert [certificate.index for certificate in caught.value.certificates] == [0, 1, 2]


class TestLedger:
    @pytest.fixture
    def data(self):
        images = Made(samples=12)
        images.x = torch.round(255 * images.x) / 255
        return data_of(images)

    @pytest.mark.parametrize("budget", [None, Looks(radii=(0.0, 0.1), first=50, n_max=300, n0=20)])
    def test_says_so_and_is_bounded_anew_by_its_own_radius(self, data, tmp_path, budget):
        path = tmp_path / "run.jsonl"
        runs.certify(smoothed(), data, range(12), path, budget=budget)
        header, rows = read_ledger(path)
        assert header["noise"] == {"name": "rounded-gaussian", "sigma": 0.25, "dimension": 16}
        assert any(row["radius"] > 0 for row in rows)
        distance = total_variation(0.25, 16)
        for row in rows:
            again = rebound(header, row)
            assert (again.radius, again.prediction) == (row["radius"], row["prediction"])
            stricter = rebound(header, row, alpha=1e-4)
            expected = near_gaussian(stricter.p_lower, stricter.p_upper, sigma=0.25, distance=distance)
            assert stricter.radius == float(expected)
        with pytest.raises(ValueError, match="`radius` must be 'cohen' for votes of sound mode, got 'lecuyer'"):
            rebound(header, rows[0], radius="lecuyer")

    def test_is_not_continued_in_the_other_mode(self, data, tmp_path):
        path = tmp_path / "run.jsonl"
        runs.certify(smoothed(), data, range(2), path)
        with pytest.raises(LedgerMismatch, match=r'`noise\.name` is "rounded-gaussian" there, "gaussian" here'):
            runs.certify(smoothed(sound=False), data, range(4), path)
        runs.certify(smoothed(), data, range(4), path)
        assert len(read_ledger(path)[1]) == 4

    def test_there_is_none_for_images_off_the_grid(self, tmp_path):
        for write in (
            lambda path: runs.certify(smoothed(), data_of(Made()), range(2), path),
            lambda path: runs.predict(smoothed(), data_of(Made()), range(2), path, n=100),
        ):
            with pytest.raises(ValueError, match="`x` must hold multiples of 1/255 alone"):
                write(tmp_path / "run.jsonl")
            assert not (tmp_path / "run.jsonl").exists()


def test_certifiers_take_it_but_those_whose_radius_is_for_gaussian_noise(x):
    options = {"input_shape": (16,), "nb_classes": 3, "sigma": 0.25, "n": 300, "n0": 20, "seed": 3, "sound": True}
    made = certifiers.get("smoothing").build(network(), **options).certify(x)
    assert made == smoothed(nb_classes=3, input_shape=(16,)).certificates(x)
    for name in ("smoothing-li", "smoothing-lecuyer"):
        with pytest.raises(ValueError, match=f"`sound` must be False for {name}, got True"):
            certifiers.get(name).build(network(), **options)
