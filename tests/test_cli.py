"""The command line, used as its own help says: every example runs, every mistake gets one clear line."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from art_rs_plugin.cli import app
from art_rs_plugin.experiments import datasets, models, recipes
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.training import OBJECTIVES

COMMANDS = {command.callback.__name__: command for command in app.registered_commands}
FIRST = ("train", "certify", "predict", "curve", "attack", "tightness", "compare", "paper")
WITH_TWO_LEDGERS = ("paired", "audit", "report", "plan", "version")
# what a certificate is; time is not part of it
CERTIFIED = ("index", "label", "prediction", "radius", "counts", "selected", "p_lower", "p_upper", "n0", "n", "alpha")


def example(name: str) -> list[str]:
    """Arguments of the example in a command's help."""
    words = shlex.split(COMMANDS[name].epilog.removeprefix("Example: "))
    assert words[:2] == ["art-rs", name]
    return words[1:]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples of the help have run, in an order in which each finds what it needs."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in FIRST:
            (folder / f"{name}.txt").write_text(run(*example(name)))
        run(*example("certify")[:-1], "digits-0.50.jsonl", "--sigma", "0.5", "--n", "1000")  # to compare with
        for name in WITH_TWO_LEDGERS:
            (folder / f"{name}.txt").write_text(run(*example(name)))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example(name: str) -> None:
    assert " ".join(example(name)) in " ".join(run(name, "--help").split())
    assert name in (*FIRST, *WITH_TWO_LEDGERS, "demo"), "it is among those that run"


def test_the_example_of_train_makes_a_checkpoint_that_says_what_it_is(folder: Path) -> None:
    about = json.loads((folder / "runs/digits/checkpoint.json").read_text())
    assert about["sigma"] == 0.25
    assert about["architecture"]["name"] == "small-cnn"
    assert about["data"] == {"name": "digits", "split": "train"}
    assert "epoch 6/6" in (folder / "train.txt").read_text()


def test_the_example_of_certify_writes_a_ledger_and_prints_a_table(folder: Path) -> None:
    header, rows = read_ledger(folder / "digits.jsonl")
    assert [row["index"] for row in rows] == list(range(20))
    assert header["noise"] == {"name": "gaussian", "sigma": 0.25}
    assert header["rule"] == {"name": "fixed", "n0": 100, "n": 10_000, "alpha": 0.001, "bound": "clopper-pearson"}
    assert header["model"]["hash"] == json.loads((folder / "runs/digits/checkpoint.json").read_text())["model_hash"]
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert right >= 15, "a network trained for six epochs knows most digits"
    assert f"| {right / 20:.3f} |" in (folder / "certify.txt").read_text()


def test_the_example_of_predict_agrees_with_its_ledger(folder: Path) -> None:
    header, rows = read_ledger(folder / "digits-votes.jsonl")
    assert header["kind"] == "predict"
    assert len(rows) == 20
    assert all(sum(row["counts"]) == row["n"] == 1_000 for row in rows)
    right = sum(row["prediction"] == row["label"] for row in rows) / 20
    assert f"| 20 | {right:.3f} |" in (folder / "predict.txt").read_text()


def test_the_example_of_curve_writes_table_and_pictures(folder: Path) -> None:
    assert sorted(path.suffix for path in (folder / "curves").iterdir()) == [".csv", ".md", ".png", ".svg"]
    assert "r = 0.25" in (folder / "curve.txt").read_text()


def test_the_example_of_attack_agrees_with_its_ledger(folder: Path) -> None:
    header, rows = read_ledger(folder / "attack.jsonl")
    assert (header["kind"], header["rule"]["eps"], len(rows)) == ("attack", 0.5, 20)
    assert all(row["l2"] <= 0.5 * (1 + 1e-5) and row["leaves"] == row["label"] for row in rows)
    right = sum(row["prediction"] == row["label"] for row in rows) / 20
    assert f"| right after it | {right:.3f} [" in (folder / "attack.txt").read_text()
    assert right < sum(row["clean"] == row["label"] for row in rows) / 20


