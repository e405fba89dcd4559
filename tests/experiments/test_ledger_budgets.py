"""Votes that decided how many to draw, bounded anew from the ledger: by what their rule allows, and by nothing else."""

from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import beta, norm
from statsmodels.stats.proportion import proportion_confint

from art_rs_plugin.core.bounds import BOUNDS
from art_rs_plugin.core.budgets import Fixed, Looks, Pilot, Task, drive
from art_rs_plugin.core.certificate import VoteCertificate, certify_from_counts
from art_rs_plugin.core.looks import certify_from_looks
from art_rs_plugin.core.radii import cohen
from art_rs_plugin.experiments.ledger import Ledger, read_ledger, rebound, row_of

SIGMA, ALPHA = 0.25, 0.001
RADIUS = partial(cohen, sigma=SIGMA)
SHARES = [(0.95, 0.03, 0.02), (0.2, 0.7, 0.1), (0.45, 0.3, 0.25), (1.0, 0.0, 0.0), (0.4, 0.35, 0.25), (0.1, 0.1, 0.8)]
BUDGETS = {
    "fixed": Fixed(n=1_000, bound="runner-up"),
    "looks": Looks(radii=(0.25, 0.4), n_max=4_000),
    "looks-runner-up": Looks(radii=(0.1,), n_max=3_000, first=70, growth=2.0, bound="runner-up"),
    "pilot": Pilot(n_pilot=200, n_max=4_000, cost=1e-5),
    "pilot-runner-up": Pilot(n_pilot=200, n_max=4_000, cost=1e-5, bound="runner-up"),
}
OTHERS = ("looks", "looks-runner-up", "pilot", "pilot-runner-up")


def header_of(budget):
    return {
        "kind": "certify",
        "noise": {"name": "gaussian", "sigma": SIGMA},
        "seed": 5,
        "rule": {"name": budget.name, **asdict(budget), "alpha": ALPHA},
    }


def certificates_of(budget, label=None):
    """One certificate for each of `SHARES`: easy, hard and hopeless ones."""

    def draw(chance, p, purpose, votes):
        return chance.multinomial(votes, p)

    return [
        drive(
            budget.steps(Task(radius=RADIUS, alpha=ALPHA, index=10 * seed, seed=5, label=label)),
            partial(draw, np.random.default_rng(seed), p),
        )
        for seed, p in enumerate(SHARES)
    ]


@pytest.fixture
def stored(tmp_path):
    def write(budget, certificates=None):
        with Ledger.open(tmp_path / "run.jsonl", header_of(budget)) as ledger:
            for certificate in certificates_of(budget) if certificates is None else certificates:
                ledger.append(row_of(certificate, 0, 0.5))
        return read_ledger(tmp_path / "run.jsonl")

    return write


# what the rows hold


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("label", [None, 0])
def test_a_certificate_comes_back_whole(stored, name, label):
    certificates = certificates_of(BUDGETS[name], label)
    header, rows = stored(BUDGETS[name], certificates)
    again = [rebound(header, row) for row in rows]
    assert again == certificates
    assert [type(one) for one in again] == [type(one) for one in certificates]
    assert {certificate.n0 for certificate in again} == {100 if label is None else 0}


@pytest.mark.parametrize("name", OTHERS)
def test_a_row_says_what_all_its_votes_were(stored, name):
    budget = BUDGETS[name]
    certificates = certificates_of(budget)
    _, rows = stored(budget, certificates)
    for row, certificate in zip(rows, certificates, strict=True):
        assert row["votes"] == certificate.votes == 100 + sum(row["counts"]) + sum(row.get("pilot", []))
    assert len({row["votes"] for row in rows}) > 1, "the votes decided how many to draw"


def test_a_row_of_the_papers_own_rule_is_what_it_was(stored):
    _, rows = stored(BUDGETS["fixed"])
    known = ["index", "label", "prediction", "radius", "counts", "selected", "p_lower", "p_upper", "n0", "n"]
    assert list(rows[0]) == [*known, "alpha", "seconds"]


# bounded anew


