"""Where the random bits of votes come from: torch's own generators, or a stream cipher.

Torch's generators are good and fast, and their output can be told from random bits by whoever sets out to: the Mersenne
Twister on a CPU is linear, so that a network could be built that knows its noise when it sees it. ChaCha20's output
cannot, as far as anybody has published, by whoever lacks its key.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import torch

from art_rs_plugin.core import checks

TORCH, CHACHA20 = "torch", "chacha20"
RANDOMNESS = (TORCH, CHACHA20)
"""Names of the sources."""


class ChaCha20:
    """The key stream of ChaCha20 (Bernstein 2008; RFC 8439), drawn on the CPU whatever `device` it is for.

    Stands in for a `torch.Generator` in `art_rs_plugin.noise`.

    :raises ImportError: The package `cryptography`, whose cipher it is, is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        check_source(CHACHA20)
        self.device = torch.device(device)
        self.start(b"")

    def start(self, key: bytes) -> None:
        """Go to the start of the stream that is named by `key`, of any length."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        # the nonce may be constant, since every stream has a key of its own
        cipher = Cipher(algorithms.ChaCha20(hashlib.shake_256(key).digest(32), bytes(16)), mode=None)
        self._encryptor = cipher.encryptor()

    def bits_(self, out: torch.Tensor) -> torch.Tensor:
        """Overwrite `out` (int64, contiguous) with the next bits, 64 each, and return it."""
        return out.copy_(torch.from_numpy(self._next(out.numel(), "<i8").copy()).view_as(out))

    def normal_(self, out: torch.Tensor, sigma: float) -> torch.Tensor:
        """Overwrite `out` (contiguous, floating point) with N(0, sigma^2), and return it.

        Box and Muller 1958, in float32 and on one thread; the greatest |z| is 6.7, where torch's own is 5.8.
        """
        pairs = -(-out.numel() // 2)
        words = self._next(2 * pairs, "<u4")
        # in (0, 1], whose small numbers have all their digits: 2^-32 is the least
        uniform = ((words[:pairs] >> 1).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
        radius = np.sqrt(np.float32(-2.0) * np.log(uniform)) * np.float32(sigma)
        angle = words[pairs:].astype(np.float32) * np.float32(math.pi * 2.0**-31)
        made = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return out.copy_(torch.from_numpy(made[: out.numel()]).view_as(out))

    def _next(self, count: int, kind: str) -> np.ndarray[tuple[int], np.dtype[np.integer]]:
        return np.frombuffer(self._encryptor.update(bytes(count * np.dtype(kind).itemsize)), dtype=kind)


Generator = torch.Generator | ChaCha20


def check_source(name: str) -> str:
    """`name`, if it is a source of randomness that is at hand.

    :raises ValueError: It is none of `RANDOMNESS`; ImportError if what it needs is not installed.
    """
    checks.one_of("randomness", name, RANDOMNESS)
    if name == CHACHA20:
        try:
            import cryptography  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"`randomness` {CHACHA20!r} needs the package cryptography, got {error}: "
                "pip install 'art-rs-plugin[crypto]'"
            ) from error
    return name


def generator_of(name: str, device: torch.device | str) -> Generator:
    """A generator by the name of its source, in `RANDOMNESS`."""
    return ChaCha20(device) if name == CHACHA20 else torch.Generator(device)


def restart(generator: Generator, key: bytes) -> None:
    """Put a generator at the start of the stream that `key` names, whatever it drew before."""
    if isinstance(generator, ChaCha20):
        generator.start(key)
    elif generator.device.type == "cpu":
        words = np.frombuffer(hashlib.shake_128(key).digest(4 * _MT_WORDS), dtype="<u4")
        state = _fresh_cpu_state().copy()
        state[_MT_OFFSET : _MT_OFFSET + 8 * _MT_WORDS] = words.astype("<u8").view(np.uint8)
        generator.set_state(torch.from_numpy(state))
    else:
        generator.manual_seed(int.from_bytes(hashlib.shake_128(key).digest(8), "little", signed=True))


def bits_(out: torch.Tensor, generator: Generator) -> torch.Tensor:
    """Overwrite `out` (int64, contiguous) with random bits, all 64 of each, and return it."""
    if isinstance(generator, ChaCha20):
        return generator.bits_(out)
    return out.random_(-(2**63), None, generator=generator)


def normal_(out: torch.Tensor, sigma: float, generator: Generator) -> torch.Tensor:
    """Overwrite `out` (contiguous, floating point) with N(0, sigma^2), and return it."""
    if isinstance(generator, ChaCha20):
        return generator.normal_(out, sigma)
    return out.normal_(0.0, sigma, generator=generator)


# torch's CPU generator state: seed (8 bytes), left (4), seeded (4), next (8), then 624 words of 32 bits in 8 bytes each
_MT_WORDS = 624
_MT_OFFSET = 24


@cache
def _fresh_cpu_state() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """State of a generator that was just seeded, so that its first draw twists the 624 words anew.

    :raises RuntimeError: torch keeps it in another layout than the one that `restart` writes to.
    """
    state = torch.Generator().manual_seed(0).get_state().numpy()
    words = state[_MT_OFFSET:].view("<u8")
    # the first two words that the generator's own seeding gives for 0 (Matsumoto and Nishimura 1998)
    if len(words) < _MT_WORDS or words[:2].tolist() != [0, 1]:
        raise RuntimeError(f"torch {torch.__version__} keeps the state of its CPU generator in an unknown layout")
    return state
