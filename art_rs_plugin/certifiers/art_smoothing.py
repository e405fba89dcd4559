"""ART's randomized smoothing and its three training methods, certified by ART's own `certify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers import art_support
from art_rs_plugin.certifiers.art_support import TrainedByArt
from art_rs_plugin.certifiers.certifier import rows
from art_rs_plugin.core import checks
from art_rs_plugin.core.certificate import ABSTAIN, Certificate, check_votes
from art_rs_plugin.noise import Purpose, derived_seed, fresh_seed


class ArtSmoothing(TrainedByArt):
    """ART's `PyTorchRandomizedSmoothing` (Cohen et al. 2019), certified by its own CERTIFY.

    ART builds all `n` noisy copies of an input at once: 4.6 GiB for one CIFAR-10 image at n = 100 000, 224 GiB for
    ImageNet. It is asked for one input at a time here, which keeps it at that. It draws from the global generators:
    these are seeded before every input from `seed` and the input's index and put back afterwards, so that a certificate
    depends on neither the other inputs nor their order. ART has no runner-up bound: p_A must be above 1/2.

    :param sigma: Standard deviation of the noise, ART's `scale`, in the unit of `x`.
    :param n: Votes that bound p_A.
    :param n0: Votes that choose the class, ART's `sample_size`.
    :param batch_size: Noisy copies in a forward pass.
    :param clip_values: The data's range. ART clips by it in the training of SmoothAdv, never when it certifies.
    :param seed: None: a fresh one for every call.
    :param method: Options of ART's estimator, by its names and with its defaults.
    :ivar last_seed: Of the last call of `certify`.
    """

    name: ClassVar[str] = "art-smoothing"
    _ESTIMATOR: ClassVar[str] = "PyTorchRandomizedSmoothing"
    _METHOD: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    _IMAGES_ONLY: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        *,
        input_shape: Sequence[int],
        nb_classes: int,
        sigma: float,
        n: int = 100_000,
        n0: int = 100,
        alpha: float = 0.001,
        batch_size: int = 1000,
        clip_values: Sequence[float] | None = (0.0, 1.0),
        seed: int | None = None,
        **method: Any,
    ) -> None:
        self.sigma, self.alpha = checks.positive("sigma", sigma), checks.in_unit_interval("alpha", alpha)
        check_votes(n0, n, alpha)
        self.n, self.n0 = int(n), int(n0)
        for option in method:
            if option not in self._METHOD:
                raise TypeError(f"`{self.name}` has no option `{option}`: {', '.join(self._METHOD) or 'none'} of ART's")
        self.method = {**self._METHOD, **method}
        self.clip_values = art_support.clip_range(clip_values)
        self.last_seed: int | None = None
        art_support.check_logits(model, input_shape, nb_classes)
        super().__init__(model, input_shape=input_shape, nb_classes=nb_classes, batch_size=batch_size, seed=seed)

    def _estimator(self, optimizer: torch.optim.Optimizer | None) -> Any:
        from art.estimators.certification import randomized_smoothing

        return getattr(randomized_smoothing, self._ESTIMATOR)(
            model=self.model, loss=nn.CrossEntropyLoss(), input_shape=self.input_shape, nb_classes=self.nb_classes,
            optimizer=optimizer, clip_values=self.clip_values, device_type=art_support.device_type(self.model),
            sample_size=self.n0, scale=self.sigma, alpha=self.alpha, **self.method,
        )  # fmt: skip

    def _check_fit(self) -> None:
        if self._IMAGES_ONLY and len(self.input_shape) != 3:
            raise ValueError(f"ART's `fit` of `{self.name}` takes images (c, h, w), got inputs {self.input_shape}")

    @property
    def _parts(self) -> int:
        return int(self.method.get("num_noise_vec", 1))

    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """See `Certifier.certify`; a class whose votes ART cannot bound above 1/2 is an abstention."""
        inputs, _, names = rows(x, self.input_shape, y, indices)
        self.last_seed = fresh_seed() if self.seed is None else self.seed
        seed = derived_seed(self.last_seed, Purpose.ESTIMATION)
        made = []
        for image, index in zip(inputs, names, strict=True):
            with art_support.silent(), art_support.seeded(seed, index):
                (prediction,), (radius,) = self.estimator.certify(image[None], n=self.n, batch_size=self.batch_size)
            # one step down, in whatever precision ART returns it: a radius is never rounded up
            below = float(np.nextafter(radius, np.zeros_like(radius)))
            holds = prediction >= 0 and below > 0.0
            made.append(
                Certificate(
                    prediction=int(prediction) if holds else ABSTAIN,
                    radius=below if holds else 0.0,
                    index=index,
                    norm=self.norm,
                    certifies=self.certifies,
                    alpha=self.alpha,
                )
            )
        return made


class ArtSmoothAdv(ArtSmoothing):
    """ART's `PyTorchSmoothAdv`: smoothing with the adversarial training of Salman et al. 2019 as ART has it.

    ART's attack is one step of size 0.1 in l_inf, whatever `warmup` says, and begins anew `num_steps` times without
    adding up. It clips the noisy image to `clip_values`.
    """

    name = "art-smoothadv"
    _ESTIMATOR = "PyTorchSmoothAdv"
    _METHOD = MappingProxyType({"epsilon": 1.0, "num_noise_vec": 1, "num_steps": 10, "warmup": 1})

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        if self.method["num_noise_vec"] != 1:
            raise ValueError(f"`num_noise_vec` must be 1: ART fails with more, got {self.method['num_noise_vec']!r}")


class ArtMACER(ArtSmoothing):
    """ART's `PyTorchMACER`: smoothing with the training of Zhai et al. 2020. ART's `fit` is for images only."""

    name = "art-macer"
    _ESTIMATOR = "PyTorchMACER"
    _METHOD = MappingProxyType({"beta": 16.0, "gamma": 8.0, "lmbda": 12.0, "gaussian_samples": 16})
    _IMAGES_ONLY = True


class ArtSmoothMix(ArtSmoothing):
    """ART's `PyTorchSmoothMix`: smoothing with the training of Jeong et al. 2021. ART's `fit` is for images only.

    ART clips images to [0, 1], whatever `clip_values`, and its attack's steps are as long as `alpha`, the failure
    probability.
    """

    name = "art-smoothmix"
    _ESTIMATOR = "PyTorchSmoothMix"
    _METHOD = MappingProxyType({
        "eta": 1.0, "num_noise_vec": 1, "num_steps": 10, "warmup": 1, "mix_step": 0, "maxnorm_s": None, "maxnorm": None,
    })  # fmt: skip
    _IMAGES_ONLY = True
