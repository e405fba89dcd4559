"""The trainers of every method: their options are the method's, and it is the method that trains."""

import numpy as np
import pytest
import torch
from torch import nn

import art_rs_plugin
from art_rs_plugin import RandomizedSmoothingPyTorch, trainers
from art_rs_plugin.training import OBJECTIVES, loader_batches, train

SIGMA = 0.25
TRAINERS = {trainer.method.name: trainer for trainer in trainers.SmoothedTrainer.__subclasses__() if trainer.method}
X = np.random.default_rng(0).random((48, 1, 4, 4), dtype=np.float32)
Y = np.arange(48) % 3


def estimator(**options) -> RandomizedSmoothingPyTorch:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return RandomizedSmoothingPyTorch(model, SIGMA, seed=5, optimizer=optimizer, **options)


def test_every_method_has_a_trainer_that_is_public():
    assert TRAINERS.keys() == OBJECTIVES.keys() - {"gaussian"}
    assert all(getattr(art_rs_plugin, trainer.__name__) is trainer for trainer in TRAINERS.values())


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_trains_by_its_method(name):
    trained, other = estimator(), estimator()
    options = {} if name in ("stability", "lmt") else {"draws": 2}
    history = TRAINERS[name](trained, nb_epochs=2, batch_size=16, **options).fit(X, Y)
    objective = OBJECTIVES[name](**options)
    expected = train(
        other.model,
        loader_batches((torch.from_numpy(X), torch.from_numpy(Y)), 16, 5),
        objective=objective,
        optimizer=other.optimizer,
        noise=other.noise,
        epochs=2,
        seed=5,
    )
    for after, same in zip(trained.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(after, same)
    assert [epoch["loss"] for epoch in history] == [epoch["loss"] for epoch in expected]


@pytest.mark.parametrize("name", ["smoothadv", "smoothmix"])
def test_images_stay_within_the_estimators_clip_values(name):
    assert TRAINERS[name](estimator(clip_values=(-1.0, 2.0))).objective.clip_values == pytest.approx((-1.0, 2.0))
    given = TRAINERS[name](estimator(clip_values=(-1.0, 2.0)), clip_values=(0.0, 1.0))
    assert given.objective.clip_values == (0.0, 1.0)
    assert TRAINERS[name](estimator()).objective.clip_values is None
    low, high = np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)
    assert TRAINERS[name](estimator(clip_values=(low, high))).objective.clip_values == (0.0, 1.0)
    low[0, 0, 0] = -1
    with pytest.raises(ValueError, match="`clip_values` must be two numbers for Smooth"):
        TRAINERS[name](estimator(clip_values=(low, high)))


def test_generators_meet_the_method_as_well():
    trained = estimator()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), 16)
    history = TRAINERS["consistency"](trained, nb_epochs=1, weight=0.0, entropy=0.0).fit_generator(loader)
    heavier = TRAINERS["consistency"](estimator(), nb_epochs=1, weight=50.0).fit_generator(loader)
    assert heavier[0]["loss"] > history[0]["loss"] + 0.3


def test_refusals():
    with pytest.raises(TypeError, match="GaussianAugmentationTrainer takes no option 'eps'"):
        trainers.GaussianAugmentationTrainer(estimator(), eps=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        trainers.SmoothAdvTrainer(estimator(), epsilon=1.0)
    with pytest.raises(ValueError, match="`eps` must be a finite number of at least 0, got -1"):
        trainers.SmoothAdvTrainer(estimator(), eps=-1)
    with pytest.raises(TypeError, match="`estimator` must be a RandomizedSmoothingPyTorch, got Sequential"):
        trainers.MACERTrainer(nn.Sequential())
    with pytest.raises(
        ValueError, match="`loss` must be plain cross-entropy to train by macer, which takes it, got Multi"
    ):
        trainers.MACERTrainer(estimator(loss=nn.MultiMarginLoss()), nb_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="`loss` must be plain cross-entropy to train by consistency"):
        trainers.ConsistencyTrainer(estimator(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), nb_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"x must lie within `clip_values` = \(0.0, 0.5\), got values from 0\."):
        trainers.SmoothAdvTrainer(estimator(), nb_epochs=1, clip_values=(0.0, 0.5)).fit(X, Y)
    with pytest.raises(TypeError, match=r"`objective` must be a training method with its options, .*, got .macer."):
        estimator().fit(X, Y, objective="macer")
    with pytest.raises(TypeError, match=r"`objective` must be a training method with its options, .*, got <class"):
        estimator().fit(X, Y, objective=OBJECTIVES["smoothadv"])
    for loss in (nn.CrossEntropyLoss(ignore_index=0), nn.CrossEntropyLoss(reduction="sum")):
        with pytest.raises(ValueError, match="`loss` must be plain cross-entropy to train by macer"):
            trainers.MACERTrainer(estimator(loss=loss), nb_epochs=1).fit(X, Y)


def test_gaussian_augmentation_with_a_loss_of_its_own_needs_no_cross_entropy():
    own = OBJECTIVES["gaussian"](loss=lambda logits, y: nn.functional.multi_margin_loss(logits, y))
    trained = estimator(loss=nn.MultiMarginLoss())
    assert trained.fit(X, Y, nb_epochs=1, objective=own)[0]["loss"] > 0
