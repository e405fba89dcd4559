"""Milliseconds of a training step on one NVIDIA GPU, launched kernel by kernel and as CUDA graphs.

    python benchmarks/gpu_training.py

Our loop with batches that lie on the GPU, so that loading costs nothing: Gaussian augmentation in bf16, and how much of
the step the bare replay of a graph of the same passes takes, which is the floor. First, in float32 and without TF32, a
few steps either way from the same weights: losses must agree to 1e-3. Status 1 if they do not.
"""

import argparse
import copy
import statistics
import sys
import time

SHAPES = {"resnet110": (3, 32, 32), "resnet20": (3, 32, 32), "lenet": (1, 28, 28)}
SIGMA = 0.25


def network(name):
    """A fresh network on the GPU."""
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    return models.build(name, input_shape=SHAPES[name], nb_classes=10).cuda()


def epoch(model, batch, steps, precision, graphs, epochs=1):
    """Losses of `epochs` epochs of so many steps on the same batch."""
    import torch

    from art_rs_plugin.noise import Gaussian
    from art_rs_plugin.training import OBJECTIVES, train

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    return train(
        model, lambda _: [batch] * steps, objective=OBJECTIVES["gaussian"](), optimizer=optimizer,
        noise=Gaussian(SIGMA), epochs=epochs, seed=0, precision=precision, cuda_graphs=graphs,
    )  # fmt: skip


def floor(model, batch, repeats):
    """Milliseconds of one replay of the graphs of a forward and a backward pass in bf16."""
    import torch

    from art_rs_plugin.layout import weights_with_channels_last
    from art_rs_plugin.training.graphs import Graphed

    x = batch[0].contiguous(memory_format=torch.channels_last)
    taken = []
    with weights_with_channels_last(model.train()):
        graphs = Graphed(model, torch.bfloat16)
        for _ in range(repeats + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            graphs.next_step()
            graphs(x).float().sum().backward()
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["resnet110", "lenet"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="that are timed, after one that is not")
    parser.add_argument("--tuned", action="store_true", help="let cuDNN try its convolutions")
    options = parser.parse_args()
    import torch

    if not (torch.cuda.is_available() and torch.version.cuda):
        parser.exit(2, "this benchmark needs an NVIDIA GPU, and torch finds none\n")
    torch.backends.cudnn.benchmark = options.tuned
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN benchmark {options.tuned}")
    print("\n| model | kernel by kernel ms | graphs ms | ratio | replay alone ms |\n| --- |" + " ---: |" * 4)
    apart = {}
    for name in options.models:
        model = network(name)
        x = torch.rand(options.batch_size, *SHAPES[name], device="cuda")
        batch = x, torch.randint(10, (options.batch_size,), device="cuda")
        torch.backends.cudnn.allow_tf32 = False
        one, other = (epoch(copy.deepcopy(model), batch, 5, "fp32", graphs)[0]["loss"] for graphs in (False, True))
        apart[name] = abs(one - other) / one
        ms = []
        for graphs in (False, True):
            history = epoch(model, batch, options.steps, "bf16", graphs, options.epochs + 1)
            ms.append(1e3 * statistics.median(record["seconds"] for record in history[1:]) / options.steps)
        cells = [*ms, ms[0] / ms[1], floor(model, batch, options.steps)]
        print(f"| {name} | {' | '.join(f'{cell:.3g}' for cell in cells)} |", flush=True)
    print()
    for name, far in apart.items():
        print(f"{name}: losses of 5 steps in float32 are {far:.1e} apart: {'reached' if far <= 1e-3 else 'MISSED'}")
    if max(apart.values()) > 1e-3:
        sys.exit(1)


if __name__ == "__main__":
    main()
