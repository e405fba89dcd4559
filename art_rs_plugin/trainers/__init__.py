"""ART faces of the training methods."""

from art_rs_plugin.trainers.gaussian import GaussianAugmentationTrainer

__all__ = ["GaussianAugmentationTrainer"]
