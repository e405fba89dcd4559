"""What a long run asks of the loop beside its objective: precision, clipping, averages, validation, weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, train

X, Y = torch.full((4, 3), 0.5), torch.tensor([0, 1, 0, 1])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def setting(model, **changes):
    options = {
        "objective": OBJECTIVES["gaussian"](),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "noise": Gaussian(0.25),
        "epochs": 1,
        "seed": 0,
    }
    return {**options, **changes}


def test_bf16_is_what_the_model_computes_in_and_the_loss_is_not():
    seen = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))

    def loss(logits, y):
        seen.append(logits.dtype)
        return F.cross_entropy(logits, y)

    objective = OBJECTIVES["gaussian"](loss=loss)
    train(model, lambda epoch: [(X, Y)], **setting(model, objective=objective), precision="bf16")
    assert seen == [(torch.float32, torch.bfloat16), torch.float32]
    assert model.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="`precision` must be one of 'fp32', 'bf16', got 'fp16'"):
        train(model, lambda epoch: [(X, Y)], **setting(model), precision="fp16")


def test_images_come_with_channels_last_whatever_the_method():
    class Layout(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 4)
            self.last = []

        def forward(self, x):
            if self.training or torch.is_grad_enabled():
                self.last.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.conv(x).flatten(1)

    for name, objective in OBJECTIVES.items():
        if name == "lmt":  # its images are clean, as the loader gives them
            continue
        model, x = Layout(), torch.rand(5, 3, 4, 4)
        train(model, lambda epoch: [(x, torch.arange(5) % 2)], **setting(model, objective=objective()))  # noqa: B023
        assert all(model.last[: 1 if name == "stability" else None]), name  # its second pass is of clean images


def test_a_long_gradient_is_scaled_to_the_norm_that_is_allowed():
    moved = {}
    for clip in (None, 0.01):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train(model, lambda epoch: [(X, Y)], **setting(model, optimizer=optimizer), clip=clip)
        parts = [new.detach() - old for new, old in zip(model.parameters(), before, strict=True)]
        moved[clip] = torch.cat([part.flatten() for part in parts])
    assert moved[0.01].norm().item() == pytest.approx(0.01, rel=1e-3)
    assert F.cosine_similarity(moved[None], moved[0.01], dim=0).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="`clip` must be a finite number above 0, got 0"):
        train(model, lambda epoch: [(X, Y)], **setting(model), clip=0)


def test_averages_weights_after_every_step():
    torch.manual_seed(0)
    model, decay = nn.Linear(3, 2), 0.75
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))
    weights = []
    model.register_forward_pre_hook(lambda module, inputs: weights.append(module.weight.detach().clone()))
    batches = lambda epoch: [(X, Y)] * 3  # noqa: E731
    train(model, batches, **setting(model, epochs=2), average=average)
    expected = weights[1]  # the first update copies
    for weight in [*weights[2:], model.weight.detach()]:
        expected = decay * expected + (1 - decay) * weight
    assert average.module.weight.detach().numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_validation_joins_the_record_before_the_checkpoint_is_written(tmp_path):
    path, model = tmp_path / "state.pt", nn.Linear(3, 2)
    there = []

    def validate(epoch):
        there.append(len(torch.load(path, weights_only=True)["history"]) if path.exists() else 0)
        return {"accuracy": epoch / 10} if epoch % 2 == 0 else {}

    history = train(model, lambda epoch: [(X, Y)], **setting(model, epochs=4), validate=validate, checkpoint=path)
    assert there == [0, 1, 2, 3]
    assert [epoch.get("validation") for epoch in history] == [None, {"accuracy": 0.2}, None, {"accuracy": 0.4}]
    assert torch.load(path, weights_only=True)["history"] == history


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((-1.0,), "`weight` must be a finite number above 0, got -1.0"),
        ((float("nan"),), "`weight` must be a finite number above 0, got nan"),
        ((1.0, 2.0), r"must be \(x, y\) or \(x, y, weight\), got 4 parts in epoch 1, step 1"),
    ],
)
def test_a_weight_of_a_batch_is_one_number_above_0(more, message):
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=message):
        train(model, lambda epoch: [(X, Y, *more)], **setting(model))
    with pytest.raises(TypeError, match="`weight` must be a number"):
        train(model, lambda epoch: [(X, Y, Y)], **setting(model))