def test_the_example_of_compare_has_a_row_for_each_certifier(folder: Path) -> None:
    lines = (folder / "compare.txt").read_text().splitlines()
    rows = [line.split()[1] for line in lines if line.startswith("|")]
    assert rows[2:5] == ["smoothing", "smoothing-li", "crown"]
    assert {"leads", "below"} & set(rows[5:])  # and where the curves cross
    assert {path.name for path in (folder / "compared").iterdir()} >= {"smoothing.jsonl", "compare.csv", "compare.svg"}


def test_the_example_of_paired_compares_the_two_networks(folder: Path) -> None:
    lines = (folder / "paired.txt").read_text().splitlines()
    at_zero = [cell.strip() for cell in lines[2].strip("|").split("|")]
    right = [
        sum(row["prediction"] == row["label"] for row in read_ledger(folder / name)[1])
        for name in ("digits.jsonl", "digits-0.50.jsonl")
    ]
    assert at_zero[:4] == ["r = 0", *(f"{count / 20:.3f}" for count in right), f"{(right[0] - right[1]) / 20:+.3f}"]
    assert "first: digits; second: digits-0.50;" in "".join(lines)
    assert (folder / "paired.csv").read_text().startswith("at,first,second,difference,only first,only second,p,")


def test_the_example_of_audit_verifies_what_certify_wrote(folder: Path) -> None:
    said = (folder / "audit.txt").read_text()
    assert "INCONSISTENT" not in said
    assert "verified      votes: 5 of 20 rows were cast again, the same; one altered row" in said


def test_the_example_of_report_is_one_page_of_both_ledgers(folder: Path) -> None:
    assert (folder / "report.txt").read_text() == "Written: report.html\n"
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count('<img src="data:image/png;base64,') == 2 * 2 * 2 * 6


@pytest.mark.parametrize("name", ["smoothing", "smoothing-li", "crown", "digits-votes"])
def test_ledgers_of_compare_and_predict_are_audited(here: Path, name: str) -> None:
    path = here / ("digits-votes.jsonl" if name == "digits-votes" else f"compared/{name}.jsonl")
    said = run("audit", str(path), "--checkpoint", "runs/digits", "--replay", "2")
    assert "\nverified      labels: all " in said
    if name == "crown":
        assert "not verified  rows: " in said
        assert "not verified  votes: none can be cast again: the certifier casts none" in said
    else:
        assert "\nverified      rows: all " in said
        assert "\nverified      votes: 2 of " in said


