"""Checkpoints: what is written comes back bit by bit, and what is wrong with a file is said."""

import hashlib
import json
import os

import pytest
import torch
from torch import nn

from art_rs_plugin.experiments import models
from art_rs_plugin.experiments.checkpoints import load_checkpoint, model_hash, save_checkpoint

ARCHITECTURE = {"name": "resnet20", "input_shape": [3, 16, 16], "nb_classes": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
ABOUT = {"architecture": ARCHITECTURE, "sigma": 0.5, "data": "cifar10", "training": {"epochs": 2}, "version": "0.1.0"}


def _model(seed=0, **changed):
    torch.manual_seed(seed)
    model = models.build(**(ARCHITECTURE | changed))
    model(torch.rand(8, 3, 16, 16))  # batch statistics of its own
    return model.eval()


def _logits(model):
    with torch.no_grad():
        return model(torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def saved(tmp_path):
    """A model and the folder it was saved in."""
    model = _model()
    save_checkpoint(tmp_path / "run", model, ABOUT)
    return model, tmp_path / "run"


def _edit(folder, edit):
    about = json.loads((folder / "checkpoint.json").read_text())
    edit(about)
    (folder / "checkpoint.json").write_text(json.dumps(about))


# our own checkpoints


def test_a_checkpoint_gives_the_same_logits_bit_by_bit(saved):
    model, folder = saved
    loaded, about = load_checkpoint(folder)
    assert torch.equal(_logits(loaded), _logits(model))
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert about == ABOUT | {"model_hash": model_hash(model)}
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "model.safetensors"]


def test_a_loaded_model_does_not_follow_later_changes_of_its_file(saved):
    model, folder = saved
    loaded, _ = load_checkpoint(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert model_hash(loaded) == model_hash(model)


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "lenet", "resnet110"])
def test_every_architecture_of_ours_comes_back(name, tmp_path):
    model = _model(name=name)
    save_checkpoint(tmp_path, model, ABOUT | {"architecture": ARCHITECTURE | {"name": name}})
    assert torch.equal(_logits(load_checkpoint(tmp_path)[0]), _logits(model))


def test_the_precision_of_the_weights_comes_back(tmp_path):
    model = _model().to(torch.bfloat16)
    save_checkpoint(tmp_path, model, ABOUT)
    loaded, _ = load_checkpoint(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_saving_again_replaces_and_saving_in_training_leaves_the_mode(saved):
    _, folder = saved
    other = _model(seed=5).train()
    save_checkpoint(folder, other, ABOUT | {"sigma": 0.25})
    assert other.training
    loaded, about = load_checkpoint(folder)
    assert about["sigma"] == 0.25
    assert model_hash(loaded) == model_hash(other)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_rest(saved, monkeypatch, failing):
    model, folder = saved

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left on device"):
            save_checkpoint(folder, _model(seed=5), ABOUT)
    assert model_hash(load_checkpoint(folder)[0]) == model_hash(model)
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "model.safetensors"]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "new", _model(), ABOUT | {"training": {"optimizer": object()}})
    assert not (tmp_path / "new").exists()


def test_new_weights_beside_an_old_json_are_noticed(saved, monkeypatch):
    _, folder = saved
    replace = os.replace

    def interrupted(source, target):
        if str(target).endswith("checkpoint.json"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, _model(seed=5), ABOUT)
    with pytest.raises(ValueError, match=r"must have the hash .*altered, or saving was interrupted"):
        load_checkpoint(folder)


def test_a_single_changed_bit_is_noticed(saved):
    _, folder = saved
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"must have the hash .*, got sha256:"):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", ["", "checkpoint.json", "model.safetensors"])
def test_a_missing_folder_or_file_is_named(saved, file):
    _, folder = saved
    (folder / "checkpoint.json").rename(folder / "aside") if file == "checkpoint.json" else None
    (folder / "model.safetensors").unlink() if file == "model.safetensors" else None
    folder = folder if file else folder / "absent"
    with pytest.raises(FileNotFoundError, match=rf"{folder / file}` does not exist"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"checkpoint.json` is not JSON"),
        ("\udcff", r"checkpoint.json` is not JSON"),
        ("[1]", r"checkpoint.json` must be a mapping, got \[1\]"),
        ("{}", r"checkpoint.json` must have the keys 'architecture', 'sigma', 'data'"),
    ],
)
def test_a_malformed_json_is_named(saved, text, message):
    _, folder = saved
    (folder / "checkpoint.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda about: about.pop("sigma"), r"must have the keys 'sigma'"),
        (lambda about: about.pop("model_hash"), r"must have the keys 'model_hash'"),
        (lambda about: about["architecture"].pop("mean"), r"`architecture` in .* must have the keys 'mean'"),
        (
            lambda about: about.update(architecture="resnet20"),
            r"`architecture` in .* must be a mapping, got 'resnet20'",
        ),
        (lambda about: about["architecture"].update(name="resnet21"), r"no architecture that can be built.*'resnet21'"),
        (lambda about: about["architecture"].update(name=7), r"no architecture that can be built"),
        (lambda about: about["architecture"].update(input_shape=3), r"no architecture that can be built"),
        (
            lambda about: about["architecture"].update(nb_classes="ten"),
            r"`nb_classes` must be a whole number, got 'ten'",
        ),
        (
            lambda about: about["architecture"].update(nb_classes=5),
            r"do not fit the model; 2 of another shape: 1.fc.weight \(4, 64\) instead of \(5, 64\), 1.fc.bias \(4,\)",
        ),
        (lambda about: about["architecture"].update(name="mlp"), r"6 missing: 1.fc1.weight, .*unexpected: 1.bn1.bias"),
    ],
)
def test_a_json_that_does_not_fit_says_what(saved, edit, message):
    _, folder = saved
    _edit(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_truncated_weights_are_named(saved):
    _, folder = saved
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors` is not a whole safetensors file"):
        load_checkpoint(folder)


def test_saving_asks_for_what_loading_needs(tmp_path):
    with pytest.raises(ValueError, match=r"`about` must have the keys 'architecture', 'data', got \['sigma'\]"):
        save_checkpoint(tmp_path, _model(), {"sigma": 0.5})


# the hash


def test_the_hash_is_that_of_names_types_shapes_and_bytes():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    by_hand = (
        b'["bias", "torch.float32", [1]]' + bytes.fromhex("0000003f")
        + b'["weight", "torch.float32", [1, 2]]' + bytes.fromhex("0000803f000000c0")
    )  # fmt: skip
    assert model_hash(model) == f"sha256:{hashlib.sha256(by_hand).hexdigest()}"


def test_the_hash_is_that_of_the_function():
    model = _model()
    before = model_hash(model)
    model.train()
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor += 7
    assert model_hash(model) == before == model_hash(_model())
    weight = model[1].fc.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))  # the smallest change there is
    assert model_hash(model) != before
    assert model_hash(_model().double()) != before
    assert model_hash(_model(mean=[0.5, 0.5, 0.4])) != before
