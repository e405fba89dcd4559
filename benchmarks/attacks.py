"""How often attacks change what the smoothed classifier says, at equal gradient evaluations: ours against others.

    art-rs train --data cifar10 --model resnet20 --sigma 0.25 --epochs 12 --batch-size 128 --seed 0 --out cifar-0.25
    python benchmarks/attacks.py --checkpoint cifar-0.25 --smoothing-adversarial path/to/checkout --out attacks

On the same 500 test images, for every l2 bound eps: SmoothedPGD with either objective; ART's PGD on the base
classifier f; ART's PGD on the gradients of ART's own smoother (`sampling=True`, for which no attack of ART asks); and
PGD_L2 of Salman et al. 2019 from a checkout of their code (github.com/Hadisalman/smoothing-adversarial). Each evaluates
`--steps` times `--samples` gradients an image; on f, which has no draws, those are as many steps. All are judged by
PREDICT on the same fresh votes: an attack succeeds on an image where PREDICT names a wrong class. An image of which it
does so before any attack counts as such a success of all of them, and is not attacked. `--fast-judge` takes the votes
of the network compiled in bf16, which is another f than the attacks see, and the same one for all of them.

The claim, of the default objective: at no eps is another significantly better (exact one-sided McNemar tests, level
.01 over all of them) nor better by more than 2 points, and at one eps at least it is significantly better than the
attack on the base classifier. What became of every image is in `--out`, a file for each attack and eps: stopped, the
same command goes on. Status 1 if the claim does not hold.
"""

import argparse
import importlib.util
import inspect
import json
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import art
import numpy as np
import torch

import art_rs_plugin
from art_rs_plugin import RandomizedSmoothingPyTorch
from art_rs_plugin.attacks import AttackEvaluation, SmoothedPGD, evaluate_attack
from art_rs_plugin.attacks.evaluation import share
from art_rs_plugin.core.certificate import check_prediction_votes
from art_rs_plugin.core.paired import mcnemar
from art_rs_plugin.core.records import ABSTAIN
from art_rs_plugin.experiments import checkpoints, datasets, runs

ALPHA = 0.001  # of PREDICT
LEVEL, ALLOWED_POINTS = 0.01, 0.02
CONFIDENCE = 0.95
DEFAULT = inspect.signature(SmoothedPGD).parameters["objective"].default
ROWS = 256  # noisy copies per forward pass of the others, as far as they let one choose
BEYOND = 1e-5  # how far single precision may lead out of a ball


def ours(objective):
    """SmoothedPGD, its step that of its default unless told otherwise."""

    def attack(options, data, x, y, eps):
        step = None if options.relative_step is None else options.relative_step * eps / options.steps
        attack = SmoothedPGD(
            smoothed(options, data), eps=eps, eps_step=step, max_iter=options.steps, num_samples=options.samples,
            objective=objective,
        )  # fmt: skip
        return attack.generate(x, y)

    return attack


def smoothed(options, data, *, precision="fp32", compile=False):
    """The smoothed classifier; what is attacked is in single precision and not compiled."""
    model, sigma = runs.open_network(options.checkpoint, data)
    return RandomizedSmoothingPyTorch(
        model, sigma, alpha=ALPHA, seed=options.seed, input_shape=data.input_shape, nb_classes=data.nb_classes,
        clip_values=(0.0, 1.0), device_type="cpu", precision=precision, compile=compile,
    )  # fmt: skip


def art_on_base(options, data, x, y, eps):
    """ART's PGD on f, as anyone attacks a network; as many steps as the others evaluate gradients."""
    from art.estimators.classification import PyTorchClassifier

    return art_pgd(PyTorchClassifier, options, data, x, y, eps, steps=options.steps * options.samples, batch_size=ROWS)