def test_compare_lists_certifiers_and_says_what_is_missing(tmp_path: Path) -> None:
    assert "smoothing-lecuyer\n" in run("compare", "--certifiers", "list", "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    said = run("compare", "--data", "digits", "--out", str(tmp_path / "none"), code=2)
    assert "`--config` must be given, or `--data`, `--checkpoint` and `--certifiers`" in said
    said = run("compare", "--config", str(tmp_path / "a.toml"), "--data", "digits", "--out", str(tmp_path), code=2)
    assert "`--config` must stand alone" in said
    words = [
        "compare",
        "--data",
        "digits",
        "--checkpoint",
        "a",
        "--certifiers",
        "smoothing",
        "--out",
        str(tmp_path / "none"),
    ]
    assert "`--sigmas` must be numbers separated by commas, got 'x'" in run(*words, "--sigmas", "x", code=2)


def test_the_example_of_tightness_attacks_every_certificate(folder: Path) -> None:
    certified = {row["index"]: row for row in read_ledger(folder / "digits.jsonl")[1] if row["prediction"] >= 0}
    for times in (1, 1.5, 2):
        rows = read_ledger(folder / f"tightness/times-{times:g}.jsonl")[1]
        assert [row["index"] for row in rows] == sorted(certified)
        for row in rows:
            assert row["eps"] == times * certified[row["index"]]["radius"]
            assert row["leaves"] == certified[row["index"]]["prediction"]
    table = (folder / "tightness/tightness.csv").read_text().splitlines()
    assert table[0] == "times,images,adversarial,low,high,abstain"
    assert table[1].startswith(f"1.0,{len(certified)},0.0,"), "no adversarial example within the radius"
    assert "| adversarial |" in (folder / "tightness.txt").read_text()
    assert (folder / "tightness/tightness.svg").exists()


def test_certify_again_does_nothing_and_asking_for_more_goes_on(here: Path) -> None:
    before = (here / "digits.jsonl").read_bytes()
    run(*example("certify"))
    assert (here / "digits.jsonl").read_bytes() == before
    run(*example("certify"), "--max", "22")
    after = (here / "digits.jsonl").read_bytes()
    assert after.startswith(before)
    assert [row["index"] for row in read_ledger(here / "digits.jsonl")[1]] == list(range(22))


def test_every_picks_each_kth_image_and_a_seed_makes_the_ledger_repeatable(here: Path) -> None:
    common = ["certify", "--checkpoint", "runs/digits", "--data", "digits", "--n", "200", "--seed", "5"]
    run(*common, "--every", "100", "--out", "one.jsonl")
    run(*common, "--every", "100", "--out", "two.jsonl", "--batch-size", "7")
    one, two = (read_ledger(here / name)[1] for name in ("one.jsonl", "two.jsonl"))
    assert [row["index"] for row in one] == [0, 100, 200, 300, 400]
    # a network's logits may differ in the last bit with the batch size, and then a tied vote does: counts, not luck
    assert (
        sum(
            sum(abs(a - b) for a, b in zip(r["counts"], s["counts"], strict=True))
            for r, s in zip(one, two, strict=True)
        )
        <= 2
    )


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 300  # on a machine that is busy
    while not path.exists() or path.read_bytes().count(b"\n") < count + 1:
        assert time.monotonic() < deadline, f"{path} has not {count} rows after five minutes"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been_stopped(here: Path, how: signal.Signals) -> None:
    words = [
        *[
            "certify",
            "--checkpoint",
            "runs/digits",
            "--data",
            "digits",
            "--n",
            "2000",
            "--max",
            "60",
            "--seed",
            "3",
            "--out",
        ],
        f"{how.name}.jsonl",
    ]
    whole = f"whole-{how.name}.jsonl"
    run(*words[:-1], whole)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "art_rs_plugin", *words], stderr=subprocess.PIPE, text=True, env=environment
    )
    wait_for_rows(here / words[-1], 3)
    process.send_signal(how)
    errors = process.communicate()[1]
    assert process.returncode == (-how if how is signal.SIGKILL else 128 + how)
    assert (here / words[-1]).read_bytes().endswith(b"}\n") or how is signal.SIGKILL, "the line was finished"
    if how is not signal.SIGKILL:
        assert f"art-rs {shlex.join(words)}" in errors
        assert "Traceback" not in errors
    run(*words)
    rows, expected = (read_ledger(here / name)[1] for name in (words[-1], whole))
    assert len(rows) == 60
    assert [{key: row[key] for key in CERTIFIED} for row in rows] == [
        {key: row[key] for key in CERTIFIED} for row in expected
    ]


def test_somebody_elses_weights_need_a_model_and_a_sigma(here: Path) -> None:
    network = models.build("mlp", input_shape=(1, 8, 8), nb_classes=10)[1]
    torch.save({"state_dict": network.state_dict()}, "theirs.pth")
    words = ["certify", "--checkpoint", "theirs.pth", "--data", "digits", "--n", "20", "--max", "2", "--out", "t.jsonl"]
    assert "`--model` must be given" in run(*words, code=2)
    assert "`--sigma` must be given" in run(*words, "--model", "mlp", code=2)
    run(*words, "--model", "mlp", "--sigma", "0.5")
    assert read_ledger(here / "t.jsonl")[0]["noise"]["sigma"] == 0.5


