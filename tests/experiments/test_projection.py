"""Certificates projected to another alpha, n or formula: against counts that are known, by SciPy and statsmodels."""

import numpy as np
import pandas as pd
import pytest
from paper_logs import radius_of, write_certified

from art_rs_plugin.core.budgets import Fixed, Looks
from art_rs_plugin.core.certificate import certify_from_counts
from art_rs_plugin.core.looks import certify_from_looks, spending
from art_rs_plugin.core.radii import RADII
from art_rs_plugin.experiments.ledger import Ledger, read_ledger, rebound
from art_rs_plugin.experiments.logs import read_log
from art_rs_plugin.experiments.projection import accuracy_between, by_formula, from_ledger, from_radii
from art_rs_plugin.experiments.rows import row_of, rule_of

SIGMA, N = 0.5, 1000
COUNTS = [1000, 999, 990, 951, 800, 650, 560, 545, 530, 400, 0]


@pytest.fixture
def log(tmp_path):
    return read_log(write_certified(tmp_path / "log", COUNTS, n=N, alpha=0.01, sigma=SIGMA))


def header(budget, **more):
    return {
        "kind": "certify",
        "noise": {"name": "gaussian", "sigma": SIGMA},
        "data": {"name": "digits", "split": "test", "images": 449},
        "seed": 0,
        "rule": {**rule_of(budget), "alpha": 0.001},
        **more,
    }


def fixed_ledger(path, counts=COUNTS):
    with Ledger.open(path, header(Fixed(n0=10, n=N))) as ledger:
        for index, k in enumerate(counts):
            made = certify_from_counts(
                [N - k, k],
                1,
                radius=lambda low, up: RADII["cohen"](low, up, sigma=SIGMA),
                n0=10,
                alpha=0.001,
                index=index,
            )
            ledger.append(row_of(made, 1, 0.5))
    return path


@pytest.mark.parametrize("alpha", [0.01, 0.001, 1e-5, 0.2])
def test_another_alpha_from_printed_radii_holds_what_the_counts_give(log, alpha):
    made = from_radii(log, sigma=SIGMA, log_alpha=0.01, log_n=N, alpha=alpha)
    truth = np.array([radius_of(k, N, alpha, SIGMA) for k in COUNTS])
    assert np.all(made["radius"] <= truth + 1e-9)
    assert np.all(truth <= made["radius_high"] + 1e-9)
    known = log["prediction"] == 1  # of 1 000 votes every count prints another radius
    np.testing.assert_allclose(made["radius"][known], truth[known], atol=1e-9)
    np.testing.assert_allclose(made["radius_high"][known], truth[known], atol=1e-9)
    assert made.attrs == {"alpha": alpha, "n": N, "extrapolated": False}


def test_an_abstention_may_be_any_count_that_certifies_nothing(log):
    made = from_radii(log, sigma=SIGMA, log_alpha=0.01, log_n=N, alpha=0.2)
    silent = (log["prediction"] == -1).to_numpy()
    largest = max(k for k in range(N + 1) if radius_of(k, N, 0.01, SIGMA) == 0)
    assert silent.sum() == 3  # 530 of 1 000 votes are too few at .01 and enough at .2
    np.testing.assert_allclose(made["radius_high"][silent], radius_of(largest, N, 0.2, SIGMA), atol=1e-9)
    assert (made["radius"][silent] == 0).all()
    least, most = accuracy_between(made, [0.0, 0.01])
    assert (least[0], most[0]) == (8 / 11, 1.0)
    truth = [np.mean([radius_of(k, N, 0.2, SIGMA) >= max(r, 1e-12) for k in COUNTS]) for r in (0.0, 0.01)]
    assert np.all((least <= truth) & (truth <= most))


