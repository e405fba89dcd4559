"""A training run and its folder: going on exactly, validating on what it never trained on, more data, other weights."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin import RandomizedSmoothingPyTorch, noise
from art_rs_plugin.experiments import checkpoints, datasets, models, training, unlabeled
from art_rs_plugin.experiments.recipes import Recipe
from art_rs_plugin.experiments.validation import Validation
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, read_checkpoint, train

SIGMA = 0.25
LONG = Recipe(
    method="consistency", options={"weight": 2.0}, epochs=4, batch_size=64, schedule="cosine", average=0.9, clip=1.0,
    held_out=60, validate_every=2, precision="bf16",
)  # fmt: skip


class Made(datasets.Images):
    """Images of one brightness a class, and who asked for which."""

    def __init__(self, classes=3, samples=60, labels=None):
        generator = torch.Generator().manual_seed(classes)
        self.shape, self.nb_classes = (1, 4, 4), classes
        self.labels = [number % classes for number in range(samples)] if labels is None else labels
        level = torch.tensor([number % classes for number in range(samples)]) / classes
        self.x = level.view(-1, 1, 1, 1) + 0.05 * torch.rand(samples, 1, 4, 4, generator=generator)
        self.asked = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.x[index], self.labels[index]


def data_of(images, name="made") -> datasets.DataSet:
    return datasets.DataSet(name=name, split="train", images=images, mean=(0.5,), std=(0.3,))


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "train")


def weights(folder):
    return checkpoints.load_checkpoint(folder)[0].state_dict()


def metrics(folder):
    lines = [json.loads(line) for line in (folder / training.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


class Stopped(Exception):
    """Somebody ends the run."""


def test_a_run_that_is_stopped_goes_on_and_leaves_the_same_folder(digits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training.train(digits, "mlp", SIGMA, whole, recipe=LONG, seed=4)

    def stop(epoch):
        if epoch["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        training.train(digits, "mlp", SIGMA, broken, recipe=LONG, seed=4, on_epoch=stop)
    assert not (broken / checkpoints.WEIGHTS).exists()
    training.train(digits, "mlp", SIGMA, broken, recipe=LONG)  # the seed is the run's own
    for folder in ("", training.BEST):
        ours, theirs = weights(broken / folder), weights(whole / folder)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(broken) == metrics(whole)
    assert len(metrics(whole)) == 4


def test_what_is_saved_is_the_average_and_what_validated_best(digits, tmp_path):
    model = training.train(digits, "mlp", SIGMA, tmp_path, recipe=LONG, seed=4)
    saved = weights(tmp_path)
    state = read_checkpoint(tmp_path / training.STATE)
    averaged = {name.removeprefix("module."): value for name, value in state["average"].items()}
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert all(torch.equal(saved[name], value.cpu()) for name, value in model.state_dict().items())
    assert any(not torch.equal(saved[name], state["model"][name]) for name in saved)
    validated = {line["epoch"]: line["validation"] for line in metrics(tmp_path) if "validation" in line}
    assert validated.keys() == {2, 4}
    best = max(validated, key=lambda epoch: validated[epoch]["certified"])
    about = checkpoints.load_checkpoint(tmp_path / training.BEST)[1]
    assert about["training"]["last_epoch"]["epoch"] == best
    assert about["training"]["last_epoch"]["validation"] == validated[best]
    # who judges once more hears the same
    kept, held_out = training._split(digits, 60, 4)
    again = Validation(*digits.arrays(held_out), SIGMA, 4)(checkpoints.load_checkpoint(tmp_path / training.BEST)[0])
    assert again == pytest.approx(validated[best])
    assert not set(kept) & set(held_out)
    assert len(kept) + len(held_out) == len(digits)


class TestKills:
    """A process that dies between two writes of an epoch leaves nothing out for long."""

    RECIPE = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=1)

    @pytest.fixture
    def killed(self, tmp_path, monkeypatch):
        """A run whose last epoch has its state on disk, and nothing else of it."""

        def die(self, epoch):
            if epoch["epoch"] == 2:
                raise Stopped
            record(self, epoch)

        record = training._Folder.record
        scores = iter([0.25, 0.75])  # the last epoch is the best
        monkeypatch.setattr(Validation, "__call__", lambda *_: {"certified": next(scores)})
        monkeypatch.setattr(training._Folder, "record", die)
        with pytest.raises(Stopped):
            training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=self.RECIPE, seed=1)
        monkeypatch.setattr(training._Folder, "record", record)
        assert len(metrics(tmp_path)) == 1
        assert checkpoints.load_checkpoint(tmp_path / training.BEST)[1]["training"]["last_epoch"]["epoch"] == 1
        return tmp_path

    def test_the_best_network_and_the_record_are_caught_up_with(self, killed):
        training.train(data_of(Made()), "mlp", SIGMA, killed, recipe=self.RECIPE)
        assert [line["epoch"] for line in metrics(killed)] == [1, 2]
        assert checkpoints.load_checkpoint(killed / training.BEST)[1]["training"]["last_epoch"]["epoch"] == 2
        best, last = weights(killed / training.BEST), weights(killed)
        assert all(torch.equal(best[name], last[name]) for name in last)

    def test_another_run_there_is_refused_and_nothing_is_caught_up_with(self, killed):
        before = (killed / training.BEST / checkpoints.ABOUT).read_text()
        with pytest.raises(ValueError, match="is of another run"):
            training.train(data_of(Made()), "small-cnn", SIGMA, killed, recipe=self.RECIPE)
        assert (killed / training.BEST / checkpoints.ABOUT).read_text() == before


def test_validation_draws_what_no_certificate_draws(monkeypatch):
    """The same seed certifies with other noise than it validated with: that noise has chosen the network."""

    def named(keys):  # trying out a forward pass is nobody's noise
        return {(seed, purpose) for seed, purpose, _ in keys if purpose is not noise.Purpose.INITIALISATION}

    drawn, key = set(), noise._key
    monkeypatch.setattr(noise, "_key", lambda *name: drawn.add(name) or key(*name))
    x, y = torch.rand(3, 1, 4, 4), np.zeros(3, np.int64)
    torch.manual_seed(0)
    model = models.build("mlp", input_shape=(1, 4, 4), nb_classes=3)
    Validation(x, y, SIGMA, 7)(model)
    validating = named(drawn) - {(7, noise.Purpose.VALIDATION)}
    drawn.clear()
    RandomizedSmoothingPyTorch(model, SIGMA, n=100, seed=7).certify(x)
    assert {seed for seed, _ in named(drawn)} == {7}
    assert {purpose for _, purpose in validating} >= {purpose for _, purpose in named(drawn)}
    assert all(seed != 7 for seed, _ in validating)


def test_what_is_held_out_is_never_trained_on_and_only_that_validates(tmp_path):
    images = Made()
    recipe = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=1)
    training.train(data_of(images), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1)
    kept, held_out = training._split(data_of(images), 12, 1)
    assert images.asked[:12] == held_out  # once, to validate
    assert held_out != sorted(held_out)  # where classes come in order, a part of them is of every class
    assert sorted(images.asked[12:]) == sorted(2 * kept)
    assert training._split(data_of(images), 12, 2)[1] != held_out
    with pytest.raises(ValueError, match="`held_out` must be below the 60 images of made, got 60"):
        training.train(data_of(images), "mlp", SIGMA, tmp_path / "x", recipe=Recipe(held_out=60), seed=1)


def test_validation_says_what_a_known_network_deserves():
    """One that always says class 1: every vote is right or wrong, and 1 000 votes certify all radii up to 2 sigma."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x):
            return self.bias.expand(len(x), 3)

    x, y = torch.rand(8, 1, 4, 4), np.array([1, 1, 1, 0, 2, 1, 0, 2])
    said = Validation(x, y, SIGMA, 0)(One())
    radii = (0, 0.125, 0.25, 0.375, 0.5)
    assert said == {"accuracy": 0.5, "certified": 0.5, **{f"certified at {radius:g}": 0.5 for radius in radii}}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    training.train(data_of(Made(3)), "mlp", SIGMA, folder, recipe=Recipe(epochs=1, batch_size=16), seed=0)
    return folder


