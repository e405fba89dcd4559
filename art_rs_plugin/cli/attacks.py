"""`art-rs attack` and `art-rs tightness`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import bar, reported, say
from art_rs_plugin.cli.options import Precision, Split

ATTACK_EXAMPLE = "attack --checkpoint runs/digits --data digits --eps 0.5 --max 20 --out attack.jsonl"
TIGHTNESS_EXAMPLE = "tightness --checkpoint runs/digits --data digits --certificates digits.jsonl --out tightness"


class AttackName(str, Enum):
    """Names in `experiments.attacks.ATTACKS`."""

    SMOOTHED_PGD = "smoothed-pgd"
    SMOOTHED_DDN = "smoothed-ddn"


class Objective(str, Enum):
    """What an attack ascends."""

    EXPECTED_LOSS = "expected_loss"
    SMOOTHADV = "smoothadv"


class Norm(str, Enum):
    """What an attack bounds."""

    L2 = "2"
    INF = "inf"


Attack = Annotated[AttackName, typer.Option("--attack", help="Which attack.")]
AttackNorm = Annotated[Norm, typer.Option(help="Norm of a perturbation.")]
MaxIter = Annotated[int, typer.Option(help="Steps of the attack.")]
NumSamples = Annotated[int, typer.Option(help="Noise draws per image and step.")]
Ascends = Annotated[
    Objective, typer.Option(help="Mean loss over the draws (Cohen et al.), or of the mean softmax (Salman et al.).")
]
Votes = Annotated[int, typer.Option(help="Fresh votes that judge what was found.")]
Alpha = Annotated[float, typer.Option(help="Probability of a prediction that is not g's, at most.")]
Sigma = Annotated[float | None, typer.Option(help="Noise of the smoothed network, if not the checkpoint's own.")]


def attack(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Ledger, a line per image; if it exists, the run goes on.")],
    eps: Annotated[
        float | None, typer.Option(help="Greatest norm of a perturbation, in the unit of the input.")
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="Ledger of certificates: attack these images' certified classes.")
    ] = None,
    times_radius: Annotated[
        float | None, typer.Option(help="Greatest norm as a multiple of each image's certified radius.")
    ] = None,
    attack_: Attack = AttackName.SMOOTHED_PGD,
    norm: AttackNorm = Norm.L2,
    max_iter: MaxIter = 20,
    num_samples: NumSamples = 32,
    objective: Ascends = Objective.EXPECTED_LOSS,
    n: Votes = 1_000,
    alpha: Alpha = 0.001,
    sigma: Sigma = None,
    model: options.ModelName = None,
    split: Split = Split.TEST,
    max_: options.Most = None,
    every: options.Every = 1,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    device: options.Where = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    precision: options.Arithmetic = Precision.FP32,
    compile_: options.Compile = None,
) -> None:
    """Attack the smoothed classifier, and judge what was found by fresh votes."""
    with reported(f"what is finished is in {out}"), options.joined() as ranks:
        from art_rs_plugin.experiments import attacks

        images = options.load(data, split, data_root, download)
        estimator = options.smoothed(
            checkpoint,
            images,
            sigma,
            model,
            device,
            precision,
            compile_,
            n=n,
            alpha=alpha,
            seed=seed,
            clip_values=(0.0, 1.0),
        )
        plan = attacks.Plan(
            attack=attack_.value,
            norm="inf" if norm is Norm.INF else 2,
            max_iter=max_iter,
            num_samples=num_samples,
            objective=objective.value,
        )
        with bar("attack") as on_row:
            attacks.attack(
                estimator,
                images,
                options.selection(images, max_, every),
                out,
                plan=plan,
                eps=eps,
                certificates=None if certificates is None else attacks.certified(certificates, estimator, images),
                times_radius=times_radius,
                n=n,
                alpha=alpha,
                batch_size=batch_size,
                ranks=ranks,
                on_row=on_row,
            )
        if not ranks.first:
            return
        say(str(attacks.judged(out)))
        say(f"Ledger: {out}")


def tightness(
    checkpoint: options.Checkpoint,
    data: options.Data,
    certificates: Annotated[Path, typer.Option(help="Ledger of certificates, as `art-rs certify` writes it.")],
    out: Annotated[Path, typer.Option(help="Folder for ledgers, table and picture; if it exists, the run goes on.")],
    times: Annotated[str, typer.Option(help="Multiples of the certified radius.")] = "1,1.5,2",
    attack_: Attack = AttackName.SMOOTHED_PGD,
    max_iter: MaxIter = 20,
    num_samples: NumSamples = 32,
    objective: Ascends = Objective.EXPECTED_LOSS,
    n: Votes = 1_000,
    alpha: Alpha = 0.001,
    sigma: Sigma = None,
    model: options.ModelName = None,
    split: Split = Split.TEST,
    max_: options.Most = None,
    every: options.Every = 1,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    device: options.Where = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    precision: options.Arithmetic = Precision.FP32,
    compile_: options.Compile = None,
) -> None:
    """How tight certificates are: for which share of them an attack succeeds within k times the radius."""
    with reported(f"what is finished is in {out}"), options.joined() as ranks:
        from art_rs_plugin.experiments import attacks
        from art_rs_plugin.experiments.curve import to_markdown

        multiples = options.numbers(times, "times")
        images = options.load(data, split, data_root, download)
        estimator = options.smoothed(
            checkpoint,
            images,
            sigma,
            model,
            device,
            precision,
            compile_,
            n=n,
            alpha=alpha,
            seed=seed,
            clip_values=(0.0, 1.0),
        )
        made = attacks.certified(certificates, estimator, images)
        plan = attacks.Plan(attack=attack_.value, max_iter=max_iter, num_samples=num_samples, objective=objective.value)
        ledgers = {multiple: out / f"times-{multiple:g}.jsonl" for multiple in multiples}
        for multiple, path in ledgers.items():
            with bar(f"{multiple:g} R") as on_row:
                attacks.attack(
                    estimator,
                    images,
                    options.selection(images, max_, every),
                    path,
                    plan=plan,
                    certificates=made,
                    times_radius=multiple,
                    n=n,
                    alpha=alpha,
                    batch_size=batch_size,
                    ranks=ranks,
                    on_row=on_row,
                )
        if not ranks.first:
            return
        files = attacks.write_tightness(ledgers, out)
        say(to_markdown(attacks.tightness_table(ledgers)).rstrip())
        for path in [*ledgers.values(), *files]:
            say(f"{path}")
