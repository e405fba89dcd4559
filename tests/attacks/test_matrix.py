"""Every attack of ART: what docs/art-attacks.md says of it, and that none evaluates f behind g's back."""

import importlib.util
import re
from pathlib import Path

import attack_matrix
import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from attack_matrix import STAYS, VERDICTS, WORKS, examine

FILE = Path(__file__).parents[2] / "docs" / "art-attacks.md"
TRIED = {"adaptive", "label-only", "score-only", "smoothed module"}


class Planted(EvasionAttack):
    """An attack whose nature is known; `sees` is what a subclass takes from the estimator."""

    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(self, estimator, verbose=True):
        super().__init__(estimator=estimator)

    def generate(self, x, y=None, **kwargs):
        return np.clip(x + 0.1 * np.sign(self.sees(x, y)), 0, 1).astype(np.float32)


class ByGradient(Planted):
    def sees(self, x, y):
        return self.estimator.loss_gradient(x, y)


class ByGradientAndScores(Planted):
    def sees(self, x, y):
        scores = self.estimator.predict(x)
        return self.estimator.loss_gradient(x, y) * (scores.max(axis=1) - 3).reshape(-1, 1, 1, 1)


class ByLabel(Planted):
    def sees(self, x, y):
        return self.estimator.predict(x).argmax(axis=1).reshape(-1, 1, 1, 1) + x


class ByScore(Planted):
    def sees(self, x, y):
        return self.estimator.predict(x)[:, :8].reshape(-1, 1, 1, 8) - 0.3 * x


class ByModel(Planted):
    def sees(self, x, y):
        return self.estimator._model(torch.from_numpy(x))[-1].detach().numpy()[:, :8].reshape(-1, 1, 1, 8) + x


class ByLogits(Planted):
    def sees(self, x, y):
        model = getattr(self.estimator, "_logits", self.estimator.model)
        return model(torch.from_numpy(x)).detach().numpy()[:, :8].reshape(-1, 1, 1, 8) + x


class ByFramework(Planted):
    def sees(self, x, y):
        logits, _ = self.estimator._predict_framework(torch.from_numpy(x))
        return logits.detach().numpy()[:, :8].reshape(-1, 1, 1, 8) + x


class Broken(Planted):
    def sees(self, x, y):
        raise RuntimeError("no use")


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [(ByGradient, "adaptive"), (ByGradientAndScores, "adaptive"), (ByLabel, "label-only"), (ByScore, "score-only"),
     (Broken, "fails in ART")],
)  # fmt: skip
def test_attacks_of_known_nature_are_known(kind, verdict):
    row = examine(kind)
    assert (row.verdict, row.leaks) == (verdict, frozenset())
    assert ("reads scores" in row.remark) == (kind in (ByGradientAndScores, ByScore))
    if verdict == "fails in ART":
        assert "no use" in row.remark
    else:
        assert (row.estimator, row.module) == (WORKS, WORKS)


@pytest.mark.parametrize(
    ("kind", "through"),
    [(ByModel, ""), (ByLogits, "classifier._logits"), (ByFramework, "estimator._predict_framework")],
)
def test_an_attack_that_evaluates_f_is_caught(kind, through):
    assert through in examine(kind).leaks


def test_a_network_of_the_smoothed_module_is_watched_too():
    class ByBase(Planted):
        def sees(self, x, y):
            model = self.estimator._model._model
            if not hasattr(model, "base"):
                return x
            return model.base(torch.from_numpy(x)).detach().numpy()[:, :8].reshape(-1, 1, 1, 8) + x

    assert "" in examine(ByBase).leaks


@pytest.fixture(scope="module")
def rows():
    return attack_matrix.matrix()


@pytest.mark.slow
def test_finds_the_attacks_of_art(rows):
    names = [row.attack for row in rows]
    assert len(names) == len(set(names)) > 60
    assert {"FastGradientMethod", "BrendelBethgeAttack", "CarliniL0Method", "DPatch", "SNAL"} <= set(names)
    assert {row.verdict for row in rows} <= set(VERDICTS)


@pytest.mark.slow
def test_no_attack_evaluates_f_behind_the_back_of_g(rows):
    assert {row.attack: set(row.leaks) for row in rows if row.leaks} == {}


@pytest.mark.slow
def test_what_works_on_arts_classifier_works_here_or_is_told_what_to_take(rows):
    assert [str(row) for row in rows if row.verdict == "fails"] == []
    for row in rows:
        if row.verdict in TRIED:
            assert row.estimator in (WORKS, STAYS, "refused"), str(row)
        if row.verdict == "smoothed module":
            assert (row.estimator, row.module) == ("refused", WORKS), str(row)
        if row.verdict in ("label-only", "score-only"):
            assert row.told, f"{row.attack} moves nothing, or differently every time: what it reads does not show"


@pytest.mark.slow
def test_the_file_is_up_to_date(rows):
    """Attacks that could not be tried where the file was made, and can be here, are left out."""
    written = FILE.read_text().splitlines()
    missing = {line.split("|")[1]: found for line in written if (found := re.search(r"needs package (\w+)", line))}
    excused = {attack for attack, found in missing.items() if importlib.util.find_spec(found.group(1))}

    def kept(lines):
        """Without the words of other people's errors, which change with NumPy and torch."""
        rows = [line for line in lines if not (line.startswith("|") and line.split("|")[1] in excused)]
        return [re.sub(r"`(\w+Error): [^`]*`", r"`\1`", line) for line in rows]

    made = attack_matrix.render(rows).splitlines()
    how = "run `python tests/attack_matrix.py --write docs/art-attacks.md` and read what has changed"
    assert kept(made) == kept(written), how
