"""The ascent loop and its movers against loops of their own in NumPy, and the geometry against its definition."""

import math

import numpy as np
import pytest
import torch

from art_rs_plugin.ascent import NORMS, Decoupled, Look, Projected, ascend, checked_norm

SHAPE = (2, 3)
RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (4, *SHAPE))
PEAK = RNG.uniform(0.0, 1.0, (4, *SHAPE))  # what is ascended is -|x - peak|^2 / 2
EPS = np.array([0.05, 0.2, 0.4, 0.0])


def hill(points: torch.Tensor, step: int) -> Look:
    gradient = torch.from_numpy(PEAK) - points
    value = -gradient.flatten(1).square().sum(dim=1) / 2
    return Look(value, gradient, value > -0.05)


def flat(rows):
    return rows.reshape(len(rows), -1)


def projected(norm, x, eps, eps_step, steps, momentum=0.0, decay=1.0, box=None):
    """Projected gradient ascent on the hill, one row at a time."""
    found = []
    for start, peak, radius, length in zip(flat(x), flat(PEAK), eps, eps_step, strict=True):
        delta, velocity = np.zeros_like(start), np.zeros_like(start)
        for step in range(steps):
            gradient = peak - (start + delta)
            velocity = momentum * velocity + (gradient / np.abs(gradient).sum() if momentum else gradient)
            way = np.sign(velocity) if norm == math.inf else velocity / np.linalg.norm(velocity)
            delta = delta + length * decay**step * way
            if norm == math.inf:
                delta = np.clip(delta, -radius, radius)
            elif np.linalg.norm(delta) > radius:
                delta = delta * radius / np.linalg.norm(delta)
            if box is not None:
                delta = np.clip(start + delta, *box) - start
            velocity = velocity if momentum else np.zeros_like(velocity)
        found.append(start + delta)
    return np.reshape(found, x.shape)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [None, (0.25, 0.75)])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 1.0), (0.9, 1.0), (0.0, 0.8), (0.75, 0.9)])
def test_projected_ascent_is_that_of_a_plain_loop(norm, box, momentum, decay):
    step = EPS / 3 + 0.01
    made = ascend(
        torch.from_numpy(X),
        hill,
        Projected(norm, torch.from_numpy(EPS), torch.from_numpy(step), momentum, decay),
        steps=9,
        box=None if box is None else tuple(map(torch.tensor, box)),
    ).numpy()
    np.testing.assert_allclose(made, projected(norm, X, EPS, step, 9, momentum, decay, box), rtol=0, atol=1e-12)
    assert np.array_equal(made[3], X[3])
    moved = NORMS[norm].length(torch.from_numpy(made - X)).numpy()
    assert (moved <= EPS * (1 + 1e-12)).all()
    assert (moved[:2] > 0.5 * EPS[:2]).all()


def test_decoupled_ascent_is_algorithm_1_in_numpy():
    steps, gamma, first = 12, 0.1, 0.3
    delta, norm = np.zeros_like(flat(X)), np.full(4, first)
    for step in range(steps):
        gradient = flat(PEAK) - (flat(X) + delta)
        fools = -np.square(gradient).sum(axis=1) / 2 > -0.05
        length = first * (0.01 + 0.99 * (1 + np.cos(np.pi * step / steps)) / 2)
        delta = delta + length * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        norm = norm * np.where(fools, 1 - gamma, 1 + gamma)
        delta = delta / np.linalg.norm(delta, axis=1, keepdims=True) * norm[:, None]
    mover = Decoupled(torch.full((4,), first, dtype=torch.float64), steps, gamma)
    made = ascend(torch.from_numpy(X), hill, mover, steps=steps)
    np.testing.assert_allclose(flat(made.numpy()), flat(X) + delta, rtol=0, atol=1e-12)
    again = ascend(torch.from_numpy(X), hill, Decoupled(mover.eps, steps, gamma), steps=steps)
    assert torch.equal(again, made), "a mover begins where it is told to"


