"""A run that the resume test breaks off. As a script, `resumable_run.py OPTIMIZER CHECKPOINT WHEN` kills itself."""

import os
import signal
import sys

import torch
from torch import nn
from torchvision.transforms import v2

from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, loader_batches, train

EPOCHS, STEPS, BROKEN = 6, 5, 4  # 70 samples in batches of 16; broken off in the fourth epoch
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def build():
    """A network whose training draws random numbers and keeps statistics: dropout and batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3)
        )


def run(optimizer, checkpoint=None, *, epochs=EPOCHS, forward=lambda model, x: model(x), **options):
    """Train; return the model, its optimizer and scheduler, and the history."""
    model = build()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(chosen, 2, 0.1)
    data = torch.Generator().manual_seed(11)
    x, y = torch.rand(70, 1, 8, 8, generator=data), torch.randint(3, (70,), generator=data)
    augment = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])
    history = train(
        model,
        loader_batches((x, y), 16, 3, augment=augment),
        objective=OBJECTIVES["gaussian"](),
        optimizer=chosen,
        scheduler=scheduler,
        noise=Gaussian(0.25),
        epochs=epochs,
        seed=3,
        forward=lambda x: forward(model, x),
        checkpoint=checkpoint,
        **options,
    )
    return model, chosen, scheduler, history


def kill_at(function, call):
    """`function`, but the process is killed at its `call`-th call."""
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return counted


if __name__ == "__main__":
    optimizer, checkpoint, when = sys.argv[1:]
    if when == "in a step":
        run(optimizer, checkpoint, forward=kill_at(lambda model, x: model(x), (BROKEN - 1) * STEPS + 3))
    else:  # the new checkpoint is on disk, but not in its place
        os.replace = kill_at(os.replace, BROKEN)
        run(optimizer, checkpoint)
