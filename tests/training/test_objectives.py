"""Every training method against formulas written down once more, in NumPy and SciPy."""

import re
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from art_rs_plugin.noise import Gaussian, Purpose, stream
from art_rs_plugin.training import OBJECTIVES, CatRS, Step, cat_rs, smoothadv, smoothmix
from art_rs_plugin.training.cat_rs import bottom
from art_rs_plugin.training.smoothmix import mix
from art_rs_plugin.votes import mode

SIGMA, N, D, CLASSES = 0.5, 12, 6, 4


class Linear:
    """x -> W x + b in float64, and the points at which it was asked."""

    def __init__(self, scale=1.0):
        generator = torch.Generator().manual_seed(3)
        self.weight = scale * torch.randn(CLASSES, D, generator=generator, dtype=torch.float64)
        self.asked, self.evaluating, self.modes = [], False, []

    def __call__(self, x):
        self.asked.append(x.detach().clone())
        self.modes.append(self.evaluating)
        return x @ self.weight.T

    @contextmanager
    def evaluation(self):
        self.evaluating = True
        yield
        self.evaluating = False


def at(model, *, epoch=100, seed=1, evaluation=None):
    """A step of training, with the same random numbers whenever it is made."""
    chosen = evaluation or getattr(model, "evaluation", nullcontext)
    return Step(model, chosen, Gaussian(SIGMA), stream(seed, Purpose.TRAINING, 1), epoch)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(N, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def drawn(model, x, count):
    """The noise of such a step, and the logits of the copies (n, count, classes)."""
    noise = at(model).draw(x, count).numpy()
    return noise, (x.numpy()[:, None] + noise) @ model.weight.numpy().T


def entropies(logits, y):
    """Cross-entropies (n, count)."""
    return -np.take_along_axis(special.log_softmax(logits, axis=2), y.numpy()[:, None, None], 2)[..., 0]


def kl(target, logits):
    """KL(target || softmax) over the last axis, the textbook's sum."""
    return special.rel_entr(target, special.softmax(logits, axis=-1)).sum(-1)


# what each method draws, and the options that leave nothing of it but Gaussian augmentation
WITHOUT_WEIGHT = {
    "gaussian": {},
    "stability": {"weight": 0.0},
    "smoothadv": {"eps": 0.0, "draws": 3},
    "macer": {"weight": 0.0, "draws": 1},
    "consistency": {"weight": 0.0, "entropy": 0.0, "draws": 3},
    "smoothmix": {"weight": 0.0, "draws": 3},
    "cat-rs": {"weight": 0.0, "draws": 1},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_weight_a_method_is_gaussian_augmentation(name, batch):
    x, y = batch
    model, objective = Linear(), OBJECTIVES[name](**WITHOUT_WEIGHT[name])
    loss, correct = objective(at(model), x, y)
    _, logits = drawn(model, x, WITHOUT_WEIGHT[name].get("draws", 1))
    assert loss.item() == pytest.approx(entropies(logits, y).mean(), rel=1e-12)
    assert correct.item() == pytest.approx((logits.argmax(2) == y.numpy()[:, None]).mean(1).sum(), rel=1e-6)
    assert len(model.asked) == 1


@pytest.mark.parametrize("name", OBJECTIVES)
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


@pytest.mark.parametrize("name", OBJECTIVES)
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


class TestSmoothAdv:
    def test_perturbs_as_far_as_it_may_and_accumulates(self, batch):
        """On a linear f with two classes every gradient has one direction: 10 steps of 2 eps / 10 lead to the bound."""
        x, y = batch
        model = Linear()
        model.weight = torch.stack([model.weight[0], -model.weight[0]])
        y = y % 2
        OBJECTIVES["smoothadv"](eps=0.4, steps=10, draws=2)(at(model), x, y)
        *looks, last = (asked.view(N, 2, D) for asked in model.asked)
        assert len(looks) == 10
        away = -model.weight[y] / model.weight[0].norm()
        for number, asked in enumerate([*looks, last]):
            moved = (asked - looks[0]).numpy()
            expected = min(0.4, 0.08 * number) * away.unsqueeze(1).expand(-1, 2, -1)
            assert moved == pytest.approx(expected.numpy(), abs=1e-9)
        noise = (looks[0] - x.unsqueeze(1)).numpy()
        assert noise == pytest.approx(at(model).draw(x, 2).numpy())  # the draws that it trains on as well

    def test_looks_at_the_model_as_it_votes(self, batch):
        model = Linear()
        OBJECTIVES["smoothadv"](steps=3)(at(model), *batch)
        assert model.modes == [True, True, True, False]

    @pytest.mark.parametrize(("epoch", "share"), [(1, 0.1), (5, 0.5), (10, 1.0), (60, 1.0)])
    @pytest.mark.parametrize("attack", ["pgd", "ddn"])
    def test_warms_up(self, epoch, share, attack, batch):
        x, y = batch
        model = Linear()
        OBJECTIVES["smoothadv"](eps=0.5, steps=20, draws=1, warmup=10, attack=attack)(at(model, epoch=epoch), x, y)
        first, last = ((asked - model.asked[0]).norm(dim=1) for asked in (model.asked[1], model.asked[-1]))
        assert (last <= 0.5 * share * (1 + 1e-9)).all()
        if attack == "pgd":
            assert last.max() > 0.49 * share
        else:  # a norm of its own, which begins at the largest
            assert set((first / (0.5 * share)).round(decimals=9).tolist()) <= {0.95, 1.0}

    def test_loss_is_the_mean_over_copies_of_what_the_attack_made(self, batch):
        x, y = batch
        model = Linear()
        loss = OBJECTIVES["smoothadv"](draws=3)(at(model), x, y).loss
        logits = (model.asked[-1] @ model.weight.T).view(N, 3, CLASSES).numpy()
        assert loss.item() == pytest.approx(entropies(logits, y).mean(), rel=1e-12)
        attacked_less = OBJECTIVES["smoothadv"](draws=3, eps=1e-9)(at(model), x, y).loss
        assert loss > attacked_less + 0.5

    def test_trains_on_one_copy_if_asked(self, batch):
        model = Linear()
        OBJECTIVES["smoothadv"](draws=3, all_draws=False)(at(model), *batch)
        assert [len(asked) for asked in model.asked] == [3 * N] * 10 + [N]

    def test_clips_the_image_and_not_its_noisy_copies(self, batch):
        x, y = batch
        model = Linear()
        OBJECTIVES["smoothadv"](eps=5.0, draws=2, clip_values=(0.0, 1.0))(at(model), x, y)
        noise = at(model).draw(x, 2)
        image = model.asked[-1].view(N, 2, D) - noise
        assert image.min() >= -1e-9
        assert image.max() <= 1 + 1e-9
        assert model.asked[-1].max() > 1.5


class TestSmoothMix:
    def test_mixes_halfway_at_most_and_fades_labels_as_far(self):
        x, x_adv = torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 8.0)
        share = torch.tensor([0.0, 0.25, 0.5])
        probabilities = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]])
        mixed, label = mix(x, x_adv, probabilities, share)
        assert mixed[:, 0, 0, 0].tolist() == [0.0, 2.0, 4.0]
        assert label.tolist() == pytest.approx(np.array([[1.0, 0.0], [0.575, 0.425], [0.25, 0.75]]))

    def test_is_the_divergence_along_the_path(self, batch):
        x, y = batch
        model = Linear(scale=0.4)
        objective = OBJECTIVES["smoothmix"](weight=2.0, steps=3, step_size=0.7, draws=2, warmup=10)
        loss = objective(at(model, epoch=5), x, y).loss
        *looks, clean, mixed = (asked.view(N, 2, D) for asked in model.asked)
        steps = [(after - before)[:, 0].norm(dim=1) for before, after in pairwise(looks)]
        assert torch.stack(steps).numpy() == pytest.approx(0.7)  # of full length, and never back into a ball
        logits = (clean @ model.weight.T).numpy()
        mean = special.softmax(logits, axis=2).mean(1)
        # the generator's next numbers after the noise
        step = at(model)
        step.draw(x, 2)
        share = x.new_empty(N).uniform_(0, 0.5, generator=step.generator).numpy()[:, None]
        label = (1 - share) * mean + share / CLASSES
        paid = kl(label[:, None], (mixed @ model.weight.T).numpy()).mean(1) * (mean.argmax(1) == y.numpy())
        assert 0 < (paid > 0).sum() < N
        assert loss.item() == pytest.approx(entropies(logits, y).mean() + 2.0 * 0.5 * paid.mean(), rel=1e-6)
        along = (mixed - clean)[:, 0].numpy() / share
        ahead = (looks[2] - looks[0])[:, 0].numpy()  # two of three steps; a linear f bends the path but little
        cosine = (along * ahead).sum(1) / np.linalg.norm(along, axis=1) / np.linalg.norm(ahead, axis=1)
        assert cosine.min() > 0.8

    def test_trains_on_the_first_step_if_asked_and_mixes_with_what_begins_at_the_image(self, batch):
        x, y = batch
        model = Linear()
        OBJECTIVES["smoothmix"](draws=1, steps=4, one_step=True, step_size=0.5)(at(model, epoch=4), x, y)
        *path, once, clean, mixed = model.asked
        assert len(path) == 4
        assert torch.equal(path[0], once)  # both begin at the image
        assert (path[1] - path[0]).norm(dim=1).numpy() == pytest.approx(0.5)
        first = clean - path[0]
        assert first.numpy() == pytest.approx(0.4 * (path[1] - path[0]).numpy())  # 4 of 10 epochs of warming up
        assert ((mixed - clean).norm(dim=1) > 0).all()


