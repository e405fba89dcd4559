"""ART's attacks and ours over eps against one smoothed classifier: how robust it is proved to be, and how it looks.

    python examples/art_attack_benchmark.py                                  # digits, embedded; some minutes
    python examples/art_attack_benchmark.py --checkpoint mnist-0.25 --data mnist --eps 0.5,1,1.5,2 --out benchmark
    python examples/art_attack_benchmark.py --checkpoint weights.pth --model mynet:make --sigma 0.25 --data mnist

What is certified within eps no attack makes wrong, but for errors of probability alpha; between that and the accuracy
under all attacks lies what is not known. Attacks are judged by PREDICT on votes that they have not seen; an abstention
is neither right nor wrong. Those that need logits or the model get `smoothed_classifier`, as docs/art-attacks.md says;
those that seek the least perturbation run once, and count at every eps that theirs is within. With --out: a CSV and a
picture.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from art.attacks import evasion
from matplotlib.figure import Figure

from art_rs_plugin import (
    ABSTAIN,
    GaussianAugmentationTrainer,
    Looks,
    RandomizedSmoothingPyTorch,
    SmoothedDDN,
    SmoothedPGD,
    evaluate_attack,
)
from art_rs_plugin.experiments import curve, datasets, models, runs


def within_eps(estimator, options):
    """By name: functions of eps that make an attack whose perturbations are within it."""
    steps, draws = options.steps, options.draws
    module = estimator.smoothed_classifier(num_samples=draws)
    quiet, norm = {"verbose": False}, {"norm": 2}

    def step(eps):
        return 2.5 * eps / steps

    return {
        "FastGradientMethod": lambda eps: evasion.FastGradientMethod(estimator, eps=eps, **norm),
        "ProjectedGradientDescent": lambda eps: evasion.ProjectedGradientDescent(
            estimator, eps=eps, eps_step=step(eps), max_iter=steps, **norm, **quiet
        ),
        "MomentumIterativeMethod": lambda eps: evasion.MomentumIterativeMethod(
            estimator, eps=eps, eps_step=step(eps), max_iter=steps, **norm, **quiet
        ),
        "AutoProjectedGradientDescent": lambda eps: evasion.AutoProjectedGradientDescent(
            module, eps=eps, eps_step=step(eps), max_iter=steps, nb_random_init=1, **norm, **quiet
        ),
        "SquareAttack": lambda eps: evasion.SquareAttack(module, eps=eps, max_iter=10 * steps, **norm, **quiet),
        "SmoothedPGD": lambda eps: SmoothedPGD(estimator, eps=eps, max_iter=steps, num_samples=draws),
        "SmoothedPGD, smoothadv": lambda eps: SmoothedPGD(
            estimator, eps=eps, max_iter=steps, num_samples=draws, objective="smoothadv"
        ),
    }


def least(estimator, options):
    """By name: attacks that seek the least perturbation, whatever eps."""
    steps, draws = options.steps, options.draws
    module = estimator.smoothed_classifier(num_samples=draws)
    return {
        "DeepFool": evasion.DeepFool(module, max_iter=steps, verbose=False),
        "SmoothedDDN": SmoothedDDN(estimator, max_iter=steps, num_samples=draws),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="as `art-rs certify` names them")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument(
        "--checkpoint", type=Path, help="folder that `art-rs train` wrote, or weights.pth; a small network if not given"
    )
    parser.add_argument("--model", help="what weights.pth is of: a name of art-rs train, or yourmodule:factory")
    parser.add_argument("--sigma", type=float, help="if not the checkpoint's; 0.25 for the small network")
    parser.add_argument("--eps", default="0.25,0.5,0.75,1.0", help="l2 norms, in the unit of the input")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--n", type=int, default=20_000, help="votes of a certificate, at most")
    parser.add_argument("--judge", type=int, default=1_000, help="votes of a judgement")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=32, help="noise draws a step")
    parser.add_argument("--out", type=Path, help="folder for benchmark.csv and benchmark.png")
    parser.add_argument("--quick", action="store_true", help="few images, votes, steps and two eps")
    options = parser.parse_args()
    if options.quick:
        options.eps, options.images, options.n, options.judge = "0.5,1.0", 8, 1_000, 100
        options.steps, options.draws = 3, 4

    data = datasets.load(options.data, "test", root=options.data_root)
    x, y = data.arrays(np.linspace(0, len(data), options.images, endpoint=False, dtype=int))
    table = benchmark(smoothed(options, data), x, y, sorted(map(float, options.eps.split(","))), options)
    print(curve.to_markdown(table.round(3)))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "benchmark.csv", index=False)
        curve.save_figure(picture(table), options.out / "benchmark.png")


def smoothed(options, data):
    """The estimator of a checkpoint, or one trained here on digits."""
    if options.checkpoint is not None:
        sys.path.insert(0, "")  # your module, in the folder that you are in
        model, trained_at = runs.open_network(options.checkpoint, data, options.model)
        sigma = options.sigma or trained_at
        return RandomizedSmoothingPyTorch(model, sigma, seed=0, input_shape=data.input_shape, clip_values=(0, 1))
    torch.manual_seed(0)
    model = models.build("mlp", input_shape=data.input_shape, nb_classes=data.nb_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    estimator = RandomizedSmoothingPyTorch(
        model, options.sigma or 0.25, seed=0, optimizer=optimizer, input_shape=data.input_shape, clip_values=(0, 1)
    )
    x, y = datasets.load(options.data, "train", root=options.data_root).arrays()
    GaussianAugmentationTrainer(estimator, nb_epochs=5 if options.quick else 20).fit(x, y)
    return estimator


def benchmark(estimator, x, y, radii, options):
    """A row for each attack and eps, and for each eps one of all attacks together."""
    prediction, radius = estimator.certify(x, budget=Looks(radii=tuple(radii), n_max=options.n))
    judge = partial(evaluate_attack, estimator, x, y=y, n=options.judge)
    clean = judge(x_adv=x).clean
    one_hot = np.eye(estimator.nb_classes, dtype=np.float32)[y]
    rows, outcomes = [], {eps: [] for eps in radii}

    def add(name, eps, attacked, seconds):
        """A row: an input is right if it is after each of the attacks, wrong if after any, else PREDICT abstains."""
        attacked = np.atleast_2d(attacked)
        right, wrong = (attacked == y).all(axis=0), ((attacked != y) & (attacked != ABSTAIN)).any(axis=0)
        certified = (prediction == y) & (radius >= eps)
        rows.append([name, eps, *(share.mean() for share in (certified, right, ~right & ~wrong, wrong)), seconds])
        outcomes[eps].append(attacked[0])

    for name, make in within_eps(estimator, options).items():
        for eps in radii:
            attack, start = make(eps), time.perf_counter()
            with np.errstate(divide="ignore", invalid="ignore"):  # SquareAttack divides by norms of 0
                x_adversarial = attack.generate(x, y=one_hot)
            add(name, eps, judge(x_adv=x_adversarial, clean=clean).attacked, time.perf_counter() - start)
    for name, attack in least(estimator, options).items():
        start = time.perf_counter()
        x_adversarial = attack.generate(x, y=one_hot)
        judged = judge(x_adv=x_adversarial, clean=clean)
        seconds = time.perf_counter() - start
        for eps in radii:
            add(name, eps, np.where(judged.l2 <= eps, judged.attacked, clean), seconds)
    for eps in radii:
        add("all together", eps, outcomes[eps], sum(row[-1] for row in rows if row[1] == eps))
    columns = ["attack", "eps", "certified", "empirical", "abstains", "wrong", "seconds"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(2, "clean", float(np.mean(clean == y)))
    return table


def picture(table):
    """Accuracy under each attack against eps, above what is certified."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, rows), look in zip(table.groupby("attack", sort=False), curve.styles(), strict=False):
        axes.plot([0, *rows["eps"]], [rows["clean"].iloc[0], *rows["empirical"]], label=name, marker="o", **look)
    rows = table[table["attack"] == "all together"]
    axes.fill_between(rows["eps"], rows["certified"], color="0.85", label="certified")
    axes.set(xlabel="l2 norm of the perturbation", ylabel="accuracy", ylim=(0, 1.02))
    curve.tidy(axes)
    figure.legend(loc="outside right upper", frameon=False, handlelength=3.6)
    return figure


if __name__ == "__main__":
    main()
