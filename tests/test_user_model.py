"""The user's own things: a model that is left as it was, and ART's preprocessing and postprocessing around it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from art.defences.postprocessor import HighConfidence
from art.defences.postprocessor.postprocessor import Postprocessor
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.preprocessing.standardisation_mean_std import StandardisationMeanStd
from scipy.ndimage import median_filter
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch

SHAPE, CLASSES, SIGMA = (3, 6, 6), 4, 0.25
X = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)
Y = np.arange(5) % CLASSES
EVERY_USE = {
    "predict": lambda estimator: estimator.predict(X, n=50),
    "votes": lambda estimator: estimator.votes(torch.from_numpy(X), 50),
    "certify": lambda estimator: estimator.certify(X, n=50),
    "loss_gradient": lambda estimator: estimator.loss_gradient(X, Y),
    "base": lambda estimator: estimator.loss_gradient(X, Y, base=True),
    "smoothadv": lambda estimator: estimator.loss_gradient(torch.from_numpy(X), Y, objective="smoothadv"),
    "class_gradient": lambda estimator: estimator.class_gradient(X),
    "compute_loss": lambda estimator: estimator.compute_loss(X, Y),
}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, CLASSES)
        )


def smoothed(model=None, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(model or network(), SIGMA, **{"n": 200, "n0": 50, "seed": 3, **options})


@pytest.mark.parametrize("use", EVERY_USE)
class TestModel:
    def test_is_left_as_it_was(self, use):
        model = network().train()
        model[1].eval()  # modes need not agree
        model[0].weight.requires_grad_(False)
        model[5].weight.grad = torch.full_like(model[5].weight, 7.0)
        loss = nn.CrossEntropyLoss(reduction="sum")
        before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        random_state = torch.get_rng_state()
        estimator = smoothed(model, loss=loss)
        EVERY_USE[use](estimator)
        assert estimator.model is model
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == [False] + 5 * [True]
        assert (model[5].weight.grad == 7.0).all()
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "5.weight")
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks
        assert loss.reduction == "sum"
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_answers_in_evaluation_mode_whatever_mode_it_is_in(self, use):
        answers = [EVERY_USE[use](smoothed(network().train(training))) for training in (True, False)]
        for one, other in zip(*map(np.atleast_2d, answers), strict=True):
            assert np.array_equal(one, other)

    def test_gets_its_modes_back_when_it_fails(self, use):
        class Failing(nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls > 1:  # the first try says what the model is
                    raise RuntimeError("out of memory")
                return x

        model = network()
        model.append(Failing())
        model[1].eval()
        modes = [module.training for module in model.modules()]
        with pytest.raises(RuntimeError, match="out of memory"):
            EVERY_USE[use](smoothed(model))
        assert [module.training for module in model.modules()] == modes


class Inside(nn.Module):
    """A network that does its preprocessing itself, `gradient` being what it pretends its derivative is."""

    def __init__(self, preprocess, *, straight_through=False):
        super().__init__()
        self.preprocess, self.straight_through, self.model = preprocess, straight_through, network()

    def forward(self, x):
        if self.straight_through:
            return self.model(x + (self.preprocess(x) - x).detach())
        return self.model(self.preprocess(x))


def assert_same_classifier(given, expected, gradient=1e-5):
    """Two estimators whose votes agree, and whose losses and gradients under the same noise do."""
    assert given.certificates(X) == expected.certificates(X)
    assert np.array_equal(given.votes(X, 200), expected.votes(X, 200))
    for base in (True, False):
        for objective in ("expected_loss", "smoothadv"):
            options = {"base": base, "objective": objective, "num_samples": 20}
            assert np.allclose(given.compute_loss(X, Y, **options), expected.compute_loss(X, Y, **options), rtol=1e-5)
            one, other = (estimator.loss_gradient(X, Y, **options) for estimator in (given, expected))
            assert np.abs(other).max() > 1e-4
            assert np.abs(one - other).max() < gradient * np.abs(other).max()
    one, other = given.class_gradient(X), expected.class_gradient(X)
    assert np.abs(one - other).max() < gradient * np.abs(other).max()


MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.25), (MEAN, STD), (MEAN.reshape(3, 1, 1), STD.reshape(3, 1, 1)), (0.0, 2.0)]
)
@pytest.mark.parametrize("make", [lambda mean, std: (mean, std), StandardisationMeanStd], ids=["tuple", "numpy"])
def test_standardisation_comes_after_the_noise(mean, std, make):
    shape = (3, 1, 1) if np.size(mean) == 3 else ()
    mean_, std_ = (torch.tensor(value, dtype=torch.float32).reshape(shape) for value in (mean, std))
    inside = Inside(lambda x: (x - mean_) / std_)
    given = smoothed(preprocessing=make(mean, std))
    assert_same_classifier(given, smoothed(inside))
    # sigma keeps the unit of x: were the noise added after, it would be 1 / std times smaller in it
    assert given.certificates(X) != smoothed(Inside(lambda x: x, straight_through=True)).certificates(X)


def squeeze(x):
    return torch.round(x * 3) / 3


def smooth(x):
    arrays = [median_filter(image, size=(1, 3, 3), mode="reflect") for image in x.detach().numpy()]
    return torch.from_numpy(np.stack(arrays))


def squeezing():
    return FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=2)


def smoothing():
    return SpatialSmoothing(window_size=3, channels_first=True)


@pytest.mark.parametrize(("defence", "does"), [(squeezing, squeeze), (smoothing, smooth)])
@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), (0.5, 0.25), None])
def test_a_numpy_defence_sees_the_noise_and_is_passed_by_the_gradient(defence, does, preprocessing):
    # ART's estimate of the gradient of both defences is the identity
    mean, std = preprocessing or (0.0, 1.0)
    inside = Inside(does, straight_through=True)
    inside.model.insert(0, Scaled(mean, std))
    given = smoothed(preprocessing_defences=defence(), preprocessing=preprocessing)
    assert_same_classifier(given, smoothed(inside), gradient=1e-4)


class Scaled(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return (x - self.mean) / self.std


def test_a_defence_for_training_alone_is_applied_in_training_alone():
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda module, given: seen.append((module.training, given[0].detach())))
    defence = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=1, apply_fit=True, apply_predict=False)
    estimator = smoothed(
        model, preprocessing_defences=defence, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )  # fmt: skip
    estimator.predict(X, n=50)
    assert not any(training or torch.equal(x, x.round()) for training, x in seen)
    seen.clear()
    estimator.fit(X, Y, nb_epochs=1)
    assert {True} <= {training for training, _ in seen}
    assert all(torch.equal(x, x.round()) for _, x in seen)


UNSURE = np.concatenate([X, np.zeros((1, *SHAPE), np.float32)])


class Brightest(nn.Module):
    """Names the brightest of the first four pixels: the votes on a black image are spread evenly."""

    def forward(self, x):
        return 50 * x.flatten(1)[:, :CLASSES]


class MostLikely(Postprocessor):
    """One-hot of the row's largest entry: an argmax, which calls a zero row class 0."""

    def __call__(self, preds):
        return np.eye(CLASSES, dtype=np.float32)[preds.argmax(axis=1)]


