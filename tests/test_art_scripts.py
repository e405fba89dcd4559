"""The benchmark that runs ART's own scripts: one line is changed, and what fails is said to fail."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "art_scripts.py"
SCRIPT = """
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
classifier = PyTorchClassifier(model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=(1, 2, 2), nb_classes=2)
nb_epochs=30
assert nb_epochs == 1
classifier.certify(np.ones((1, 1, 2, 2), dtype=np.float32))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("words", "status", "verdict"), [([], 0, "runs"), (["--unchanged"], 1, "'certify'")])
def test_the_estimator_is_there_unless_nothing_is_changed(tmp_path, words, status, verdict):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "get_started_pytorch.py").write_text(SCRIPT)
    command = [sys.executable, BENCHMARK, tmp_path, "--data-root", tmp_path, "--only", "get_started", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert verdict in done.stdout.splitlines()[-1]
