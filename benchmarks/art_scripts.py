"""Whether ART's own scripts run on the estimator: each of its examples and notebooks that attacks a PyTorchClassifier.

    git clone --branch 1.20.1 https://github.com/Trusted-AI/adversarial-robustness-toolbox art
    python benchmarks/art_scripts.py art --data-root DATA

In each one line is changed, `said` below, and then it is run from beginning to end, cut down: MNIST and CIFAR-10 from
`--data-root` to some images, epochs and steps to a few. It runs if it ends, whatever accuracy it prints;
pictures are drawn to nowhere. Some of ART's scripts do not run on ART 1.20.1 as they are: what is mended in them
is in `cuts`, with the reason. `--unchanged` runs them so on ART's own classifier. Status 1 if one does not run.
docs/art-scripts.md has what came out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMPORT = (
    r"^ *from art\.estimators\.classification(?:\.pytorch)? import PyTorchClassifier.*$",
    "from functools import partial; from art_rs_plugin import RandomizedSmoothingPyTorch; "
    "PyTorchClassifier = partial(RandomizedSmoothingPyTorch, sigma=0.25)",
)
FROM_ART = (
    r"^classifier = (get_\w+\(.*\))$",
    "from art_rs_plugin import RandomizedSmoothingPyTorch; "
    r"classifier = RandomizedSmoothingPyTorch.from_art(\1, sigma=0.25).smoothed_classifier(8)",
)
WITHOUT_SCHEDULER = (", scheduler=lr_scheduler", "")  # ART refuses those of torch 2
SHORTER = [
    (r"nb_epochs=\d+", "nb_epochs=1"),
    (r"max_iter=(\d{2,}|[5-9])", "max_iter=3"),
    (r"num_random_init=\d", "num_random_init=1"),
]


@dataclass
class Script:
    """One of ART's scripts, the line that is changed, and how it is cut down and mended."""

    path: str
    said: str = "the import"
    lines: list[tuple[str, str]] = field(default_factory=lambda: [IMPORT])
    cuts: list[tuple[str, Any]] = field(default_factory=list)
    images: tuple[int, int] = (512, 20)  # of the training and of the test set


def on_cifar(name: str, *cuts: tuple[str, Any]) -> Script:
    """An example of adversarial training of an 18-layer network: an eighth of its width, and of its batches."""
    narrower = r"\b(64|128|256|512)\b", lambda number: str(int(number[0]) // 8)
    return Script(f"examples/{name}.py", cuts=[narrower, *cuts], images=(64, 10))


def on_smoothed(name: str, attack: str, *more: tuple[str, str], **options) -> Script:
    """The attack wants a network, which it is refused, and gets `smoothed_classifier`."""
    argument = rf"({attack}\(\s*classifier)", r"\1.smoothed_classifier(8)"
    said = "the import, and the attack's classifier"
    return Script(f"notebooks/{name}.ipynb", said, [IMPORT, argument, *more], **options)


SCRIPTS = [
    Script("examples/get_started_pytorch.py"),
    on_cifar("adversarial_training_FBF"),
    on_cifar("adversarial_training_awp", WITHOUT_SCHEDULER),
    on_cifar("adversarial_training_oaat"),
    on_cifar("adversarial_training_trades", WITHOUT_SCHEDULER),
    Script(
        "notebooks/targeted_universal_perturbation.ipynb",
        cuts=[('"delta": 0.6, ', ""), (', "verbose": False}', "}")],  # ART knows no such parameters
        images=(64, 20),
    ),
    Script("notebooks/imperceptible_attack_on_tabular_data.ipynb", cuts=[(r"n_steps +=.*", "n_steps=3,")]),
    Script("notebooks/certification_deepz.ipynb"),
    on_smoothed("attack_graphite_whitebox", "GRAPHITEWhiteboxPyTorch"),
    on_smoothed(
        "attack_feature_adversaries_pytorch",
        "FeatureAdversariesPyTorch",
        ("layer=7", "layer=-1"),
        images=(512, 200),
    ),
    on_smoothed(
        "composite-adversarial-attack",
        "CompositeAdversarialAttackPyTorch",
        # ART wants floats; and of so few images too few are misled for three pictures
        cuts=[(r"\(-10, 10\)", "(-10.0, 10.0)"), ("num_viz=3", "num_viz=1")],
    ),
    Script(
        "notebooks/attack_parallel_auto_attack.ipynb",
        "the classifier",
        [FROM_ART],
        # what ART calls it; and titles of pictures that ask about an image without a batch around it
        cuts=[("parallel=True", "parallel_pool_size=2"), (r"predict\((\w+)\[i\]\)", r"predict(\1[[i]])")],
        images=(10, 10),
    ),
]


def source(path: Path) -> str:
    """The script as Python, code cells of a notebook one after the other."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!", "pip install")))


def changed(script: Script, text: str, unchanged: bool) -> str:
    """The script with its line changed, mended and cut down."""
    for old, new in () if unchanged else script.lines:
        text, found = re.subn(old, new, text, flags=re.MULTILINE)
        if not found:
            raise SystemExit(f"{script.path} has no line like `{old}`")
    for old, new in [*SHORTER, *script.cuts]:
        text = re.sub(old, new, text)
    return text


def offline(data_root: Path, images: tuple[int, int]) -> None:
    """ART's loaders give the first images of files that are there."""
    import art.utils
    import numpy as np

    from art_rs_plugin.experiments import datasets

    def load(name: str):
        parts = []
        for split, m in zip(("train", "test"), images, strict=True):
            x, y = datasets.load(name, split, root=data_root).arrays(range(m))
            parts.append((np.moveaxis(x, 1, 3), np.eye(10, dtype=np.float32)[y]))
        return parts[0], parts[1], 0.0, 1.0

    art.utils.load_mnist = lambda *_, **__: load("mnist")
    art.utils.load_cifar10 = lambda *_, **__: load("cifar10")
    art.utils.load_dataset = load


def run(script: Script, options: argparse.Namespace) -> None:
    """Run it in this process."""
    import matplotlib as mpl

    mpl.use("Agg")
    path = options.art.resolve() / script.path
    sys.path[:0] = [str(options.art.resolve()), str(path.parent)]
    offline(options.data_root, script.images)
    text = changed(script, source(path), options.unchanged)
    exec(compile(text, script.path, "exec"), {"__name__": "__main__", "display": lambda *_: None})


def row(script: Script, options: argparse.Namespace) -> bool:
    """Run it in a process and a folder of its own, print its row, and say whether it ran."""
    words = [
        __file__,
        options.art.resolve(),
        "--data-root",
        options.data_root.resolve(),
        "--only",
        script.path,
        "--show",
    ]
    words += ["--unchanged"] * options.unchanged
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=folder)
    verdict = "runs" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    seconds = time.perf_counter() - started
    print(f"| `{script.path}` | {script.said} | {verdict} | {seconds:.0f} |", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("art", type=Path, help="a clone of ART's repository")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ART_RS_DATA"), help="folder of the data sets")
    parser.add_argument("--only", default="", help="part of the path of a script")
    parser.add_argument("--unchanged", action="store_true", help="with ART's own PyTorchClassifier")
    parser.add_argument("--show", action="store_true", help="show what it prints, or where it fails")
    options = parser.parse_args()
    options.data_root = Path(options.data_root or ".")
    chosen = [script for script in SCRIPTS if options.only in script.path]
    if options.show:
        for script in chosen:
            run(script, options)
        return
    print("| script | what is changed | | seconds |\n| --- | --- | --- | ---: |")
    failed = sum(not row(script, options) for script in chosen)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
