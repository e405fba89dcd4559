"""Randomized smoothing as one certifier among others, with the bound of Cohen et al. or those that came before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers.certifier import Certifier
from art_rs_plugin.core.budgets import BUDGETS, Budget, Fixed
from art_rs_plugin.core.radii import RADII
from art_rs_plugin.core.records import ABSTAIN, Certificate, VoteCertificate
from art_rs_plugin.estimator import RandomizedSmoothingPyTorch


class Smoothing(Certifier):
    """The smoothed classifier's class and radius (Cohen et al. 2019, CERTIFY and Theorem 1).

    :param estimator: Whose f, noise, n0, n and alpha are those of the certificates.
    :param budget: How many votes to draw and when to stop; `Fixed` with the estimator's n0 and n if None.
    """

    name: ClassVar[str] = "smoothing"
    certifies: ClassVar[Literal["f", "g"]] = "g"
    radius: ClassVar[str] = "cohen"

    def __init__(self, estimator: RandomizedSmoothingPyTorch, budget: Budget | None = None) -> None:
        self.estimator = estimator
        self.budget: Budget = Fixed(n0=estimator.n0, n=estimator.n) if budget is None else budget
        self.alpha = estimator.alpha

    @classmethod
    def build(
        cls,
        model: nn.Module,
        *,
        input_shape: Sequence[int],
        nb_classes: int,
        sigma: float | None = None,
        budget: str = "fixed",
        n0: int = 100,
        n: int = 100_000,
        radii: Sequence[float] = (),
        seed: int | None = None,
        **options: Any,
    ) -> Smoothing:
        """As `Certifier.build`.

        :param sigma: Standard deviation of the noise, in the unit of x.
        :param budget: A name in `core.budgets.BUDGETS`; its `n_max` is `n`.
        :param radii: For `Looks`: which radii are to be decided.
        :param seed: Of the noise; fresh at every call if None.
        :param options: Of `RandomizedSmoothingPyTorch`, such as alpha, precision and compile.
        """
        if sigma is None:
            raise ValueError("`sigma` must be given, got None")
        estimator = RandomizedSmoothingPyTorch(
            model, sigma, n0=n0, n=n, seed=seed, input_shape=tuple(input_shape), nb_classes=nb_classes, **options
        )
        own: dict[str, dict[str, Any]] = {
            "fixed": {"n": n}, "looks": {"n_max": n, "radii": tuple(radii)}, "pilot": {"n_max": n},
        }  # fmt: skip
        if budget not in own:
            raise ValueError(f"`budget` must be one of {', '.join(own)}, got {budget!r}")
        return cls(estimator, BUDGETS[budget](n0=n0, **own[budget]))

    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """As `Certifier.certify`; labels are not used, for votes choose the class. Each has its counts of votes."""
        made = self.estimator.certificates(
            np.asarray(x, dtype=np.float32), indices=None if indices is None else list(indices), budget=self.budget
        )
        return [self.bounded(certificate) for certificate in made]

    def bounded(self, certificate: VoteCertificate) -> VoteCertificate:
        """The certificate that the same bounds on p_A and p_B give by this certifier's radius; here as it is."""
        return certificate


class _PriorRadius(Smoothing):
    """Smoothing with a radius from before Theorem 1, for Gaussian noise.

    :raises ValueError: For an estimator in sound mode, whose radius these formulas do not give.
    """

    def __init__(self, estimator: RandomizedSmoothingPyTorch, budget: Budget | None = None) -> None:
        if estimator.sound:
            raise ValueError(f"`sound` must be False for {self.name}, got True: its radius is for Gaussian noise")
        super().__init__(estimator, budget)

    def bounded(self, certificate: VoteCertificate) -> VoteCertificate:
        """The certificate that the same bounds on p_A and p_B give by this certifier's radius."""
        formula = RADII[self.radius]
        radius = float(formula(certificate.p_lower, certificate.p_upper, sigma=self.estimator.sigma))
        return replace(certificate, prediction=certificate.selected if radius > 0 else ABSTAIN, radius=radius)


class SmoothingLecuyer(_PriorRadius):
    """The same votes with the radius of Lecuyer et al. 2019 (Cohen et al. 2019, Appendix I, eq. 31)."""

    name: ClassVar[str] = "smoothing-lecuyer"
    radius: ClassVar[str] = "lecuyer"


class SmoothingLi(_PriorRadius):
    """The same votes with the radius of Li et al. 2019 (Cohen et al. 2019, Appendix I, eq. 38)."""

    name: ClassVar[str] = "smoothing-li"
    radius: ClassVar[str] = "li"