@pytest.mark.parametrize("n", [100, 100_000])
def test_another_n_keeps_the_shares_and_is_said_to_be_an_extrapolation(log, n):
    made = from_radii(log, sigma=SIGMA, log_alpha=0.01, log_n=N, alpha=0.001, n=n)
    known = [k for k, answer in zip(COUNTS, log["prediction"], strict=True) if answer == 1]
    truth = [radius_of(k * n // N, n, 0.001, SIGMA) for k in known]
    np.testing.assert_allclose(made["radius"][: len(known)], truth, atol=1e-9)
    assert made.attrs == {"alpha": 0.001, "n": n, "extrapolated": True}


def test_a_log_of_other_votes_or_another_level_is_refused(log):
    for wrong in ({"log_alpha": 0.001, "log_n": N}, {"log_alpha": 0.01, "log_n": 400}):
        with pytest.raises(ValueError, match="is that of no count out of"):
            from_radii(log, sigma=SIGMA, **wrong)


@pytest.mark.parametrize("radius", RADII)
def test_another_formula_needs_neither_counts_nor_alpha(log, radius):
    made = by_formula(log, sigma=SIGMA, radius=radius)
    for k, low, high in zip(COUNTS, made["radius"], made["radius_high"], strict=True):
        row = certify_from_counts([N - k, k], 1, radius=lambda a, b: RADII[radius](a, b, sigma=SIGMA), n0=1, alpha=0.01)
        assert low - 1e-9 <= row.radius <= high + 1e-9
        assert high - low < 0.012


def test_a_ledger_is_bounded_anew_by_its_counts(tmp_path):
    path = fixed_ledger(tmp_path / "ledger.jsonl")
    for alpha in (0.001, 0.05):
        made = from_ledger(path, alpha=alpha)
        np.testing.assert_allclose(made["radius"], [radius_of(k, N, alpha, SIGMA) for k in COUNTS], atol=1e-8)
        assert made.attrs == {"alpha": alpha, "n": N, "extrapolated": False}
    more = from_ledger(path, n=100_000)
    np.testing.assert_allclose(more["radius"], [radius_of(k * 100, 100_000, 0.001, SIGMA) for k in COUNTS], atol=1e-8)
    assert more.attrs == {"alpha": 0.001, "n": 100_000, "extrapolated": True}
    few = from_ledger(path, n=150)  # 951 of 1 000 are 142.65 of 150: rounded down
    np.testing.assert_allclose(few["radius"], [radius_of(k * 150 // N, 150, 0.001, SIGMA) for k in COUNTS], atol=1e-8)
    assert (from_ledger(path)["radius"] == read_log(path)["radius"]).all()


def test_a_ledger_of_looks_is_bounded_by_its_own_spending_and_has_no_other_n(tmp_path):
    budget, schedule, looks = Looks(n0=10, n_max=1000, radii=(0.1,)), (100, 300, 1000), [[5, 95], [12, 288]]
    path = tmp_path / "looks.jsonl"
    with Ledger.open(path, header(budget)) as ledger:
        made = certify_from_looks(
            looks,
            1,
            schedule=schedule,
            spend=spending(0.001, 3),
            radius=lambda low, up: RADII["cohen"](low, up, sigma=SIGMA),
            n0=10,
            alpha=0.001,
        )
        ledger.append(row_of(made, 1, 0.5))
    found = from_ledger(path, alpha=0.01)["radius"][0]
    assert found == rebound(*(lambda head, rows: (head, rows[0]))(*read_ledger(path)), alpha=0.01).radius
    assert found < radius_of(288, 300, 0.01, SIGMA)  # as if 300 votes had been fixed
    with pytest.raises(ValueError, match=r"`n` can be changed only where it was fixed .* not where the rule 'looks'"):
        from_ledger(path, n=10_000)


def test_least_and_largest_accuracy_by_hand():
    frame = pd.DataFrame(
        {
            "index": range(4),
            "label": [1, 1, 1, 1],
            "prediction": [1, 1, 2, -1],
            "radius": [0.5, 0.2, 0.9, 0.0],
            "radius_high": [0.6, 0.2, 0.9, 0.1],
        }
    )
    least, most = accuracy_between(frame, [0.0, 0.1, 0.2, 0.55, 0.7])
    assert least.tolist() == [0.5, 0.5, 0.5, 0.0, 0.0]
    assert most.tolist() == [0.75, 0.75, 0.5, 0.25, 0.0]