class TestInit:
    def model(self, classes, std=0.3):
        architecture = {"name": "mlp", "input_shape": [1, 4, 4], "nb_classes": classes, "mean": [0.5], "std": [std]}
        torch.manual_seed(9)
        return models.build(**architecture), architecture

    def test_takes_all_weights_where_the_classes_are_the_same_but_for_the_standardisation(self, start):
        model, architecture = self.model(3, std=0.7)
        checkpoints.start_from(start, model, architecture)
        there = weights(start)
        for name, value in model.state_dict().items():
            assert torch.equal(value, there[name]) == (name != "0.std"), name

    def test_keeps_a_new_head_where_they_are_others(self, start):
        (model, architecture), (fresh, _) = self.model(5), self.model(5)
        checkpoints.start_from(start, model, architecture)
        there = weights(start)
        for name, value in model.state_dict().items():
            expected = fresh.state_dict()[name] if ".fc3." in name else there[name]
            assert torch.equal(value, expected), name

    def test_a_run_starts_there_and_goes_on_only_from_there(self, start, tmp_path):
        recipe = Recipe(epochs=1, batch_size=16, lr=1e-12, weight_decay=0.0)
        training.train(data_of(Made(3)), "mlp", SIGMA, tmp_path, recipe=recipe, seed=5, init=start)
        there = weights(start)
        assert all(torch.allclose(value, there[name], atol=1e-6) for name, value in weights(tmp_path).items())
        with pytest.raises(ValueError, match=r"init is 'sha256:.* there and None here"):
            training.train(data_of(Made(3)), "mlp", SIGMA, tmp_path, recipe=recipe, seed=5)

    def test_somebodys_weights_fit_or_are_refused(self, start, tmp_path):
        there, file = weights(start), tmp_path / "theirs.pth"
        torch.save({name: value for name, value in there.items() if not name.startswith("0.")}, file)
        (model, architecture), (other, _) = self.model(3), self.model(5)
        assert checkpoints.start_from(file, model, architecture) == checkpoints.model_hash(model)
        assert torch.equal(model.state_dict()["1.fc1.weight"], there["1.fc1.weight"])
        assert model.state_dict()["0.std"].item() == pytest.approx(0.3)
        torch.save({**there, "0.std": torch.full((1, 1, 1), 9.0)}, tmp_path / "whole.pth")
        checkpoints.start_from(tmp_path / "whole.pth", model, architecture)
        assert model.state_dict()["0.std"].item() == pytest.approx(0.3)  # the standardisation stays one's own
        with pytest.raises(ValueError, match="fc3"):
            checkpoints.start_from(file, other, architecture)
        with pytest.raises(FileNotFoundError, match=r"checkpoint `.*nowhere`"):
            checkpoints.start_from(tmp_path / "nowhere", model, architecture)

    def test_refuses_another_architecture(self, start, tmp_path):
        with pytest.raises(ValueError, match=f"`init` must have the name 'small-cnn', got 'mlp' in {start}"):
            training.train(data_of(Made(3)), "small-cnn", SIGMA, tmp_path, recipe=Recipe(epochs=1), seed=0, init=start)


