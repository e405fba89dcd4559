"""ART's de-randomized smoothing: votes and margins counted again by hand, and patches that must fail."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from digit_networks import CLASSES, SHAPE, cnn, digits, global_states
from torch import nn

from art_rs_plugin import certifiers

TYPES = ("column", "row", "block")
THRESHOLD = 0.3


def build(model, input_shape=SHAPE, nb_classes=CLASSES, **options):
    options = {"ablation_size": 2, "seed": 0, "threshold": THRESHOLD, **options}
    return certifiers.get("art-derandomized").build(model, input_shape=input_shape, nb_classes=nb_classes, **options)


def linear(shape=(1, 4, 6), classes=3, seed=0):
    """A sharp random classifier of `2 * channels`, so that votes differ from place to place."""
    torch.manual_seed(seed)
    layer = nn.Linear(2 * int(np.prod(shape)), classes)
    layer.weight.data *= 12
    return nn.Sequential(nn.Flatten(), layer)


def kept(kind: str, size: int, height: int, width: int) -> list[np.ndarray]:
    """Which pixels the classifier sees, bool (height, width), at every place."""
    rows = [np.isin(np.arange(height), (at + np.arange(size)) % height) for at in range(height)]
    columns = [np.isin(np.arange(width), (at + np.arange(size)) % width) for at in range(width)]
    if kind == "column":
        rows = [np.ones(height, bool)]
    elif kind == "row":
        columns = [np.ones(width, bool)]
    return [np.outer(row, column) for row in rows for column in columns]


def votes(model, x, kind, size, threshold=THRESHOLD) -> np.ndarray:
    """By place, image and class."""
    both = np.concatenate([x, 1 - x], axis=1)
    with torch.no_grad():
        parts = [model(torch.from_numpy(both * mask).float()).softmax(1) for mask in kept(kind, size, *x.shape[2:])]
    return np.stack([part.numpy() >= threshold for part in parts])


def side_by_hand(counts: np.ndarray, kind: str, size: int, most: int) -> int:
    """Levine and Feizi 2020: the leader keeps its place, also by index, if it loses and another gains all in reach."""
    top = int(np.flatnonzero(counts == counts.max())[0])
    side = 0
    for s in range(1, most + 1):
        reach = (s + size - 1) ** (2 if kind == "block" else 1)
        others = [c for c in range(len(counts)) if c != top]
        if all((counts[top] - reach, -top) > (counts[c] + reach, -c) for c in others):
            side = s
    return side


@pytest.fixture(scope="module")
def trained():
    """By ART's own training on columns, blocks being too small to see a digit in."""
    certifier = build(cnn(2), ablation_size=3)
    x, y = digits("train", 1000)
    return certifier.fit(x, y, epochs=30, batch_size=32, lr=0.05)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", TYPES)
def test_votes_and_sides_are_those_counted_by_hand(kind, size):
    shape = (2, 4, 6)
    x = np.random.default_rng(0).random((12, *shape), dtype=np.float32)
    sides = set()
    for seed in range(4):
        model = linear(shape, seed=seed)
        certifier = build(model, shape, 3, ablation_type=kind, ablation_size=size, batch_size=5)
        counts = votes(model, x, kind, size).sum(axis=0)
        assert np.array_equal(certifier.counts(x), counts)
        assert np.array_equal(certifier.estimator.predict(x), counts)  # ART's, where it works
        made = certifier.certify(x, indices=range(3, 15))
        assert [c.index for c in made] == list(range(3, 15))
        assert [c.prediction for c in made] == counts.argmax(1).tolist()
        assert [c.radius for c in made] == [side_by_hand(row, kind, size, 4) for row in counts]
        assert {(c.norm, c.certifies, c.alpha) for c in made} == {("patch", "g", 0.0)}
        sides |= {c.radius for c in made}
    assert len(sides) > 1 or (kind, size) in {("column", 4), ("row", 2), ("row", 4), ("block", 2), ("block", 4)}


@pytest.mark.parametrize("kind", TYPES)
def test_no_certificate_hangs_on_a_tie_with_one_of_several(kind):
    """Counts around the margin, with ties everywhere: ART by itself certifies some that a patch can turn."""
    shape = (1, 8, 8)
    certifier = build(linear(shape, 4), shape, 4, ablation_type=kind, ablation_size=2)
    generator = np.random.default_rng(1)
    tied = 0
    for _ in range(300):
        counts = generator.integers(0, 3, size=4)
        counts[generator.integers(4)] += generator.choice([4, 6, 8, 18])
        expected = side_by_hand(counts, kind, 2, 8)
        assert certifier._side(counts) == expected
        reach = (expected + 2) ** (2 if kind == "block" else 1)
        tied += counts.max() - np.sort(counts)[-2] == 2 * reach
    assert tied > 5


