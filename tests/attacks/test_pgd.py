"""SmoothedPGD on networks whose smoothed boundary is known, and its face."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from planes import SIGMA, cosine, plane, zeros
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch, SmoothedPGD
from art_rs_plugin.estimator import LOSSES

ONES = np.ones(4, dtype=np.int64)


@pytest.mark.parametrize("objective", LOSSES)
class TestPlanes:
    def test_on_a_half_space_the_direction_is_the_normal(self, objective):
        model, estimator = plane(0.5)
        x = zeros(4)
        made = SmoothedPGD(estimator, eps=0.3, max_iter=5, num_samples=8, objective=objective).generate(x, ONES)
        assert (cosine(made - x, model.w) < -0.99).all()
        np.testing.assert_allclose(model.margin(made), 0.2, atol=1e-5)

    def test_bisection_over_eps_finds_where_p_crosses_one_half(self, objective):
        model, estimator = plane(0.4)
        x, low, high = zeros(4), np.zeros(4), np.ones(4)
        for _ in range(12):
            eps = (low + high) / 2
            made = SmoothedPGD(estimator, eps=eps, max_iter=4, num_samples=8, objective=objective).generate(x, ONES)
            crossed = model.p(made) < 0.5
            low, high = np.where(crossed, low, eps), np.where(crossed, eps, high)
        np.testing.assert_allclose(high, 0.4, rtol=0.02)

    def test_where_the_base_gradient_misleads_it_still_follows_the_smoothed_boundary(self, objective):
        # omega sigma = 40, A omega = 6: the base gradient has cosine 1 / sqrt(37) with the normal at x
        model, estimator = plane(0.5, omega=40 / SIGMA, ripple=6 / (40 / SIGMA))
        x, settings = zeros(4), {"eps": 0.4, "eps_step": 0.04, "max_iter": 10}
        made = SmoothedPGD(estimator, num_samples=64, objective=objective, **settings).generate(x, ONES)
        assert (cosine(made - x, model.w) < -0.8).all()
        base = PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 32, 32), 2, device_type="cpu")
        misled = ProjectedGradientDescent(base, norm=2, verbose=False, **settings).generate(x, np.eye(2)[ONES])
        assert (np.abs(cosine(misled - x, model.w)) < 0.5).all()


class TestBalls:
    def test_every_input_has_its_own_eps_and_zero_leaves_it(self):
        model, estimator = plane(0.5)
        x, eps = zeros(5), np.array([0.0, 0.1, 0.2, 0.4, 0.9])
        made = SmoothedPGD(estimator, eps=eps, max_iter=4, num_samples=4).generate(x, np.ones(5, dtype=int))
        np.testing.assert_allclose(np.linalg.norm((made - x).reshape(5, -1), axis=1), eps, rtol=1e-5)
        assert np.array_equal(made[0], x[0])
        np.testing.assert_allclose(model.margin(made), 0.5 - eps, atol=1e-5)

    @pytest.mark.parametrize("norm", [np.inf, "inf"])
    def test_the_largest_coordinate_may_be_what_is_bounded(self, norm):
        model, estimator = plane(0.5)
        x = zeros(2)
        made = SmoothedPGD(estimator, norm=norm, eps=0.01, max_iter=4, num_samples=4).generate(x, ONES[:2])
        way = -0.01 * model.w.sign().numpy().reshape(x[0].shape)
        np.testing.assert_allclose(made, np.stack([way, way]), atol=1e-7)

    def test_images_are_clipped_and_their_noisy_copies_are_not(self):
        seen = []
        model, estimator = plane(0.5, clip_values=(0.0, 1.0))
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().aminmax()))
        x = np.full((2, 3, 32, 32), 0.01, dtype=np.float32)
        made = SmoothedPGD(estimator, eps=3.0, max_iter=4, num_samples=4).generate(x, ONES[:2])
        assert made.min() == 0.0
        assert 0.05 < made.max() <= 1.0
        assert min(float(low) for low, _ in seen) < -0.5
        assert np.linalg.norm((made - x).reshape(2, -1), axis=1).max() <= 3.0 * (1 + 1e-6)

    def test_only_what_the_mask_allows_is_perturbed(self):
        model, estimator = plane(0.5)
        mask = np.zeros((3, 32, 32), dtype=np.float32)
        mask[1, 4:8, 4:8] = 1
        for given in (mask, torch.from_numpy(mask), 3 * mask, mask > 0):
            made = SmoothedPGD(estimator, eps=0.2, max_iter=4, num_samples=4).generate(zeros(2), ONES[:2], mask=given)
            assert (made[:, mask == 0] == 0).all()
            expected = -mask * model.w.numpy().reshape(mask.shape)
            expected *= 0.2 / np.linalg.norm(expected)
            np.testing.assert_allclose(made[0], expected, atol=1e-4)

    def test_targeted_goes_to_the_class_and_untargeted_away_from_it(self):
        model, estimator = plane(0.1)
        settings = {"eps": 0.3, "max_iter": 4, "num_samples": 4}
        away = SmoothedPGD(estimator, **settings).generate(zeros(2), ONES[:2])
        to = SmoothedPGD(estimator, targeted=True, **settings).generate(zeros(2), ONES[:2])
        np.testing.assert_allclose(model.margin(away), -0.2, atol=1e-5)
        np.testing.assert_allclose(model.margin(to), 0.4, atol=1e-5)

    def test_zero_gradients_leave_an_input_where_it_is(self):
        _, estimator = plane(0.5, scale=0.0)
        for momentum in (0.0, 0.9):
            made = SmoothedPGD(estimator, eps=0.3, momentum=momentum, num_samples=2).generate(zeros(2), ONES[:2])
            assert np.array_equal(made, zeros(2))

    def test_gradients_near_zero_keep_their_direction(self):
        # float32 probabilities of 1 - 1e-26: the loss is 0 to the last bit, its gradient is not
        model, estimator = plane(0.5, scale=120.0)
        made = SmoothedPGD(estimator, eps=0.1, max_iter=2, num_samples=2).generate(zeros(2), ONES[:2])
        assert (cosine(made, model.w) < -0.99).all()


class Valley(nn.Module):
    """One coordinate of x leads to a low peak on the left and a high one on the right."""

    def forward(self, x):
        z = x.flatten(1)[:, 0]
        left, right = 2 * torch.exp(-((z + 1) ** 2) / 0.1), 6 * torch.exp(-((z - 1) ** 2) / 0.1)
        return torch.stack([torch.zeros_like(z), 2 - left - right - 0.1 * (z - 0.3).abs()], dim=1)


def test_of_several_starts_the_one_of_highest_objective_is_kept():
    estimator = RandomizedSmoothingPyTorch(Valley(), 0.05, seed=0, input_shape=(1,), nb_classes=2, device_type="cpu")
    x, y = np.full((20, 1), -0.2, dtype=np.float32), np.ones(20, dtype=int)
    settings = {"norm": np.inf, "eps": 1.5, "eps_step": 0.1, "max_iter": 30, "num_samples": 16, "step_decay": 0.9}
    one = SmoothedPGD(estimator, num_random_init=1, **settings).generate(x, y)
    many = SmoothedPGD(estimator, num_random_init=12, **settings).generate(x, y)
    assert len(np.unique(one.round(3))) > 2, "starts are random"
    assert 0 < (np.abs(one - 1) < 0.2).sum() < 20
    assert (np.abs(many - 1) < 0.2).all()


class TestNoise:
    @staticmethod
    def calls(estimator, **options):
        """(seed, call, count) of every step's draws."""
        seen, probe = [], estimator.probe

        def spy(x, y, draws, *more, **kwargs):
            seen.append((draws.seed, draws.call, draws.count))
            return probe(x, y, draws, *more, **kwargs)

        estimator.probe = spy
        SmoothedPGD(estimator, eps=0.1, max_iter=3, num_samples=5, **options).generate(zeros(2), ONES[:2])
        return seen

    def test_is_fresh_at_every_step_or_fixed(self):
        assert self.calls(plane(0.5)[1]) == [(0, 0, 5), (0, 1, 5), (0, 2, 5)]
        assert self.calls(plane(0.5)[1], fixed_noise=True) == [(0, 0, 5)] * 3
        fresh = self.calls(plane(0.5, seed=None)[1])
        assert len({seed for seed, _, _ in fresh}) == 3

    def test_a_seed_repeats_the_run_whatever_the_batch_size(self):
        options = {"omega": 20.0, "ripple": 0.3}
        settings = {"eps": 0.3, "max_iter": 3, "num_samples": 70, "num_random_init": 2}
        first, second, small = (
            SmoothedPGD(plane(0.5, **options)[1], **settings, batch_size=rows).generate(zeros(3), ONES[:3])
            for rows in (None, None, 7)
        )
        assert np.array_equal(first, second)
        np.testing.assert_allclose(small, first, atol=1e-4)
        other = SmoothedPGD(plane(0.5, seed=1, **options)[1], **settings).generate(zeros(3), ONES[:3])
        assert np.abs(other - first).max() > 1e-3

    def test_belongs_to_an_inputs_index_whoever_comes_along(self):
        options = {"omega": 20.0, "ripple": 0.3}
        settings = {"eps": 0.3, "max_iter": 2, "num_samples": 3, "num_random_init": 1}
        _, estimator = plane(0.5, **options)
        whole = SmoothedPGD(estimator, **settings).generate(zeros(300), np.ones(300, dtype=int))
        assert estimator.gradient_calls == 3
        again = SmoothedPGD(estimator, **settings).generate(zeros(2), ONES[:2])
        assert np.abs(again - whole[:2]).max() > 1e-3, "the next attack has noise of its own"
        for index in (0, 7, 299):
            _, other = plane(0.5, **options)
            alone = SmoothedPGD(other, **settings).generate(zeros(1), ONES[:1], indices=[index])
            np.testing.assert_allclose(alone[0], whole[index], atol=1e-5)
        with pytest.raises(ValueError, match="`indices` must differ"):
            SmoothedPGD(estimator, eps=0.1).generate(zeros(2), ONES[:2], indices=[4, 4])

    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_no_forward_pass_has_more_rows_than_asked_for(self, batch_size):
        model, estimator = plane(0.5)
        estimator.predict(zeros(1), n=20)  # the first call also tries the model
        rows = []
        model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        SmoothedPGD(estimator, eps=0.1, max_iter=1, num_samples=70, batch_size=batch_size).generate(zeros(3), ONES[:3])
        assert max(rows) <= batch_size
        assert sum(rows) == 210