class TestUnlabeled:
    def test_a_teacher_labels_what_is_never_asked_for_its_own(self, tmp_path):
        teacher = tmp_path / "teacher"
        training.train(data_of(Made()), "mlp", 0.1, teacher, recipe=Recipe(epochs=30, batch_size=16), seed=0)
        wrong = Made(samples=45, labels=[2] * 45)  # as if nobody knew
        more = unlabeled.Unlabeled(data_of(wrong, "more"), teacher, weight=0.5)
        training.train(
            data_of(Made()), "mlp", 0.1, tmp_path / "out", recipe=Recipe(epochs=1, batch_size=16), seed=3,
            unlabeled=more,
        )  # fmt: skip
        labels = np.load(tmp_path / "out" / unlabeled.PSEUDO_LABELS)["labels"]
        assert (labels == np.arange(45) % 3).mean() > 0.9
        with pytest.raises(ValueError, match=r"unlabeled is '45 of more labelled by .*, weight 0.5' there and None"):
            training.train(data_of(Made()), "mlp", 0.1, tmp_path / "out", recipe=Recipe(epochs=1, batch_size=16))

    def test_batches_of_both_come_in_an_order_of_their_own_with_their_weights(self, tmp_path, monkeypatch):
        monkeypatch.setattr(unlabeled, "_pseudo_labels", lambda *_: np.full(45, 1))
        more = unlabeled.Unlabeled(data_of(Made(samples=45)), tmp_path, weight=0.25)
        labelled = lambda epoch: torch.utils.data.DataLoader(Made(labels=[0] * 60), 16)  # noqa: E731
        batches = unlabeled.with_pseudo_labels(labelled, more, 16, 7, "cpu", tmp_path)
        seen = [[(weight, set(y.tolist()), len(y)) for _, y, weight in batches(epoch)] for epoch in (1, 1, 2)]
        assert seen[0] == seen[1] != seen[2]
        in_any_order = sorted([(1.0, {0}, 16)] * 3 + [(1.0, {0}, 12)] + [(0.25, {1}, 16)] * 2 + [(0.25, {1}, 13)])
        assert all(sorted(epoch) == in_any_order for epoch in seen)

    def test_a_weight_scales_the_gradient_of_its_batch(self):
        moved = []
        for weight in ((), (0.5,)):
            model = nn.Linear(2, 2)
            nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
            batch = (torch.rand(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1]), *weight)
            history = train(
                model, lambda epoch, batch=batch: [batch], objective=OBJECTIVES["gaussian"](), noise=Gaussian(0.5),
                optimizer=torch.optim.SGD(model.parameters(), lr=1.0), epochs=1, seed=0,
            )  # fmt: skip
            moved.append(model.bias.detach().clone())
            assert history[0]["loss"] > 0
        assert moved[1].numpy() == pytest.approx(0.5 * moved[0].numpy())

    def test_labels_of_another_teacher_or_seed_are_made_anew(self, tmp_path, start):
        other = tmp_path / "other"
        training.train(data_of(Made(3)), "mlp", SIGMA, other, recipe=Recipe(epochs=1, batch_size=16), seed=8)
        images, path = data_of(Made(samples=45), "more"), tmp_path / "labels.npz"
        first = unlabeled._pseudo_labels(unlabeled.Unlabeled(images, start), 0, "cpu", path)
        images.images.asked.clear()
        again = unlabeled._pseudo_labels(unlabeled.Unlabeled(images, start), 0, "cpu", path)
        assert images.images.asked == []  # from the file
        assert (first == again).all()
        for teacher, seed in ((other, 0), (other, 1)):
            images.images.asked.clear()
            unlabeled._pseudo_labels(unlabeled.Unlabeled(images, teacher), seed, "cpu", path)
            assert len(images.images.asked) == 45

    def test_refuses_what_does_not_go_together(self, tmp_path, start):
        recipe = Recipe(epochs=1, batch_size=16)

        def run(data, more, recipe=recipe):
            training.train(data, "mlp", SIGMA, tmp_path / "z", recipe=recipe, seed=0, unlabeled=more)

        with pytest.raises(ValueError, match="`teacher` must know the 5 classes of made, got 3"):
            run(data_of(Made(5)), unlabeled.Unlabeled(data_of(Made(5), "more"), start))
        with pytest.raises(ValueError, match=r"`images` of `unlabeled` must have shape \(1, 4, 4\), got \(1, 8, 8\)"):
            run(data_of(Made(3)), unlabeled.Unlabeled(datasets.load("digits", "train"), start))
        with pytest.raises(
            ValueError, match="`held_out` must be 0 where `unlabeled` is of the same images, those of made"
        ):
            run(data_of(Made(3)), unlabeled.Unlabeled(data_of(Made(3)), start), Recipe(epochs=1, held_out=5))
        assert not (tmp_path / "z").exists()

    def test_a_run_goes_on_with_as_many_images_in_batches_as_large(self, tmp_path, start):
        more = unlabeled.Unlabeled(data_of(Made(3), "more"), start)
        words = (data_of(Made(3)), "mlp", SIGMA, tmp_path)
        training.train(*words, recipe=Recipe(epochs=1, batch_size=16), seed=0, unlabeled=more)
        with pytest.raises(ValueError, match="batch_size is 16 there and 8 here"):
            training.train(*words, recipe=Recipe(epochs=1, batch_size=8), seed=0, unlabeled=more)
        fewer = unlabeled.Unlabeled(data_of(Made(3, samples=30), "more"), start)
        with pytest.raises(ValueError, match=r"unlabeled is '60 of more .*' there and '30 of more"):
            training.train(*words, recipe=Recipe(epochs=1, batch_size=16), seed=0, unlabeled=fewer)

    def test_refuses_no_weight(self, tmp_path):
        with pytest.raises(ValueError, match="`weight` must be a finite number above 0, got 0"):
            unlabeled.Unlabeled(data_of(Made()), tmp_path, weight=0)


