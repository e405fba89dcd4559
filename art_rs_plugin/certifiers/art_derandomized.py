"""ART's de-randomized smoothing: a vote over all ablations of an image, certified against patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from art_rs_plugin.certifiers import art_support
from art_rs_plugin.certifiers.art_support import TrainedByArt
from art_rs_plugin.certifiers.certifier import rows
from art_rs_plugin.core import checks
from art_rs_plugin.core.records import Certificate

Counts = NDArray[np.int64]


class ArtDerandomized(TrainedByArt):
    """ART's `PyTorchDeRandomizedSmoothing` as Levine and Feizi 2020 have it: g is the class with most votes.

    The network sees one band or block of the image at a time, and the rest as zeros in twice the channels: the image's
    and one minus the image's. A class gets a vote of every place where its probability reaches `threshold`; with most
    votes, the first of those that have as many, it is the prediction, and none is ever an abstention. A square of side
    s meets at most s + m - 1 bands of width m, and (s + m - 1)^2 blocks, hence a class that leads by more than twice as
    many votes is certified, or by twice as many if it also wins ties.

    Where several runners-up have as many votes, ART's certificate looks at one of them only for ties, which is unsound;
    here it must hold against all. ART's `predict` counts at most one vote if the network makes probabilities, so that
    votes are counted here, one by one.

    :param model: Takes `(m, 2 * channels, height, width)`.
    :param input_shape: Of the images, `(channels, height, width)`.
    :param ablation_type: "column" or "row", bands of all the height or width, or "block". All wrap around the edge.
    :param ablation_size: Pixels that a band or block is wide.
    :param threshold: Above 0 and at most 1.
    :param logits: Whether the network makes logits; False: probabilities.
    :param batch_size: Images in a forward pass.
    :param seed: Of `fit`, from the operating system if None; the certificates are deterministic.
    """

    name: ClassVar[str] = "art-derandomized"
    channels: ClassVar[int] = 2

    def __init__(
        self,
        model: nn.Module,
        *,
        input_shape: Sequence[int],
        nb_classes: int,
        ablation_size: int,
        ablation_type: str = "column",
        threshold: float = 0.3,
        logits: bool = True,
        batch_size: int = 256,
        seed: int | None = None,
    ) -> None:
        self.norm = "patch"
        if len(input_shape) != 3:
            raise ValueError(f"`input_shape` must be (channels, height, width), got {tuple(input_shape)}")
        channels, height, width = input_shape
        self.ablation_type = checks.one_of("ablation_type", ablation_type, ("column", "row", "block"))
        self.ablation_size = checks.whole("ablation_size", ablation_size)
        across = {"column": width, "row": height, "block": min(height, width)}[ablation_type]
        if ablation_size > across:
            raise ValueError(f"`ablation_size` must be at most {across}, the image's side, got {ablation_size}")
        self.threshold = checks.probability("threshold", threshold)
        if not self.threshold:
            raise ValueError(f"`threshold` must be above 0, got {threshold!r}")
        self.logits = checks.one_of("logits", logits, (True, False))
        try:
            art_support.check_logits(model, (self.channels * channels, height, width), nb_classes)
        except ValueError as error:
            raise ValueError(
                f"de-randomized smoothing needs a network of twice the image's channels, {2 * channels}, the image and "
                f"one minus the image: {error}"
            ) from error
        super().__init__(model, input_shape=input_shape, nb_classes=nb_classes, batch_size=batch_size, seed=seed)

    def _estimator(self, optimizer: Any) -> Any:
        from art.estimators.certification.derandomized_smoothing import PyTorchDeRandomizedSmoothing

        return PyTorchDeRandomizedSmoothing(
            model=self.model, loss=nn.CrossEntropyLoss(), input_shape=self.input_shape, nb_classes=self.nb_classes,
            optimizer=optimizer, device_type=art_support.device_type(self.model), preprocessing=None,
            algorithm="levine2020", ablation_type=self.ablation_type, ablation_size=self.ablation_size,
            threshold=self.threshold, logits=self.logits, verbose=False,
        )  # fmt: skip

    def _check_fit(self) -> None:
        if not self.logits:
            raise ValueError("ART's `fit` takes a network that makes logits, got `logits=False`")

    def certify(
        self, x: ArrayLike, y: ArrayLike | None = None, *, indices: Sequence[int] | None = None
    ) -> list[Certificate]:
        """See `Certifier.certify`; the radius is a whole number of pixels."""
        inputs, _, names = rows(x, self.input_shape, y, indices)
        made: list[Certificate] = []
        for first in range(0, len(inputs), self.batch_size):
            for counts in self.counts(inputs[first : first + self.batch_size]):
                made.append(
                    Certificate(
                        prediction=int(counts.argmax()),
                        radius=float(self._side(counts)),
                        index=names[len(made)],
                        norm=self.norm,
                        certifies=self.certifies,
                        alpha=self.alpha,
                    )
                )
        return made

    def counts(self, x: NDArray[np.float32]) -> Counts:
        """Votes by class over all ablations, `(m, classes)`, of images `(m, *input_shape)`."""
        found: Counts = np.zeros((len(x), self.nb_classes), np.int64)
        with art_support.silent(), art_support.seeded(0, 0):  # torch draws a number for every loader, and uses none
            for place in self._places():
                ablated = self.estimator.ablator.forward(np.copy(x), **place)
                found += self.estimator._predict_classifier(
                    ablated, batch_size=self.batch_size, training_mode=False
                ).astype(np.int64)
        return found

    def _places(self) -> Iterator[dict[str, int]]:
        _, height, width = self.input_shape
        if self.ablation_type == "block":
            yield from ({"row_pos": row, "column_pos": column} for row in range(height) for column in range(width))
        else:
            yield from ({"column_pos": at} for at in range(width if self.ablation_type == "column" else height))

    def _side(self, counts: Counts) -> int:
        """The side of the largest square that is certified."""
        side = 0
        while side < min(self.input_shape[1:]) and self._certifies(counts, side + 1):
            side += 1
        return side

    def _certifies(self, counts: Counts, side: int) -> bool:
        top = int(counts.argmax())
        by_art, _, _ = self.estimator.ablator.certify(counts[None], size_to_certify=side, label=np.array([top]))
        met = (side + self.ablation_size - 1) ** (2 if self.ablation_type == "block" else 1)
        needed = counts + 2 * met + (np.arange(len(counts)) < top)  # the first of two with as many votes wins
        return bool(by_art[0]) and bool((counts[top] >= np.delete(needed, top)).all())
