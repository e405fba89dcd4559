"""Compilation: once for all workers and calls, the model's own and made anew when that changes; refused, or said."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import Looks, RandomizedSmoothingPyTorch, arithmetic
from art_rs_plugin.votes import ModelOutputError

SHAPE = (3, 8, 8)
X = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
Y = np.array([0, 1, 2, 0])


def network() -> nn.Sequential:
    """What the compiler folds and fuses: a convolution, its normalisation and activation."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    for parameter in (model[0].weight, model[4].weight):
        nn.init.kaiming_normal_(parameter, generator=generator)
    nn.init.zeros_(model[4].bias)
    return model.eval()


def smoothed(model=None, **options):
    options = {"n0": 20, "n": 400, "alpha": 0.01, "seed": 4, "input_shape": SHAPE, **options}
    return RandomizedSmoothingPyTorch(network() if model is None else model, sigma=0.4, **options)


class TestCompile:
    @pytest.mark.parametrize("votes", [400, pytest.param(5_000, marks=pytest.mark.slow)])
    def test_agrees_with_the_model_in_all_but_few_votes(self, published, votes):
        model, x = published
        options = {"n0": 50, "n": 500, "seed": 3, "input_shape": x.shape[1:]}
        eager = RandomizedSmoothingPyTorch(model, 0.25, compile=False, **options).votes(x, votes)
        compiled = RandomizedSmoothingPyTorch(model, 0.25, compile=True, **options).votes(x, votes)
        assert (eager > votes / 20).sum() >= 2 * len(x), "the votes are split"
        assert np.abs(compiled - eager).sum() / 2 <= 1e-4 * len(x) * votes

    def test_is_compiled_once_for_all_workers_batch_sizes_and_calls(self, published, monkeypatch):
        built = []
        once = arithmetic.Program._once
        monkeypatch.setattr(
            arithmetic.Program, "_once", lambda self, *args: built.append(torch.get_num_threads()) or once(self, *args)
        )
        model, x = published
        estimator = RandomizedSmoothingPyTorch(model, 0.25, n0=50, n=500, seed=3, compile=True)
        threads = torch.get_num_threads()
        try:
            made = []
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                made += [estimator.votes(x, 70), estimator.votes(x, 70, batch_size=7)]
            made += [estimator.votes(x[i : i + 1], 70, indices=[i])[0] for i in range(len(x))]
        finally:
            torch.set_num_threads(threads)
        assert built == [1]
        assert all(np.array_equal(counts, made[0]) for counts in made[:6])
        assert np.array_equal(np.stack(made[6:]), made[0])

    def test_more_models_than_torch_compiles_of_one_function(self):
        config = torch._dynamo.config
        limit = config.recompile_limit if hasattr(config, "recompile_limit") else config.cache_size_limit  # torch 2.6
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        for _ in range(limit + 2):
            estimator = smoothed(copy.deepcopy(model), compile=True)
            assert estimator.arithmetic == "fp32, compiled"

    def test_weights_that_change_are_seen(self):
        model = network()
        estimator = smoothed(model, compile=True)
        for change in (
            lambda: model[4].weight.data.neg_(),  # what leaves no trace on the parameter
            lambda: model[1].running_mean.add_(0.5),
            lambda: model.load_state_dict({name: 2 * value for name, value in network().state_dict().items()}),
            lambda: setattr(model, "2", nn.Tanh()),
        ):
            change()
            assert np.array_equal(estimator.votes(X, 400), smoothed(model, compile=False).votes(X, 400))

    def test_set_params_makes_what_it_cannot_see_anew_and_keeps_it_for_the_rest(self):
        class Switch(nn.Module):
            def __init__(self):
                super().__init__()
                self.network, self.sign = network(), 1.0

            def forward(self, x):
                return self.sign * self.network(x)

        model = Switch()
        estimator = smoothed(model, compile=True)
        before = estimator.votes(X, 300)
        program = estimator._arithmetic.program
        estimator.set_params(seed=4, sigma=0.4)
        assert estimator._arithmetic.program is program
        model.sign = -1.0
        estimator.set_params(model=model)
        after = estimator.votes(X, 300)
        assert not np.array_equal(after, before)
        assert np.array_equal(after, smoothed(model, compile=False).votes(X, 300))

    def test_torch_settings_that_change_are_seen(self):
        estimator = smoothed(compile=True)
        expected = estimator.votes(X, 300)
        before = torch.get_float32_matmul_precision()
        try:
            for setting in ("high", before):
                torch.set_float32_matmul_precision(setting)
                assert np.array_equal(estimator.votes(X, 300), expected)
            torch.use_deterministic_algorithms(True)
            assert np.array_equal(estimator.votes(X, 300), expected)
        finally:
            torch.set_float32_matmul_precision(before)
            torch.use_deterministic_algorithms(False)
        assert np.array_equal(estimator.votes(X, 300), expected)

    def test_torch_may_forget_what_it_compiled(self):
        estimator = smoothed(compile=True)
        expected = estimator.votes(X, 300)
        torch.compiler.reset()
        assert np.array_equal(estimator.votes(X, 300), expected)
        assert estimator.arithmetic == "fp32, compiled"

    def test_is_looked_at_once_a_call(self, monkeypatch):
        estimator = smoothed(compile=True)
        estimator.certify(X)
        looks = []
        fits = arithmetic.Program.fits
        monkeypatch.setattr(arithmetic.Program, "fits", lambda self, model: looks.append(1) or fits(self, model))
        estimator.certify(X, budget=Looks(radii=(0.1,), n_max=2_000))
        assert len(looks) == 1

    def test_fitting_is_seen(self):
        model = network()
        estimator = smoothed(model, compile=True, optimizer=torch.optim.SGD(model.parameters(), 0.5))
        before = estimator.votes(X, 400)
        estimator.fit(X, Y, nb_epochs=2)
        after = estimator.votes(X, 400)
        assert not np.array_equal(before, after)
        assert np.array_equal(after, smoothed(model, compile=False).votes(X, 400))

    def test_the_users_model_is_left_alone(self):
        model = network().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        smoothed(model, compile=True).certify(X)
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
            assert value.stride() == before[name].stride()

    def test_preprocessing_comes_before_it(self):
        options = {"preprocessing": (np.float32(0.5), np.float32(0.25))}
        compiled = smoothed(compile=True, **options)
        assert np.array_equal(compiled.votes(X, 400), smoothed(compile=False, **options).votes(X, 400))
        assert not np.array_equal(compiled.votes(X, 400), smoothed(compile=False).votes(X, 400))

    @pytest.mark.parametrize("shape", [(20,), (1, 8, 8), (3, 9)])
    def test_inputs_of_any_shape(self, shape):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
        x = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
        options = {"input_shape": shape}
        compiled = smoothed(model, compile=True, **options).votes(x, 300)
        assert np.array_equal(compiled, smoothed(model, compile=False, **options).votes(x, 300))

    @pytest.mark.parametrize("compile", [1, 0, "yes", None])
    def test_another_value_is_refused(self, compile):
        with pytest.raises(ValueError, match=r"`compile` must be one of 'auto', True, False, got"):
            smoothed(compile=compile)


