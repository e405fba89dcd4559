"""Commands on a full disk, in a read-only folder, on a device, and by two at once: one line, and nothing lost."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from art_rs_plugin.cli import app
from art_rs_plugin.experiments import checkpoints, datasets, models, runs
from art_rs_plugin.experiments.ledger import Ledger, read_ledger
from art_rs_plugin.experiments.runs import open_network

NOBODY = 65534


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    assert code == 0 or ("error: " in result.output and "Traceback" not in result.output)
    return result.output


@pytest.fixture(scope="module")
def folder():
    """A folder that everybody may read, with a network and a ledger."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        architecture = {"name": "mlp", "input_shape": (1, 8, 8), "nb_classes": 10, "mean": (0.3,), "std": (0.37,)}
        about = {"architecture": architecture, "sigma": 0.25, "data": {"name": "digits", "split": "train"}}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            checkpoints.save_checkpoint(folder / "network", models.build(**architecture), about)
        run(*certify(folder, folder / "whole.jsonl"))
        (folder / "again.jsonl").write_bytes((folder / "whole.jsonl").read_bytes())
        yield folder


def certify(folder: Path, out: Path) -> list[str]:
    words = f"certify --checkpoint {folder}/network --data digits --n 100 --max 12 --seed 0 --no-compile --out {out}"
    return words.split()


class TestFullDisk:
    def test_certify_keeps_whole_lines_says_so_and_goes_on(self, folder, tmp_path, file_limit):
        words, whole = certify(folder, tmp_path / "run.jsonl"), folder / "whole.jsonl"
        file_limit(whole.stat().st_size // 2)
        said = run(*words, code=2)
        file_limit(resource.RLIM_INFINITY)
        kept = read_ledger(tmp_path / "run.jsonl")[1]
        assert 0 < len(kept) < 12
        assert f"{len(kept)} examples are kept. Make room, then run the same command to go on" in said
        run(*words)
        found, expected = read_ledger(tmp_path / "run.jsonl"), read_ledger(whole)
        assert found[0] == expected[0]
        assert [row["counts"] for row in found[1]] == [row["counts"] for row in expected[1]]

    def test_train_leaves_what_was_there_and_goes_on(self, tmp_path, file_limit):
        words = (
            f"train --data digits --model mlp --sigma 0.25 --epochs 2 --lr 0.05 --seed 0 --out {tmp_path}/it".split()
        )
        file_limit(2_000)
        assert "could not be written to" in run(*words, code=2)
        assert not list((tmp_path / "it").glob("*.partial"))
        file_limit(resource.RLIM_INFINITY)
        assert "epoch 2/2" in run(*words)
        checkpoints.load_checkpoint(tmp_path / "it")

    @pytest.mark.parametrize(
        "words", ["curve {0}/whole.jsonl --out {1}/curves", "report {0}/whole.jsonl --out {1}/r.html"]
    )
    def test_tables_pictures_and_reports_are_written_whole_or_not_at_all(self, folder, tmp_path, file_limit, words):
        file_limit(100)
        said = run(*words.format(folder, tmp_path).split(), code=2)
        assert f"File too large: '{tmp_path}/" in said
        file_limit(resource.RLIM_INFINITY)
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 100] == []
        run(*words.format(folder, tmp_path).split())


@contextlib.contextmanager
def as_nobody():
    """Not as root, who may write anywhere."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "words",
    [
        "certify --checkpoint {0}/network --data digits --n 100 --max 2 --no-compile --out {1}/run.jsonl",
        "predict --checkpoint {0}/network --data digits --n 100 --max 2 --no-compile --out {1}/run.jsonl",
        "train --data digits --model mlp --sigma 0.25 --epochs 1 --out {1}/it",
        "curve {0}/whole.jsonl --out {1}/curves",
        "report {0}/whole.jsonl --out {1}/report.html",
        "paired {0}/whole.jsonl {0}/again.jsonl --out {1}/paired.csv",
    ],
    ids=lambda words: words.split()[0],
)
def test_a_folder_that_is_read_only_gets_one_line(folder, tmp_path, words):
    place = folder / "read-only"
    place.mkdir(exist_ok=True)
    place.chmod(0o555)
    if words.startswith("train"):  # imports what nobody might not read
        run(*words.format(folder, tmp_path).split())
    with as_nobody():
        assert "Permission denied" in run(*words.format(folder, place).split(), code=2)
    assert list(place.iterdir()) == []


def test_devices_are_no_place_for_ledgers(folder):
    for device in ("/dev/full", "/dev/null"):
        assert f"{device} is not a regular file" in run(*certify(folder, Path(device)), code=2)


def test_a_second_command_on_one_ledger_is_refused(folder, tmp_path):
    path = tmp_path / "run.jsonl"
    header, _ = read_ledger(folder / "whole.jsonl")
    with Ledger.open(path, {name: value for name, value in header.items() if name != "format"}):
        assert "another run is writing this ledger: wait for it, or write elsewhere" in run(
            *certify(folder, path), code=2
        )
    run(*certify(folder, path))


def test_an_image_without_finite_logits_is_named_and_all_others_are_certified(folder, tmp_path, monkeypatch):
    real = open_network

    def spoilt(*arguments, **options):
        model, sigma = real(*arguments, **options)
        image = torch.from_numpy(datasets.load("digits", "test").arrays([5])[0])

        class Spoilt(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, x):
                # noise has a norm of 2 +- .2: a third of the copies of image 5, and none of others, are so close to it
                close = (x - image).flatten(1).norm(dim=1) < 1.9
                return torch.where(close[:, None], torch.inf, self.model(x))

        return Spoilt(), sigma

    monkeypatch.setattr(runs, "open_network", spoilt)
    said = run(*certify(folder, tmp_path / "run.jsonl"), code=2)
    assert "got NaN or infinity in" in said
    assert "noisy copies of the example with index 5" in said
    assert [row["index"] for row in read_ledger(tmp_path / "run.jsonl")[1]] == [*range(5), *range(6, 12)]
    predicted = [word if word != "certify" else "predict" for word in certify(folder, tmp_path / "predicted.jsonl")]
    assert "the example with index 5" in run(*predicted, code=2)
    assert [row["index"] for row in read_ledger(tmp_path / "predicted.jsonl")[1]] == [*range(5), *range(6, 12)]


@pytest.mark.slow
def test_sigterm_while_training_leaves_a_state_to_go_on_from(tmp_path):
    words = f"train --data digits --model small-cnn --sigma 0.25 --epochs 200 --lr 0.05 --seed 0 --out {tmp_path}/it"
    process = subprocess.Popen(
        [sys.executable, "-m", "art_rs_plugin", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "epoch 1/200" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert f"art-rs {words}" in errors
    assert "Traceback" not in errors
    state = torch.load(tmp_path / "it/training.pt", weights_only=True)
    assert 1 <= state["epoch"] < 200


@pytest.mark.parametrize("status", [130, 143])
def test_the_status_of_a_stopped_command_outlives_whatever_the_interpreter_does_as_it_ends(status):
    program = (
        "import atexit, os, sys\n"
        "from art_rs_plugin import cli\n"
        "atexit.register(os.abort)\n"
        "print('kept', end='')\n"
        f"cli.app = lambda: sys.exit({status})\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "kept")
