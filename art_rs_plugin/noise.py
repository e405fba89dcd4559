"""Noise: which distribution, which radius it gives, and which random stream it is drawn from.

A stream is a function of (seed, purpose, position) alone, never of what was drawn before, so a certificate does not
depend on batch size, order, resume point, threads or processes. Positions are tuples of whole numbers that the caller
chooses: (example, block) for votes, (epoch, step) for training.
"""

from __future__ import annotations

import hashlib
import secrets
from enum import Enum
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from art_rs_plugin.core import checks
from art_rs_plugin.core.radii import FloatArray, cohen


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

    def fill_(self, out: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Overwrite `out` with noise drawn from `generator`, and return it."""


class NoNoise:
    """The base classifier's noise: zero."""

    def fill_(self, out: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Overwrite `out` with zeros, and return it."""
        return out.zero_()


class Gaussian:
    """Isotropic Gaussian noise N(0, sigma^2 I) in input coordinates, and the l2 radius it gives (Theorem 1).

    :param sigma: Standard deviation, in the unit of `x`; finite and above 0, or ValueError.
    """

    name = "gaussian"
    norm = 2

    def __init__(self, sigma: float) -> None:
        self.sigma = checks.positive("sigma", sigma)

    def fill_(self, out: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Overwrite `out` (contiguous, floating point) with noise drawn from `generator`, and return it."""
        return out.normal_(0.0, self.sigma, generator=generator)

    def radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> FloatArray:
        """l2 radius in the unit of `x` (Cohen et al. 2019, Theorem 1), see `core.radii.cohen`."""
        return cohen(p_lower, p_upper, sigma=self.sigma)

    def __repr__(self) -> str:
        return f"Gaussian(sigma={self.sigma!r})"


NOISES: dict[str, type[Gaussian]] = {Gaussian.name: Gaussian}
"""Distributions by name. Whatever joins inherits the test that holds its radius against a half-space."""


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


def seed_generator(generator: torch.Generator, seed: int, purpose: Purpose, *position: int) -> torch.Generator:
    """Put `generator` at the start of a stream, see `stream`: cheaper than a new one for every block."""
    key = _key(seed, purpose, position)
    if generator.device.type == "cpu":
        words = np.frombuffer(hashlib.shake_128(key).digest(4 * _MT_WORDS), dtype="<u4")
        state = _fresh_cpu_state().copy()
        state[_MT_OFFSET : _MT_OFFSET + 8 * _MT_WORDS] = words.astype("<u8").view(np.uint8)
        generator.set_state(torch.from_numpy(state))
    else:
        generator.manual_seed(int.from_bytes(hashlib.shake_128(key).digest(8), "little", signed=True))
    return generator


def _key(seed: int, purpose: Purpose, position: tuple[int, ...]) -> bytes:
    return ":".join(["art-rs-plugin", str(seed), purpose.value, *map(str, position)]).encode()


# torch's CPU generator state: seed (8 bytes), left (4), seeded (4), next (8), then 624 words of 32 bits in 8 bytes each
_MT_WORDS = 624
_MT_OFFSET = 24


@cache
def _fresh_cpu_state() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """State of a generator that was just seeded, so that its first draw twists the 624 words anew.

    :raises RuntimeError: torch keeps it in another layout than the one that `seed_generator` writes to.
    """
    state = torch.Generator().manual_seed(0).get_state().numpy()
    words = state[_MT_OFFSET:].view("<u8")
    # the first two words that the generator's own seeding gives for 0 (Matsumoto and Nishimura 1998)
    if len(words) < _MT_WORDS or words[:2].tolist() != [0, 1]:
        raise RuntimeError(f"torch {torch.__version__} keeps the state of its CPU generator in an unknown layout")
    return state
