"""The exact l2 radius of a linear classifier: the distance to the nearest plane on which two classes are tied.

Logits z = W x + b name class c at x. Class j wins beyond the plane (w_c - w_j) x + b_c - b_j = 0, which is
(z_c - z_j) / ||w_c - w_j|| away. The least of these is the radius, and no larger one would be true.
"""

import torch
from torch import nn

from art_rs_plugin import Certificate
from art_rs_plugin.certifiers import Certifier, UnsupportedNetwork


class LinearExact(Certifier):
    """Certifies `nn.Flatten` and `nn.Linear`, in this order, after any number of `nn.Identity`."""

    name = "linear-exact"
    certifies = "f"

    def __init__(self, layer, input_shape):
        self._weight = layer.weight.detach().double().cpu()
        self._bias = 0.0 if layer.bias is None else layer.bias.detach().double().cpu()
        self._input_shape = tuple(input_shape)

    @classmethod
    def build(cls, model, *, input_shape, nb_classes, **options):
        """The certifier of a model; every option is the certifier's own, and this one has none."""
        if options:
            raise ValueError(f"`linear-exact` takes no options, got {', '.join(options)}")
        layers = [module for module in model.modules() if not list(module.children())]
        layers = [layer for layer in layers if not isinstance(layer, (nn.Identity, nn.Flatten))]
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
            raise UnsupportedNetwork(f"`linear-exact` certifies one linear layer, got {model}")
        return cls(layers[0], input_shape)

    def certify(self, x, y=None, *, indices=None):
        """A certificate for every input; deterministic, so that alpha is 0."""
        inputs = torch.as_tensor(x, dtype=torch.float64)
        if tuple(inputs.shape[1:]) != self._input_shape:
            raise ValueError(f"`x` must have shape (m, {self._input_shape}), got {tuple(inputs.shape)}")
        logits = inputs.flatten(1) @ self._weight.T + self._bias
        names = range(len(inputs)) if indices is None else indices
        certificates = []
        for index, z in zip(names, logits, strict=True):
            best = int(z.argmax())
            lengths = (self._weight[best] - self._weight).norm(dim=1)
            distances = (z[best] - z) / lengths
            distances[best] = torch.inf
            # a radius is a promise: rounded down by more than float64 can be off
            radius = max(float(distances.min()) * (1 - 1e-9), 0.0)
            certificates.append(Certificate(prediction=best, radius=radius, index=index, certifies="f", alpha=0.0))
        return certificates
