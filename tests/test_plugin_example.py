"""The worked plugin package: installed by pip, found by name, and right."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art_rs_plugin.certifiers import UnsupportedNetwork

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
ASK = """
from art_rs_plugin import certifiers
assert "linear-exact" in certifiers.available()
print(certifiers.get("linear-exact").__module__)
"""


@pytest.fixture(scope="module")
def certifier():
    return runpy.run_path(str(PLUGIN / "art_rs_linear.py"))["LinearExact"]


@pytest.mark.slow
def test_it_is_found_once_it_is_installed_and_not_before(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    words = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *words], check=True)
    paths = {"before": "", "after": str(target)}
    for when, path in paths.items():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (when == "after"), done.stderr
    assert done.stdout == "art_rs_linear\n"


def test_its_radius_is_the_distance_to_the_nearest_plane(certifier) -> None:
    chance = np.random.default_rng(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(chance.standard_normal((4, 12))))
    x = chance.standard_normal((5, 3, 2, 2)).astype(np.float32)
    made = certifier.build(model, input_shape=(3, 2, 2), nb_classes=4).certify(x, indices=[3, 1, 4, 15, 9])
    weight, bias = (parameter.detach().double().numpy() for parameter in model[1].parameters())
    assert [certificate.index for certificate in made] == [3, 1, 4, 15, 9]
    for certificate, point in zip(made, x.reshape(5, -1).astype(np.float64), strict=True):
        best = certificate.prediction
        assert best == (weight @ point + bias).argmax()
        changed = []
        for other in set(range(4)) - {best}:
            normal = weight[other] - weight[best]
            step = normal / np.linalg.norm(normal)
            inside, beyond = (point + length * certificate.radius * step for length in (1.0, 1 + 1e-6))
            assert (weight @ inside + bias).argmax() == best
            changed.append((weight @ beyond + bias).argmax() != best)
        assert any(changed)  # it is the largest that is true


def test_it_refuses_what_it_cannot_certify(certifier) -> None:
    deep = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(UnsupportedNetwork, match="certifies one linear layer"):
        certifier.build(deep, input_shape=(1, 2, 2), nb_classes=2)
    with pytest.raises(ValueError, match="takes no options, got steps"):
        certifier.build(deep[:2], input_shape=(1, 2, 2), nb_classes=4, steps=3)
