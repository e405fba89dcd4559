"""What noise and attacks cost a training step: ours against the forward-backward passes that it is made of.

    python benchmarks/training_step.py

On ResNet-20 and the small CNN, in either precision: a step of Gaussian augmentation over the same step of the same
loop with zeros in the place of noise, and over a step of a plain loop (forward, cross-entropy, backward, SGD), which
looks after nothing; and one of SmoothAdv with m draws and T attack steps over (T + 1) m forward-backward passes of as
many images each: T with the gradient in the images alone, one with SGD. All run in turn on the same threads; a ratio
is the median over `--repeats` of what ran right after each other. Weights are random: time does not depend on them.
The claims: noise costs at most 1.05 times, SmoothAdv at most 1.1 times. Status 1 if one is missed. What begins and
ends an epoch is shared by the few steps that are timed together here, by hundreds in a training.
"""

import argparse
import platform
import statistics
import sys
import time

SHAPES = {"small-cnn": (1, 28, 28), "resnet20": (3, 32, 32)}
SIGMA = 0.25
ALLOWED = {"gaussian": 1.05, "smoothadv": 1.1}  # over the first of what each is held against
AGAINST = {"gaussian": ("the same loop without noise", "a plain loop"), "smoothadv": ("its passes",)}
AT_ONCE = {"gaussian": 8, "smoothadv": 4}  # training steps that are timed together
STEPS, DRAWS = 4, 2  # of SmoothAdv


def network_and_batch(name, size):
    """A fresh network with its optimizer, and a batch of images as a data loader gives it."""
    import torch

    from art_rs_plugin.experiments import models

    torch.manual_seed(0)
    model = models.build(name, input_shape=SHAPES[name], nb_classes=10)
    x, y = torch.rand(size, *SHAPES[name]), torch.randint(10, (size,))
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), x, y


def ours(name, method, precision, size, steps, noise=None):
    """A function that trains for so many steps by our loop."""
    from art_rs_plugin.noise import Gaussian
    from art_rs_plugin.training import OBJECTIVES, train

    model, optimizer, x, y = network_and_batch(name, size)
    options = {"steps": STEPS, "draws": DRAWS, "warmup": 0} if method == "smoothadv" else {}

    def run():
        train(
            model, lambda epoch: [(x, y)] * steps, objective=OBJECTIVES[method](**options), optimizer=optimizer,
            noise=noise or Gaussian(SIGMA), epochs=1, seed=0, precision=precision,
        )  # fmt: skip

    return run


def without_noise(*words):
    """A function that does what `ours` does, with zeros for noise."""
    from art_rs_plugin.noise import Gaussian

    class Zeros(Gaussian):
        def fill_(self, out, generator):
            return out.zero_()

    return ours(*words, noise=Zeros(SIGMA))


def passes(name, method, precision, size, steps):
    """A function that makes the forward and backward passes of so many steps, all with channels last, and no more."""
    import torch
    from torch.nn.functional import cross_entropy

    model, optimizer, x, y = network_and_batch(name, size)
    model.to(memory_format=torch.channels_last)
    copies = DRAWS if method == "smoothadv" else 1
    x = x.repeat(copies, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    y = y.repeat(copies)

    def loss_at(images):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        return cross_entropy(logits.float(), y)

    def attack():
        model.eval()
        for _ in range(STEPS):
            images = x.detach().requires_grad_(True)
            torch.autograd.grad(loss_at(images), images)
        model.train()

    def run():
        for _ in range(steps):
            if method == "smoothadv":
                attack()
            optimizer.zero_grad(set_to_none=True)
            loss_at(x).backward()
            optimizer.step()

    return run


def milliseconds(name, method, precision, size, steps, repeats):
    """Of a step of ours and of each that it is held against, one of each a repeat."""
    makes = (ours, without_noise, passes) if method == "gaussian" else (ours, passes)
    subjects = [make(name, method, precision, size, steps) for make in makes]
    for run in subjects:
        run()
    taken = tuple([] for _ in subjects)
    for _ in range(repeats):
        for run, mine in zip(subjects, taken, strict=True):
            start = time.perf_counter()
            run()
            mine.append(1e3 * (time.perf_counter() - start) / steps)
    return taken


def spread(ms):
    """Median, least and most."""
    return f"{statistics.median(ms):.3g} ({min(ms):.3g} to {max(ms):.3g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=ALLOWED, default=list(ALLOWED))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, help="that are timed together; more where a step is short if not given")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for name in ("batch_size", "steps", "repeats"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be at least 1, got {given}")

    import torch

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    what = f"batches of {options.batch_size}, median (least to most) of {options.repeats}"
    print(f"\n| {what} | step ms | against | ms | ratio |\n| --- | ---: | --- | ---: | ---: |")
    missed = []
    for name in options.models:
        for method in options.methods:
            for precision in options.precisions:
                step, *others = milliseconds(
                    name, method, precision, options.batch_size, options.steps or AT_ONCE[method], options.repeats
                )
                about, allowed = f"{name}, {method}, {precision}", ALLOWED[method]
                for base, other in zip(AGAINST[method], others, strict=True):
                    ratio = statistics.median(one / two for one, two in zip(step, other, strict=True))
                    claim = f"{ratio:.3f} (at most {allowed})" if other is others[0] else f"{ratio:.3f}"
                    print(f"| {about} | {spread(step)} | {base} | {spread(other)} | {claim} |", flush=True)
                    if other is others[0] and ratio > allowed:
                        missed.append(f"a step takes {ratio:.3f} times {base}: {about}")
    print("\n" + ("\n".join(f"MISSED: {line}" for line in missed) or "reached"))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
