"""Attacks on the smoothed classifier, and how to judge any attack on it."""

from art_rs_plugin.attacks.ddn import SmoothedDDN
from art_rs_plugin.attacks.evaluation import AttackEvaluation, evaluate_attack
from art_rs_plugin.attacks.pgd import SmoothedPGD

__all__ = ["AttackEvaluation", "SmoothedDDN", "SmoothedPGD", "evaluate_attack"]
