"""What every evasion attack of the installed ART does with the estimator: the table in docs/art-attacks.md.

    python tests/attack_matrix.py --write docs/art-attacks.md

Attacks are found in the package tree of `art.attacks.evasion`. Each that accepts ART's plain PyTorchClassifier attacks
subjects that share one network: plain classifiers that answer in logits, in probabilities and in one-hot rows, the
estimator, and its `smoothed_classifier`. Hooks on the network say through which of our functions it was evaluated.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import logging
import os
import pkgutil
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import art
import numpy as np
import torch
from art.attacks import evasion
from art.attacks.attack import EvasionAttack
from attack_subjects import CASES, GENERATE, SAMPLES, Case, answering, build, plain, smoothed
from torch import nn

GRADIENTS = {f"estimator.{name}" for name in ("loss_gradient", "class_gradient", "compute_loss", "probe")}
THROUGH_G = {"votes.run", *GRADIENTS}
# `_log_sum` is how the module is evaluated once more for a gradient
THROUGH_MODULE = {"smoothed.forward", "smoothed._log_sum"}
REFUSED = re.compile(r"^TypeError: \w+ .*: give it estimator\.smoothed_classifier\(num_samples=\.\.\.\) instead")

WORKS, STAYS = "works", "runs, finds nothing"
VERDICTS = {
    "adaptive": "uses the gradients of g",
    "label-only": "asks for predictions and uses only the class they name, which `predict` gives",
    "score-only": "asks for predictions and uses their values: `predict` says only which class won",
    "smoothed module": "is refused the base classifier, by name, and works on `smoothed_classifier`",
    "fails": "works on ART's `PyTorchClassifier` and not here",
    "needs a package": "could not be tried: ART does not install what it imports",
    "fails in ART": "fails on ART's own `PyTorchClassifier` in every form of input that was tried",
    "not for classifiers": "does not accept a `PyTorchClassifier`",
}
NOTES = {
    "Wasserstein": "tried with `regularization=100`: the default of 3000 overflows at gradients above 0.23",
}
INTRO = """\
# ART's attacks on the estimator

What the evasion attacks of ART {version} do with `RandomizedSmoothingPyTorch`, as tried on a small network trained on
real 8x8 digits, with few steps. The table says how an attack uses the smoothed classifier g, not how strong it is.

- Pass `y`, the true labels. Without it ART takes the labels from `predict`, where an abstention is a row of zeros:
  gradients then get a uniform target, with a warning; attacks that take the `argmax` themselves get class 0, without.
- Judge with `evaluate_attack(estimator, x, x_adv, y)`, on votes that no attack has seen. ART's own success rates take
  an abstention for class 0 and, with a `seed`, ask for the very votes that the attack has used.
- `estimator.smoothed_classifier(num_samples=...)` is ART's plain `PyTorchClassifier` of the log mean softmax under
  noise, for attacks that want logits, features, or a model.
- No attack below evaluates the base classifier f behind g's back: on the estimator, every forward pass of f is one of
  `predict`, `loss_gradient`, `class_gradient` or `compute_loss`.

| verdict | the attack |
| --- | --- |
{verdicts}

"works" means that it returned finite inputs other than those it was given; "runs, finds nothing", that it gave them
back, at settings this small. A remark names the form of the inputs where it is not `x` mx1x8x8 with one-hot labels as
`y`. Made by `python tests/attack_matrix.py --write docs/art-attacks.md`; `pytest -m slow tests/attacks` says when it is
out of date.

| attack | verdict | on the estimator | on `smoothed_classifier` | remark |
| --- | --- | --- | --- | --- |
{rows}
"""


class Row(NamedTuple):
    """A line of the table, and through what f was evaluated that is not g."""

    attack: str
    verdict: str
    estimator: str = ""
    module: str = ""
    remark: str = ""
    leaks: frozenset[str] = frozenset()
    told: bool = True  # whether it shows what the attack reads: it moves its inputs, and the same way twice

    def __str__(self) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in self[:5]) + " |"


class Run(NamedTuple):
    """What an attack made of its inputs, or why nothing; whether it moved them; how the network was evaluated."""

    made: np.ndarray | None
    error: str
    moved: bool
    through: frozenset[str]
    depth: int = 0  # of ART's functions, where it failed

    def __str__(self) -> str:
        if REFUSED.match(self.error):
            return "refused"
        return f"`{self.error}`" if self.error else WORKS if self.moved else STAYS


def found() -> tuple[list[type[EvasionAttack]], list[Row]]:
    """All attacks in ART's package tree, and rows for those whose module cannot be imported."""
    lost = []
    for info in pkgutil.walk_packages(evasion.__path__, evasion.__name__ + "."):
        try:
            importlib.import_module(info.name)
        except ImportError as error:
            tree = ast.parse(Path(importlib.util.find_spec(info.name).origin).read_text())
            classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            names = [node.name for node in classes if "EvasionAttack" in map(ast.unparse, node.bases)]
            lost += [Row(name, "needs a package", remark=reason(error)) for name in names]
    kinds, waiting = set(), [EvasionAttack]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        kinds |= {kind for kind in below if kind.__module__.startswith(evasion.__name__ + ".")}
    return sorted(kinds, key=lambda kind: kind.__name__), lost


def reason(error: BaseException) -> str:
    """An error in one line; of a missing package, which."""
    if isinstance(error, ModuleNotFoundError):
        return f"needs package {error.name}"
    line = " ".join(f"{type(error).__name__}: {error}".split()).replace("`", "'")
    return line if REFUSED.match(line) or len(line) <= 120 else line[:117] + "..."


def entry() -> str:
    """The function of ours, module.name, through which whoever asked has reached the caller; "" if none."""
    frame, name = sys._getframe(1), ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("art_rs_plugin."):
            name = f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        frame = frame.f_back
    return name