def test_no_patch_turns_a_certified_image(trained):
    x, y = digits("test", 12)
    made = trained.certify(x, y)
    sure = [at for at, certificate in enumerate(made) if certificate.radius >= 1]
    assert sure
    generator = np.random.default_rng(0)
    for at in sure:
        side = int(made[at].radius)
        patched = []
        for top, left in itertools.product(range(8 - side + 1), repeat=2):
            for patch in (0.0, 1.0, generator.random((side, side)), generator.choice([-50.0, 50.0], (side, side))):
                patched.append(x[at].copy())
                patched[-1][0, top : top + side, left : left + side] = patch
        predictions = {c.prediction for c in trained.certify(np.stack(patched))}
        assert predictions == {made[at].prediction}


@pytest.mark.parametrize(("grey", "prediction", "side"), [(0.2, 0, 3), (0.8, 1, 2)])
def test_the_side_is_the_largest_that_no_patch_turns(grey, prediction, side):
    # each of 6 columns votes by whether it is bright: three of them make a tie, which class 0 wins
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2, bias=False))
    model[1].weight.data[:] = torch.tensor([[0.0] * 36 + [1.0] * 36, [1.0] * 36 + [0.0] * 36])
    certifier = build(model, (1, 6, 6), 2, ablation_size=1, threshold=0.5)
    x = np.full((1, 1, 6, 6), grey, np.float32)
    (certificate,) = certifier.certify(x)
    assert (certificate.prediction, certificate.radius) == (prediction, side)
    for width, turned in [(side, False), (side + 1, True)]:
        for left in range(6 - width + 1):
            patched = x.copy()
            patched[..., :width, left : left + width] = 50.0 if prediction == 0 else -50.0
            assert (certifier.certify(patched)[0].prediction != prediction) == turned


def test_arts_training_learns_to_vote(trained):
    x, y = digits("test", 200)
    made = trained.certify(x, y)
    right = np.array([c.prediction for c in made]) == y
    assert right.mean() > 0.6
    assert (right & np.array([c.radius >= 1 for c in made])).mean() > 0.05


def test_training_is_a_function_of_the_seed_and_leaves_all_else_as_it_is(capsys):
    model, (x, y) = cnn(2), digits("train", 65)
    before, states = copy.deepcopy(model.state_dict()), global_states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [build(model, seed=seed).fit(x, y, epochs=1, batch_size=32) for seed in (1, 1, 2)]
        made[0].certify(x[:2])
    assert global_states() == states
    assert capsys.readouterr() == ("", "")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    weights = [certifier.model[-1].weight for certifier in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], model[-1].weight)


@pytest.mark.parametrize("kind", TYPES)
def test_a_network_that_makes_probabilities_votes_as_one_that_makes_logits(kind):
    shape, model = (1, 4, 6), linear()
    x = np.random.default_rng(0).random((5, *shape), dtype=np.float32)
    probabilities = build(nn.Sequential(model, nn.Softmax(1)), shape, 3, ablation_type=kind, logits=False)
    assert probabilities.certify(x) == build(model, shape, 3, ablation_type=kind).certify(x)
    with pytest.raises(ValueError, match="takes a network that makes logits"):
        probabilities.fit(x, np.zeros(5, int), epochs=1)


def test_a_network_of_the_images_own_channels_is_refused():
    with pytest.raises(ValueError, match=r"needs a network of twice the image's channels, 2, .* takes? inputs"):
        build(cnn(1))
    with pytest.raises(ValueError, match=r"twice the image's channels, 2, .* logits \(m, 3\)"):
        build(cnn(2), nb_classes=3)


def test_unfit_options_are_refused():
    for options, message in [
        ({"ablation_type": "pixel"}, "`ablation_type` must be one of 'column', 'row', 'block', got 'pixel'"),
        ({"ablation_size": 0}, "`ablation_size` must be at least 1"),
        ({"ablation_size": 9}, "`ablation_size` must be at most 8, the image's side, got 9"),
        ({"threshold": 0.0}, "`threshold` must be above 0"),
        ({"threshold": 1.5}, "`threshold` must be in"),
        ({"logits": None}, "`logits` must be one of True, False, got None"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"input_shape": (64,)}, r"`input_shape` must be \(channels, height, width\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(cnn(2), **options)