CERTIFY = "certify --checkpoint runs/digits --data digits --n 100 --max 2 --out new.jsonl"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("certify --checkpoint runs/digits --data mnist --data-root nowhere --out x.jsonl", "--data-root"),
        (f"{CERTIFY} --alpha 7", "`alpha` must be in (0, 1), got 7.0"),
        (f"{CERTIFY} --n 5", "`n` must be at least 10 to ever certify at alpha = 0.001, got 5"),
        (f"{CERTIFY} --sigma -1", "`sigma` must be a finite number above 0, got -1.0"),
        (f"{CERTIFY} --max 0", "`max` must be at least 1, got 0"),
        (f"{CERTIFY} --radii 0,x", "`--radii` must be numbers separated by commas, got '0,x'"),
        (f"{CERTIFY} --model mlp", "`model` must not be given for a checkpoint that says it"),
        ("train --data digits --model mlp --sigma 0.25 --epochs 6 --lr 0.05 --out runs/digits", "model is 'small-cnn'"),
        ("certify --checkpoint nowhere --data digits --out x.jsonl", "`nowhere` does not exist"),
        ("certify --checkpoint runs/digits --data cats --out x.jsonl", "must be one of 'digits'"),
        ("certify --checkpoint runs/digits --data digits --n 10000 --out digits-votes.jsonl", "`kind`"),
        ("certify --checkpoint runs/digits --data digits --n 20000 --out digits.jsonl", "`rule.n` is 10000"),
        ("predict --checkpoint runs/digits --data digits --n 10 --out x.jsonl", "`n` must be at least 11"),
        ("train --data digits --model vgg --sigma 0.25 --out y", "must be one of 'small-cnn'"),
        ("train --data digits --model small-cnn --sigma 0.5 --epochs 6 --lr 0.05 --out runs/digits", "sigma"),
        ("train --data digits --model small-cnn --sigma 0.25 --epochs 60 --lr 0.05 --out runs/digits", "epochs is 6"),
        ("train --sigma 0.25 --out y", "`--data` and `--model` must be given, here or by a recipe"),
        (
            "train --recipe nowhere.toml --sigma 0.25 --out y",
            "recipe `nowhere.toml` must be a file, or one of",
        ),
        (
            "train --recipe digits --sigma 0.25 --method trades --out y",
            "`method` must be one of 'gaussian'",
        ),
        ("train --recipe digits --sigma 0.25 --option eps=1 --out y", "`option of gaussian` must be one of"),
        ("train --recipe digits --sigma 0.25 --unlabeled digits --out y", "must be given together, got one of them"),
        ("train --recipe digits --sigma 0.25 --init nowhere --out y", "checkpoint `nowhere`: `nowhere` does not exist"),
        ("train --recipe digits --sigma 0.25 --held-out 1348 --out y", "`held_out` must be below the 1348 images"),
        ("certify --checkpoint runs/digits --data digits --sound --out y.jsonl", "must hold multiples of 1/255 alone"),
        ("predict --checkpoint runs/digits --data digits --sound --out y.jsonl", "must hold multiples of 1/255 alone"),
        ("curve nowhere.jsonl", "nowhere.jsonl"),
        ("curve digits-votes.jsonl", "has no radii"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_leaves_nothing(here: Path, words: str, message: str) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    output = run(*words.split(), code=2)
    assert message in output
    assert output.startswith("error: ")
    assert "Traceback" not in output
    after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert after == before


def test_a_checkpoint_for_other_images_is_refused(here: Path, data_root: Path) -> None:
    words = ["certify", "--checkpoint", "runs/digits", "--data", "mnist", "--data-root", str(data_root)]
    assert "must be for the images of `mnist`" in run(*words, "--n", "100", "--out", "x.jsonl", code=2)
    assert not (here / "x.jsonl").exists()


def test_sound_mode_takes_images_of_whole_grey_levels(tmp_path: Path, data_root: Path) -> None:
    network = models.build("mlp", input_shape=(1, 28, 28), nb_classes=10, mean=(0.5,), std=(0.3,))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    words = f"--checkpoint {tmp_path}/weights.pth --model mlp --sigma 0.25 --data mnist --data-root {data_root} --max 2"
    for command in ("certify", "predict"):
        out = tmp_path / f"{command}.jsonl"
        run(command, *words.split(), "--n", "100", "--seed", "0", "--sound", "--out", str(out))
        assert read_ledger(out)[0]["noise"] == {"name": "rounded-gaussian", "sigma": 0.25, "dimension": 784}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU, and there is one")
@pytest.mark.parametrize(
    "words",
    [
        "train --data digits --model mlp --sigma 0.25 --out z",
        "certify --checkpoint runs/digits --data digits --out z.jsonl",
        "predict --checkpoint runs/digits --data digits --out z.jsonl",
    ],
)
def test_a_gpu_that_is_not_there_is_said(here: Path, words: str) -> None:
    assert "needs a GPU" in run(*words.split(), "--device", "gpu", code=2)


def test_curve_reads_the_authors_logs(reference: Path) -> None:
    log = reference / "certlogs/cohen2019/certify/cifar10/resnet110/noise_0.25/test/sigma_0.25"
    assert "| 0.748 |    0.600 |   0.428 |    0.266 |" in run("curve", str(log))


def test_methods_and_recipes_are_listed(here: Path) -> None:
    said = run("train", "--list-methods")
    assert all(f"\n{name}: " in f"\n{said}" for name in OBJECTIVES)
    assert "  --option eps=1.0  (float)" in said
    assert all(name in said.splitlines()[-1] for name in recipes.available())


def test_help_says_what_a_recipe_is_by_default() -> None:
    shown = " ".join(run("train", "--help").replace("│", " ").split())
    plain = recipes.Recipe()
    for name in ("method", "epochs", "batch_size", "lr", "weight_decay", "schedule", "precision", "validate_every"):
        assert re.search(rf"--{name.replace('_', '-')} .{{0,200}}?\[default: \({getattr(plain, name)}\)\]", shown), name


def test_a_recipe_with_a_method_and_data_of_its_own(here: Path) -> None:
    """Another network, by another method, from the first one's weights, and with images that it labels."""
    words = "train --recipe digits --sigma 0.5 --method smoothadv --option eps=0.25 --option steps=2 --option draws=2"
    more = "--epochs 2 --held-out 100 --validate-every 2 --init runs/digits --seed 0 --out runs/adversarial"
    said = run(*words.split(), *more.split())
    assert "epoch 2/2" in said
    assert "held out: accuracy 0." in said
    about = json.loads((here / "runs/adversarial/checkpoint.json").read_text())
    assert about["sigma"] == 0.5
    assert about["training"]["method"] == "smoothadv"
    assert about["training"]["options"] == {"eps": 0.25, "steps": 2, "draws": 2}
    assert about["training"]["last_epoch"]["validation"]["accuracy"] > 0.5
    assert (here / "runs/adversarial/best/model.safetensors").exists()
    taught = "--recipe digits --sigma 0.5 --epochs 1 --unlabeled digits --teacher runs/digits --unlabeled-weight 0.5"
    assert "epoch 1/1" in run("train", *taught.split(), "--seed", "0", "--out", "runs/taught")
    labels = np.load(here / "runs/taught/pseudo-labels.npz")["labels"]
    assert (labels == datasets.load("digits", "train").arrays()[1]).mean() > 0.8


@pytest.mark.slow
def test_demo_is_the_main_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run(*example("demo"))
    out = Path(example("demo")[-1])
    names = {path.name for path in out.iterdir()}
    assert {"curve.png", "curve.svg", "curve.md", "curve.csv", "sigma_0.25.jsonl", "sigma_0.50.jsonl"} <= names
    _header, rows = read_ledger(out / "sigma_0.25.jsonl")
    # the network's accuracy under noise is above .9, and nine tenths of the digits are beyond doubt
    assert sum(row["prediction"] == row["label"] for row in rows) / len(rows) > 0.9
    assert all(row["radius"] < 0.25 * 3.2 + 0.01 for row in rows), "no radius beyond what 10 000 unanimous votes give"
    for path in ("curve.png", "sigma_0.50.jsonl"):
        assert str(out / path) in output


def test_a_network_of_the_users_own_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(*, input_shape, nb_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], nb_classes))\n"
    )
    art_rs = Path(sys.executable).with_name("art-rs")
    words = "train --data digits --model mine:make --sigma 0.25 --epochs 1 --out out"
    subprocess.run([art_rs, *words.split()], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "out/checkpoint.json").read_text())["architecture"]["name"] == "mine:make"
