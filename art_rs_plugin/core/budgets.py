"""Budgets: how many votes to draw for a certificate, and when to stop.

A budget is a frozen dataclass with one method, a generator: it yields what votes it wants, is sent their counts, and
returns the certificate. So it knows nothing of where votes come from, one loop can feed many inputs' generators from
packed batches, and whoever needs another rule writes a class like those below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from art_rs_plugin.core import checks
from art_rs_plugin.core.bounds import BOUNDS, at_uniform, votes_to_certify
from art_rs_plugin.core.looks import (
    LooksCertificate,
    certify_from_looks,
    growing,
    prospect,
    scaled,
    spending,
    tighter,
)
from art_rs_plugin.core.radii import FloatArray
from art_rs_plugin.core.records import Counts, VoteCertificate, certify_from_counts, check_votes, checked_counts

Draw = Callable[[str, int], Counts]
"""(purpose, votes) -> votes by class, drawn afresh.

Purposes are "selection", "pilot", "estimation" and "prediction"; votes for different purposes never share noise, and
a second call for one purpose goes on where the first stopped: no vote comes twice.
"""

Steps = Generator[tuple[str, int], Counts, VoteCertificate]
"""Yields (purpose, votes), is sent the fresh votes by class as `Draw` gives them, and returns the certificate."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked at one input.

    `radius` maps (p_lower, p_upper) to a certified radius in the unit of `x`, rising in the first and falling in the
    second, such as `Gaussian(sigma).radius`; the certificate is to hold with probability at least 1 - `alpha`. With a
    `label`, known before any vote, that class is certified or none. `index` is the example's place in its data set,
    `seed` what its noise derives from, `norm` that of `radius`: recorded as they are. `uniform` is the U of a
    randomized bound, drawn once for this task, independently of all votes and of other inputs' U; others need none.

    :raises ValueError: If alpha, label or uniform is out of range, or TypeError.
    """

    radius: Callable[[float, float], FloatArray]
    alpha: float
    index: int = 0
    seed: int | None = None
    norm: float = 2
    label: int | None = None
    uniform: float | None = None

    def __post_init__(self) -> None:
        _set(self, alpha=checks.in_unit_interval("alpha", self.alpha))
        if self.label is not None:
            _set(self, label=checks.whole("label", self.label, minimum=0))
        if self.uniform is not None:
            _set(self, uniform=checks.probability("uniform", self.uniform))

    def select(self, n0: int) -> Generator[tuple[str, int], Counts, tuple[int, int]]:
        """The class to certify, and the votes that chose it: the label and 0, or the winner of `n0` votes and n0.

        Part of a budget's `steps`, by `yield from`.
        """
        if self.label is not None:
            return self.label, 0
        counts = yield "selection", n0
        return int(np.argmax(counts)), n0

    def certify(self, counts: ArrayLike, selected: int, *, n0: int, bound: str) -> VoteCertificate:
        """The certificate that votes give whose number they did not decide, see `certify_from_counts`."""
        return certify_from_counts(counts, selected, n0=n0, bound=bound, **self._asked())

    def certify_looks(
        self, looks: ArrayLike, selected: int, *, schedule: Sequence[int], spend: Sequence[float], n0: int, bound: str
    ) -> LooksCertificate:
        """The certificate that votes give which were looked at as they came in, see `certify_from_looks`."""
        return certify_from_looks(looks, selected, schedule=schedule, spend=spend, n0=n0, bound=bound, **self._asked())

    def _asked(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "label"}


class Budget(Protocol):
    """When to stop drawing votes."""

    def steps(self, task: Task) -> Steps:
        """Ask for votes until a certificate can be returned.

        The certificate must be false with probability at most `task.alpha`, whatever the class probabilities. The
        votes that choose the class, the number of votes or the moment to stop must not enter its bound, unless the
        bound pays for it. Nor must `task.uniform` choose them: a randomized bound errs with probability alpha at each
        number of votes on average over U, not at each U.
        """


def drive(steps: Steps, draw: Draw) -> VoteCertificate:
    """Run a budget's steps at one input: the certificate that they return.

    :param draw: Gives the votes at the input, see `Draw`.
    """
    counts = None
    while True:
        try:
            purpose, votes = next(steps) if counts is None else steps.send(counts)
        except StopIteration as stop:
            certificate: VoteCertificate = stop.value
            return certificate
        counts = drawn(draw, purpose, votes)


def drawn(draw: Draw, purpose: str, votes: int) -> Counts:
    """The counts that `draw` returns, held to its promise."""
    counts = checked_counts(draw(purpose, votes))
    assert counts.sum() == votes, f"asked for {votes} votes, drew {counts.tolist()}"
    return counts


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Cohen et al. 2019, CERTIFY: `n0` votes select a class, `n` fresh votes bound its probability.

    :raises ValueError: If a number is below 1 or `bound` is no name in `BOUNDS`; TypeError if it is not whole.
    """

    n0: int = 100
    n: int = 100_000
    bound: str = "clopper-pearson"
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        _set(self, n0=checks.whole("n0", self.n0), n=checks.whole("n", self.n))
        checks.one_of("bound", self.bound, BOUNDS)

    def steps(self, task: Task) -> Steps:
        """See `Budget`; ValueError if n votes can never certify at this alpha, or `task` lacks the U of the bound."""
        check_votes(self.n0, self.n, task.alpha, bound=self.bound)
        at_uniform(self.bound, task.uniform)
        selected, n0 = yield from task.select(self.n0)
        # fresh votes: those that selected the class would favour it, and void the bound
        counts = yield "estimation", self.n
        return task.certify(counts, selected, n0=n0, bound=self.bound)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Look at the votes as they come in, and stop once every radius in `radii` is settled.

    The looks are at `first` votes, `growth` times as many, and so on up to `n_max`; each has its own share of alpha
    (`core.looks`), so that the radius returned holds whether it is among `radii` or not. A radius is settled when it is
    certified, or when `n_max` votes will not certify it: because even unanimous votes to come could not, or would not
    at the highest p_A that the votes so far leave plausible at 1%. The radius 0 asks whether the class is certified at
    all.

    :raises ValueError: If a number is out of its range or `bound` is no name in `BOUNDS`; TypeError if it is none.
    """

    radii: tuple[float, ...]
    n_max: int = 100_000
    n0: int = 100
    first: int = 100
    growth: float = 1.5
    bound: str = "clopper-pearson"
    name: ClassVar[str] = "looks"

    def __post_init__(self) -> None:
        if np.ndim(self.radii) != 1 or np.size(self.radii) == 0:
            raise ValueError(f"`radii` must be one or more numbers in a row, got {self.radii!r}")
        _set(self, radii=tuple(checks.non_negative("radii", radius) for radius in self.radii))
        _set(self, **{name: checks.whole(name, getattr(self, name)) for name in ("n_max", "n0", "first")})
        if not checks.positive("growth", self.growth) > 1.0:
            raise ValueError(f"`growth` must be above 1, got {self.growth!r}")
        _set(self, growth=float(self.growth))
        checks.one_of("bound", self.bound, BOUNDS)

    @property
    def schedule(self) -> tuple[int, ...]:
        """Votes at each look."""
        return growing(self.first, self.growth, self.n_max)

    def steps(self, task: Task) -> Steps:
        """See `Budget`; returns a `LooksCertificate`.

        ValueError if n_max votes can never certify one of the radii, or `task` lacks the U of the bound.
        """
        schedule, (bound, _) = self.schedule, at_uniform(self.bound, task.uniform)
        spend = spending(task.alpha, len(schedule))
        # at U = 1: which radii a budget takes on is not to depend on luck
        utmost = task.radius(*BOUNDS[self.bound](np.array([self.n_max, 0]), 0, spend[-1]))
        # one out of reach would make every unanimous input run to n_max; radius 0 is certified by any above it
        unsettled = [max(radius, math.ulp(0.0)) for radius in self.radii if utmost >= max(radius, math.ulp(0.0))]
        if not unsettled:
            raise ValueError(
                f"`radii` must hold one that {self.n_max} votes can certify at alpha = {task.alpha}, which is up to "
                f"{float(utmost)}, got {self.radii}"
            )
        selected, n0 = yield from task.select(self.n0)
        bounds, looks = (0.0, 1.0), list[Counts]()
        for votes, share in zip(schedule, spend, strict=True):
            # fresh votes: those that selected the class would favour it, and void the bound
            fresh = yield "estimation", votes - (int(looks[-1].sum()) if looks else 0)
            counts = checked_counts(fresh + looks[-1] if looks else fresh, selected)
            looks.append(counts)
            bounds = tighter(bounds, bound(counts, selected, share))
            certified = float(task.radius(*bounds))
            # the last look has the most votes and the largest share: what it will not certify, no look before it will;
            # U may say when to stop, for the looks' bounds hold together wherever that is
            hope = tighter(bounds, bound(prospect(counts, selected, self.n_max), selected, spend[-1]))
            limit = float(task.radius(*hope))
            unsettled = [radius for radius in unsettled if certified < radius <= limit]
            if not unsettled:
                break
        return task.certify_looks(looks, selected, schedule=schedule, spend=spend, n0=n0, bound=self.bound)


@dataclass(frozen=True, kw_only=True)
class PilotCertificate(VoteCertificate):
    """A certificate whose number of votes the `pilot` votes chose, by class; these do not enter its bounds."""

    pilot: tuple[int, ...]

    @property
    def votes(self) -> int:
        """All votes that were drawn for it."""
        return super().votes + sum(self.pilot)


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """For the average radius: `n_pilot` votes choose the number n of fresh votes that bound the class's probability.

    n maximises the radius that the pilot's proportions would give, less `cost` for every vote, over a grid from the
    least number that can certify to `n_max`. `cost` is in the unit of the radius at (p_A, p_B) = (Phi(1), Phi(-1)),
    which is sigma for Cohen et al. 2019, Theorem 1: n = argmax Phi^-1(p_lower(p n, n, alpha)) - cost n.

    :raises ValueError: If a number is out of its range or `bound` is no name in `BOUNDS`; TypeError if it is none.
    """

    n_pilot: int = 1_000
    cost: float = 1e-6
    n_max: int = 100_000
    n0: int = 100
    bound: str = "clopper-pearson"
    name: ClassVar[str] = "pilot"

    def __post_init__(self) -> None:
        _set(self, **{name: checks.whole(name, getattr(self, name)) for name in ("n_pilot", "n_max", "n0")})
        _set(self, cost=checks.positive("cost", self.cost))
        checks.one_of("bound", self.bound, BOUNDS)

    def steps(self, task: Task) -> Steps:
        """See `Budget`; returns a `PilotCertificate`. Errors as those of `Fixed`, of n_max."""
        check_votes(self.n0, self.n_max, task.alpha, bound=self.bound)
        at_uniform(self.bound, task.uniform)
        selected, n0 = yield from task.select(self.n0)
        pilot = checked_counts((yield "pilot", self.n_pilot), selected)
        # fresh votes: given the pilot their number is fixed, while the pilot's own would favour the number they chose
        counts = yield "estimation", self._best(pilot, selected, task)
        certificate = task.certify(counts, selected, n0=n0, bound=self.bound)
        return PilotCertificate(**vars(certificate), pilot=tuple(pilot.tolist()))

    def _best(self, pilot: Counts, selected: int, task: Task) -> int:
        """The number of votes to draw after this pilot: at U = 1, for a number that suits U would void the bound."""
        unit = float(task.radius(_PHI, 1.0 - _PHI))

        def value(n: int) -> float:
            counts = scaled(pilot, selected, int(pilot[selected]) * n // self.n_pilot, n)
            return float(task.radius(*BOUNDS[self.bound](counts, selected, task.alpha))) - self.cost * unit * n

        return max(growing(votes_to_certify(task.alpha, self.bound), 1.25, self.n_max), key=value)


BUDGETS: dict[str, Callable[..., Budget]] = {budget.name: budget for budget in (Fixed, Looks, Pilot)}

_PHI = 0.8413447460685429  # Phi(1)


def _set(record: object, **fields: object) -> None:
    """Fields of a frozen dataclass, as checked when it is made."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)
