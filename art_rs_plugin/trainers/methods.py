"""A trainer for each training method: its options are those of the method, beside those of every trainer."""

from art_rs_plugin import training
from art_rs_plugin.trainers.base import SmoothedTrainer


class GaussianAugmentationTrainer(SmoothedTrainer):
    """Train under Gaussian noise with the estimator's own loss (Cohen et al. 2019, Section 3.3)."""


class StabilityTrainer(SmoothedTrainer):
    """Train by `training.Stability` (Li et al. 2018)."""

    method = training.Stability


class SmoothAdvTrainer(SmoothedTrainer):
    """Train by `training.SmoothAdv` (Salman et al. 2019)."""

    method = training.SmoothAdv


class MACERTrainer(SmoothedTrainer):
    """Train by `training.MACER` (Zhai et al. 2020)."""

    method = training.MACER


class ConsistencyTrainer(SmoothedTrainer):
    """Train by `training.Consistency` (Jeong and Shin 2020)."""

    method = training.Consistency


class SmoothMixTrainer(SmoothedTrainer):
    """Train by `training.SmoothMix` (Jeong et al. 2021)."""

    method = training.SmoothMix


class CatRSTrainer(SmoothedTrainer):
    """Train by `training.CatRS` (Jeong et al. 2023)."""

    method = training.CatRS


class LipschitzMarginTrainer(SmoothedTrainer):
    """Train by `training.LipschitzMargin` (Tsuzuku et al. 2018), which makes f robust, and g only with `noisy=True`."""

    method = training.LipschitzMargin
