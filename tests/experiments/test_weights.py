"""Other people's weights: fitted under their habits of naming; more than tensors is refused and never executed."""

import copy
import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from art_rs_plugin.experiments import models
from art_rs_plugin.experiments.checkpoints import load_weights, model_hash


def _model(seed=0):
    torch.manual_seed(seed)
    model = models.build("resnet20", input_shape=(3, 16, 16), nb_classes=4, mean=[0.5] * 3, std=[0.25] * 3)
    model(torch.rand(8, 3, 16, 16))  # batch statistics of its own
    return model.eval()


def _logits(model):
    with torch.no_grad():
        return model(torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def _network_state():
    return _model(seed=3)[1].state_dict()


def _as_bare(state):
    return state


def _as_parallel(state):
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best_prec1": 91.7, "epoch": 3}


def _as_model(state):
    return {"model": state}


def _as_linear(state):
    return {name.replace("fc.", "linear."): tensor for name, tensor in state.items()}


def _as_authors(state):
    return {"arch": "cifar_resnet20", "state_dict": {f"1.{name}": tensor for name, tensor in state.items()}}


def _as_authors_parallel(state):
    return {"state_dict": {f"1.module.{name.replace('fc.', 'linear.')}": tensor for name, tensor in state.items()}}


def _as_old(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _as_cascade(state):
    return {"state_dict": [state, {name: torch.zeros_like(tensor) for name, tensor in state.items()}], "epoch": 17}


HABITS = [_as_cascade, _as_bare, _as_parallel, _as_model, _as_linear, _as_authors, _as_authors_parallel, _as_old]


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".pth.tar"])
def test_weights_are_found_under_the_known_habits(tmp_path, habit, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(habit(_network_state()), path)
    model = _model()
    load_weights(model, path)
    # its own standardisation stays, and everything else is theirs
    assert torch.equal(_logits(model), _logits(_model(seed=3)))
    network = _model()[1]
    load_weights(network, path)
    assert torch.equal(_logits(network), _logits(_model(seed=3)[1]))


@pytest.mark.parametrize("names", [("0.means", "0.sds"), ("0.mean", "0.std")])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_their_standardisation_replaces_ours_where_the_file_holds_it(tmp_path, names, shape):
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    state = {f"module.1.{name}": tensor for name, tensor in _network_state().items()}
    for name, values in zip(names, (mean, std), strict=True):
        state[f"module.{name}"] = torch.tensor(values).reshape(shape)
    torch.save(state, tmp_path / "theirs.pth")
    model = _model()
    load_weights(model, tmp_path / "theirs.pth")
    expected = _model(seed=3)
    expected[0] = models.Normalize(3, mean, std)
    assert torch.equal(_logits(model), _logits(expected))


def test_safetensors_are_read_too(tmp_path):
    safetensors.torch.save_file(_network_state(), tmp_path / "weights.safetensors")
    model = _model()
    load_weights(model, tmp_path / "weights.safetensors")
    assert torch.equal(_logits(model), _logits(_model(seed=3)))
    (tmp_path / "weights.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"is not a whole safetensors file"):
        load_weights(model, tmp_path / "weights.safetensors")


def test_a_users_sequential_keeps_its_numbers(tmp_path):
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")  # the names begin with 1. and 3.
    alone = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    load_weights(alone, tmp_path / "theirs.pth")
    assert model_hash(alone) == model_hash(theirs)
    behind = nn.Sequential(models.Normalize(1), copy.deepcopy(alone))
    with torch.no_grad():
        behind[1][1].weight.zero_()
    load_weights(behind, tmp_path / "theirs.pth")
    assert model_hash(behind[1]) == model_hash(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc.bias"), r"do not fit the model; 1 missing: 1.fc.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected: 1.extra"),
        (
            lambda state: state.update({"fc.bias": torch.zeros(9)}),
            r"1 of another shape: 1.fc.bias \(9,\) instead of \(4,\)",
        ),
        (lambda state: state.clear(), r"missing: 0.mean|missing: 1.conv1.weight"),
        (lambda state: state.update({"linear.bias": torch.zeros(4)}), r"two tensors for one name"),
        (lambda state: state.update({"fc.bias": [0.0] * 4}), r"must hold a state_dict .*, got list as 'fc.bias'"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path, change, message):
    state = dict(_network_state())
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    model = _model()
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "weights.pth")
    assert model_hash(model) == model_hash(_model())


def test_half_a_standardisation_is_not_mixed_with_ours(tmp_path):
    state = {f"1.{name}": tensor for name, tensor in _network_state().items()} | {"0.means": torch.zeros(3)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 missing: 0.std"):
        load_weights(_model(), tmp_path / "weights.pth")


def test_no_such_file_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.pth`: there is no such file"):
        load_weights(_model(), tmp_path / "absent.pth")
    torch.save(_network_state(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for number, data in enumerate([b"", b"hello", whole[: len(whole) // 2], whole[:100]]):
        path = tmp_path / f"damaged{number}.pth"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"weights `{path}` .*damaged"):
            load_weights(_model(), path)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"must hold a state_dict .*, got list as 'file'"):
        load_weights(_model(), tmp_path / "list.pth")


class _Payload:
    """What an attacker would put into a pickle: reading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def _write_zip(content, path):
    torch.save(content, path)


def _write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _write_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [_write_zip, _write_legacy, _write_pickle])
@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".tar"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_with_a_payload_is_refused_and_never_executed(tmp_path, write, suffix, nested):
    executed = tmp_path / "executed"
    content = {"state_dict": {"fc.bias": _Payload(executed)}} if nested else _Payload(executed)
    path = tmp_path / f"weights{suffix}"
    write(content, path)
    with pytest.raises(ValueError, match=r"must hold tensors only: .*none of it was executed") as caught:
        load_weights(_model(), path)
    assert not executed.exists()
    assert "weights_only" not in str(caught.value)  # torch's own message recommends the unsafe way
    pickle.loads(path.read_bytes()) if write is _write_pickle else torch.load(path, weights_only=False)
    assert executed.exists()  # the payload is a live one
