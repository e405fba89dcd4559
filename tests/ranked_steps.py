"""Run by every rank: trains and saves what it ends with. Arguments: folder."""

import sys
from pathlib import Path

import torch

from art_rs_plugin import ranks
from art_rs_plugin.experiments import models
from art_rs_plugin.noise import Gaussian
from art_rs_plugin.training import OBJECTIVES, loader_batches, train

SIGMA, SEED, BATCH, STEPS = 0.25, 5, 64, 20
# of the methods that attack, few steps; from the first epoch on
OPTIONS = {
    "smoothadv": {"steps": 2, "draws": 2, "warmup": 0, "clip_values": (0.0, 1.0)},
    "macer": {"draws": 4},
    "smoothmix": {"steps": 2, "draws": 2},
    "cat-rs": {"draws": 2, "steps": 2},
}


def digits(count):
    from art_rs_plugin.experiments import datasets

    x, y = datasets.load("digits", "train").arrays(range(count))
    return torch.from_numpy(x), torch.from_numpy(y)


def network(name="mlp"):
    torch.manual_seed(1)
    return models.build(name, input_shape=(1, 8, 8), nb_classes=10)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def main(folder):
    torch.set_num_threads(1)
    with ranks.joined() as company, company.process_group(torch.device("cpu")):
        model = network()
        x, y = digits(STEPS * BATCH)
        batches = loader_batches((x, y), BATCH, SEED, ranks=company)
        history = train(
            model, batches, objective=OBJECTIVES["gaussian"](), optimizer=optimizer_of(model), noise=Gaussian(SIGMA),
            epochs=1, seed=SEED, ranks=company,
        )  # fmt: skip
        ends = {"gaussian": model.state_dict(), "loss": history[0]["loss"], "accuracy": history[0]["accuracy"]}
        for name in OBJECTIVES:
            # with running means, and with a last batch that the ranks cannot share evenly
            other = torch.nn.Sequential(network(), torch.nn.BatchNorm1d(10))
            objective = OBJECTIVES[name](**OPTIONS.get(name, {}))
            some = loader_batches((x[:77], y[:77]), 32, SEED, ranks=company)
            train(
                other, some, objective=objective, optimizer=optimizer_of(other), noise=Gaussian(SIGMA), epochs=2,
                seed=SEED, ranks=company,
            )  # fmt: skip
            ends[f"all of {name}"] = other.state_dict()
        torch.save(ends, Path(folder) / f"{company.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
