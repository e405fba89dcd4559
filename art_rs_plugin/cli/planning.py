"""`art-rs plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import options
from art_rs_plugin.cli.console import reported, say
from art_rs_plugin.cli.options import DEFAULT_RADII, Precision, Rule

PLAN_EXAMPLE = "plan --data imagenet --model resnet50 --sigma 0.5 --n 100000 --gpus 64 --rate 2500"


def plan(
    data: Annotated[str, typer.Option(help="Data set: digits, mnist, cifar10, svhn, imagenet; it need not be there.")],
    model: Annotated[str, typer.Option(help="Network, as `art-rs train --model` takes it.")],
    sigma: Annotated[float, typer.Option(help="Noise to certify with.")],
    gpus: Annotated[int, typer.Option(help="Devices that share the work, a rank of torchrun each.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Votes a second of one device; measured here, with random weights, if not given."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Ledger of some such images: looks draws as many votes as it would of those.")
    ] = None,
    n: Annotated[
        int, typer.Option(help="Votes that bound the class probability; the most of them for looks.")
    ] = 100_000,
    n0: Annotated[int, typer.Option(help="Votes that select the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong, at most.")] = 0.001,
    radii: Annotated[str, typer.Option(help="Radii that looks settles, in the unit of the input.")] = DEFAULT_RADII,
    max_: options.Most = None,
    every: options.Every = 1,
    batch_size: options.BatchSize = None,
    device: options.Where = None,
    precision: options.Arithmetic = Precision.FP32,
    compile_: options.Compile = None,
) -> None:
    """What certifying a test set will cost, by fixed numbers of votes and by looks, before it is begun."""
    with reported("nothing is written"):
        import torch

        from art_rs_plugin.core import checks
        from art_rs_plugin.experiments import plan as planning

        images = planning.images_of(data, max_, every)
        budgets = {
            rule.value: options.budget(rule, options.numbers(radii), n0, n, "clopper-pearson", None)
            for rule in (Rule.FIXED, Rule.LOOKS)
        }
        checks.whole("gpus", gpus)
        likely, whose = planning.probabilities_like(data, checks.positive("sigma", sigma), like)
        where = options.torch_device(device)
        if rate is None:
            found = planning.measured_rate(
                model,
                data,
                sigma,
                n,
                device="gpu" if where == "cuda" else "cpu",
                batch_size=batch_size,
                precision=precision.value,
                compile="auto" if compile_ is None else compile_,
            )
        else:
            found = planning.Rate(checks.positive("rate", rate), "as given")
        rows = planning.rows_of_a_pass(data, torch.device(where), batch_size)
        table = planning.table(
            budgets,
            images=images,
            p={"fixed": [0.5], "looks": likely},
            sigma=sigma,
            alpha=alpha,
            rate=found.votes,
            rows=rows,
            devices=gpus,
        )
        say(f"{images} images of {data}, {model}, sigma {sigma:g}, on {gpus} device{'s' * (gpus > 1)}")
        say(f"{found.votes:.4g} votes a second of one device ({found.source}); passes of {rows}\n")
        say(planning.to_text(table))
        say(f"\nlooks: radii {radii}, simulated at the class probabilities of {whose}")
