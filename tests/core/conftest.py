"""The enumeration of every run of a budget, for whichever test asks for `errors`; and the U to average it over."""

import itertools
from functools import partial

import numpy as np
import pytest
from scipy.stats import multinomial, norm

from art_rs_plugin.core.bounds import RANDOMIZED
from art_rs_plugin.core.budgets import Budget, Task
from art_rs_plugin.core.radii import cohen

SIGMA = 0.5


def outcomes(n: int, classes: int) -> list[np.ndarray]:
    """Every way to spread n votes over the classes."""
    heads = itertools.product(range(n + 1), repeat=classes - 1)
    return [np.array([*head, n - sum(head)]) for head in heads if sum(head) <= n]


def runs(budget: Budget, task: Task, classes: int):
    """Every run of a budget: the counts that it was sent, and the certificate that it returned."""
    open_ = [()]
    while open_:
        sent = open_.pop()
        steps = budget.steps(task)
        try:
            _, votes = next(steps)
            for counts in sent:
                _, votes = steps.send(counts)
        except StopIteration as stop:
            yield sent, stop.value
        else:
            open_ += [(*sent, counts) for counts in outcomes(votes, classes)]


class Errors:
    """What a budget's runs come to under given class probabilities, with each U in `uniforms` equally likely."""

    def __init__(self, budget: Budget, classes: int, alpha: float, label: int | None = None, uniforms=(None,)) -> None:
        task = partial(Task, radius=partial(cohen, sigma=SIGMA), alpha=alpha, label=label)
        self.runs = [run for uniform in uniforms for run in runs(budget, task(uniform=uniform), classes)]
        self.share = 1 / len(uniforms)

    def false(self, p) -> float:
        """P(the certificate's radius is beyond the true one); a class that g does not return has none."""
        p, total, mass = np.asarray(p), 0.0, 0.0
        for sent, certificate in self.runs:
            probability = self.share * np.prod([multinomial.pmf(counts, counts.sum(), p) for counts in sent])
            a, b = p[certificate.selected], np.delete(p, certificate.selected).max()
            if certificate.radius > max(SIGMA / 2 * (norm.ppf(a) - norm.ppf(b)), 0.0) + 1e-12:
                total += probability
            mass += probability
        assert mass == pytest.approx(1.0)  # no run was left out
        return total


@pytest.fixture(scope="session")
def errors() -> type[Errors]:
    """The class, since test modules do not import each other."""
    return Errors


@pytest.fixture(scope="session")
def uniforms():
    """(bound, steps) -> U to average over: 1 for a deterministic bound, else a uniform U rounded up to j / steps.

    Rounding up only lowers a bound, so that an error averaged over these is at most alpha wherever the true one is.
    """
    return lambda bound, steps=4: (np.arange(1, steps + 1) / steps).tolist() if bound in RANDOMIZED else [1.0]