def art_on_smoother(options, data, x, y, eps):
    """ART's PGD on the gradients that ART's own smoother gives if asked to sample: of -log of the mean softmax."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    class Sampling(PyTorchRandomizedSmoothing):
        """Asks for what ART's attacks do not ask for, and takes their tensors."""

        def loss_gradient(self, x, y, **kwargs):
            return torch.from_numpy(super().loss_gradient(x.numpy(), y.numpy(), sampling=True))

    at_once = max(1, ROWS // options.samples)
    _, sigma = runs.open_network(options.checkpoint, data)
    make = partial(Sampling, sample_size=options.samples, scale=sigma, alpha=ALPHA)
    return art_pgd(make, options, data, x, y, eps, steps=options.steps, batch_size=at_once)


def art_pgd(make, options, data, x, y, eps, *, steps, batch_size):
    from art.attacks.evasion import ProjectedGradientDescent

    model, _ = runs.open_network(options.checkpoint, data)
    classifier = make(
        model=model.requires_grad_(False), loss=torch.nn.CrossEntropyLoss(), input_shape=data.input_shape,
        nb_classes=data.nb_classes, clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescent(
        classifier, norm=2, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, batch_size=batch_size, verbose=False
    )
    return attack.generate(x, y)


def salman(options, data, x, y, eps):
    """PGD_L2 of Salman et al. as they call it: draws that stay, -log of the mean softmax, steps of 2 eps / steps."""
    path = options.smoothing_adversarial / "code" / "attacks.py"
    spec = importlib.util.spec_from_file_location("smoothing_adversarial_attacks", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    model, sigma = runs.open_network(options.checkpoint, data)
    model.requires_grad_(False)
    attacker, k = theirs.PGD_L2(steps=options.steps, max_norm=eps), options.samples
    found = []
    for rows in torch.arange(len(x)).split(max(1, ROWS // k)):
        copies = torch.from_numpy(x)[rows].repeat_interleave(k, dim=0)
        noise = sigma * torch.randn_like(copies)
        found.append(attacker.attack(model, copies, torch.from_numpy(y)[rows], noise, k).detach()[::k])
    return torch.cat(found).numpy()


OURS = {f"SmoothedPGD, {objective}": ours(objective) for objective in ("expected_loss", "smoothadv")}
BASE = "ART's PGD on f"
OTHERS = {BASE: art_on_base, "ART's PGD on ART's smoother": art_on_smoother, "PGD_L2 of Salman et al.": salman}
ATTACKS = OURS | OTHERS
FILES = dict(zip(ATTACKS, ("expected_loss", "smoothadv", "art-base", "art-smoother", "salman"), strict=True))


def outcome(options, data, indices, name, eps, judge, clean=None):
    """The evaluation of an attack on these images and its seconds, from its file if it is there; else made, and kept.

    :param name: None for no attack at all, whose evaluation says what is predicted before any.
    :param clean: Those predictions, for an attack.
    """
    path = options.out / ("no-attack.json" if name is None else f"{FILES[name]}-{eps:g}.json")
    settings = settings_of(options, data, indices, name, eps)
    if path.exists():
        kept = json.loads(path.read_text())
        if other := [key for key, value in settings.items() if kept["settings"].get(key) != value]:
            sys.exit(f"{path} is of another run, which differs in {', '.join(other)}: choose another `--out`")
        arrays = {key: np.array(value) for key, value in kept["arrays"].items()}
        return AttackEvaluation(**arrays, **kept["judged"]), kept["seconds"]
    x, y = data.arrays(indices)
    torch.manual_seed(options.seed)  # the others draw from the one generator of all
    start = time.perf_counter()
    x_adv = x if name is None else ATTACKS[name](options, data, x, y, eps)
    seconds = time.perf_counter() - start
    evaluation = evaluate_attack(
        judge, x, x_adv, y, n=options.n, alpha=ALPHA, indices=indices, clean=y if name is None else clean
    )
    if name is None:
        evaluation = replace(evaluation, clean=evaluation.attacked)
    if evaluation.l2.max(initial=0.0) > eps + BEYOND:
        raise RuntimeError(f"{name} perturbed by {evaluation.l2.max()}, more than eps = {eps}")
    fields = asdict(evaluation)
    arrays = {key: value.tolist() for key, value in fields.items() if isinstance(value, np.ndarray)}
    judged = {key: value for key, value in fields.items() if key not in arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".partial")
    written.write_text(json.dumps({"settings": settings, "seconds": seconds, "judged": judged, "arrays": arrays}))
    os.replace(written, path)
    return evaluation, seconds


def settings_of(options, data, indices, name, eps):
    """What a result depends on, in plain JSON."""
    model, sigma = runs.open_network(options.checkpoint, data)
    return {
        "attack": name,
        "eps": eps,
        "model": checkpoints.model_hash(model),
        "sigma": sigma,
        "data": data.name,
        "indices": indices,
        "versions": [torch.__version__, art.__version__, art_rs_plugin.__version__],
        **{key: getattr(options, key) for key in ("steps", "samples", "n", "seed", "fast_judge")},
        **({"relative_step": options.relative_step} if name in OURS else {}),
    }


def fooled(evaluation):
    """Where PREDICT names a wrong class, bool (m,)."""
    return (evaluation.attacked != evaluation.labels) & (evaluation.attacked != ABSTAIN)


def comparisons(mine, others):
    """A row for each other attack and eps. `mine` is, by eps, where the attack succeeded; `others` the same by name."""
    return [
        {
            "other": name,
            "eps": eps,
            "only ours": int((here & ~there[eps]).sum()),
            "only the other": int((there[eps] & ~here).sum()),
            "lead": float(here.mean() - there[eps].mean()),
            "p (other better)": mcnemar(there[eps], here),
            "p (ours better)": mcnemar(here, there[eps]),
        }
        for eps, here in mine.items()
        for name, there in others.items()
    ]


def verdict(rows):
    """The level of a test, and what is missed of the claim: a test a row, and one an eps that beats the attack on f."""
    against_base = [row for row in rows if row["other"] == BASE]
    level = LEVEL / (len(rows) + len(against_base))
    missed = []
    for row in rows:
        if row["p (other better)"] <= level:
            missed.append(f"{row['other']} is significantly better at eps = {row['eps']:g}")
        if row["lead"] < -ALLOWED_POINTS - 1e-9:
            missed.append(f"{row['other']} is better by {-100 * row['lead']:.1f} points at eps = {row['eps']:g}")
    if not any(row["p (ours better)"] <= level for row in against_base):
        missed.append(f"at no eps is it significantly better than {BASE}")
    return level, missed


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that art-rs train made")
    parser.add_argument("--data", default="cifar10", help="a name in experiments.datasets")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--smoothing-adversarial", type=Path, help="checkout of the code of Salman et al.")
    parser.add_argument("--out", type=Path, default=Path("attacks"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=32, help="noise draws per image and step")
    parser.add_argument("--relative-step", type=float, help="length of our steps, in eps / steps; else the default")
    parser.add_argument("--n", type=int, default=1_000, help="votes that judge an image")
    parser.add_argument("--fast-judge", action="store_true", help="judge by votes compiled in bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("images", "steps", "samples"):
        if getattr(options, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(options, name)}")
    for name, value in [("eps", eps) for eps in options.eps] + [("relative-step", options.relative_step)]:
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"`--{name}` must be above 0 and finite, got {value}")
    options.eps = sorted(set(options.eps))
    theirs = options.smoothing_adversarial
    if theirs is not None and not (theirs / "code" / "attacks.py").is_file():
        parser.error(f"`--smoothing-adversarial` must be a checkout with code/attacks.py, got {theirs}")
    try:
        check_prediction_votes(options.n, ALPHA)
        data = datasets.load(options.data, "test", root=options.data_root)
        runs.open_network(options.checkpoint, data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.images > len(data):
        parser.error(f"`--images` must be at most the {len(data)} of {data.name}, got {options.images}")
    return options, data


def main():
    options, data = parsed()
    indices = list(range(0, len(data), len(data) // options.images))[: options.images]
    names = [name for name in ATTACKS if ATTACKS[name] is not salman or options.smoothing_adversarial is not None]
    print(f"{data.name}, {len(indices)} images, {options.steps} steps of {options.samples} draws, {options.n} votes")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if len(names) < len(ATTACKS):
        print("Without `--smoothing-adversarial` the attack of Salman et al. is left out.\n")
    print("| attack | eps | wrong [.95 interval] | abstained | largest l2 | gradients | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    judge = smoothed(options, data, **({"precision": "bf16", "compile": True} if options.fast_judge else {}))
    before, _ = outcome(options, data, indices, None, 0.0, judge)
    standing = ~fooled(before)
    attacked = [index for index, stands in zip(indices, standing, strict=True) if stands]
    found = {name: {} for name in names}
    for eps in options.eps:
        for name in names:
            evaluation, seconds = outcome(options, data, attacked, name, eps, judge, before.clean[standing])
            found[name][eps] = ~standing
            found[name][eps][standing] = fooled(evaluation)
            abstained = np.zeros_like(standing)
            abstained[standing] = evaluation.attacked == ABSTAIN
            print(
                f"| {name} | {eps:g} | {share(found[name][eps], CONFIDENCE)} | {share(abstained, CONFIDENCE)} | "
                f"{evaluation.l2.max(initial=0.0):.4f} | {len(attacked) * options.steps * options.samples} | "
                f"{seconds:.3g} |",
                flush=True,
            )
    print(f"\nBefore any attack {before.wrong} are named wrong, and {before.abstain} abstained from.")

    judged = {}
    for name in OURS:
        rows = judged[name] = comparisons(found[name], {other: found[other] for other in names if other in OTHERS})
        print(f"\n| {name} against | {' | '.join(list(rows[0])[1:])} |\n| --- |{' ---: |' * 6}")
        for row in rows:
            other, *numbers = row.values()
            print(f"| {other} | {' | '.join(f'{number:.3g}' for number in numbers)} |")
    level, missed = verdict(judged[f"SmoothedPGD, {DEFAULT}"])
    print(f"\nThe claim is of the default objective, {DEFAULT}; significant is p <= {level:.3g}.")
    print("\n".join(f"MISSED: {line}" for line in missed) or "reached")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
