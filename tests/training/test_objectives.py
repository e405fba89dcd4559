"""Every training method against formulas written down once more, in NumPy and SciPy."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from linear_objectives import CLASSES, SIGMA, D, Linear, N, at, drawn, entropies, kl, make_batch
from scipy import special, stats
from torch import nn

from art_rs_plugin.training import OBJECTIVES, CatRS, smoothadv, smoothmix
from art_rs_plugin.votes import mode


@pytest.fixture
def batch():
    return make_batch()


# what each method draws, and the options that leave nothing of it but Gaussian augmentation
WITHOUT_WEIGHT = {
    "gaussian": {},
    "stability": {"weight": 0.0},
    "smoothadv": {"eps": 0.0, "draws": 3},
    "macer": {"weight": 0.0, "draws": 1},
    "consistency": {"weight": 0.0, "entropy": 0.0, "draws": 3},
    "smoothmix": {"weight": 0.0, "draws": 3},
    "cat-rs": {"weight": 0.0, "draws": 1},
    "lmt": {"margin": 0.0, "noisy": True},
}
# lmt asks the layers of a module, see test_lmt.py
OF_A_FUNCTION = [name for name in OBJECTIVES if name != "lmt"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_weight_a_method_is_gaussian_augmentation(name, batch):
    x, y = batch
    model, objective = Linear(), OBJECTIVES[name](**WITHOUT_WEIGHT[name])
    loss, correct = objective(at(model), x, y)
    _, logits = drawn(model, x, WITHOUT_WEIGHT[name].get("draws", 1))
    assert loss.item() == pytest.approx(entropies(logits, y).mean(), rel=1e-12)
    assert correct.item() == pytest.approx((logits.argmax(2) == y.numpy()[:, None]).mean(1).sum(), rel=1e-6)
    assert len(model.asked) == 1


@pytest.mark.parametrize("name", OF_A_FUNCTION)
def test_gradients_of_the_loss_agree_with_differences(name, batch, monkeypatch):
    """In a weight of the model, at every method's defaults; an attack finds the same whatever the weight."""
    x, y = batch
    away = 0.3 * torch.randn(N, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for module in (smoothadv, smoothmix):
        monkeypatch.setattr(module, "adversarial", lambda step, x, *_, **__: x + away)
    monkeypatch.setattr(CatRS, "_worst", lambda self, step, x, noise, label: noise + away.unsqueeze(1))
    model, objective = Linear(), OBJECTIVES[name]()

    def loss_at(weight):
        model.weight = weight
        return objective(at(model), x, y).loss

    weight = model.weight.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_at(weight), weight)
    start = weight.detach()
    for row, column in ((1, 2), (0, 5), (3, 0)):
        step = torch.zeros_like(start)
        step[row, column] = 1e-6
        slope = (loss_at(start + step) - loss_at(start - step)) / 2e-6
        assert gradient[row, column].item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("name", OF_A_FUNCTION)
def test_gradients_stay_finite_where_a_probability_is_zero(name):
    """In float32 the softmax of logits that are 200 apart is exactly 0 and 1."""
    weight = torch.tensor([[200.0, 0.0], [0.0, 200.0], [-200.0, -200.0]], requires_grad=True)
    model = lambda x: x @ weight.T  # noqa: E731
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, -1.0]]), torch.tensor([0, 1, 2])
    loss = OBJECTIVES[name]()(at(model), x, y).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    assert loss.isfinite()
    assert gradient.isfinite().all()


class TestStability:
    def test_is_the_cross_entropy_and_the_divergence_from_the_clean_answer(self, batch):
        x, y = batch
        model = Linear()
        _, logits = drawn(model, x, 1)
        clean = special.softmax(x.numpy() @ model.weight.numpy().T, axis=1)
        expected = entropies(logits, y).mean() + 3.0 * kl(clean, logits[:, 0]).mean()
        assert OBJECTIVES["stability"](weight=3.0)(at(model), x, y).loss.item() == pytest.approx(expected, rel=1e-12)

    def test_nothing_is_paid_where_noise_changes_nothing(self, batch):
        x, y = batch
        constant = lambda x: torch.zeros(len(x), CLASSES, dtype=x.dtype)  # noqa: E731
        loss = OBJECTIVES["stability"](weight=100.0)(at(constant), x, y).loss
        assert loss.item() == pytest.approx(np.log(CLASSES), rel=1e-12)


class TestConsistency:
    def test_is_the_mean_divergence_from_the_mean_and_its_entropy(self, batch):
        x, y = batch
        model = Linear(scale=2.0)
        _, logits = drawn(model, x, 3)
        mean = special.softmax(logits, axis=2).mean(1)
        expected = (
            entropies(logits, y).mean() + 7.0 * kl(mean[:, None], logits).mean() + 0.25 * stats.entropy(mean.T).mean()
        )
        loss = OBJECTIVES["consistency"](weight=7.0, entropy=0.25, draws=3)(at(model), x, y).loss
        assert loss.item() == pytest.approx(expected, rel=1e-12)

    def test_is_zero_on_identical_predictions(self, batch):
        x, y = batch
        sure = lambda x: torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=x.dtype).expand(len(x), CLASSES)  # noqa: E731
        with_weight, without = (
            OBJECTIVES["consistency"](weight=weight, entropy=0.0)(at(sure), x, y).loss.item() for weight in (50.0, 0.0)
        )
        assert with_weight == pytest.approx(without, abs=1e-12)


