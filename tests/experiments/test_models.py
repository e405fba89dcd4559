"""Networks against published accuracy and parameter counts, torchvision, and a second implementation."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from art_rs_plugin.experiments import datasets, models
from art_rs_plugin.experiments.checkpoints import load_weights

SHAPES = {
    "small-cnn": [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 1, 5)],
    "lenet": [(1, 28, 28), (3, 16, 20)],
    "mlp": [(1, 8, 8), (3, 32, 32)],
    "mlp-7x256": [(1, 8, 8)],
    "mlp-7x1024": [(1, 8, 8)],
    "wong-kolter": [(1, 28, 28), (3, 32, 32), (2, 5, 9)],
    "resnet20": [(3, 32, 32), (1, 28, 28), (1, 17, 23)],
    "resnet110": [(3, 32, 32)],
    "resnet50": [(3, 32, 40)],
}
CASES = [(name, shape) for name in models.MODELS for shape in SHAPES[name]]


def _statistics(channels):
    return [0.1 * (channel + 1) for channel in range(channels)], [0.2 + 0.1 * channel for channel in range(channels)]


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_model_standardises_first(name, shape):
    torch.manual_seed(0)
    mean, std = _statistics(shape[0])
    model = models.build(name, input_shape=shape, nb_classes=7, mean=mean, std=std).eval()
    plain = models.build(name, input_shape=shape, nb_classes=7).eval()
    assert isinstance(model[0], models.Normalize)
    plain[1].load_state_dict(model[1].state_dict())
    x = torch.rand(3, *shape)
    by_hand = torch.stack([(x[:, channel] - mean[channel]) / std[channel] for channel in range(shape[0])], dim=1)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (3, 7)
        assert torch.equal(logits, model(x))
        torch.testing.assert_close(logits, plain(by_hand), rtol=1e-4, atol=1e-4)
        assert torch.equal(plain(x), plain[1](x))  # no mean, no deviation: exactly nothing


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_model_takes_gradients_and_full_backward_hooks(name, shape):
    torch.manual_seed(0)
    model = models.build(name, input_shape=shape, nb_classes=7)
    called = []
    # torchvision's blocks add in place, which PyTorch refuses to hook
    for module in model.children() if name == "resnet50" else model.modules():
        module.register_full_backward_hook(lambda module, inputs, outputs: called.append(module))
    x = torch.rand(4, *shape, requires_grad=True)
    model(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert called


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_lenet_begins_undecided_under_noise(sigma):
    # where it begins sure of itself it diverges at the published learning rate; ln 10 is the loss of no opinion
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = models.build("lenet", input_shape=(1, 28, 28), nb_classes=10)[1](sigma * torch.randn(200, 1, 28, 28))
        loss = functional.cross_entropy(logits, torch.arange(200) % 10).item()
    assert loss == pytest.approx(math.log(10), abs=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("lenet", (1, 28, 28), 10, 431_080),
        # weights and biases of two convolutions and two layers, as the published file holds them
        ("wong-kolter", (1, 28, 28), 10, 272 + 8_224 + 156_900 + 1_010),
        ("mlp-7x256", (3, 32, 32), 10, 3_073 * 256 + 5 * 257 * 256 + 257 * 10),
        ("mlp-7x1024", (3, 32, 32), 10, 3_073 * 1_024 + 5 * 1_025 * 1_024 + 1_025 * 10),
        # He et al. 2016, table 6: 0.27 M; with parameter-free shortcuts 269 722, as the published ResNet-20 has
        ("resnet20", (3, 32, 32), 10, 269_722),
        # 1.7 M: 1 727 962 without projections, which add 16 * 32 + 2 * 32 and 32 * 64 + 2 * 64
        ("resnet110", (3, 32, 32), 10, 1_727_962 + 576 + 2_176),
        ("resnet50", (3, 224, 224), 1_000, 25_557_032),
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, classes, count):
    assert _parameters(models.build(name, input_shape=shape, nb_classes=classes)) == count


def test_the_published_resnet20_reaches_its_published_accuracy(data_root, reference):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = models.build("resnet20", input_shape=(3, 32, 32), nb_classes=10, mean=mean, std=std).eval()
    load_weights(model, reference / "checkpoints" / "akamaster_resnet_cifar10" / "resnet20-12fca82f.th")
    data = datasets.load("cifar10", "test", root=data_root)
    right = 0
    with torch.inference_mode():
        for x, y in torch.utils.data.DataLoader(data.images, batch_size=250):
            right += int((model(x).argmax(1) == y).sum())
    assert right == 9_173  # 91.73%


def _resnet_by_name(state, x, blocks):
    """A ResNet with projections, computed from the names of its tensors alone."""

    def unit(x, conv, norm, stride):
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = unit(x, "conv1", "bn1", 1).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = unit(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            out = unit(out, f"{name}.conv2", f"{name}.bn2", 1)
            short = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", 2) if stride == 2 else x
            x = (out + short).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_resnet110_agrees_with_a_second_implementation():
    torch.manual_seed(0)
    network = models.build("resnet110", input_shape=(3, 32, 32), nb_classes=10)[1].double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "bn" in name or "downsample.1" in name:  # fresh statistics would hide a wrong place
                tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.5)
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        expected = _resnet_by_name(network.state_dict(), x, blocks=18)
        torch.testing.assert_close(network.eval()(x), expected)


def test_resnet50_is_torchvisions():
    torch.manual_seed(0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = models.build("resnet50", input_shape=(3, 64, 64), nb_classes=11, mean=mean, std=std).eval()
    theirs = torchvision.models.resnet50(num_classes=11).eval()
    theirs.load_state_dict(model[1].state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(torchvision.transforms.functional.normalize(x, mean, std)))


def test_the_small_cnn_learns_digits_under_noise_in_seconds():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    x, y = map(torch.from_numpy, train.arrays())
    torch.manual_seed(0)
    model = models.build("small-cnn", input_shape=(1, 8, 8), nb_classes=10, mean=train.mean, std=train.std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch] + 0.25 * torch.randn_like(x[batch])), y[batch]).backward()
            optimizer.step()
    x, y = map(torch.from_numpy, test.arrays())
    with torch.no_grad():
        accuracy = (model(x + 0.25 * torch.randn_like(x)).argmax(1) == y).float().mean()
    assert accuracy > 0.9


# what does not fit


@pytest.mark.parametrize(
    ("name", "shape", "least"),
    [
        ("resnet20", (3, 8, 8), 16),
        ("resnet110", (3, 32, 12), 16),
        ("lenet", (1, 15, 28), 16),
        ("resnet50", (3, 28, 28), 32),
    ],
)
def test_images_too_small_are_refused_when_building(name, shape, least):
    with pytest.raises(
        ValueError, match=rf"`{name}` takes images of at least {least} x {least} pixels, got {shape[1]} x"
    ):
        models.build(name, input_shape=shape, nb_classes=10)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"name": "resnet18"}, ValueError, r"`model` must be one of 'small-cnn', .*'module:factory', got 'resnet18'"),
        (
            {"name": "resnet50", "input_shape": (1, 64, 64)},
            ValueError,
            r"`resnet50` takes images with 3 channels, got 1",
        ),
        ({"input_shape": (28, 28)}, ValueError, r"`input_shape` must be \(channels, height, width\), got \(28, 28\)"),
        ({"input_shape": (1, 0, 28)}, ValueError, r"`input_shape` must be at least 1, got 0"),
        ({"nb_classes": 1}, ValueError, r"`nb_classes` must be at least 2, got 1"),
        ({"mean": (0.5, 0.5, 0.5)}, ValueError, r"`mean` must be 1 finite numbers?.*got \(0.5, 0.5, 0.5\)"),
        ({"std": (float("nan"),)}, ValueError, r"`std` must be 1 finite number"),
        ({"std": (0.0,)}, ValueError, r"`std` must be above 0 in every channel, got \(0.0,\)"),
    ],
)
def test_bad_options_get_their_own_error(changed, error, message):
    options = {"name": "small-cnn", "input_shape": (1, 28, 28), "nb_classes": 10} | changed
    with pytest.raises(error, match=message):
        models.build(**options)


def test_a_resnet_of_no_known_depth_is_refused():
    with pytest.raises(ValueError, match=r"`depth` must be 8, 14, 20, .*got 18"):
        models.CifarResNet(depth=18, projection=False, channels=3, nb_classes=10)


# a user's own network


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "art_rs_test_nets.py").write_text(
        "from torch import nn\n"
        "from art_rs_plugin.experiments.models import Normalize\n"
        "def linear(*, input_shape, nb_classes):\n"
        "    channels, height, width = input_shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, nb_classes))\n"
        "def standardised(*, input_shape, nb_classes):\n"
        "    net = linear(input_shape=input_shape, nb_classes=nb_classes)\n"
        "    return nn.Sequential(Normalize(input_shape[0], [0.25], [0.75]), net)\n"
        "def of_nothing():\n"
        "    return nn.Linear(5, 3)\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, nb_classes=2):\n"
        "        super().__init__(5, nb_classes)\n"
        "def any_of(**options):\n"
        "    return linear(**options)\n"
        "def of_more(nb_classes, width):\n"
        "    return None\n"
        "def nothing(*, input_shape, nb_classes):\n"
        "    return None\n"
        "number = 3\n"
    )
    (tmp_path / "art_rs_test_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "art_rs_test_nets"


def test_a_users_factory_gets_shape_and_classes_and_is_standardised_once(users_module):
    options = {"input_shape": (1, 4, 5), "nb_classes": 3, "mean": (0.5,), "std": (0.5,)}
    model = models.build(f"{users_module}:linear", **options)
    x = torch.rand(2, 1, 4, 5)
    torch.testing.assert_close(model(x), model[1]((x - 0.5) / 0.5))
    assert model(x).shape == (2, 3)
    own = models.build(f"{users_module}:standardised", **options)
    torch.testing.assert_close(own(x), own[1]((x - 0.25) / 0.75))
    assert isinstance(own[1][1], nn.Linear)


@pytest.mark.parametrize("name", ["of_nothing", "Net", "any_of"])
def test_a_users_factory_is_told_what_it_takes(users_module, name):
    assert (
        models.build(f"{users_module}:{name}", input_shape=(1, 4, 5), nb_classes=3)(torch.rand(2, 1, 4, 5)).shape[-1]
        == 3
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("art_rs_test_absent:net", ImportError, r"module `art_rs_test_absent` cannot be imported"),
        (
            "art_rs_test_broken:net",
            ImportError,
            r"`art_rs_test_broken` cannot be imported: .*a_module_that_is_not_there",
        ),
        (":net", ImportError, r"module `` cannot be imported"),
        ("art_rs_test_nets:absent", ImportError, r"module `art_rs_test_nets` has no function or class `absent`"),
        ("art_rs_test_nets:number", ImportError, r"has no function or class `number`"),
        ("art_rs_test_nets:of_more", TypeError, "must need nothing but `input_shape` and `nb_classes`: .*'width'"),
        ("art_rs_test_nets:nothing", TypeError, r"must return a torch.nn.Module, got NoneType"),
    ],
)
def test_a_users_factory_that_does_not_work_says_why(users_module, name, error, message):
    with pytest.raises(error, match=message):
        models.build(name, input_shape=(1, 4, 5), nb_classes=3)
