"""Noise: which distribution, which radius it gives, and which random stream it is drawn from.

A stream is a function of (seed, purpose, position) alone, never of what was drawn before, so a certificate does not
depend on batch size, order, resume point, threads or processes. Positions are tuples of whole numbers that the caller
chooses: (example, block) for votes, (epoch, step) for training.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from art_rs_plugin.core import checks
from art_rs_plugin.core.radii import FloatArray, cohen, near_gaussian
from art_rs_plugin.core.rounded import BITS, LEVELS, check_sigma, table, total_variation
from art_rs_plugin.randomness import TORCH, Generator, bits_, check_source, generator_of, normal_, restart

AnyGenerator = TypeVar("AnyGenerator", bound=Generator)


class Purpose(str, Enum):
    """What noise is drawn for. Two purposes never share noise, whatever the seed and the position."""

    SELECTION = "selection"
    PILOT = "pilot"
    ESTIMATION = "estimation"
    PREDICTION = "prediction"
    GRADIENT = "gradient"
    JUDGING = "judging"  # of an attack's outcome, by votes that no attack has seen
    TRAINING = "training"
    SHUFFLING = "shuffling"
    SPLITTING = "splitting"  # of a training set, to hold some of it out
    VALIDATION = "validation"  # which chooses a network: never by the noise that certifies it
    LABELLING = "labelling"  # by a teacher
    INITIALISATION = "initialisation"
    BOUND = "bound"  # the uniform of a randomized bound


class Noise(Protocol):
    """What a forward pass needs of a noise distribution."""

    def fill_(self, out: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` with noise drawn from `generator`, and return it."""


