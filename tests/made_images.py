"""Small images of one brightness a class, for tests of what trains on them."""

import torch

from art_rs_plugin.experiments import checkpoints, datasets


class Made(datasets.Images):
    """Images of one brightness a class, and who asked for which."""

    def __init__(self, classes=3, samples=60, labels=None):
        generator = torch.Generator().manual_seed(classes)
        self.shape, self.nb_classes = (1, 4, 4), classes
        self.labels = [number % classes for number in range(samples)] if labels is None else labels
        level = torch.tensor([number % classes for number in range(samples)]) / classes
        self.x = level.view(-1, 1, 1, 1) + 0.05 * torch.rand(samples, 1, 4, 4, generator=generator)
        self.asked = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.x[index], self.labels[index]


def data_of(images, name="made") -> datasets.DataSet:
    return datasets.DataSet(name=name, split="train", images=images, mean=(0.5,), std=(0.3,))


def weights(folder):
    return checkpoints.load_checkpoint(folder)[0].state_dict()