@pytest.mark.parametrize("norm", NORMS)
class TestGeometry:
    def test_the_steepest_direction_has_norm_one_and_gains_the_dual_norm(self, norm):
        ball, gradient = NORMS[norm], torch.from_numpy(RNG.normal(size=(5, *SHAPE)))
        way = ball.steepest(gradient)
        np.testing.assert_allclose(ball.length(way), 1.0, rtol=1e-12)
        dual = np.linalg.norm(flat(gradient.numpy()), ord=1 if norm == math.inf else 2, axis=1)
        np.testing.assert_allclose((way * gradient).flatten(1).sum(dim=1), dual, rtol=1e-12)

    @pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-30, 1.0, 1e30])
    def test_gradients_near_zero_keep_their_direction_and_a_zero_has_none(self, norm, scale):
        gradient = scale * torch.tensor([[3.0, -4.0]])
        way = NORMS[norm].steepest(gradient)
        expected = {2: [0.6, -0.8], math.inf: [1.0, -1.0]}[norm] if scale else [0.0, 0.0]
        np.testing.assert_allclose(way[0], expected, rtol=1e-3)

    def test_projection_is_the_nearest_point_and_leaves_what_is_inside(self, norm):
        ball = NORMS[norm]
        delta = torch.from_numpy(RNG.normal(size=(200, *SHAPE)))
        eps = torch.linspace(0.0, 5.0, 200, dtype=torch.float64)
        near = ball.project(delta, eps)
        assert (ball.length(near) <= eps * (1 + 1e-12)).all()
        inside = ball.length(delta) <= eps
        assert 20 < int(inside.sum()) < 180
        assert torch.equal(near[inside], delta[inside])
        # what is left over points away from the ball: no point of it is nearer (the projection's own inequality)
        left = delta - near
        support = (left * near).flatten(1).sum(dim=1)
        best = eps * torch.linalg.vector_norm(left.flatten(1), ord=1 if norm == math.inf else 2, dim=1)
        np.testing.assert_allclose(support, best, rtol=0, atol=1e-9)

    def test_samples_are_uniform_in_the_ball(self, norm):
        m, radius = 20_000, 0.7
        generator = torch.Generator().manual_seed(0)
        points = NORMS[norm].sample(torch.empty(m, *SHAPE), torch.full((m,), radius), generator)
        share = (NORMS[norm].length(points) / radius) ** points[
            0
        ].numel()  # uniform on [0, 1] in a ball of d dimensions
        assert float(share.max()) <= 1.0 + 1e-5
        sorted_ = np.sort(share.numpy())
        distance = np.abs(sorted_ - np.arange(1, m + 1) / m).max()
        assert distance < math.sqrt(math.log(2 / 1e-7) / (2 * m)) + 1 / m  # Dvoretzky, Kiefer, Wolfowitz: 1e-7
        # every coordinate has mean 0: Hoeffding at 1e-7 over all of them
        limit = radius * math.sqrt(2 * math.log(2 * 6 / 1e-7) / m)
        assert float(points.flatten(1).mean(dim=0).abs().max()) < limit


def test_a_mask_and_a_start_are_kept_within_bounds():
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    start = torch.full((4, *SHAPE), 0.5, dtype=torch.float64)
    box = (torch.tensor(0.25), torch.tensor(0.75))
    eps, step = torch.full((4,), 0.3, dtype=torch.float64), torch.full((4,), 0.1, dtype=torch.float64)
    x = torch.from_numpy(X)
    for steps in (0, 5):
        made = ascend(x, hill, Projected(2, eps, step), steps=steps, delta=start, box=box, mask=mask)
        assert torch.equal(made[:, mask == 0], x[:, mask == 0])
        assert bool((made != x)[:, mask == 1].all())
        assert 0.25 <= float(made.min()) <= float(made.max()) <= 0.75


def test_norms_by_the_names_that_art_uses():
    assert checked_norm(2) == checked_norm(2.0) == 2
    assert checked_norm("inf") == checked_norm(np.inf) == math.inf
    with pytest.raises(ValueError, match=r"`norm` must be one of 2, inf, got 1"):
        checked_norm(1)