class Seeded(np.random.RandomState):
    """NumPy's, with a fixed seed where none is given."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(0 if seed is None else seed)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Fixed seeds, no output, and a folder of its own: some attacks write files."""
    before = random.getstate(), np.random.get_state(), os.getcwd()  # noqa: NPY002 - what attacks draw from
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        stack.enter_context(mock.patch("numpy.random.RandomState", Seeded))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        os.chdir(stack.enter_context(tempfile.TemporaryDirectory()))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            os.chdir(before[2])
            np.random.set_state(before[1])  # noqa: NPY002
            random.setstate(before[0])


def run(kind: type[EvasionAttack], subject: Any, case: Case, network: nn.Module | None = None) -> Run:
    """Let the attack attack, and note through what of ours it evaluates `network`."""
    through: set[str] = set()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)] if network else []
    hooks = [layer.register_forward_pre_hook(lambda *_: through.add(entry())) for layer in layers]
    try:
        with alone():
            attack = build(kind, subject, case)
            made = attack.generate(case.x, case.y, **GENERATE.get(kind.__name__, lambda case: {})(case))
        made = np.asarray(made[0] if isinstance(made, tuple) else made)  # a patch comes with its mask
        if not np.isfinite(made).all():
            return Run(None, "returns NaN", False, frozenset(through))
        return Run(made, "", made.shape != case.x.shape or bool((made != case.x).any()), frozenset(through))
    except Exception as error:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        depth = sum(name.startswith("art.") for name in frames)
        return Run(None, reason(error), False, frozenset(through), depth)
    finally:
        for hook in hooks:
            hook.remove()


def suited(kind: type[EvasionAttack]) -> tuple[Case, str, Run]:
    """The first inputs and answers with which the attack moves its inputs on a plain classifier, or else runs."""
    runs = []
    for case in CASES:
        for answer in ("logits", "probabilities"):
            runs.append((case, answer, run(kind, answering(case, answer), case)))
            if runs[-1][2].moved or runs[-1][2].error.startswith("needs package"):
                return runs[-1]
    # what went furthest says most of why it fails
    return next((each for each in runs if not each[2].error), max(runs, key=lambda each: each[2].depth))


def examine(kind: type[EvasionAttack]) -> Row:
    """Try an attack and say what it is."""
    name = kind.__name__
    if not kind.is_estimator_valid(plain(CASES[0]), kind._estimator_requirements):
        return Row(name, "not for classifiers")
    case, answer, scores = suited(kind)
    network = (estimator := smoothed(case)).model
    ours = run(kind, estimator, case, network)
    leaks = ours.through - THROUGH_G
    if scores.error:
        verdict = "needs a package" if scores.error.startswith("needs package") else "fails in ART"
        remark = scores.error if verdict == "needs a package" else f"`{scores.error}`"
        return Row(name, verdict, "refused" if REFUSED.match(ours.error) else "", "", remark, leaks, False)
    for fixed in (False, True):  # fresh noise drowns small differences: an attack that finds nothing gets one function
        network = (estimator := smoothed(case)).model
        classifier = estimator.smoothed_classifier(SAMPLES, fixed_noise=fixed, probabilities=answer == "probabilities")
        module = run(kind, classifier, case, network)
        leaks |= module.through - THROUGH_MODULE
        if module.moved or module.error:
            break
    labels, art_itself = run(kind, answering(case, "one-hot"), case), run(kind, plain(case), case)
    again = run(kind, answering(case, answer), case)
    told = scores.moved and np.array_equal(again.made, scores.made)
    reads_scores = labels.made is None or not np.array_equal(labels.made, scores.made)
    if ours.error:
        verdict = "smoothed module" if REFUSED.match(ours.error) and not module.error else "fails"
    elif ours.through & GRADIENTS:
        verdict = "adaptive"
    else:
        verdict = "score-only" if reads_scores else "label-only"
    remarks = [] if case == CASES[0] else [str(case)]
    if art_itself.error and art_itself.error != module.error:
        remarks.append(f"on ART's own classifier `{art_itself.error}`")
    if reads_scores and verdict in ("adaptive", "score-only"):
        remarks.append("reads scores" + (" beside gradients" if verdict == "adaptive" else ""))
        remarks[-1] += ": give it `smoothed_classifier`" if module.moved else ""
    if module.moved and answer == "probabilities":
        remarks.append("needs `probabilities=True` there")
    if module.moved and fixed:
        remarks.append("needs `fixed_noise=True` there")
    remarks += [NOTES[name]] if name in NOTES else []
    return Row(name, verdict, str(ours), str(module), "; ".join(remarks), leaks, told)


def matrix(only: list[str] | None = None) -> list[Row]:
    """A row for every attack of ART, or of those named."""
    kinds, lost = found()
    chosen = [kind for kind in kinds if not only or kind.__name__ in only]
    rows = [examine(kind) for kind in chosen] + [row for row in lost if not only or row.attack in only]
    order = list(VERDICTS)
    return sorted(rows, key=lambda row: (order.index(row.verdict), row.attack))


def render(rows: list[Row]) -> str:
    """The file."""
    verdicts = "\n".join(f"| {name} | {meaning} |" for name, meaning in VERDICTS.items())
    return INTRO.format(version=art.__version__, verdicts=verdicts, rows="\n".join(map(str, rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the file to write")
    parser.add_argument("attacks", nargs="*", help="names of the attacks to try and print; all if none")
    options = parser.parse_args()
    made = matrix(options.attacks)
    if options.write:
        options.write.write_text(render(made))
    else:
        print("\n".join(f"{row}  {sorted(row.leaks) or ''}" for row in made))
