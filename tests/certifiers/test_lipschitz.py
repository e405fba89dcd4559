"""Lipschitz margins: no constant is below a slope, and no radius reaches a point that is named otherwise."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_networks import Wrapped, matrix_of, randomised, seeded
from torch import nn

from art_rs_plugin.certifiers import get

LIPSCHITZ = get("lipschitz-margin")
INPUT = (2, 7, 6)


def certifier(model, shape=INPUT, classes=3, **options):
    return LIPSCHITZ.build(model, input_shape=shape, nb_classes=classes, **options)


class Residual(nn.Module):
    """x -> relu(conv(relu(bn(conv(x)))) + shortcut(x)), standardised, with a head."""

    def __init__(self, width=3, classes=3):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(2, 1, 1))
        self.register_buffer("std", torch.tensor([0.5, 0.8]).view(2, 1, 1))
        self.conv1 = nn.Conv2d(2, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(2, width, 1, 2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x):
        x = (x - self.mean) / self.std
        out = self.conv2(F.relu(self.norm(self.conv1(x))))
        return self.head(torch.flatten(self.pool(F.relu(out + self.shortcut(x))), 1))


def small_cnn():
    return nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


NETWORKS = {"small cnn": small_cnn, "residual": Residual}
DENSE = (0, 300, 2**22)  # no matrices, some, all


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def made(self, name, dense, seed):
        model = randomised(NETWORKS[name](), seed)
        for key, tensor in model.state_dict().items():
            if key.endswith(("bias", "running_mean", "mean")):  # no unit is dead, and no class the only one
                tensor.zero_()
        return model, certifier(model, dense=dense)

    @pytest.mark.parametrize("seed", range(3))
    def test_no_attack_within_the_radius_succeeds(self, name, dense, seed):
        model, made = self.made(name, dense, seed)
        x = torch.rand(12, *INPUT, generator=seeded(seed))
        certificates = made.certify(x)
        radius = torch.tensor([certificate.radius for certificate in certificates], dtype=torch.float64)
        with torch.no_grad():
            named = model(x.double()).argmax(1)
        assert [certificate.prediction for certificate in certificates] == named.tolist()
        assert (radius > 0).all()
        assert attacked(model, x.double(), named, radius, seed) == named.tolist()
        # farther away the attack does succeed, so it would have been noticed
        assert attacked(model, x.double(), named, torch.full_like(radius, 20.0), seed) != named.tolist()

    def test_no_difference_of_logits_is_steeper_than_its_constant(self, name, dense):
        model, made = self.made(name, dense, 4)
        x = 3 * torch.randn(40, *INPUT, generator=seeded(1), dtype=torch.float64)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda image: model(image.unsqueeze(0))[0]))(x)
        steep = torch.cdist(jacobian.flatten(2), jacobian.flatten(2)).amax(0)
        assert (steep <= made.pairs).all()
        assert (made.pairs.diagonal() < 1e-9 * made.pairs.max()).all()


def attacked(model, x, named, radius, seed, steps=30):
    """What projected gradient ascent on the margin finds at the edge of the balls, if that is not what is `named`."""
    eps = radius.view(-1, 1, 1, 1)
    best = named.clone()
    generator = seeded(seed + 100)

    def onto(delta):
        return delta * eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    for _ in range(4):
        delta = onto(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        for _ in range(steps):
            delta.requires_grad_(True)
            logits = model(x + delta)
            mine = logits.gather(1, named.unsqueeze(1))[:, 0]
            others = logits.scatter(1, named.unsqueeze(1), -math.inf).amax(1)
            best = torch.where(others > mine, logits.argmax(1), best)
            (gradient,) = torch.autograd.grad((others - mine).sum(), delta)
            moved = delta.detach() + 0.3 * eps * F.normalize(gradient.flatten(1)).view_as(x)
            delta = onto(moved)
    return best.tolist()


class TestRadii:
    def test_of_a_linear_classifier_is_the_distance_to_the_boundary(self):
        model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(84, 5)))
        x = torch.rand(20, *INPUT, generator=seeded(0), dtype=torch.float64).float()
        weight, bias = model[1].weight.detach().numpy(), model[1].bias.detach().numpy()
        logits = x.double().flatten(1).numpy() @ weight.T + bias
        for row, certificate in enumerate(certifier(model, classes=5).certify(x)):
            mine = certificate.prediction
            assert mine == logits[row].argmax()
            distances = [
                (logits[row, mine] - logits[row, j]) / np.linalg.norm(weight[mine] - weight[j])
                for j in range(5)
                if j != mine
            ]
            assert certificate.radius <= min(distances)
            assert certificate.radius == pytest.approx(min(distances), rel=1e-7)
            assert (certificate.norm, certificate.certifies, certificate.alpha) == (2, "f", 0.0)
            assert certificate.index == row

    @pytest.mark.parametrize("dense", [0, 2**22])
    def test_of_affine_maps_in_a_row_is_that_of_their_product(self, dense):
        """Convolution, batch normalisation, pooling and a linear layer are one linear classifier."""
        model = randomised(
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        )
        made, matrix = certifier(model, dense=dense), matrix_of(model, INPUT)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert float(made.pairs[i, j]) == pytest.approx(np.linalg.norm(matrix[i] - matrix[j]), rel=1e-9)

    def test_shrinks_as_the_input_is_scaled_and_not_as_the_logits_are(self):
        """f(s x) has the radii of f over s; s f(x) has those of f."""
        model, x = randomised(small_cnn()), torch.rand(8, *INPUT, generator=seeded(2))
        radii = {
            name: np.array([certificate.radius for certificate in certifier(network).certify(images)])
            for name, network, images in (
                ("plain", model, x),
                ("input", Wrapped(lambda model, x: model(x * 4.0), model), x / 4),
                ("logits", Wrapped(lambda model, x: 4.0 * model(x), model), x),
            )
        }
        assert radii["input"] == pytest.approx(radii["plain"] / 4, rel=1e-6)
        assert radii["logits"] == pytest.approx(radii["plain"], rel=1e-6)

    def test_without_margin_is_0_and_without_slope_ends(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(84, 3)).double()
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0]))
        (tie,) = certifier(model).certify(np.zeros((1, *INPUT)))
        assert (tie.prediction, tie.radius) == (0, 0.0)
        model[1].bias.data[0] += 1e-10  # less than what rounding may make of other networks' margins
        (near,) = certifier(model).certify(np.zeros((1, *INPUT)))
        assert (near.prediction, near.radius) == (0, 0.0)
        model[1].bias.data[1] = 0.0
        (flat,) = certifier(model).certify(np.zeros((1, *INPUT)))
        assert (flat.prediction, flat.radius) == (0, 1e6)

    def test_batches_of_any_size_and_labels_change_nothing(self, monkeypatch):
        made, x = certifier(randomised(Residual())), np.random.default_rng(0).random((7, *INPUT))
        whole = made.certify(x, indices=range(10, 17))
        monkeypatch.setattr("art_rs_plugin.certifiers.lipschitz._AT_ONCE", 1)
        for certificate, alone in zip(whole, made.certify(x, np.zeros(7, int), indices=range(10, 17)), strict=True):
            assert (alone.prediction, alone.index) == (certificate.prediction, certificate.index)
            assert alone.radius == pytest.approx(certificate.radius, rel=1e-9)
        assert made.certify(x[:0]) == []
