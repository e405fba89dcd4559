"""The dual of Wong and Kolter: bounds by `convex_adversarial`, whose authors trained the paper's baseline with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import ArrayLike
from torch import nn

from art_rs_plugin.certifiers.certifier import Certifier, largest, rows
from art_rs_plugin.certifiers.chain import Chain, chain_of
from art_rs_plugin.certifiers.network import UnsupportedNetwork, classifier
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

# their names for the ball, by its norm: that of the dual norm
_BALLS = {2.0: "l2", math.inf: "l1"}
# margins below this share of the largest logit prove nothing: f itself is computed in float32
_ROUNDING = 1e-6
_START = 0.1  # the first radius that is tried


class WongKolter(Certifier):
    """Certifies the network's own predictions by Wong et al. 2018: a dual bound of a ReLU network's convex relaxation.

    The radius is searched for as Cohen et al. 2019 did for Figure 7. Networks are chains of Conv2d, Linear, ReLU and
    Flatten, with batch normalisation behind the first two, and standardisation at the input; where that scales
    channels differently, the ball is enlarged to the largest scale. The ball is not cut at the data's range.

    :param norm: Of the ball, 2 or inf.
    :param tolerance: The radius is at most so much, as a share, below one at which the bound proves nothing.
    """

    name: ClassVar[str] = "wong-kolter"
    certifies: ClassVar[Literal["f", "g"]] = "f"

    def __init__(self, chain: Chain, *, input_shape: Sequence[int], norm: float = 2.0, tolerance: float = 1e-3) -> None:
        self.norm: float = checks.one_of("norm", norm, (2, math.inf))
        self.tolerance = checks.positive("tolerance", tolerance)
        self._shape, self._chain = tuple(input_shape), chain
        self._scale = float(abs(chain.scale).max())
        layers: list[nn.Module] = list(chain.layers)
        first = next(at for at, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        if len(chain.shape) > 1:
            layers.insert(first, nn.Flatten())
        self._network = nn.Sequential(*layers).double()
        self._check_convolutions()

    @classmethod
    def build(cls, model: nn.Module, *, input_shape: Sequence[int], nb_classes: int, **options: Any) -> WongKolter:
        """As `Certifier.build`; options as above.

        :raises UnsupportedNetwork: The network is no such chain, or a convolution's stride does not reach its last row.
        :raises ImportError: `convex_adversarial` is not installed.
        """
        try:
            import convex_adversarial  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "`convex_adversarial` must be installed for wong-kolter: pip install 'art-rs-plugin[baselines]'"
            ) from error
        return cls(chain_of(classifier(model, input_shape, nb_classes)), input_shape=input_shape, **options)

    def _check_convolutions(self) -> None:
        """`convex_adversarial` transposes a convolution without knowing how large its input was."""
        x = torch.zeros(1, *self._chain.shape, dtype=torch.float64)
        for layer in self._network:
            before, x = x, layer(x)
            if isinstance(layer, nn.Conv2d):
                back = nn.functional.conv_transpose2d(x, layer.weight, None, layer.stride, layer.padding)  # type: ignore[arg-type]
                if layer.dilation != (1, 1) or back.shape != before.shape:
                    raise UnsupportedNetwork(
                        "convex_adversarial takes convolutions without dilation whose strides leave nothing over, "
                        f"got {layer} for {tuple(before.shape[1:])}"
                    )

    @torch.no_grad()
    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """As `Certifier.certify`; some seconds an input on a small convolutional network."""
        inputs, labels, names = rows(x, self._shape, y, indices)
        standardised = torch.from_numpy(self._chain.standardised(inputs.astype("float64")))
        made = []
        for position, index in enumerate(names):
            image = standardised[position : position + 1]
            logits = self._network(image)[0]
            prediction = int(logits.argmax())
            radius = 0.0
            if labels is None or labels[position] == prediction:
                radius = self._radius(image, prediction, _ROUNDING * float(logits.abs().max()))
            made.append(
                Certificate(prediction=prediction, radius=radius, index=index, norm=self.norm, certifies="f", alpha=0.0)
            )
        return made

    def _radius(self, image: torch.Tensor, prediction: int, needed: float) -> float:
        from convex_adversarial import RobustBounds

        label = torch.tensor([prediction])

        def margin(eps: float) -> float:
            bounds = RobustBounds(self._network, eps * self._scale, norm_type=_BALLS[float(self.norm)])
            others = bounds(image, label)[0]  # upper bounds on the other logits less this one's, at itself 0
            others[prediction] = -math.inf
            return -float(others.max()) - needed

        return largest(margin, start=_START, tolerance=self.tolerance)
