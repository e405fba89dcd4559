"""Bad input: each gives its own error, with name, rule and value, before any vote is cast where it can."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch

SHAPE, CLASSES = (1, 4, 4), 3
X = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
Y = np.arange(6) % CLASSES


def network(classes=CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def smoothed(model=None, **options) -> RandomizedSmoothingPyTorch:
    options = {"sigma": 0.25, "n": 200, "n0": 50, "seed": 3, "nb_classes": CLASSES, "input_shape": SHAPE, **options}
    return RandomizedSmoothingPyTorch(model or network(), **options)


def with_optimizer(**options) -> RandomizedSmoothingPyTorch:
    model = network()
    return smoothed(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


def changed(x, position, value) -> np.ndarray:
    x = np.array(x, dtype=np.result_type(x, type(value)))
    x[position] = value
    return x


def refuses(error, message):
    """Expect an error whose message says exactly this somewhere."""
    return pytest.raises(error, match=re.escape(message))


USES = {
    "certify": lambda x: smoothed().certify(x),
    "predict": lambda x: smoothed().predict(x),
    "votes": lambda x: smoothed().votes(x, 20),
    "loss_gradient": lambda x: smoothed().loss_gradient(x, Y[: len(x)]),
    "class_gradient": lambda x: smoothed().class_gradient(x),
    "compute_loss": lambda x: smoothed().compute_loss(x, Y[: len(x)]),
    "fit": lambda x: with_optimizer().fit(x, Y[: len(x)]),
}
SHAPES = "`x` must have shape (m, 1, 4, 4), got "


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (changed(X, (2, 0, 1, 1), np.nan), ValueError, "`x` must be finite, got NaN or infinity in x[2]"),
        (changed(X, (4, 0, 0, 0), np.inf), ValueError, "`x` must be finite, got NaN or infinity in x[4]"),
        (torch.full((1, *SHAPE), -torch.inf), ValueError, "`x` must be finite, got NaN or infinity in x[0]"),
        (changed(X.astype(np.float64), (1, 0, 0, 0), 1e300), ValueError, "`x` must be finite"),
        (X[0], ValueError, SHAPES + "(1, 4, 4); pass x[None] for a single input"),
        (X[:, :, :3], ValueError, SHAPES + "(6, 1, 3, 4)"),
        (
            X.reshape(6, 4, 4, 1),
            ValueError,
            SHAPES + "(6, 4, 4, 1); channels come first: pass numpy.transpose(x, (0, 3, 1",
        ),
        (X.reshape(6, 16), ValueError, SHAPES + "(6, 16)"),
        (X[:, 0], ValueError, SHAPES + "(6, 4, 4)"),
        (np.zeros((0, 16), np.float32), ValueError, SHAPES + "(0, 16)"),
        ((X * 255).astype(np.uint8), TypeError, "`x` must be floating point, got torch.uint8: "),
        (torch.zeros(6, *SHAPE, dtype=torch.uint8), TypeError, "pass x / 255 for pixels from 0 to 255"),
        (np.zeros((6, *SHAPE), np.int64), TypeError, "pass x / 255 for pixels from 0 to 255"),
        (np.zeros((6, *SHAPE), bool), TypeError, "`x` must be floating point, got torch.bool"),
        (np.full((6, *SHAPE), "a"), TypeError, "`x` must be an array or tensor of numbers, got dtype <U1"),
        ([None] * 6, TypeError, "`x` must be an array or tensor of numbers, got dtype object"),
    ],
)
def test_inputs(use, x, error, message):
    with refuses(error, message):
        USES[use](x)


def test_a_single_input_of_unknown_shape_is_named_too():
    for x, got in ((np.zeros(16, np.float32), "(16,)"), (np.float32(1), "()")):
        with refuses(ValueError, f"`x` must have shape (m, ...), got {got}"):
            RandomizedSmoothingPyTorch(network(), 0.25).predict(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": 0}, ValueError, "`sigma` must be a finite number above 0, got 0"),
        ({"sigma": -1.0}, ValueError, "`sigma` must be a finite number above 0, got -1.0"),
        ({"sigma": float("nan")}, ValueError, "`sigma` must be a finite number above 0, got nan"),
        ({"sigma": float("inf")}, ValueError, "`sigma` must be a finite number above 0, got inf"),
        ({"sigma": "0.5"}, TypeError, "`sigma` must be a number, got '0.5'"),
        ({"sigma": None}, TypeError, "`sigma` must be a number, got None"),
        ({"alpha": 0.0}, ValueError, "`alpha` must be in (0, 1), got 0.0"),
        ({"alpha": 1.0}, ValueError, "`alpha` must be in (0, 1), got 1.0"),
        ({"alpha": 7.0}, ValueError, "`alpha` must be in (0, 1), got 7.0"),
        ({"alpha": float("nan")}, ValueError, "`alpha` must be in (0, 1), got nan"),
        ({"alpha": "1%"}, TypeError, "`alpha` must be a number, got '1%'"),
        # n unanimous votes bound p_A by alpha^(1/n), which passes 1/2 at n = log2(1 / alpha)
        ({"n": 9}, ValueError, "`n` must be at least 10 to ever certify at alpha = 0.001, got 9"),
        ({"n": 19, "alpha": 1e-6}, ValueError, "`n` must be at least 20 to ever certify at alpha = 1e-06, got 19"),
        ({"n": 0}, ValueError, "`n` must be at least 1, got 0"),
        ({"n": 100.0}, TypeError, "`n` must be a whole number, got 100.0"),
        ({"n0": 0}, ValueError, "`n0` must be at least 1, got 0"),
        ({"n0": "many"}, TypeError, "`n0` must be a whole number, got 'many'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"seed": 1.0}, TypeError, "`seed` must be a whole number, got 1.0"),
        ({"seed": True}, TypeError, "`seed` must be a whole number, got True"),
        ({"nb_classes": 1}, ValueError, "`nb_classes` must be at least 2, got 1"),
        ({"nb_classes": 2.5}, TypeError, "`nb_classes` must be a whole number, got 2.5"),
        ({"device_type": "tpu"}, ValueError, "`device_type` must be one of 'gpu', 'cpu', got 'tpu'"),
        ({"model": lambda x: x}, TypeError, "`model` must be a torch.nn.Module, got function"),
        ({"model": "resnet"}, TypeError, "`model` must be a torch.nn.Module, got str"),
        ({"loss": lambda z, y: z}, TypeError, "`loss` must have a `reduction`, as torch's losses do, got function"),
        ({"optimizer": "sgd"}, TypeError, "`optimizer` must be a torch.optim.Optimizer, got str"),
    ],
    ids=lambda value: "-".join(f"{k}={v!r:.12}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_options(options, error, message):
    with refuses(error, message):
        smoothed(**options)


CALLS = {
    "certify n": (lambda g: g.certify(X, n=9), ValueError, "`n` must be at least 10 to ever certify at alpha = 0.001"),
    "certify n float": (lambda g: g.certify(X, n=1e3), TypeError, "`n` must be a whole number, got 1000.0"),
    "predict n": (lambda g: g.predict(X, n=10), ValueError, "`n` must be at least 11 to ever predict at alpha = 0.001"),
    "predict no n": (lambda g: g.predict(X, n=0, is_abstain=False), ValueError, "`n` must be at least 1, got 0"),
    "votes": (lambda g: g.votes(X, -5), ValueError, "`n` must be at least 1, got -5"),
    "mode": (lambda g: g.predict(X, training_mode=True), ValueError, "`training_mode` must be False, got True"),
    "batch": (lambda g: g.certify(X, batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
    "predict batch": (lambda g: g.predict(X, batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
    "gradient batch": (
        lambda g: g.loss_gradient(X, Y, batch_size=2.5), TypeError, "`batch_size` must be a whole number, got 2.5"
    ),
    "class batch": (lambda g: g.class_gradient(X, batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
    "samples": (lambda g: g.loss_gradient(X, Y, num_samples=0), ValueError, "`num_samples` must be at least 1, got 0"),
    "class samples": (
        lambda g: g.class_gradient(X, num_samples=1.5), TypeError, "`num_samples` must be a whole number, got 1.5"
    ),
    "objective": (
        lambda g: g.loss_gradient(X, Y, objective="cw"), ValueError,
        "`objective` must be one of 'expected_loss', 'smoothadv', got 'cw'",
    ),
    "reduction": (
        lambda g: g.compute_loss(X, Y, reduction="max"), ValueError,
        "`reduction` must be one of 'none', 'mean', 'sum', got 'max'",
    ),
    "duplicate": (
        lambda g: g.certificates(X, indices=[0, 1, 2, 3, 4, 4]), ValueError,
        "`indices` must differ: inputs of one index would share their noise, got 4 twice",
    ),
    "negative": (
        lambda g: g.votes(X, 20, indices=np.arange(6) - 1), ValueError, "`indices` must be in [0, 2^63), got -1 to 4"
    ),
    "few": (
        lambda g: g.certificates(X, indices=[1, 2]), ValueError, "`indices` must be 6 whole numbers, got shape (2,)"
    ),
    "float index": (
        lambda g: g.predict(X, indices=np.arange(6.0)), ValueError,
        "`indices` must be 6 whole numbers, got shape (6,) and dtype float64",
    ),
    "class": (lambda g: g.class_gradient(X, label=3), ValueError, "`label` must hold classes from 0 to 2, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_calls(call):
    use, error, message = CALLS[call]
    with refuses(error, message):
        use(smoothed())


RANGE = "`y` must hold classes from 0 to 2, got "


@pytest.mark.parametrize("use", ["loss_gradient", "compute_loss", "fit"])
@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (changed(Y, 2, 3), ValueError, RANGE + "3 at y[2]"),
        (changed(Y, 5, -1), ValueError, RANGE + "-1 at y[5]"),
        (changed(Y[:, None], 1, 9), ValueError, RANGE + "9 at y[1]"),
        (changed(Y, 4, 1.5), ValueError, RANGE + "1.5 at y[4]"),
        (changed(Y, 0, np.nan), ValueError, RANGE + "nan at y[0]"),
        (Y[:5], ValueError, "`y` must have shape (6,) or (6, 3) for 6 inputs, got (5,)"),
        (np.eye(4)[Y], ValueError, "`y` must have shape (6,) or (6, 3) for 6 inputs, got (6, 4)"),
        (np.int64(1), ValueError, "`y` must have shape (6,) or (6, 3) for 6 inputs, got ()"),
        (changed(np.eye(3)[Y], (3, 0), 0.5), ValueError, "`y` must hold class distributions, got a row that sums to"),
        (changed(np.eye(3)[Y], (1, 0), -1.0), ValueError, "`y` must hold class distributions"),
        (np.array(["cat"] * 6), TypeError, "`y` must be an array or tensor of numbers, got dtype <U3"),
    ],
    ids=["high", "negative", "column", "fraction", "nan", "short", "wide", "scalar", "sum", "minus", "text"],
)
def test_labels(use, y, error, message):
    with refuses(error, message):
        getattr(with_optimizer(), use)(X, y)


class TestTraining:
    def test_needs_an_optimizer(self):
        for fit in (smoothed().fit, GaussianAugmentationTrainer(smoothed()).fit):
            with refuses(ValueError, "`optimizer` must be given to the estimator in order to fit, got None"):
                fit(X, Y)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
            ({"batch_size": 2.0}, TypeError, "`batch_size` must be a whole number, got 2.0"),
            ({"nb_epochs": 0}, ValueError, "`nb_epochs` must be at least 1, got 0"),
            ({"nb_epochs": "ten"}, TypeError, "`nb_epochs` must be a whole number, got 'ten'"),
            ({"drop_last": True, "batch_size": 7}, ValueError, "must be at least 7, got 6"),
        ],
        ids=["batch_size", "batch_size-float", "nb_epochs", "nb_epochs-text", "drop_last"],
    )
    def test_options(self, options, error, message):
        with refuses(error, message):
            with_optimizer().fit(X, Y, **options)
        if "drop_last" not in options:
            with refuses(error, message):
                GaussianAugmentationTrainer(with_optimizer(), **options).fit(X, Y)

    def test_soft_labels_and_evaluation_mode_are_refused(self):
        soft = np.tile(np.array([0.8, 0.1, 0.1], np.float32), (6, 1))
        with refuses(ValueError, "`y` must name one class per input to fit, got 0.8 of one at y[0]"):
            with_optimizer().fit(X, soft)
        with refuses(ValueError, "`training_mode` must be True, got False"):
            with_optimizer().fit(X, Y, training_mode=False)

    def test_no_samples(self):
        with refuses(ValueError, "must be at least 1, got 0"):
            with_optimizer().fit(X[:0], Y[:0])

    def test_what_is_no_estimator_or_generator(self):
        with refuses(TypeError, "`estimator` must be a RandomizedSmoothingPyTorch, got Sequential"):
            GaussianAugmentationTrainer(network())
        with refuses(TypeError, "`generator` must be an ART DataGenerator or a torch DataLoader, got list"):
            GaussianAugmentationTrainer(with_optimizer()).fit_generator([(X, Y)])

    def test_bad_batches_of_a_generator(self):
        for x, y, message in ((X, Y + 1, RANGE + "3 at y[2]"), (changed(X, (1, 0, 0, 0), np.nan), Y, "in x[1]")):
            loader = torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=6
            )
            with refuses(ValueError, message):
                with_optimizer().fit_generator(loader)


class TestNewcomers:
    """What somebody new gets wrong: an error, or a warning where it may be meant, that names the remedy."""

    @pytest.mark.parametrize(
        ("scale", "sigma", "message"),
        [
            (255, 0.25, "pass x / 255 for pixels from 0 to 255, or 255 times the sigma"),
            (1, 64.0, "pass sigma / 255 if it is meant for pixels from 0 to 255"),
        ],
    )
    def test_pixels_and_sigma_in_different_units(self, scale, sigma, message):
        with pytest.warns(UserWarning, match=re.escape(message)) as caught:
            RandomizedSmoothingPyTorch(network(), sigma).predict(X * scale, n=20)
        assert [warning.filename for warning in caught] == [__file__]  # at the line that is to be mended
        assert message.partition(" for")[0].partition(" if")[0] in str(caught[0].message)

    @pytest.mark.parametrize(("scale", "sigma"), [(255, 64.0), (1, 0.25), (1, 1.0), (0, 64.0), (10, 0.25)])
    def test_no_warning_where_units_may_be_the_same(self, scale, sigma, recwarn):
        RandomizedSmoothingPyTorch(network(), sigma).predict(X * scale, n=20)
        assert not recwarn.list

    @pytest.mark.parametrize("options", [{}, {"nb_classes": 2}])
    @pytest.mark.parametrize("flat", [False, True])
    def test_one_logit(self, options, flat):
        model = nn.Sequential(*network(1), nn.Flatten(0)) if flat else network(1)
        with refuses(ValueError, "give it one logit a class, such as (0, z)"):
            RandomizedSmoothingPyTorch(model, 0.25, **options).certify(X)

    def test_channels_last_for_a_model_that_wants_them_first(self):
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2))
        last = np.zeros((2, 8, 8, 3), np.float32)
        with refuses(ValueError, "if channels come last, pass numpy.transpose(x, (0, 3, 1, 2))"):
            RandomizedSmoothingPyTorch(model, 0.25).certify(last)
        with refuses(ValueError, "got (2, 8, 8, 3); channels come first: pass numpy.transpose(x, (0, 3, 1, 2))"):
            RandomizedSmoothingPyTorch(model, 0.25, input_shape=(3, 8, 8)).certify(last)
        assert len(
            RandomizedSmoothingPyTorch(model, 0.25, input_shape=(3, 8, 8)).predict(last.transpose(0, 3, 1, 2), n=20)
        )

    def test_a_gpu_that_is_not_there(self):
        with pytest.warns(UserWarning, match='pass device_type="cpu", or install a torch') as caught:
            smoothed(device_type="gpu")
        assert caught[0].filename == __file__
