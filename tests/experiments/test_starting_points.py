"""What a training run starts from and is given beside its data: another's weights, images that a teacher labels."""

import numpy as np
import pytest
import torch
from made_images import Made, data_of, weights
from torch import nn

from art_rs_plugin.experiments import checkpoints, datasets, models, training, unlabeled
from art_rs_plugin.experiments.recipes import Recipe
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, train

SIGMA = 0.25


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
