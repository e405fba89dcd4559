"""Methods that look for adversarial examples: where those lie, which labels they get, and what they cost."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_objectives import CLASSES, D, Linear, N, at, entropies, kl, make_batch
from scipy import special, stats

from art_rs_plugin.training import OBJECTIVES, cat_rs
from art_rs_plugin.training.cat_rs import bottom
from art_rs_plugin.training.smoothmix import mix


@pytest.fixture
def batch():
    return make_batch()


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
