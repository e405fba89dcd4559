"""ART faces of the training methods."""

from art_rs_plugin.trainers.base import SmoothedTrainer
from art_rs_plugin.trainers.methods import (
    CatRSTrainer,
    ConsistencyTrainer,
    GaussianAugmentationTrainer,
    LipschitzMarginTrainer,
    MACERTrainer,
    SmoothAdvTrainer,
    SmoothMixTrainer,
    StabilityTrainer,
)

__all__ = [
    "CatRSTrainer",
    "ConsistencyTrainer",
    "GaussianAugmentationTrainer",
    "LipschitzMarginTrainer",
    "MACERTrainer",
    "SmoothAdvTrainer",
    "SmoothMixTrainer",
    "SmoothedTrainer",
    "StabilityTrainer",
]
