"""Ranks that have no example left cast votes for those that have: the counts are those of one process."""

import copy
from functools import partial

import company
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from art_rs_plugin import Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.core.budgets import Fixed
from art_rs_plugin.experiments import datasets, helping, runs
from art_rs_plugin.experiments.helping import Helping, _cut
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.noise import Purpose
from art_rs_plugin.ranks import ALONE
from art_rs_plugin.votes import NotFiniteError, Request


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "test")


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch):
    monkeypatch.setattr(helping, "AT_ONCE", 512)
    monkeypatch.setattr(helping, "LEAST", 64)


torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def smoothed(model=None):
    network = model or copy.deepcopy(NETWORK)
    return RandomizedSmoothingPyTorch(network, 0.25, seed=0, device_type="cpu", input_shape=(1, 8, 8))


@pytest.fixture
def asked(monkeypatch):
    """Shares of votes that a rank asked of another."""
    shares = []

    def ask(self, share):
        shares.append(sum(request.votes for _, request in share))
        return before(self, share)

    before = Helping._ask
    monkeypatch.setattr(Helping, "_ask", ask)
    return shares


def certified(path):
    header, found = read_ledger(path)
    return header, [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.mark.parametrize("size", [2, 4])
def test_one_image_by_many_ranks_is_certified_as_by_one(digits, tmp_path, asked, size):
    share = smoothed().votes(digits.arrays([3])[0], 9_000).max() / 9_000
    undecided = 0.25 * float(norm.ppf(share))  # a radius that takes all votes
    budgets = {"fixed": Fixed(n0=10, n=9_000), "looks": Looks(radii=(undecided,), n_max=9_000, n0=10)}

    def certify(name, out, ranks=ALONE):
        runs.certify(smoothed(), digits, [3], tmp_path / out, budget=budgets[name], ranks=ranks)

    for name in budgets:
        certify(name, f"{name}-1.jsonl")
        assert not asked
        assert company.in_threads(size, partial(certify, name, f"{name}.jsonl")) == [None] * size
        assert certified(tmp_path / f"{name}.jsonl") == certified(tmp_path / f"{name}-1.jsonl")
        assert sum(asked) > 1_000
        asked.clear()


def test_a_network_that_fails_for_a_helper_fails_as_it_does_alone(digits, tmp_path, asked):
    class Fails(nn.Module):
        def forward(self, x):
            return torch.where(x.flatten(1)[:, :10] > 1.0, torch.nan, x.flatten(1)[:, :10])

    def work(ranks):
        runs.certify(smoothed(Fails()), digits, [3], tmp_path / "many.jsonl", budget=Fixed(n=9_000), ranks=ranks)

    ends = company.in_threads(2, work)
    assert [type(end) for end in ends] == [NotFiniteError] * 2
    assert [end.examples[0][0] for end in ends] == [3, 3]


def test_requests_are_cut_without_losing_or_moving_a_vote():
    chance = np.random.default_rng(0)
    for _ in range(50):
        sizes = chance.integers(1, 400, 4).tolist()
        whole = [(at, Request(at, 7 * at, Purpose.ESTIMATION, votes, 100 * at)) for at, votes in enumerate(sizes)]
        left, parts = list(whole), []
        while left:
            votes = int(chance.integers(1, 300))
            some, left = _cut(left, votes)
            assert sum(request.votes for _, request in some) >= min(votes, 1)
            parts += some
        drawn = [
            (at, request.example, request.purpose, request.start + k)
            for at, request in parts
            for k in range(request.votes)
        ]
        wanted = [
            (at, request.example, request.purpose, request.start + k)
            for at, request in whole
            for k in range(request.votes)
        ]
        assert drawn == wanted
