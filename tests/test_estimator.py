"""The estimator as a user of ART meets it: what it infers, accepts and returns."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import DeepFool, HopSkipJump, ProjectedGradientDescent, SquareAttack
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification import ClassGradientsMixin, ClassifierMixin, PyTorchClassifier
from art.estimators.pytorch import PyTorchEstimator
from scipy.stats import beta, norm
from torch import nn

from art_rs_plugin import ABSTAIN, RandomizedSmoothingPyTorch
from art_rs_plugin.votes import ModelOutputError

SIGMA, SHAPE, CLASSES = 0.25, (1, 4, 4), 3


def brightest() -> nn.Sequential:
    """Names the brightest of the first three pixels: g does too, and its boundary is where two of them are equal."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(16)[:CLASSES])
    return model


class Silent(nn.Module):
    """The same classifier, of which no layer tells the number of classes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16)[:CLASSES])

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def images(labels, margin=1.0) -> np.ndarray:
    """One image a label, whose pixel of that number is brighter by `margin` than the rest."""
    x = np.zeros((len(labels), *SHAPE), dtype=np.float32)
    x.reshape(len(labels), -1)[np.arange(len(labels)), labels] = margin
    return x


def smoothed(model=None, **options) -> RandomizedSmoothingPyTorch:
    return RandomizedSmoothingPyTorch(model or brightest(), SIGMA, **{"n": 1_000, "seed": 3, **options})


LABELS = np.array([2, 0, 1, 1, 0])
X = images(LABELS)


@pytest.mark.parametrize("model", [brightest, Silent])
def test_works_with_a_model_and_sigma_alone(model):
    estimator = RandomizedSmoothingPyTorch(model(), SIGMA)
    assert np.array_equal(estimator.predict(X, n=100), np.eye(CLASSES, dtype=np.float32)[LABELS])
    prediction, radius = estimator.certify(X, n=1_000)
    assert np.array_equal(prediction, LABELS)
    # two pixels become equal at distance margin / sqrt 2; at least .9 of 1000 votes are right beyond any doubt
    assert (radius < 1 / np.sqrt(2)).all()
    assert (radius > SIGMA * norm.ppf(0.9)).all()
    assert isinstance(estimator.loss, nn.CrossEntropyLoss)
    assert estimator.optimizer is None


def test_a_certificate_holds_what_its_radius_follows_from():
    estimator = smoothed(n0=50, alpha=0.01)
    for index, certificate in enumerate(estimator.certificates(X, n=700)):
        right = certificate.counts[LABELS[index]]
        assert sum(certificate.counts) == certificate.n == 700
        assert (certificate.index, certificate.n0, certificate.alpha, certificate.seed) == (index, 50, 0.01, 3)
        assert (certificate.norm, certificate.certifies) == (2, "g")
        assert certificate.p_lower == pytest.approx(beta.ppf(0.01, right, 700 - right + 1), rel=1e-9)
        assert certificate.radius == pytest.approx(SIGMA * norm.ppf(certificate.p_lower), rel=1e-6)


def test_answers_have_arts_types_and_shapes_and_abstentions_are_no_class():
    # three equal pixels: every class has probability 1/3, which no votes can certify
    x = np.concatenate([X, np.zeros((1, *SHAPE), np.float32)])
    estimator = smoothed()
    prediction, radius = estimator.certify(x)
    assert (prediction.dtype, prediction.shape) == (np.int64, (6,))
    assert (radius.dtype, radius.shape) == (np.float64, (6,))
    assert (prediction[-1], radius[-1]) == (ABSTAIN, 0.0) == (-1, 0.0)
    assert isinstance(radius[-1], np.float64)
    rows = estimator.predict(x)
    assert (rows.dtype, rows.shape) == (np.float32, (6, CLASSES))
    assert rows[-1].tolist() == [0.0, 0.0, 0.0]
    votes = estimator.votes(x, 1_000)
    assert (votes.dtype, votes.shape) == (np.int64, (6, CLASSES))
    assert (votes.sum(axis=1) == 1_000).all()
    forced = estimator.predict(x, is_abstain=False)
    assert np.array_equal(forced, np.eye(CLASSES)[votes.argmax(axis=1)])


def test_empty_input_gives_empty_answers():
    estimator, x = smoothed(), np.zeros((0, *SHAPE), np.float32)
    prediction, radius = estimator.certify(x)
    assert (prediction.dtype, prediction.shape, radius.dtype, radius.shape) == (np.int64, (0,), np.float64, (0,))
    assert estimator.certificates(x, indices=[]) == []
    assert estimator.votes(x, 100).shape == (0, CLASSES)
    assert (estimator.predict(x).dtype, estimator.predict(x).shape) == (np.float32, (0, CLASSES))


@pytest.mark.parametrize("objective", ["expected_loss", "smoothadv"])
def test_empty_input_gives_empty_gradients(objective):
    estimator, x, y = smoothed(), np.zeros((0, *SHAPE), np.float32), np.zeros(0, np.int64)
    assert estimator.loss_gradient(x, y, objective=objective).shape == (0, *SHAPE)
    assert estimator.compute_loss(x, y, objective=objective).shape == (0,)
    assert estimator.class_gradient(x).shape == (0, CLASSES, *SHAPE)


class TestInference:
    def test_classes_come_from_the_last_layer_and_the_shape_from_the_first_x(self):
        estimator = smoothed()
        assert estimator.nb_classes == CLASSES
        with pytest.raises(ValueError, match="`input_shape` is not known yet: no x was seen; pass input_shape="):
            _ = estimator.input_shape
        estimator.predict(X)
        assert estimator.input_shape == SHAPE

    @pytest.mark.parametrize(
        "ask",
        [
            lambda estimator: estimator.predict(X),
            lambda estimator: estimator.certify(X),
            lambda estimator: estimator.votes(X, 20),
            lambda estimator: estimator.loss_gradient(X, LABELS),
            lambda estimator: estimator.class_gradient(X),
            lambda estimator: estimator.compute_loss(torch.from_numpy(X), LABELS),
        ],
    )
    def test_classes_come_from_the_first_forward_pass_where_no_layer_tells(self, ask):
        estimator = smoothed(Silent())
        with pytest.raises(ValueError, match=r"`nb_classes` is not known yet: .*pass nb_classes="):
            _ = estimator.nb_classes
        ask(estimator)
        assert (estimator.nb_classes, estimator.input_shape) == (CLASSES, SHAPE)

    @pytest.mark.parametrize("width", [1, 7])
    def test_a_last_layer_that_is_not_the_output_is_only_a_first_guess(self, width):
        class Detour(nn.Module):
            def __init__(self):
                super().__init__()
                self.output, self.unused = brightest(), nn.Linear(16, width)

            def forward(self, x):
                return self.output(x)

        estimator = smoothed(Detour())
        assert np.array_equal(estimator.certify(X)[0], LABELS)
        assert estimator.nb_classes == CLASSES

    def test_what_the_user_says_is_known_at_once_and_held_against_the_model(self):
        estimator = smoothed(Silent(), nb_classes=CLASSES, input_shape=[1, 4, 4])
        assert (estimator.nb_classes, estimator.input_shape) == (CLASSES, SHAPE)
        assert np.array_equal(estimator.certify(X)[0], LABELS)
        with pytest.raises(ModelOutputError, match="must return `nb_classes` = 4 logits, got 3"):
            smoothed(nb_classes=4).predict(X)
        with pytest.raises(ValueError, match=r"`x` must have shape \(m, 16\), got \(5, 1, 4, 4\)"):
            smoothed(input_shape=(16,)).predict(X)


class TestInputs:
    @pytest.mark.parametrize(
        "given",
        [
            lambda x: x.tolist(),
            lambda x: torch.from_numpy(x.copy()),
            lambda x: torch.from_numpy(x.copy()).requires_grad_(),
            lambda x: torch.from_numpy(x.copy()).requires_grad_() * 1.0,
            lambda x: x.astype(np.float64),
            lambda x: torch.from_numpy(x).double(),
            lambda x: x.astype(">f4"),
            lambda x: np.asfortranarray(x),
            lambda x: x[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
            lambda x: np.broadcast_to(x, x.shape),
        ],
        ids=["list", "tensor", "leaf", "node", "float64", "double", "big-endian", "fortran", "reversed", "read-only"],
    )
    def test_arrays_tensors_and_lists_give_the_same_answers(self, given):
        x = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
        expected, answer = smoothed(), smoothed()
        assert answer.certificates(given(x)) == expected.certificates(x)
        assert np.array_equal(answer.votes(given(x), 100), expected.votes(x, 100))
        assert np.array_equal(answer.predict(given(x), n=100), expected.predict(x, n=100))
        gradient = torch.as_tensor(answer.loss_gradient(given(x), LABELS[:4]))
        assert np.array_equal(gradient.numpy(), expected.loss_gradient(x, LABELS[:4]))
        assert np.array_equal(answer.class_gradient(given(x)), expected.class_gradient(x))

    def test_float64_is_cast_once_before_anything_is_computed(self):
        x = X.astype(np.float64) + 1e-9  # between two float32 numbers: the certificate is for the one that it becomes
        seen = []
        model = brightest()
        model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        estimator = smoothed(model)
        assert estimator.certificates(x) == smoothed().certificates(x.astype(np.float32))
        assert {batch.dtype for batch in seen} == {torch.float32}

    def test_gradients_are_tensors_for_tensors_and_arrays_for_arrays(self):
        estimator = smoothed()
        for x in (X, X.tolist()):
            assert isinstance(estimator.loss_gradient(x, LABELS), np.ndarray)
            assert isinstance(estimator.compute_loss(x, LABELS), np.ndarray)
        x = torch.from_numpy(X).requires_grad_()
        for answer in (estimator.loss_gradient(x, LABELS), estimator.compute_loss(x, torch.from_numpy(LABELS))):
            assert isinstance(answer, torch.Tensor)
            assert not answer.requires_grad
            assert answer.dtype == torch.float32
        assert x.grad is None
        assert isinstance(estimator.class_gradient(x), np.ndarray)

    ONE_HOT = np.eye(CLASSES)[LABELS]

    @pytest.mark.parametrize(
        "y",
        [
            LABELS.tolist(),
            LABELS.astype(np.uint8),
            LABELS.astype(np.float64),
            LABELS[:, None],
            torch.from_numpy(LABELS),
            torch.from_numpy(LABELS).int()[:, None],
            ONE_HOT,
            ONE_HOT.astype(np.float32),
            ONE_HOT.astype(np.int64),
            ONE_HOT.astype(bool),
            torch.from_numpy(ONE_HOT).requires_grad_(),
            ONE_HOT.tolist(),
        ],
        ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', '')}-{np.shape(y)}" if hasattr(y, "shape") else "list",
    )
    def test_labels_may_be_indices_a_column_of_them_or_one_hot(self, y):
        for base in (False, True):
            assert np.array_equal(
                smoothed().loss_gradient(X, y, base=base), smoothed().loss_gradient(X, LABELS, base=base)
            )
        column = np.asarray(smoothed().class_gradient(X, label=y))
        assert np.array_equal(column[:, 0], smoothed().class_gradient(X)[np.arange(5), LABELS])

    def test_inputs_and_labels_are_not_written_to(self):
        x, y = X.copy(), LABELS.copy()
        estimator = smoothed()
        estimator.certify(x)
        estimator.loss_gradient(x, y)
        tensor = torch.from_numpy(x)
        estimator.predict(tensor)
        estimator.loss_gradient(tensor, y, objective="smoothadv")
        assert np.array_equal(x, X)
        assert np.array_equal(y, LABELS)


def test_a_seed_that_nobody_gave_is_fresh_at_every_call_and_recorded():
    estimator = smoothed(seed=None)
    x = images(LABELS, margin=0.2)
    first, second = estimator.certificates(x), estimator.certificates(x)
    assert first[0].seed != second[0].seed
    assert [one.counts for one in first] != [other.counts for other in second]
    assert not np.array_equal(estimator.votes(x, 1_000), estimator.votes(x, 1_000))
    # the recorded seed makes the same certificates again
    assert smoothed(seed=first[0].seed).certificates(x) == first


def test_attacks_find_the_bases_that_they_require():
    bases = (PyTorchClassifier, PyTorchEstimator, ClassifierMixin, ClassGradientsMixin, LossGradientsMixin)
    for base in (*bases, NeuralNetworkMixin, BaseEstimator):
        assert isinstance(smoothed(), base)
        assert base in type(smoothed()).__mro__
    for attack in (ProjectedGradientDescent, DeepFool, HopSkipJump, SquareAttack):
        assert attack.is_estimator_valid(smoothed(), attack._estimator_requirements)