class TestFace:
    def test_is_an_art_attack_with_params(self):
        estimator = plane(0.5)[1]
        attack = SmoothedPGD(estimator, eps=0.3)
        assert set(attack.attack_params) == {
            "norm", "eps", "eps_step", "max_iter", "num_samples", "objective", "fixed_noise", "targeted",
            "num_random_init", "momentum", "step_decay", "batch_size", "verbose",
        }  # fmt: skip
        assert all(hasattr(attack, name) for name in attack.attack_params)
        attack.set_params(eps=0.1, targeted=True)
        assert (attack.eps, attack.targeted) == (0.1, True)
        assert "eps=0.1" in repr(attack)
        with pytest.raises(EstimatorError):
            SmoothedPGD(PyTorchClassifier(nn.Linear(3, 2), nn.CrossEntropyLoss(), (3,), 2, device_type="cpu"), eps=0.1)

    def test_a_refused_setting_changes_nothing(self):
        attack = SmoothedPGD(plane(0.5)[1], eps=0.3)
        with pytest.raises(ValueError, match="`eps` must be a finite number of at least 0"):
            attack.set_params(max_iter=5, eps=-1.0)
        assert (attack.eps, attack.max_iter) == (0.3, 20)

    def test_takes_arrays_and_tensors_index_and_one_hot_labels(self):
        expected = SmoothedPGD(plane(0.5)[1], eps=0.3, num_samples=2).generate(zeros(3), ONES[:3])
        assert (expected.dtype, type(expected)) == (np.float32, np.ndarray)
        for y in (np.eye(2)[ONES[:3]], torch.ones(3, dtype=torch.int64), torch.eye(2)[ONES[:3]]):
            made = SmoothedPGD(plane(0.5)[1], eps=0.3, num_samples=2).generate(torch.zeros(3, 3, 32, 32), y)
            assert isinstance(made, torch.Tensor)
            assert np.array_equal(made.numpy(), expected)
        without = SmoothedPGD(plane(0.5)[1], eps=0.3, num_samples=2).generate(zeros(3))  # g names class 1 here
        assert np.array_equal(without, expected)

    def test_nothing_makes_nothing(self):
        made = SmoothedPGD(plane(0.5)[1], eps=np.zeros(0)).generate(zeros(0), np.zeros(0, dtype=int))
        assert (made.shape, made.dtype) == ((0, 3, 32, 32), np.float32)

    def test_more_inputs_than_are_attacked_at_once(self):
        model, estimator = plane(0.5)
        eps = np.linspace(0, 0.4, 600)
        made = SmoothedPGD(estimator, eps=eps, max_iter=2, num_samples=1, verbose=True).generate(
            zeros(600), np.ones(600, dtype=int)
        )
        np.testing.assert_allclose(model.margin(made), 0.5 - eps, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"norm": 1}, "`norm` must be one of 2, inf, got 1"),
            ({"eps": -0.1}, "`eps` must be a finite number of at least 0, or one for each input, got -0.1"),
            ({"eps": np.array([0.1, np.nan])}, "`eps` must be a finite number of at least 0.* got .*nan"),
            ({"eps": np.ones((2, 2))}, r"`eps` must be .* one for each input, got shape \(2, 2\)"),
            ({"eps_step": 0.0}, "`eps_step` must be a finite number above 0"),
            ({"max_iter": 0}, "`max_iter` must be at least 1, got 0"),
            ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
            ({"objective": "margin"}, "`objective` must be one of 'expected_loss', 'smoothadv', got 'margin'"),
            ({"momentum": -1.0}, "`momentum` must be a finite number of at least 0, got -1.0"),
            ({"step_decay": 1.5}, r"`step_decay` must be in \(0, 1\], got 1.5"),
            ({"num_random_init": -1}, "`num_random_init` must be at least 0, got -1"),
            ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
            ({"targeted": "yes"}, "`targeted` must be one of True, False, got 'yes'"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            SmoothedPGD(plane(0.5)[1], **{"eps": 0.1, **options})

    def test_bad_calls(self):
        estimator = plane(0.5, clip_values=(0.0, 1.0))[1]
        attack = SmoothedPGD(estimator, eps=np.array([0.1, 0.2]))
        with pytest.raises(ValueError, match="`eps` must be one number, or one for each of the 3 inputs, got 2"):
            attack.generate(zeros(3), ONES[:3])
        with pytest.raises(ValueError, match=r"`x` must lie within .* \[0. 1.\], got values from -1 to -1 in x\[1\]"):
            attack.generate(np.stack([zeros(1)[0], zeros(1)[0] - 1]), ONES[:2])
        with pytest.raises(ValueError, match=r"`mask` must broadcast to `x` of shape \(2, 3, 32, 32\), got \(5,\)"):
            attack.generate(zeros(2), ONES[:2], mask=np.ones(5))
        with pytest.raises(ValueError, match=r"`y` must name one class per input to attack, got 0\.6 of one"):
            attack.generate(zeros(2), np.full((2, 2), [0.4, 0.6]))
        attack.set_params(targeted=True)
        with pytest.raises(ValueError, match="`y` must be given to a targeted attack"):
            attack.generate(zeros(2))