def independent_looks(row, alpha, last):
    """Running maximum of one-sided Clopper-Pearson bounds by SciPy, each at its share of alpha as the facts say it."""
    looks, schedule = row["looks"], row["schedule"]
    assert schedule[-1] == last
    shares = [0.3 * alpha / (len(schedule) - 1)] * (len(schedule) - 1) + [0.7 * alpha]
    k = [look[row["selected"]] for look in looks]
    bounds = [
        beta.ppf(share, hits, sum(look) - hits + 1) if hits else 0.0
        for hits, look, share in zip(k, looks, shares, strict=False)
    ]
    return max(bounds)


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05])
def test_looks_at_another_alpha_are_paid_for_anew_look_by_look(stored, alpha):
    header, rows = stored(BUDGETS["looks"])
    stopped_early = [row for row in rows if len(row["looks"]) < len(row["schedule"])]
    assert len(stopped_early) >= 3
    for row in rows:
        again = rebound(header, row, alpha=alpha)
        expected = independent_looks(row, alpha, 4_000)
        assert again.alpha == alpha
        assert again.p_lower == pytest.approx(expected, rel=1e-9)
        if again.prediction >= 0:
            assert again.radius == pytest.approx(SIGMA * norm.ppf(expected), rel=1e-8)
            assert again.prediction == row["selected"]
        else:
            assert expected <= 0.5


def test_looks_by_another_bound_keep_their_spending(stored):
    header, rows = stored(BUDGETS["looks"])
    for row in rows:
        expected = certify_from_looks(
            row["looks"],
            row["selected"],
            schedule=row["schedule"],
            spend=row["spend"],
            radius=RADIUS,
            n0=100,
            alpha=ALPHA,
            bound="runner-up",
            index=row["index"],
            seed=5,
        )
        assert rebound(header, row, bound="runner-up") == expected
        assert expected.spend == tuple(row["spend"])


def test_looks_give_less_than_their_last_counts_would_as_if_n_had_been_fixed(stored):
    header, rows = stored(BUDGETS["looks"])
    for row in rows:
        k = row["counts"][row["selected"]]
        as_if_fixed, _ = proportion_confint(k, row["n"], alpha=2 * ALPHA, method="beta")
        assert rebound(header, row).p_lower < as_if_fixed


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_votes_after_a_pilot_are_bounded_as_a_fixed_number_without_the_pilots_own(stored, alpha):
    header, rows = stored(BUDGETS["pilot"])
    for row in rows:
        again = rebound(header, row, alpha=alpha)
        expected, _ = proportion_confint(row["counts"][row["selected"]], row["n"], alpha=2 * alpha, method="beta")
        assert again.p_lower == pytest.approx(expected, rel=1e-9)
        assert again.pilot == tuple(row["pilot"])
        fixed = certify_from_counts(
            row["counts"], row["selected"], radius=RADIUS, n0=100, alpha=alpha, index=row["index"], seed=5
        )
        assert (again.radius, again.prediction) == (fixed.radius, fixed.prediction)


# what is refused


def without(row, *keys):
    return {key: value for key, value in row.items() if key not in keys}


LOOKS_KEYS = ("schedule", "spend", "looks")