class Breaks(nn.Module):
    """A network that torch cannot compile as a whole: what it does depends on values."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        logits = self.network(x)
        return logits if float(logits.sum()) > -1e9 else -logits


class TestAuto:
    def test_compiles_where_an_inputs_votes_are_work_enough(self, published):
        model, x = published
        shape = {"input_shape": x.shape[1:]}
        assert RandomizedSmoothingPyTorch(model, 0.25, **shape).arithmetic == "fp32, compiled"
        assert RandomizedSmoothingPyTorch(model, 0.25, n=1_000, **shape).arithmetic == "fp32"
        assert smoothed(n=100_000).arithmetic == "fp32"

    def test_says_when_it_cannot(self, monkeypatch):
        monkeypatch.setattr(arithmetic, "_WORTH_COMPILING", {"cpu": 0})
        estimator = smoothed(Breaks())
        with pytest.warns(UserWarning, match=r"cannot be compiled: .*runs eagerly"):
            assert estimator.arithmetic == "fp32"
        assert np.array_equal(estimator.votes(X, 300), smoothed(compile=False).votes(X, 300))

    def test_says_when_there_is_no_compiler(self, monkeypatch):
        monkeypatch.setattr(arithmetic, "_WORTH_COMPILING", {"cpu": 0})
        monkeypatch.setenv("PATH", "")
        with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
            assert smoothed().arithmetic == "fp32"


class TestRefusals:
    def test_a_model_that_is_not_finite(self):
        model = network()
        model[4].weight.data[0, 0] = torch.nan
        with pytest.raises(ModelOutputError, match="must return finite logits"):
            smoothed(model, compile=True).votes(X, 100)

    def test_a_model_that_cannot_be_compiled(self):
        with pytest.raises(RuntimeError, match=r"cannot be compiled: .*pass compile=False"):
            smoothed(Breaks(), compile=True).votes(X, 100)

    def test_a_compiled_model_that_differs(self, monkeypatch):
        compiled = arithmetic.Program._compile
        monkeypatch.setattr(arithmetic.Program, "_compile", lambda self, x: 1.01 * compiled(self, x))
        with pytest.raises(RuntimeError, match=r"compiled logits differ from its own by 0\.0"):
            smoothed(compile=True).votes(X, 100)
