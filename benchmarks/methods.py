r"""Training methods beside each other: recipes trained on one data set, certified on the same images, paired.

    python benchmarks/methods.py --data mnist --sigma 0.5 --recipes benchmarks/mnist/{gaussian,consistency,macer}.toml \
        --images 500 --fixed --n 100000 --radii 0 0.25 0.5 0.75 1 1.25 1.5 1.75 2 2.25 \
        --precision bf16 --compile --out methods
    python benchmarks/methods.py --data cifar10 --sigma 0.25 --recipes cifar10-resnet20 cifar10-resnet20-consistency \
        cifar10-resnet20-smoothadv --images 2000 --n 2000 --radii 0 0.25 0.5 0.75 \
        --precision bf16 --compile --out methods

The first recipe is what the others are held against: the difference of their certified accuracy at each radius, with
exact McNemar tests, and of their average certified radius (ACR) with its standard error, over the same images. All
networks see the same noise on one device. Recipes that hold images out are certified by the epoch that validated best,
which test images never choose. Votes are cast by `Looks` of the radii, up to `--n`, whose certificates fall short of
the average radius, or with `--fixed` by a fixed number, as published averages are. Networks and ledgers are in `--out`:
stopped, the same command goes on, and networks whose epochs are done need no `training.pt` to be taken as they are.
Seconds of training count only if nothing else ran.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch

from art_rs_plugin import Fixed, Looks, RandomizedSmoothingPyTorch
from art_rs_plugin.core.curves import average_certified_radius, certified_accuracy
from art_rs_plugin.core.paired import difference, mcnemar_two_sided
from art_rs_plugin.experiments import checkpoints, datasets, recipes, runs, training
from art_rs_plugin.experiments.ledger import read_ledger
from art_rs_plugin.experiments.logs import round_down
from art_rs_plugin.experiments.rows import rule_of

ALPHA, N0 = 0.001, 100


def trained(options, name):
    """Folder of the network that `name` gives, and the seconds that its epochs took."""
    recipe = recipes.changed(recipes.load(name), epochs=options.epochs)
    if recipe.data not in (None, options.data):
        sys.exit(f"recipe `{name}` must be for {options.data}, got one for {recipe.data}")
    out = options.out / f"{Path(name).stem}-{options.sigma:g}"
    data = datasets.load(options.data, "train", root=options.data_root)

    def say(epoch):
        print(
            f"  {name}: epoch {epoch['epoch']}/{recipe.epochs}, {epoch['seconds']:.1f} s", file=sys.stderr, flush=True
        )

    if not finished(out, recipe, options):
        training.train(
            data, recipe.model or options.model, options.sigma, out, recipe=recipe, seed=options.seed,
            device="cuda" if options.device == "gpu" else "cpu", num_workers=options.num_workers,
            cuda_graphs=options.cuda_graphs, on_epoch=say,
        )  # fmt: skip
    epochs = [json.loads(line) for line in (out / training.METRICS).read_text().splitlines()]
    best = out / training.BEST
    return (best if best.exists() else out), recipe, sum(epoch["seconds"] for epoch in epochs)


def finished(folder, recipe, options):
    """Whether `folder` has the network of the recipe after its last epoch, and no state to go on from."""
    about = folder / checkpoints.ABOUT
    if (folder / training.STATE).exists() or not about.exists():
        return False
    said = json.loads(about.read_text())
    told = {"seed": options.seed, **training.told(recipe)}
    there = {name: said["training"].get(name) for name in told}
    if (said["sigma"], there) != (options.sigma, json.loads(json.dumps(told))):
        sys.exit(f"{folder} must hold the network of this recipe, sigma and seed, got {said['sigma']}, {there}")
    return said["training"]["last_epoch"]["epoch"] == recipe.epochs


def certified(options, name, folder):
    """The ledger's predictions, radii and labels of the test images, in order."""
    data = datasets.load(options.data, "test", root=options.data_root)
    indices = list(range(0, len(data), max(1, len(data) // options.images)))[: options.images]
    budget = Fixed(n0=N0, n=options.n) if options.fixed else Looks(radii=options.radii, n_max=options.n)
    out = options.out / f"{Path(name).stem}-{options.sigma:g}-{budget.name}-{options.n}-{options.precision}.jsonl"
    model, sigma = runs.open_network(folder, data)

    def say(row, done, total):
        if done % 50 == 0 or done == total:
            print(f"  {name}: {done} of {total} certified", file=sys.stderr, flush=True)

    rule = {**rule_of(budget), "alpha": ALPHA}
    if not whole(out, model, indices, rule, options.seed):
        estimator = RandomizedSmoothingPyTorch(
            model, sigma, n0=N0, n=options.n, alpha=ALPHA, seed=options.seed, input_shape=data.input_shape,
            precision=options.precision, compile=options.compile or "auto", device_type=options.device,
        )  # fmt: skip
        runs.certify(estimator, data, indices, out, budget=budget, on_row=say)
    rows = {row["index"]: row for row in read_ledger(out)[1]}
    columns = ("prediction", "radius", "label")
    return {column: np.array([rows[index][column] for index in indices]) for column in columns}


def whole(out, model, indices, rule, seed):
    """Whether the ledger `out` has every image of this network by this rule, on whatever device it was made."""
    if not out.exists():
        return False
    header, rows = read_ledger(out)
    said = header["model"]["hash"], header["rule"], header["seed"]
    same = said == (checkpoints.model_hash(model), json.loads(json.dumps(rule)), seed)
    return same and set(indices) <= {row["index"] for row in rows}


def table(options, found):
    """Rows of cells: what each method reaches, and how far it is from the first."""
    rows, (first, *_) = [], found.values()
    right = {name: result["prediction"] == result["label"] for name, (_, _, result) in found.items()}
    radius = {name: np.where(right[name], result["radius"], 0.0) for name, (_, _, result) in found.items()}
    reference = next(iter(found))
    for name, (recipe, seconds, result) in found.items():
        accuracy = certified_accuracy(*result.values(), options.radii)
        cells = [name, str(recipe.epochs), f"{seconds:.0f}", f"{seconds / first[1]:.2f}"]
        cells += [round_down(value, 3) for value in (*accuracy, average_certified_radius(*result.values()))]
        rows.append(cells)
        if name == reference:
            continue
        apart, error = difference(radius[name], radius[reference])
        cells = [f"{name} less {reference} (p)", "", "", ""]
        for r in options.radii:
            ours, theirs = (right[which] & (radius[which] >= r) for which in (name, reference))
            p = mcnemar_two_sided(ours, theirs)
            cells.append(f"{ours.mean() - theirs.mean():+.3f} ({p:.1g})")
        rows.append([*cells, f"{apart:+.3f} (s.e. {error:.3f}), {apart / radius[reference].mean():+.1%}"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a name in experiments.datasets")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", help="where a recipe does not say")
    parser.add_argument("--recipes", nargs="+", required=True, help="names or TOML files, the reference first")
    parser.add_argument("--sigma", type=float, required=True)
    parser.add_argument("--epochs", type=int, help="of all, in the place of the recipes'")
    parser.add_argument("--radii", type=float, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=500, help="test images that are certified")
    parser.add_argument("--n", type=int, default=100_000, help="votes an image, at most or with --fixed")
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--precision", default="fp32", help="of certification")
    parser.add_argument("--compile", action="store_true", help="certify by the compiled network, however small")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load the training images")
    parser.add_argument("--cuda-graphs", action="store_true", help="launch a training step's passes whole")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("methods"))
    options = parser.parse_args()
    for name in ("images", "n"):
        if getattr(options, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(options, name)}")

    found = {}
    for name in options.recipes:
        folder, recipe, seconds = trained(options, name)
        found[Path(name).stem] = recipe, seconds, certified(options, name, folder)
    print(
        f"{options.data}, sigma {options.sigma:g}, {options.images} test images, at most {options.n} votes each;",
        end="",
    )
    print(f" {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    heads = ["method", "epochs", "seconds", "times", *(f"r = {radius:g}" for radius in options.radii), "ACR"]
    print("| " + " | ".join(heads) + " |\n| --- |" + " ---: |" * (len(heads) - 1))
    for cells in table(options, found):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
