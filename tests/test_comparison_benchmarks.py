"""The comparisons of `benchmarks/comparisons` are such as `art-rs compare` takes, and their networks are trained."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from art_rs_plugin.experiments import compare, datasets, models

FOLDER = Path(__file__).parents[1] / "benchmarks" / "comparisons"
PUBLISHED = {"mnist.pth", "cifar_small_36px.pth"}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What the script calls `art-rs` with, given folders of published networks and of results."""
    folder = tmp_path_factory.mktemp("comparisons")
    (folder / "bin").mkdir()
    (folder / "published").mkdir()
    for name in PUBLISHED:
        (folder / "published" / name).touch()
    fake = folder / "bin" / "art-rs"
    fake.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/commands"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    words = [str(FOLDER / "run.sh"), str(folder / "out"), str(folder / "published")]
    subprocess.run(words, env=environment, check=True)
    refused = subprocess.run([*words, "nothing"], env=environment, capture_output=True, text=True)
    assert (refused.returncode, "without .toml, got nothing" in refused.stderr) == (2, True)
    assert {path.name for path in (folder / "out" / "networks").iterdir()} == PUBLISHED
    return (folder / "commands").read_text().splitlines()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_entry_can_be_built_and_its_network_is_trained_or_published(path, commands):
    comparison = compare.load(path)
    before = commands[: next(at for at, line in enumerate(commands) if f"{path.stem}.toml" in line)]
    trained = dict(
        re.search(r"--model (\S+) .*--out \S+/networks/(\S+)", line).group(2, 1)
        for line in before
        if line.startswith("train")
    )
    for entry in comparison.entries:
        name = entry.checkpoint.name
        if name in PUBLISHED:
            architecture = entry.model
            assert (len(entry.mean), len(entry.std)) == (SHAPES[comparison.data][0],) * 2
        else:
            architecture = trained[name]
        options = {"input_shape": SHAPES[comparison.data], "nb_classes": 10}
        model = models.build(architecture, **options).eval()
        kind = compare.certifiers.get(entry.certifier)
        usual = {"sigma": 0.25} if entry.certifier.startswith(("smoothing", "art-smoothing")) else {}
        if entry.certifier == "attack-bound":
            usual = {"radii": comparison.radii}
        assert kind.build(model, **options, **usual, **entry.options).certifies == (
            "g" if "sigma" in {**usual, **entry.options} else "f"
        )


def test_trained_networks_are_of_the_data_that_they_are_compared_on(commands):
    for line in commands:
        if line.startswith("train"):
            data, name = re.search(r"--data (\S+) .*/networks/(\S+)", line).groups()
            assert name.startswith(data)
            assert data in datasets.DATASETS
