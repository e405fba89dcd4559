"""ART's smoothers: a half-space whose radius is known, votes counted again by hand, and their own training."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from digit_networks import CLASSES, SHAPE, cnn, digits, global_states
from scipy.stats import beta, norm
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.core.certificate import ABSTAIN
from art_rs_plugin.noise import Purpose, derived_seed

SIGMA, ALPHA, N, N0, SEED = 0.5, 0.001, 2000, 50, 7
NAMES = {
    "art-smoothing": {},
    "art-smoothadv": {"epsilon": 0.5, "num_steps": 2},
    "art-macer": {"gaussian_samples": 4},
    "art-smoothmix": {"num_steps": 2},
}
NORMAL = np.array([0.6, -0.8, 0.0, 0.0])  # of the half-space's edge
X = np.linspace(-1.2, 1.2, 12)[:, None] * NORMAL + np.array([0.0, 0.0, 3.0, -1.0])  # at these distances from it


def half_space(**options):
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.stack([-NORMAL, NORMAL])))
    options = {"sigma": SIGMA, "n": N, "n0": N0, "alpha": ALPHA, "seed": SEED, **options}
    return certifiers.get("art-smoothing").build(model, input_shape=(4,), nb_classes=2, **options)


def votes(x: np.ndarray, index: int) -> tuple[int, int]:
    """The class chosen and its votes, by a generator and a loop of our own."""
    words = np.random.SeedSequence(derived_seed(SEED, Purpose.ESTIMATION), spawn_key=(index,)).generate_state(12)
    generator = np.random.RandomState(words[4:])
    counts = []
    for size in (N0, N):
        positive = 0
        for noise in generator.normal(scale=SIGMA, size=(size, 4)).astype(np.float32):
            positive += int((x + noise.astype(np.float64)) @ NORMAL > 0)
        counts.append((size - positive, positive))
    chosen = int(np.argmax(counts[0]))
    return chosen, counts[1][chosen]


def test_a_half_space_gets_what_clopper_and_pearson_give_its_votes():
    made = half_space().certify(X)
    assert {(c.norm, c.certifies, c.alpha) for c in made} == {(2.0, "g", ALPHA)}
    assert [c.index for c in made] == list(range(12))
    for certificate, x in zip(made, X.astype(np.float32).astype(np.float64), strict=True):
        chosen, count = votes(x, certificate.index)
        expected = SIGMA * norm.ppf(beta.ppf(ALPHA, count, N - count + 1))
        if expected > 0:
            assert certificate.prediction == chosen
            assert certificate.radius == pytest.approx(expected, rel=1e-9)
        else:
            assert (certificate.prediction, certificate.radius) == (ABSTAIN, 0.0)
        assert certificate.radius <= abs(x @ NORMAL)  # the true radius
    assert max(c.radius for c in made) > 0.9


def test_at_the_edge_it_abstains():
    (certificate,) = half_space().certify(np.zeros((1, 4)))
    assert (certificate.prediction, certificate.radius) == (ABSTAIN, 0.0)


def test_a_certificate_is_a_function_of_seed_and_index():
    together = half_space().certify(X, indices=range(20, 32))
    assert half_space().certify(X[::-1], indices=range(31, 19, -1)) == together[::-1]
    assert [half_space().certify(X[at : at + 1], indices=[20 + at])[0] for at in range(12)] == together
    assert half_space(batch_size=77).certify(X, indices=range(20, 32)) == together
    assert half_space(seed=8).certify(X, indices=range(20, 32)) != together
    moved = half_space().certify(X)
    assert [c.radius for c in moved] != [c.radius for c in together]


def test_without_a_seed_every_call_has_its_own():
    certifier = half_space(seed=None)
    first, seed = certifier.certify(X), certifier.last_seed
    assert certifier.certify(X) != first
    assert half_space(seed=seed).certify(X) == first


@pytest.mark.parametrize("name", NAMES)
def test_the_users_model_and_the_global_generators_stay_as_they_are(name, capsys):
    model, (x, y) = cnn(), digits("train", 65)  # with a last batch of one, on which ART's SmoothAdv fails
    before, states = copy.deepcopy(model.state_dict()), global_states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certifier = certifiers.get(name).build(
            model, input_shape=SHAPE, nb_classes=CLASSES, sigma=0.1, n=100, n0=10, seed=1, **NAMES[name]
        )
        certifier.fit(x, y, epochs=1, batch_size=64)
        certifier.certify(x[:2])
    assert global_states() == states
    assert capsys.readouterr() == ("", "")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(certifier.model[-1].weight, model[-1].weight)


@pytest.mark.parametrize("name", NAMES)
def test_what_art_trains_is_what_is_certified(name):
    x, y = digits("train", 700)
    test_x, test_y = digits("test", 40)
    made = []
    for _ in range(2):
        certifier = certifiers.get(name).build(
            cnn(), input_shape=SHAPE, nb_classes=CLASSES, sigma=0.1, n=200, n0=20, alpha=0.01, seed=3, **NAMES[name]
        )
        made.append(certifier.fit(x, y, epochs=3, lr=0.05, batch_size=64).certify(test_x, test_y))
    assert made[0] == made[1]
    right = np.array([c.prediction for c in made[0]]) == test_y
    assert right.mean() > 0.6
    with torch.no_grad():  # the base classifier, by itself
        agree = certifier.model(torch.from_numpy(test_x)).argmax(1).numpy() == [c.prediction for c in made[0]]
    assert agree.mean() > 0.6
    assert certifier.name == name
    assert type(certifier.estimator).__name__ == certifier._ESTIMATOR


def test_a_schedule_is_stepped_after_every_epoch():
    x, y = digits("train", 128)
    found = []
    for epochs in (1, 3):
        certifier = half_space_of_digits()
        stop = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.0)
        found.append(certifier.fit(x, y, epochs=epochs, scheduler=stop).model[-1].weight)
    assert torch.equal(*found)  # from the second epoch on, the rate is 0
    assert not torch.equal(found[0], half_space_of_digits().fit(x, y, epochs=3).model[-1].weight)


def test_training_twice_goes_on_with_other_noise():
    x, y = digits("train", 128)
    once, twice = half_space_of_digits(), half_space_of_digits()
    before = once.model[-1].weight.detach().clone()
    step = once.fit(x, y, epochs=1).model[-1].weight.detach() - before
    twice.fit(x, y, epochs=1)
    twice.model[-1].weight.data.copy_(before)
    again = twice.fit(x, y, epochs=1).model[-1].weight.detach() - before
    assert not torch.equal(step, again)


def half_space_of_digits(name="art-smoothing", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    options = {"sigma": 0.1, "n": 100, "n0": 10, "seed": 1, **options}
    return certifiers.get(name).build(model, input_shape=SHAPE, nb_classes=CLASSES, **options)


def test_a_model_of_one_logit_is_refused():
    build = certifiers.get("art-smoothing").build
    with pytest.raises(ValueError, match="give a model of one logit a second"):
        build(nn.Linear(4, 1), input_shape=(4,), nb_classes=2, sigma=1.0)
    with pytest.raises(ValueError, match="`nb_classes` must be at least 2, got 1"):
        build(nn.Linear(4, 1), input_shape=(4,), nb_classes=1, sigma=1.0)
    with pytest.raises(ValueError, match=r"logits \(m, 3\), got \(2, 2\)"):
        build(nn.Linear(4, 2), input_shape=(4,), nb_classes=3, sigma=1.0)
    with pytest.raises(ValueError, match=r"must take inputs \(m, 5\), got RuntimeError"):
        build(nn.Linear(4, 2), input_shape=(5,), nb_classes=2, sigma=1.0)


def test_unfit_options_are_refused():
    for options, message in [
        ({"sigma": 0.0}, "`sigma` must be"),
        ({"alpha": 7}, "`alpha` must be"),
        ({"n": 5}, "`n` must be at least"),
        ({"n0": 0}, "`n0` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"clip_values": (1.0, 0.0)}, "`clip_values` must be two numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            half_space(**options)
    with pytest.raises(TypeError, match=r"`art-smoothing` has no option `epsilon`: none of ART's"):
        half_space(epsilon=1.0)
    with pytest.raises(ValueError, match="`num_noise_vec` must be 1: ART fails with more, got 2"):
        half_space_of_digits("art-smoothadv", num_noise_vec=2)


def test_unfit_training_is_refused():
    x, y = digits("train", 20)
    certifier = half_space_of_digits()
    for options, message in [
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"epochs": 1, "lr": 0.0}, "`lr` must be"),
        ({"epochs": 1, "batch_size": 1}, "a batch must have at least 2 inputs, got 1"),
        ({"epochs": 1, "y": y + 1}, "`y` must be classes below 10"),
    ]:
        with pytest.raises(ValueError, match=message):
            certifier.fit(**{"x": x, "y": y, **options})
    with pytest.raises(RuntimeError, match="training diverged"):
        certifier.fit(x, y, epochs=2, batch_size=4, lr=1e38)
    flat = certifiers.get("art-macer").build(nn.Linear(4, 2), input_shape=(4,), nb_classes=2, sigma=1.0)
    with pytest.raises(ValueError, match="`art-macer` takes images"):
        flat.fit(np.zeros((4, 4), np.float32), np.zeros(4, int), epochs=1)


def test_a_mix_of_several_noises_drops_a_batch_too_small_to_cut():
    x, y = digits("train", 67)
    certifier = half_space_of_digits("art-smoothmix", num_noise_vec=2, num_steps=2).fit(x, y, epochs=1, batch_size=64)
    assert certifier.model[-1].weight.isfinite().all()