class Halved(Postprocessor):
    def __call__(self, preds):
        return preds / 2


class TestPostprocessing:
    @pytest.mark.parametrize(
        ("defence", "scale"), [(HighConfidence(cutoff=0.5), 1), (Halved(), 0.5), ([Halved(), Halved()], 0.25)]
    )
    def test_is_applied_to_the_one_hot_rows(self, defence, scale):
        plain = smoothed(Brightest()).predict(UNSURE, n=200)
        assert plain.any(axis=1)[[0, -1]].tolist() == [True, False]
        answer = smoothed(Brightest(), postprocessing_defences=defence).predict(UNSURE, n=200)
        assert answer.dtype == np.float32
        assert np.array_equal(answer, scale * plain)

    def test_never_turns_an_abstention_into_a_class(self):
        answer = smoothed(Brightest(), postprocessing_defences=MostLikely()).predict(UNSURE, n=200)
        assert answer[-1].tolist() == [0.0] * CLASSES


class TestActivations:
    def test_are_those_of_the_layer_and_leave_no_hook_and_a_picklable_estimator(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        estimator = RandomizedSmoothingPyTorch(model, 0.25)
        for _ in range(2):
            found = estimator.get_activations(x.numpy(), "1", batch_size=2)
            np.testing.assert_allclose(found, (x.flatten(1) @ model[1].weight.T + model[1].bias).detach(), rtol=1e-5)
        assert not any(module._forward_hooks for module in model.modules())
        assert pickle.loads(pickle.dumps(estimator)).nb_classes == 2


def test_a_model_that_mixes_a_batch_in_evaluation_mode_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"must judge each input by itself.*track_running_stats=True"):
        RandomizedSmoothingPyTorch(model, 0.25).certify(np.zeros((1, 1, 2, 2), dtype=np.float32), n=50)