@pytest.mark.parametrize("alpha", [None, 0.001, 0.05])
@pytest.mark.parametrize("forged", ["fixed", "fixed-with-n", "pilot", "mine"])
@pytest.mark.parametrize("stripped", [(), ("looks",), LOOKS_KEYS, (*LOOKS_KEYS, "votes")])
def test_looks_are_never_bounded_as_if_their_number_had_been_fixed(stored, forged, stripped, alpha):
    """Neither a header that says another rule nor rows that lost their looks make it happen."""
    header, rows = stored(BUDGETS["looks"])
    rules = {
        "fixed": header["rule"] | {"name": "fixed"},
        "fixed-with-n": asdict(Fixed(n=4_000)) | {"name": "fixed", "alpha": ALPHA},
        "pilot": header["rule"] | {"name": "pilot", "n_pilot": 0},
        "mine": header["rule"] | {"name": "mine"},
    }
    for row in (row for row in rows if row["n"] < 4_000):
        with pytest.raises(ValueError, match="optional stopping"):
            rebound(header | {"rule": rules[forged]}, without(row, *stripped), alpha=alpha)
        if stripped:
            with pytest.raises(ValueError, match=r"its row has no .*looks.* \(optional stopping\)"):
                rebound(header, without(row, *stripped), alpha=alpha)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"counts": row["counts"][::-1]}, "are not those of its last look"),
        (lambda row: {"n": row["n"] + 1}, "but `n` is"),
        (lambda row: {"looks": row["looks"][:-1]}, "are not those of its last look"),
        (lambda row: {"looks": []}, "are not those of its last look"),
        (lambda row: {"looks": row["looks"][-1:]}, "`looks` must add up to the first of the schedule"),
        (lambda row: {"schedule": row["schedule"][: len(row["looks"])]}, r"the end of the schedule .* by the ledger's"),
        (lambda row: {"schedule": []}, r"the end of the schedule .* is \[\], but by the ledger's rule it is \[4000\]"),
        (lambda row: {"spend": row["spend"][:-1]}, "one look for each"),
        (lambda row: {"spend": [0.7 * ALPHA] * len(row["spend"])}, "`spend` must add up to at most alpha"),
        (lambda row: {"pilot": [1, 2, 3]}, "drawn by the rule 'pilot', whose pilot its row holds"),
    ],
)
def test_a_row_that_no_run_of_looks_can_have_left_is_refused(stored, change, message):
    header, rows = stored(BUDGETS["looks"])
    row = next(row for row in rows if 1 < len(row["looks"]) < len(row["schedule"]))
    with pytest.raises(ValueError, match=message):
        rebound(header, row | change(row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: without(row, "pilot"), "its row has no pilot"),
        (lambda row: row | {"pilot": [1, 0, 0]}, "the number of pilot votes of example 10 is 1, but .* it is 200"),
        (lambda row: row | {"looks": [row["counts"]]}, "drawn by the rule 'looks'"),
        (lambda row: row | {"n": 7}, "but `n` is 7"),
    ],
)
def test_a_row_that_no_run_of_pilots_can_have_left_is_refused(stored, change, message):
    header, rows = stored(BUDGETS["pilot"])
    with pytest.raises(ValueError, match=message):
        rebound(header, change(rows[1]))


def test_a_fixed_rule_has_the_n_it_says(stored):
    header, rows = stored(BUDGETS["fixed"])
    counts = [number // 2 for number in rows[0]["counts"]]
    with pytest.raises(ValueError, match=r"`n` of example 0 is \d+, but by the ledger's rule it is 1000"):
        rebound(header, rows[0] | {"counts": counts, "n": sum(counts)})


@dataclass(frozen=True)
class Mine:
    n: int = 100
    name = "mine"

    def steps(self, task):
        counts = yield "estimation", self.n
        return task.certify(counts, 0, n0=0, bound="clopper-pearson")


def test_a_rule_that_is_not_known_is_refused(stored):
    header, rows = stored(Mine())
    with pytest.raises(ValueError, match=r"must be .* 'fixed', 'looks', 'pilot', got 'mine'.*optional stopping"):
        rebound(header, rows[0])


# the number that randomized bounds draw along with the votes


@pytest.mark.parametrize("name", ["fixed", "looks", "pilot"])
def test_a_randomized_bound_needs_the_number_that_the_run_drew(stored, name):
    header, rows = stored(BUDGETS[name])
    assert all("uniform" not in row for row in rows)
    with pytest.raises(ValueError, match=r"'randomized' needs the number `uniform`.* example 0 has none"):
        rebound(header, rows[0], bound="randomized")


@pytest.mark.skipif("randomized" not in BOUNDS, reason="there is no randomized bound")
@pytest.mark.parametrize("name", ["fixed", "looks", "pilot"])
def test_the_number_that_a_run_drew_is_kept_and_used(stored, name):
    budget = replace(BUDGETS[name], bound="randomized")
    certificates = [
        replace(certificate, uniform=0.1 * number)
        for number, certificate in enumerate(certificates_of(BUDGETS[name]), 1)
    ]
    header, rows = stored(budget, certificates)
    assert [row["uniform"] for row in rows] == [certificate.uniform for certificate in certificates]
    again = [rebound(header, row) for row in rows]
    assert [certificate.uniform for certificate in again] == [row["uniform"] for row in rows]
    plain = [rebound(header, row, bound="clopper-pearson") for row in rows]
    assert all(isinstance(one, VoteCertificate) and one.uniform is None for one in plain)