class TestMACER:
    def test_is_the_hinge_on_the_soft_radius_of_what_is_right(self, batch):
        x, y = batch
        model = Linear(scale=0.3)
        _, logits = drawn(model, x, 8)
        loss = -np.log(np.take_along_axis(special.softmax(logits, axis=2).mean(1), y.numpy()[:, None], 1)).mean()
        sharp = special.softmax(4.0 * logits, axis=2).mean(1)
        second, first = np.sort(sharp, axis=1)[:, -2:].T
        gap = stats.norm.ppf(first) - stats.norm.ppf(second)
        right = sharp.argmax(1) == y.numpy()
        hinge = right * np.maximum(0.0, 1.0 - gap)
        assert 0 < (hinge > 0).sum() < right.sum() < N  # some wrong, some beyond the hinge
        objective = OBJECTIVES["macer"](weight=5.0, draws=8, beta=4.0, gamma=1.0)
        expected = loss + 5.0 * SIGMA / 2 * hinge.mean()
        assert objective(at(model), x, y).loss.item() == pytest.approx(expected, rel=1e-9)

    def test_on_logits_made_by_hand(self):
        """Two classes, p = (.8, .2) without sharpening: the gap is 2 Phi^-1(.8)."""
        logits = torch.tensor([[[np.log(0.8), np.log(0.2)]]]).double().expand(3, 5, 2)
        hinge = OBJECTIVES["macer"](beta=1.0, gamma=2.0).hinge(logits, torch.tensor([0, 1, 0]))
        assert hinge.tolist() == pytest.approx([2.0 - 2 * stats.norm.ppf(0.8), 0.0, 2.0 - 2 * stats.norm.ppf(0.8)])

    def test_certainty_in_floating_point_leaves_the_gradient_finite(self):
        # probabilities 1 and 0; 1 and 1e-9, which has a Phi^-1; and two that both have one
        logits = torch.tensor([[[60.0, -60.0]], [[1.3, 0.0]], [[0.1, 0.0]]], requires_grad=True)
        hinge = OBJECTIVES["macer"]().hinge(logits, torch.tensor([0, 0, 0]))
        assert (hinge[:2] == 0).all()
        (gradient,) = torch.autograd.grad(hinge.sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[:2].abs().sum() == 0 < gradient[2].abs().sum()

    def test_waits_for_its_epoch(self, batch):
        x, y = batch
        losses = [
            OBJECTIVES["macer"](deferred=deferred)(at(Linear(0.3), epoch=5), x, y).loss.item() for deferred in (4, 5, 6)
        ]
        assert losses[0] > losses[1] == losses[2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stability", {"weight": -1}, "`weight` must be a finite number of at least 0, got -1"),
        ("smoothadv", {"eps": float("nan")}, "`eps` must be a finite number of at least 0, got nan"),
        ("smoothadv", {"steps": 0}, "`steps` must be at least 1, got 0"),
        ("smoothadv", {"draws": 0}, "`draws` must be at least 1, got 0"),
        ("smoothadv", {"attack": "cw"}, "`attack` must be one of 'pgd', 'ddn', got 'cw'"),
        ("smoothadv", {"warmup": -1}, "`warmup` must be at least 0, got -1"),
        ("smoothadv", {"all_draws": "some"}, "`all_draws` must be one of True, False, got 'some'"),
        ("macer", {"gamma": 0}, "`gamma` must be a finite number above 0, got 0"),
        ("macer", {"beta": float("inf")}, "`beta` must be a finite number above 0, got inf"),
        ("macer", {"deferred": -1}, "`deferred` must be at least 0, got -1"),
        ("consistency", {"draws": 1}, "`draws` must be at least 2, got 1"),
        ("consistency", {"entropy": -0.5}, "`entropy` must be a finite number of at least 0, got -0.5"),
        ("smoothmix", {"step_size": 0.0}, "`step_size` must be a finite number above 0, got 0.0"),
        ("cat-rs", {"eps": 0}, "`eps` must be a finite number above 0, got 0"),
        ("smoothadv", {"clip_values": (1.0, 0.0)}, "`clip_values` must be (low, high) with low below high, got (1.0,"),
        ("smoothmix", {"clip_values": (0.0, float("inf"))}, "`clip_values` must be finite, got inf"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OBJECTIVES[name](**options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_statistics_are_of_training_and_attacks_leave_them(name):
    """Batch normalisation sees each clean or noisy batch once in training mode, and never what an attack asks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, CLASSES)).double()
    x, y = torch.rand(N, D, dtype=torch.float64), torch.randint(CLASSES, (N,))
    OBJECTIVES[name]()(at(model, evaluation=partial(mode, model, training=False)), x, y)
    passes = {"stability": 2, "smoothmix": 2, "cat-rs": 2}
    assert int(model[0].num_batches_tracked) == passes.get(name, 1)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("clip_values", [1.0, [0.0, 1.0], (0.0, 0.5, 1.0)])
def test_bounds_are_a_pair(clip_values):
    with pytest.raises(TypeError, match=r"`clip_values` must be a pair \(low, high\) of numbers, got"):
        OBJECTIVES["smoothadv"](clip_values=clip_values)


def test_images_at_a_bound_that_float32_rounds_are_within_it():
    x, y = torch.full((2, D), np.float32(0.7)), torch.tensor([0, 1])
    model = nn.Linear(D, CLASSES)
    loss = OBJECTIVES["smoothadv"](clip_values=(0.7, 1.0))(at(model), x, y).loss
    assert loss.isfinite()
    with pytest.raises(ValueError, match=r"x must lie within `clip_values` = \(0.8, 1.0\), got values from 0.699"):
        OBJECTIVES["smoothadv"](clip_values=(0.8, 1.0))(at(model), x, y)
