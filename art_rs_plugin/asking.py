"""Who asks: attacks of ART that would get something of f where they mean g are refused, by name and with the remedy."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TypeGuard


def refuse_attacks(why: str, *, building: bool = False) -> None:
    """TypeError if an evasion attack of ART is who calls the function that calls this one.

    :param why: What the attack does, to go after its name.
    :param building: Refuse only where the attack's constructor asks.
    """
    frame: FrameType | None = sys._getframe(2)
    if not _is_attack(frame) or (building and frame.f_code.co_name != "__init__"):
        return
    name = frame.f_code.co_name
    while _is_attack(frame):  # the outermost is whom the user knows: AutoAttack builds others
        if "self" in frame.f_locals:
            name = type(frame.f_locals["self"]).__name__
        frame = frame.f_back
    raise TypeError(
        f"{name} {why}: give it estimator.smoothed_classifier(num_samples=...) instead, and judge by evaluate_attack"
    )


def attack_asks() -> bool:
    """Whether an evasion attack of ART is who calls the function that calls this one."""
    return _is_attack(sys._getframe(2))


def _is_attack(frame: FrameType | None) -> TypeGuard[FrameType]:
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("art.attacks.evasion.")
