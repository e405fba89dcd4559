"""Ledgers of certificates from made-up votes, and names that mean no good."""

import json

import numpy as np

from art_rs_plugin import Fixed
from art_rs_plugin.core.budgets import Task, drive
from art_rs_plugin.experiments import datasets
from art_rs_plugin.experiments.ledger import row_of
from art_rs_plugin.noise import Gaussian

SIGMA = 0.25
HOSTILE = (
    '"><script>window.hacked=1</script><img src=x onerror="window.hacked=1">\' javascript:alert(1) {{7*7}}'
    "\x00\u202e\ud800"
)


def header_of(budget=None, **changes):
    rule = {"name": budget.name} if budget else {"name": "fixed"}
    return {
        "format": "art-rs-ledger/1",
        "kind": "certify",
        "model": {"hash": "sha256:" + 64 * "a", "structure": "sha256:" + 64 * "b"},
        "noise": {"name": "gaussian", "sigma": SIGMA},
        "seed": 5,
        "data": {"name": "digits", "split": "test", "images": 449},
        "rule": {**rule, "alpha": 0.001},
        "versions": {"art_rs_plugin": "0.1.0", "torch": "2.0"},
        "precision": "fp32",
        "device": "cpu x86_64",
        **changes,
    }


def rows_of(count, *, budget=None, seed=0, every=1):
    """Certificates of digits from votes of a made-up network: sure of some, wrong of others."""
    chance, budget = np.random.default_rng(seed), budget or Fixed(n=1_000)
    labels = datasets.load("digits", "test").arrays(range(0, 449, every))[1]
    rows = []
    for place in range(count):
        label, index = int(labels[place % len(labels)]), place * every
        p = chance.dirichlet(np.full(10, 0.15))
        if place % 5:
            p = np.sort(p)
            p[[label, 9]] = p[[9, label]]
        task = Task(radius=Gaussian(SIGMA).radius, alpha=0.001, index=index)
        made = drive(budget.steps(task), lambda purpose, votes, p=p: chance.multinomial(votes, p))
        rows.append(row_of(made, label, 0.5))
    return rows


def ledger(path, rows, header=None):
    lines = [header or header_of(), *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