def test_devices_that_have_a_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`device` must be one of 'cpu', 'cuda', got 'cuda:1'"):
        training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=Recipe(epochs=1), seed=0, device="cuda:1")


def test_scalars_go_to_tensorboard_if_asked(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, epoch):
            written.append((name, epoch))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    recipe = Recipe(epochs=2, batch_size=16, held_out=12, validate_every=2)
    training.train(data_of(Made()), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1, tensorboard=True)
    assert written[0] == str(tmp_path)
    assert {("loss", 1), ("accuracy", 2), ("lr", 2), ("certified", 2), ("certified at 0.25", 2)} <= set(written[1:])
    assert ("certified", 1) not in written
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="`tensorboard` must be installed to write for it: pip install tensorboard"):
        training.train(data_of(Made()), "mlp", SIGMA, tmp_path / "y", recipe=recipe, seed=1, tensorboard=True)


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path):
    images = Made()
    recipe = Recipe(epochs=3, batch_size=16)

    def spoil(epoch):
        if epoch["epoch"] == 2:
            images.x[7] = float("nan")

    message = r"loss is nan in epoch 3, step \d+; the last good checkpoint is .*training.pt, epoch 2"
    with pytest.raises(FloatingPointError, match=message):
        training.train(data_of(images), "mlp", SIGMA, tmp_path, recipe=recipe, seed=1, on_epoch=spoil)
    assert read_checkpoint(tmp_path / training.STATE)["epoch"] == 2
    assert len(metrics(tmp_path)) == 2
