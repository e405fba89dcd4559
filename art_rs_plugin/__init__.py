"""Randomized smoothing for the Adversarial Robustness Toolbox: train, predict, certify.

Public names are imported when first used, so that `import art_rs_plugin` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "ABSTAIN": "art_rs_plugin.core.certificate",
    "AttackEvaluation": "art_rs_plugin.attacks",
    "CatRSTrainer": "art_rs_plugin.trainers",
    "Certificate": "art_rs_plugin.core.certificate",
    "CertificationError": "art_rs_plugin.voting",
    "ConsistencyTrainer": "art_rs_plugin.trainers",
    "Fixed": "art_rs_plugin.core.budgets",
    "GaussianAugmentationTrainer": "art_rs_plugin.trainers",
    "LipschitzMarginTrainer": "art_rs_plugin.trainers",
    "Looks": "art_rs_plugin.core.budgets",
    "MACERTrainer": "art_rs_plugin.trainers",
    "Pilot": "art_rs_plugin.core.budgets",
    "RandomizedSmoothingPyTorch": "art_rs_plugin.estimator",
    "SmoothAdvTrainer": "art_rs_plugin.trainers",
    "SmoothMixTrainer": "art_rs_plugin.trainers",
    "SmoothedDDN": "art_rs_plugin.attacks",
    "SmoothedPGD": "art_rs_plugin.attacks",
    "StabilityTrainer": "art_rs_plugin.trainers",
    "VoteCertificate": "art_rs_plugin.core.certificate",
    "evaluate_attack": "art_rs_plugin.attacks",
}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from art_rs_plugin.attacks import AttackEvaluation as AttackEvaluation
    from art_rs_plugin.attacks import SmoothedDDN as SmoothedDDN
    from art_rs_plugin.attacks import SmoothedPGD as SmoothedPGD
    from art_rs_plugin.attacks import evaluate_attack as evaluate_attack
    from art_rs_plugin.core.budgets import Fixed as Fixed
    from art_rs_plugin.core.budgets import Looks as Looks
    from art_rs_plugin.core.budgets import Pilot as Pilot
    from art_rs_plugin.core.certificate import ABSTAIN as ABSTAIN
    from art_rs_plugin.core.certificate import Certificate as Certificate
    from art_rs_plugin.core.certificate import VoteCertificate as VoteCertificate
    from art_rs_plugin.estimator import RandomizedSmoothingPyTorch as RandomizedSmoothingPyTorch
    from art_rs_plugin.trainers import CatRSTrainer as CatRSTrainer
    from art_rs_plugin.trainers import ConsistencyTrainer as ConsistencyTrainer
    from art_rs_plugin.trainers import GaussianAugmentationTrainer as GaussianAugmentationTrainer
    from art_rs_plugin.trainers import LipschitzMarginTrainer as LipschitzMarginTrainer
    from art_rs_plugin.trainers import MACERTrainer as MACERTrainer
    from art_rs_plugin.trainers import SmoothAdvTrainer as SmoothAdvTrainer
    from art_rs_plugin.trainers import SmoothMixTrainer as SmoothMixTrainer
    from art_rs_plugin.trainers import StabilityTrainer as StabilityTrainer
    from art_rs_plugin.voting import CertificationError as CertificationError


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
