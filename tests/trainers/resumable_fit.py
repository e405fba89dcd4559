"""A fit that the resume test breaks off. As a script, `resumable_fit.py CHECKPOINT SEED` is killed in epoch 4 of 6."""

import os
import signal
import sys

import torch
from torch import nn
from torchvision.transforms import v2

from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch

EPOCHS, STEPS, BROKEN = 6, 5, 4  # 70 samples in batches of 16; broken off in the fourth epoch


class KilledAt(nn.Module):
    """Passes `x` on, until the training pass of that number kills the process; 0 kills none."""

    def __init__(self, call):
        super().__init__()
        self.call, self.calls = call, 0

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == self.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def run(checkpoint, seed, *, killed_at=0):
    """Fit through the trainer; return estimator, scheduler and history."""
    with torch.random.fork_rng():
        torch.manual_seed(5)  # the same fresh weights in every process
        model = nn.Sequential(
            KilledAt(killed_at),
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3),
        )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    estimator = RandomizedSmoothingPyTorch(model, 0.25, seed=seed, optimizer=optimizer, preprocessing=(0.5, 0.25))
    data = torch.Generator().manual_seed(11)
    x, y = torch.rand(70, 1, 8, 8, generator=data).numpy(), torch.randint(3, (70,), generator=data).numpy()
    trainer = GaussianAugmentationTrainer(
        estimator,
        nb_epochs=EPOCHS,
        batch_size=16,
        scheduler=scheduler,
        augment=v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()]),
        checkpoint=checkpoint,
    )
    return estimator, scheduler, trainer.fit(x, y)


if __name__ == "__main__":
    run(sys.argv[1], None if sys.argv[2] == "None" else int(sys.argv[2]), killed_at=(BROKEN - 1) * STEPS + 3)
