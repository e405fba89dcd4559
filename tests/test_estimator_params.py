"""Parameters of the estimator: read, set, cloned; each as ART's users do it."""

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.votes import ModelOutputError

SIGMA, SHAPE, CLASSES = 0.25, (1, 4, 4), 3
X = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
Y = np.arange(6) % CLASSES


def network(classes=CLASSES, seed=0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))


def smoothed(model=None, sigma=SIGMA, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(model or network(), sigma, **{"n": 500, "n0": 50, "seed": 3, **options})


def weights(model) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def trained(steps=2, optimizer=torch.optim.SGD, **options) -> RandomizedSmoothingPyTorch:
    model = network()
    options = {"momentum": 0.9, **options} if optimizer is torch.optim.SGD else options
    estimator = smoothed(model, optimizer=optimizer(model.parameters(), lr=0.05, **options))
    estimator.fit(X, Y, batch_size=3, nb_epochs=steps)
    return estimator


def everything(estimator) -> dict:
    """Parameters, what they do to the model's inputs, and the answers that follow from them."""
    certificates = estimator.certificates(X)  # also makes known what the first x makes known
    return {
        **{name: value for name, value in estimator.get_params().items() if name != "clip_values"},
        "clip": str(estimator.clip_values),
        "operations": list(estimator.preprocessing_operations),
        "framework": estimator.all_framework_preprocessing,
        "device": estimator.device,
        "certificates": certificates,
        "gradient": estimator.loss_gradient(X, Y, base=True).tobytes(),
    }


class TestParams:
    def test_are_arts_and_the_smoothers(self):
        names = RandomizedSmoothingPyTorch.estimator_params
        assert names == [
            *PyTorchClassifier.estimator_params,
            "precision",
            "compile",
            "check_coupling",
            "sigma",
            "n0",
            "n",
            "alpha",
            "seed",
            "distribution",
            "sound",
            "randomness",
        ]
        estimator = smoothed(alpha=0.01)
        assert list(estimator.get_params()) == names
        assert {name: estimator.get_params()[name] for name in ("sigma", "n0", "n", "alpha", "seed")} == {
            "sigma": SIGMA,
            "n0": 50,
            "n": 500,
            "alpha": 0.01,
            "seed": 3,
        }

    def test_what_is_not_known_yet_is_none(self):
        params = smoothed().get_params()
        assert (params["nb_classes"], params["input_shape"]) == (CLASSES, None)

    def test_round_trip_through_the_constructor_and_through_set_params(self):
        estimator = smoothed(preprocessing=(0.5, 0.25), clip_values=(0.0, 1.0))
        before = everything(estimator)
        assert everything(RandomizedSmoothingPyTorch(**estimator.get_params())) == before
        estimator.set_params(**estimator.get_params())
        assert everything(estimator) == before

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"sigma": -1.0}, "`sigma` must be a finite number above 0, got -1.0"),
            ({"alpha": 7.0}, r"`alpha` must be in \(0, 1\), got 7.0"),
            ({"n": 9}, "`n` must be at least 10 to ever certify at alpha = 0.001, got 9"),
            ({"alpha": 1e-9, "n": 20}, "`n` must be at least 30 to ever certify at alpha = 1e-09, got 20"),
            ({"n0": 0}, "`n0` must be at least 1, got 0"),
            ({"seed": -1}, "`seed` must be at least 0, got -1"),
            ({"nb_classes": 1}, "`nb_classes` must be at least 2, got 1"),
            ({"device_type": "tpu"}, "`device_type` must be one of 'gpu', 'cpu', got 'tpu'"),
            ({"votes": 5}, "`votes`"),
            ({"clip_values": (1.0, 0.0)}, "clip_values"),
            ({"model": "a model"}, "`model` must be a torch.nn.Module, got str"),
            # the first of each pair is valid, and must not stay
            ({"sigma": 0.5, "alpha": 7.0}, "`alpha`"),
            ({"model": network(seed=1), "sigma": -1.0}, "`sigma`"),
            ({"preprocessing": (0.5, 0.25), "n": 1}, "`n`"),
            ({"preprocessing_defences": FeatureSqueezing(clip_values=(0, 1)), "seed": -1}, "`seed`"),
            ({"loss": nn.MultiMarginLoss(), "sigma": 0.0}, "`sigma`"),
            ({"nb_classes": 5, "input_shape": (16,), "n0": 0}, "`n0`"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_a_refused_value_leaves_everything_as_it_was(self, params, message):
        estimator = smoothed()
        before = everything(estimator)
        with pytest.raises((ValueError, TypeError), match=message):
            estimator.set_params(**params)
        assert everything(estimator) == before


class TestSetParams:
    """What is set takes effect as if it had been given to the constructor."""

    @pytest.mark.parametrize(
        "params",
        [
            {"sigma": 0.7},
            {"alpha": 0.05, "n": 300, "n0": 7},
            {"seed": 11},
            {"preprocessing": (0.5, 0.25)},
            {"preprocessing": None},
            {"preprocessing_defences": FeatureSqueezing(clip_values=(0, 1), bit_depth=2)},
            {"preprocessing_defences": [FeatureSqueezing(clip_values=(0, 1), bit_depth=2)], "preprocessing": (0.5, 1)},
            {"loss": nn.MultiMarginLoss()},
            {"loss": nn.MSELoss()},
        ],
        ids=lambda params: "-".join(params),
    )
    def test_like_the_constructor(self, params):
        estimator = smoothed()
        estimator.predict(X)
        estimator.set_params(**params)
        other = smoothed(**params)
        assert estimator.certificates(X) == other.certificates(X)
        assert np.array_equal(estimator.loss_gradient(X, Y, base=True), other.loss_gradient(X, Y, base=True))
        assert np.array_equal(estimator.votes(X, 100), other.votes(X, 100))

    def test_a_loss_for_probability_rows_trains_as_if_given_to_the_constructor(self):
        fits = []
        for given in ({"loss": nn.MSELoss()}, {}):
            model = network()
            estimator = smoothed(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **given)
            estimator.set_params(loss=nn.MSELoss())
            estimator.fit(X, Y, batch_size=3, nb_epochs=2)
            fits.append(weights(model))
        assert same(*fits)

    def test_model(self):
        estimator, model = smoothed(), network(seed=1)
        before = estimator.certificates(X)
        estimator.set_params(model=model)
        assert estimator.model is model
        assert estimator.certificates(X) == smoothed(network(seed=1)).certificates(X) != before
        assert np.array_equal(estimator.loss_gradient(X, Y, base=True), smoothed(model).loss_gradient(X, Y, base=True))

    def test_a_model_that_the_optimizer_does_not_hold_is_not_trained_in_silence(self):
        estimator = trained()
        estimator.set_params(model=network(seed=1))
        with pytest.raises(ValueError, match="`optimizer` must hold the model's parameters"):
            estimator.fit(X, Y, nb_epochs=1)

    def test_a_model_with_another_number_of_classes_is_inferred_anew_unless_the_user_gave_one(self):
        estimator = smoothed()
        estimator.predict(X)
        estimator.set_params(model=network(classes=5))
        assert estimator.votes(X, 20).shape == (6, 5)
        assert estimator.nb_classes == 5
        given = smoothed(nb_classes=CLASSES)
        given.set_params(model=network(classes=5))
        with pytest.raises(ModelOutputError, match="must return `nb_classes` = 3 logits, got 5"):
            given.predict(X)

    def test_nb_classes_is_held_against_the_model_and_none_infers_it(self):
        estimator = smoothed()
        estimator.predict(X)
        estimator.set_params(nb_classes=4)
        assert estimator.nb_classes == 4
        with pytest.raises(ModelOutputError, match="must return `nb_classes` = 4 logits, got 3"):
            estimator.predict(X)
        estimator.set_params(nb_classes=None)
        assert estimator.votes(X, 20).shape == (6, CLASSES)

    def test_device_type(self, monkeypatch):
        estimator = smoothed()
        estimator.set_params(device_type="cpu")
        assert (estimator.device_type, estimator.device) == ("cpu", torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.warns(UserWarning, match='`device_type` is "gpu" and torch finds none'):
            estimator.set_params(device_type="gpu")
        assert estimator.device_type == "cpu"
        with pytest.warns(UserWarning, match='`device_type` is "gpu" and torch finds none'):
            assert smoothed(device_type="gpu").certificates(X) == estimator.certificates(X)

    def test_optimizer(self):
        estimator = smoothed()
        estimator.set_params(optimizer=torch.optim.SGD(estimator.model.parameters(), lr=0.1))
        before = weights(estimator.model)
        estimator.fit(X, Y, nb_epochs=1)
        assert not same(before, weights(estimator.model))


class TestClone:
    @pytest.mark.parametrize(
        ("optimizer", "options"),
        [
            (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
            (torch.optim.Adam, {"amsgrad": True}),
            (torch.optim.AdamW, {"weight_decay": 0.1}),
            (torch.optim.RMSprop, {"centered": True}),
            (torch.optim.NAdam, {}),
            (torch.optim.Adadelta, {"rho": 0.8}),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_has_fresh_weights_and_its_own_optimizer_and_leaves_the_original_alone(self, optimizer, options):
        estimator = trained(optimizer=optimizer, **options)
        before = weights(estimator.model)
        clone = estimator.clone_for_refitting()
        assert type(clone) is RandomizedSmoothingPyTorch
        assert type(clone.optimizer) is optimizer
        assert clone.optimizer.defaults == estimator.optimizer.defaults
        assert not clone.optimizer.state
        owned = [parameter for group in clone.optimizer.param_groups for parameter in group["params"]]
        assert [id(parameter) for parameter in owned] == [id(parameter) for parameter in clone.model.parameters()]
        fresh = weights(clone.model)
        # every layer is drawn again, within the bounds of its initialisation
        assert not any(torch.equal(one, other) for one, other in zip(fresh, before, strict=True))
        assert all(values.abs().max() <= 0.25 for values in fresh)
        clone.fit(X, Y, batch_size=3, nb_epochs=1)
        assert not same(fresh, weights(clone.model))
        assert same(before, weights(estimator.model))

    def test_keeps_all_settings(self):
        defence = FeatureSqueezing(clip_values=(0, 1))
        estimator = smoothed(
            alpha=0.02, loss=nn.MultiMarginLoss(), clip_values=(0.0, 1.0), preprocessing=(0.5, 0.25),
            preprocessing_defences=defence, input_shape=SHAPE,
        )  # fmt: skip
        params, cloned = estimator.get_params(), estimator.clone_for_refitting().get_params()
        assert cloned.pop("model") is not params.pop("model")
        assert str(cloned.pop("clip_values")) == str(params.pop("clip_values"))
        assert cloned == params
        assert cloned["optimizer"] is None

    def test_works_before_anything_is_known_and_for_derived_classes(self):
        class Derived(RandomizedSmoothingPyTorch):
            pass

        clone = Derived(nn.Sequential(network(), nn.Identity()), SIGMA).clone_for_refitting()
        assert type(clone) is Derived
        assert clone.get_params()["nb_classes"] is None
        assert clone.predict(X, n=20).shape == (6, CLASSES)
