"""Checkpoints made to harm: headers of weights that lie, JSON that is none of ours. Refused in one way, at once."""

import json
import re
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from art_rs_plugin.experiments import models
from art_rs_plugin.experiments.checkpoints import load_checkpoint, load_weights, model_hash, save_checkpoint

ARCHITECTURE = {"name": "mlp", "input_shape": [1, 2, 2], "nb_classes": 2, "mean": [0.5], "std": [0.25]}
ABOUT = {"architecture": ARCHITECTURE, "sigma": 0.5, "data": {"name": "digits", "split": "train"}}


def tensor(begin: int, end: int, shape=(2, 2), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file(header, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "empty": b"",
    "shorter than a length": b"\1\0",
    "a header of 2^63 bytes": file({"a": tensor(0, 16)}, length=2**63),
    "a header of 2^64 - 1 bytes": file({"a": tensor(0, 16)}, length=2**64 - 1),
    "a header beyond the file": file({"a": tensor(0, 16)}, length=10**6),
    "a header that ends too soon": file({"a": tensor(0, 16)}, length=7),
    "no JSON": file(b"{oops"),
    "no mapping": file([1]),
    "no UTF-8": file(b'{"\xff\xfe": 1}'),
    "nested": file(b"[" * 100_000 + b"]" * 100_000),
    "a tensor beyond the data": file({"a": tensor(0, 10**12, (250_000, 10**6))}),
    "a negative offset": file({"a": tensor(-1, 15)}),
    "offsets backwards": file({"a": tensor(16, 0)}),
    "a shape too large for its bytes": file({"a": tensor(0, 16, (3, 3))}),
    "a shape whose product overflows": file({"a": tensor(0, 16, (2**62, 2**62, 4))}),
    "a negative shape": file({"a": tensor(0, 16, (-2, -2))}),
    "tensors that overlap": file({"a": tensor(0, 8, (2,)), "b": tensor(4, 16, (3,))}),
    "a hole": file({"a": tensor(8, 16, (2,))}),
    "bytes that belong to none": file({"a": tensor(0, 16)}, bytes(20)),
    "a type there is not": file({"a": tensor(0, 16, dtype="PICKLE")}),
    "a type that torch lacks": file({"a": tensor(0, 3, (4,), dtype="F6_E2M3")}, bytes(3)),
}


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(tmp_path / "run", models.build(**ARCHITECTURE), ABOUT)
    return tmp_path / "run"


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_and_the_model_stays_as_it_was(folder, tmp_path, name):
    for path in (folder / "model.safetensors", tmp_path / "theirs.safetensors"):
        path.write_bytes(LIES[name])
    said = re.escape("is not a whole safetensors file")
    with pytest.raises(ValueError, match=rf"`{folder}/model\.safetensors` {said}"):
        load_checkpoint(folder)
    model = models.build(**ARCHITECTURE)
    before = model_hash(model)
    with pytest.raises(ValueError, match=rf"theirs\.safetensors` {said}"):
        load_weights(model, tmp_path / "theirs.safetensors")
    assert model_hash(model) == before


def test_a_whole_file_is_made_in_the_same_way():
    assert safetensors.torch.load(file({"a": tensor(0, 16)}))["a"].shape == (2, 2)


@pytest.mark.parametrize("sigma", [0, -1.0, "wide", None, [0.5], True, float("nan")])
def test_a_sigma_that_is_none_is_refused(folder, sigma):
    about = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**about, "sigma": sigma}))
    with pytest.raises(ValueError, match=r"checkpoint.json`: `sigma` must be a (finite )?number"):
        load_checkpoint(folder)


VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=4), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)
PLACES = [(key,) for key in (*ABOUT, "model_hash", "more")] + [("architecture", key) for key in ARCHITECTURE]


def changed(about, places, values):
    about = json.loads(json.dumps(about))
    for (*parents, key), value in zip(places, values, strict=False):
        here = about
        for parent in parents:
            here = here[parent] if isinstance(here.get(parent), dict) else {}
        here[key] = value
    return about


def hostile(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def check_json(folder, text: bytes) -> None:
    """It is the checkpoint that was saved, or a ValueError that names the file."""
    path = folder / "checkpoint.json"
    whole = path.read_bytes()
    said = ""
    try:
        path.write_bytes(text)
        model, about = load_checkpoint(folder)
    except ValueError as error:
        said = str(error)
    finally:
        path.write_bytes(whole)
    if said:
        assert str(folder) in said
    else:
        assert about["model_hash"] == model_hash(model) == json.loads(whole)["model_hash"]
        assert 0 < about["sigma"] < float("inf")


@given(st.lists(st.sampled_from(PLACES), min_size=1, max_size=2), st.lists(VALUE, min_size=2, max_size=2))
@hostile(150)
def test_hostile_json_is_refused_in_one_way(folder, places, values):
    about = json.loads((folder / "checkpoint.json").read_text())
    check_json(folder, json.dumps(changed(about, places, values)).encode())


@given(st.one_of(st.binary(max_size=40), st.integers(1, 10**5).map(lambda depth: b'{"a":' * depth)))
@hostile(50)
def test_what_is_no_json_is_refused_in_one_way(folder, text):
    check_json(folder, text)