class Distribution(Noise, Protocol):
    """A noise distribution to smooth by, and the radius that it gives.

    :ivar name: By which ledgers call it.
    :ivar norm: Of the radius.
    :ivar sigma: Its scale, in the unit of `x`.
    """

    name: str
    norm: float
    sigma: float

    def generator(self, device: torch.device) -> Generator:
        """A generator for `noisy_`, on `device`; `seed_generator` puts it at the start of a stream."""

    def check(self, x: torch.Tensor) -> None:
        """ValueError for inputs (m, *shape), float32, around which its radius promises nothing."""

    def noisy_(self, out: torch.Tensor, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` (rows, *shape) with noisy copies of `x` (*shape), as votes are cast on, and return it."""

    def radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> FloatArray:
        """Radius in the unit of `x`, in its norm; rises in the first and falls in the second."""

    def about(self) -> dict[str, Any]:
        """What a ledger says of it: all that its radius depends on."""


class NoNoise:
    """The base classifier's noise: zero."""

    def fill_(self, out: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` with zeros, and return it."""
        return out.zero_()


class Gaussian:
    """Isotropic Gaussian noise N(0, sigma^2 I) in input coordinates, and the l2 radius it gives (Theorem 1).

    :param sigma: Standard deviation, in the unit of `x`; finite and above 0, or ValueError.
    :param randomness: Where the random bits of votes come from, a name in `randomness.RANDOMNESS`.
    """

    name = "gaussian"
    norm: float = 2

    def __init__(self, sigma: float, *, randomness: str = TORCH) -> None:
        self.sigma = checks.positive("sigma", sigma)
        self.randomness = check_source(randomness)

    def generator(self, device: torch.device) -> Generator:
        """A generator for votes, of this noise's randomness."""
        return generator_of(self.randomness, device)

    def check(self, x: torch.Tensor) -> None:
        """Any inputs will do."""

    def fill_(self, out: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` (contiguous, floating point) with noise drawn from `generator`, and return it."""
        return normal_(out, self.sigma, generator)

    def noisy_(self, out: torch.Tensor, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` with x + noise, in its floating point, and return it."""
        return self.fill_(out, generator).add_(x)

    def radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> FloatArray:
        """l2 radius in the unit of `x` (Cohen et al. 2019, Theorem 1), see `core.radii.cohen`."""
        return cohen(p_lower, p_upper, sigma=self.sigma)

    def about(self) -> dict[str, Any]:
        """Name and sigma, and where random bits come from, unless it is from torch."""
        return {"name": self.name, "sigma": self.sigma, **_told(self.randomness)}

    def __repr__(self) -> str:
        return f"Gaussian(sigma={self.sigma!r})"


class RoundedGaussian:
    """Sound mode's noise: Gaussian noise rounded to whole 255ths, drawn from an exact table, for inputs on that grid.

    f sees float32((255 x + Z) / 255): the same floats for the same whole numbers 255 x + Z, whatever x they come from,
    so that no rounding tells of x. `docs/soundness.md` has the proof. Z is drawn from 63 bits by `core.rounded.table`:
    the first 16 decide it nearly always, and where they do not, 47 more are drawn.

    :param sigma: Standard deviation of the Gaussian, in the unit of `x`; above 0 and at most 16, or ValueError.
    :param dimension: Numbers in one input, which the radius depends on; None where it is not known yet.
    :param randomness: As in `Gaussian`.
    """

    name = "rounded-gaussian"
    norm: float = 2

    def __init__(self, sigma: float, dimension: int | None = None, *, randomness: str = TORCH) -> None:
        self.sigma = check_sigma(sigma)
        self.randomness = check_source(randomness)
        self.dimension = None if dimension is None else checks.whole("dimension", dimension)

    def generator(self, device: torch.device) -> Generator:
        """A generator for votes, of this noise's randomness."""
        return generator_of(self.randomness, device)

    def check(self, x: torch.Tensor) -> None:
        """ValueError for inputs off the grid: the first number that is no whole 255th, in float32."""
        levels = _levels(x)
        # so far out sums might not be exact: nobody's images
        off = (levels / levels.new_full((), LEVELS) != x) | (levels.abs() > _FARTHEST)
        if off.any():
            at = tuple(off.nonzero()[0].tolist())
            raise ValueError(
                f"`x` must hold multiples of 1/{LEVELS} alone, of at most {_FARTHEST // LEVELS}, for sound=True, got "
                f"{x[at].item()!r} at x{list(at)}; numpy.rint({LEVELS} * x) / {LEVELS} is the nearest such input"
            )

    def fill_(self, out: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` (contiguous, floating point) with Z / 255, for gradients and training, and return it."""
        return self.draw_(out, generator).div_(out.new_full((), LEVELS))

    def noisy_(self, out: torch.Tensor, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` (contiguous, float32) with (255 x + Z) / 255, for `x` that passed `check`, and return it."""
        # a tensor to divide by: for a plain number GPUs multiply by its rounded inverse
        return self.draw_(out, generator).add_(_levels(x)).div_(out.new_full((), LEVELS))

    def draw_(self, out: torch.Tensor, generator: Generator) -> torch.Tensor:
        """Overwrite `out` (contiguous, floating point) with Z, whole numbers, and return it."""
        reach, thresholds, decided = _prefix_table(self.sigma, out.device)
        flat = out.view(-1)
        # four prefixes of 16 bits a word
        words = bits_(torch.empty(-(-flat.numel() // 4), dtype=torch.int64, device=out.device), generator)
        prefix = words.view(torch.int16)[: flat.numel()]
        flat.copy_(torch.index_select(decided, 0, prefix.int() + 2 ** (_PREFIX - 1)))
        undecided = flat.isnan().nonzero().squeeze(1)
        rest = bits_(torch.empty_like(undecided), generator) & 2 ** (BITS - _PREFIX) - 1
        uniform = (prefix[undecided].long() + 2 ** (_PREFIX - 1) << BITS - _PREFIX) + rest
        flat[undecided] = (torch.searchsorted(thresholds, uniform, right=True) - reach).to(flat.dtype)
        return out

    def radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> FloatArray:
        """l2 radius in the unit of `x`, for inputs on the grid, see `core.radii.near_gaussian`.

        :raises ValueError: While the dimension is not known.
        """
        return near_gaussian(p_lower, p_upper, sigma=self.sigma, distance=total_variation(self.sigma, self._known()))

    def about(self) -> dict[str, Any]:
        """Name, sigma, dimension, and what `Gaussian` says; ValueError while the dimension is not known."""
        return {"name": self.name, "sigma": self.sigma, "dimension": self._known(), **_told(self.randomness)}

    def _known(self) -> int:
        if self.dimension is None:
            raise ValueError("`input_shape` is not known yet, and the radius of sound=True depends on it")
        return self.dimension

    def __repr__(self) -> str:
        return f"RoundedGaussian(sigma={self.sigma!r}, dimension={self.dimension!r})"


def _told(randomness: str) -> dict[str, str]:
    return {} if randomness == TORCH else {"randomness": randomness}


NOISES: dict[str, type[Gaussian]] = {Gaussian.name: Gaussian}
"""Distributions by name. Whatever joins inherits the test that holds its radius against a half-space."""

SOUND: dict[str, type[RoundedGaussian]] = {Gaussian.name: RoundedGaussian}
"""What sound mode draws instead, for those distributions that it has an answer for."""


def distribution(about: Mapping[str, Any]) -> Distribution:
    """The distribution that `about` of one tells of, as ledgers hold it.

    :raises ValueError, TypeError: It tells of none that is known here, or not all of it.
    """
    known: dict[str, Callable[..., Distribution]] = {**NOISES, **{kind.name: kind for kind in SOUND.values()}}
    checks.one_of("noise.name", about.get("name"), known)
    checks.positive("noise.sigma", about.get("sigma", "none"))
    try:
        made = known[about["name"]](**{name: value for name, value in about.items() if name != "name"})
    except TypeError as error:
        raise TypeError(f"`noise` must hold what {about['name']} takes, got {dict(about)}: {error}") from error
    if made.about() != about:
        raise ValueError(f"`noise` must be whole, {made.about()}, got {dict(about)}")
    return made


_PREFIX = 16
# |255 x|: rounding in float32 finds it, and with any Z it is below 2^24, up to which float32 has all whole numbers
_FARTHEST = 2**20


def _levels(x: torch.Tensor) -> torch.Tensor:
    """255 x as whole numbers, exact for `x` on the grid."""
    return torch.round(x * LEVELS)


@lru_cache(maxsize=64)
def _prefix_table(sigma: float, device: torch.device) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Reach, thresholds, and the Z that each prefix of U's bits decides, float32: NaN where a threshold is amid."""
    made = table(sigma)
    first = np.arange(2**_PREFIX, dtype=np.int64) << BITS - _PREFIX
    last = first + (2 ** (BITS - _PREFIX) - 1)
    least, most = (np.searchsorted(made.thresholds, ends, side="right") for ends in (first, last))
    decided = np.where(least == most, least - made.reach, np.nan).astype(np.float32)
    with torch.inference_mode(False):  # whoever asks first: also training draws from it
        return made.reach, torch.from_numpy(made.thresholds).to(device), torch.from_numpy(decided).to(device)


def fresh_seed() -> int:
    """A 63-bit seed from the operating system, for a caller who was given none."""
    return secrets.randbits(63)


def stream(seed: int, purpose: Purpose, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the start of the stream that (seed, purpose, position) names.

    On a CPU all 19 937 bits of the Mersenne Twister's state come from SHAKE-128: `manual_seed` there keeps only 32
    bits, and a day of certification starts more than 2^16 streams, so that some would coincide. Other devices take a
    64-bit key, and what they make of it may depend on their model: streams on different devices differ.

    :param seed: Whole number of at least 0.
    :param position: Whole numbers; streams with different positions are unrelated.
    """
    return seed_generator(torch.Generator(device), seed, purpose, *position)


def derived_seed(seed: int, purpose: Purpose) -> int:
    """A 63-bit seed for whoever draws for this purpose as others do for theirs, with streams that are unrelated."""
    return int.from_bytes(hashlib.shake_128(_key(seed, purpose, ())).digest(8), "little") >> 1


def uniform(seed: int, purpose: Purpose, *position: int) -> float:
    """A uniform number in (0, 1] from the stream that (seed, purpose, position) names, a multiple of 2^-53."""
    word = int.from_bytes(hashlib.shake_128(_key(seed, purpose, position)).digest(8), "little")
    return ((word >> 11) + 1) * 2.0**-53


def seed_generator(generator: AnyGenerator, seed: int, purpose: Purpose, *position: int) -> AnyGenerator:
    """Put `generator` at the start of a stream, see `stream`: cheaper than a new one for every block."""
    restart(generator, _key(seed, purpose, position))
    return generator


def _key(seed: int, purpose: Purpose, position: tuple[int, ...]) -> bytes:
    return ":".join(["art-rs-plugin", str(seed), purpose.value, *map(str, position)]).encode()