class TestCatRS:
    def test_bottom_is_the_sum_of_the_least(self):
        losses = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.25, 8.0, 9.0]])
        assert bottom(losses, torch.tensor([1, 4, 2])).tolist() == pytest.approx([1 / 4, 4 / 4, 0.75 / 4])

    def test_is_gentle_where_unsure_and_worst_case_where_sure(self):
        """A sample that is always right, with K = m and the worst copy, and one that is always wrong, with K = 1."""
        x = torch.tensor([[30.0, 0.0], [0.0, 30.0]], dtype=torch.float64)
        model = lambda x: 0.1 * x  # noqa: E731
        y = torch.tensor([0, 0])
        loss, correct = OBJECTIVES["cat-rs"](weight=3.0, draws=4, eps=0.5)(at(model), x, y)
        assert correct.item() == 1
        noise = at(model).draw(x, 4).numpy()
        entropy = entropies(0.1 * (x.numpy()[:, None] + noise), y)
        low = [entropy[0].mean(), entropy[1].min() / 4]
        # within .5 of a copy the cross-entropy grows by .1 |gradient| .5 at most, and the worst copy by something
        worst = (loss.item() * 2 - sum(low)) / 3.0
        assert entropy[0].max() < worst < entropy[0].max() + 0.1 * np.sqrt(2) * 0.5

    def test_keeps_as_many_losses_as_a_binomial_says(self, monkeypatch):
        """Of 4 copies that are right with probability p: K is Binomial(4, share of the right ones), at least 1."""
        kept = []
        monkeypatch.setattr(cat_rs, "bottom", lambda losses, k: kept.append(k) or losses.mean(1))
        x = torch.zeros(20_000, 1, dtype=torch.float64)
        right = []

        def model(points):
            logits = torch.cat([points, -points], 1)
            right.append((points > 0).double())
            return logits.requires_grad_(True)

        OBJECTIVES["cat-rs"](weight=0.0)(at(model), x, torch.zeros(20_000, dtype=torch.int64))
        of_four = right[0].view(-1, 4).sum(1)
        for number in range(5):
            mine = kept[0][of_four == number].numpy()
            expected = stats.binom.pmf(np.arange(5), 4, number / 4)
            expected = np.array([expected[0] + expected[1], *expected[2:]])
            seen = np.array([(mine == k).sum() for k in (1, 2, 3, 4)])
            assert seen.sum() == len(mine) > 500
            possible = expected > 0
            assert seen[~possible].sum() == 0
            assert stats.chisquare(seen[possible], len(mine) * expected[possible]).pvalue > 1e-6 or possible.sum() == 1

    def test_the_first_step_of_the_search_is_of_its_length(self):
        """In 400 dimensions restoring the moments changes next to nothing."""
        asked = []
        weight = torch.randn(CLASSES, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def model(points):
            asked.append(points.detach())
            return 1e-3 * points @ weight.T

        x = torch.zeros(5, 400, dtype=torch.float64)
        OBJECTIVES["cat-rs"](eps=0.6, steps=4, draws=2)(at(model), x, torch.zeros(5, dtype=torch.int64))
        assert (asked[2] - asked[1]).norm(dim=1).numpy() == pytest.approx(2 * 0.6 / 4, rel=0.02)
        assert (asked[-1] - asked[1]).norm(dim=1).numpy() == pytest.approx(0.6, rel=0.02)

    def test_attacked_noise_keeps_its_moments_and_stays_near(self, batch):
        x, y = batch
        model = Linear(scale=0.01)  # hardly a gradient to follow, and a sign of it that never changes
        OBJECTIVES["cat-rs"](eps=0.3, steps=4, draws=2)(at(model), x, torch.zeros_like(y))
        first, *_, last = model.asked
        before, after = ((asked - x.repeat_interleave(2, 0)).numpy() for asked in (first, last))
        assert model.modes == [False, True, True, True, True, False]
        assert after.mean(1) == pytest.approx(before.mean(1))
        assert after.std(1) == pytest.approx(before.std(1))
        assert np.linalg.norm(after - before, axis=1).min() > 0.05
        assert np.linalg.norm(after - before, axis=1).max() < 0.4

    def test_asks_its_teacher_for_labels(self, batch):
        x, y = batch
        asked = []

        def teacher(images):
            asked.append(images)
            return torch.full((len(images), CLASSES), 1 / CLASSES)

        model = lambda x: torch.zeros(len(x), CLASSES, dtype=x.dtype, requires_grad=True) + 0 * x.sum(1, keepdim=True)  # noqa: E731
        loss = OBJECTIVES["cat-rs"](weight=9.0, teacher=teacher)(at(model), x, torch.zeros_like(y)).loss
        assert torch.equal(asked[0], x)
        assert loss.item() == pytest.approx(np.log(CLASSES), rel=1e-9)  # uniform labels, uniform answers: no divergence


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
    passes = {"gaussian": 1, "stability": 2, "smoothadv": 1, "macer": 1, "consistency": 1, "smoothmix": 2, "cat-rs": 2}
    assert int(model[0].num_batches_tracked) == passes[name]
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
