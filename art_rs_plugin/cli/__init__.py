"""`art-rs`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from art_rs_plugin.cli import (
    about,
    attacks,
    auditing,
    comparing,
    options,
    pairing,
    paper,
    planning,
    reporting,
    training,
)
from art_rs_plugin.cli.console import bar, in_company, leave_if_stopped, print_table, print_votes, reported, say
from art_rs_plugin.cli.options import DEFAULT_RADII, Precision, Rule, Split

app = typer.Typer(
    help="Randomized smoothing for ART: train a base classifier under noise, certify it, draw the curves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


IN_COMPANY = ("certify", "predict", "attack", "tightness", "train")
"""Commands whose work the ranks that torchrun starts share out; any other would be done by each of them."""


@app.callback()
def start(context: typer.Context) -> None:
    """Refuse what is of no use under torchrun, before any work."""
    command = context.invoked_subcommand
    with reported("nothing is half-written"):
        if command not in IN_COMPANY and in_company():
            raise ValueError(
                f"`art-rs {command}` is work for one process: start it without torchrun. Under torchrun ranks share "
                f"the work of {', '.join(IN_COMPANY)}"
            )


@app.command(epilog="Example: art-rs demo --out my-first-certificates")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, ledgers, table and pictures.")] = Path(
        "art-rs-demo"
    ),
) -> None:
    """The main job on embedded real data, in under a minute: train at two sigmas, certify, draw the curves."""
    from art_rs_plugin.experiments import demo as demonstration

    with reported(f"what is finished is in {out}"):
        ledgers, files = demonstration.run(out, say=say, bar=bar)
        print_table(list(ledgers.values()), list(demonstration.RADII))
        say(f"\nWritten to {out}: checkpoints, and")
        for path in [*ledgers.values(), *files]:
            say(f"  {path}")


@app.command(
    epilog="Example: art-rs certify --checkpoint runs/digits --data digits --n 10000 --max 20 --out digits.jsonl"
)
def certify(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Ledger, a line per image; if it exists, the run goes on.")],
    n: Annotated[
        int, typer.Option(help="Votes that bound the class probability; the most of them for looks and pilot.")
    ] = 100_000,
    n0: Annotated[int, typer.Option(help="Votes that select the class.")] = 100,
    budget: Annotated[
        Rule,
        typer.Option(
            help="How many votes to draw: n of them (fixed), until all --radii are settled (looks), or the number that "
            "pays for the average radius (pilot)."
        ),
    ] = Rule.FIXED,
    bound: Annotated[
        str, typer.Option(help="Confidence bound on class probabilities: clopper-pearson, runner-up or randomized.")
    ] = "clopper-pearson",
    cost: Annotated[
        float | None, typer.Option(help="What a vote costs pilot, in units of sigma; 1e-6 if not given.")
    ] = None,
    known_labels: Annotated[
        bool, typer.Option("--known-labels", help="Certify the label's class or none, without votes to select one.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong, at most.")] = 0.001,
    sigma: Annotated[float | None, typer.Option(help="Noise to certify with, if not the checkpoint's own.")] = None,
    model: options.ModelName = None,
    split: Split = Split.TEST,
    max_: options.Most = None,
    every: options.Every = 1,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    device: options.Where = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    radii: Annotated[
        str, typer.Option(help="Radii of the table, in the unit of the input; looks settles these.")
    ] = DEFAULT_RADII,
    precision: options.Arithmetic = Precision.FP32,
    compile_: options.Compile = None,
    sound: options.Sound = False,
    randomness: options.Random = options.Randomness.TORCH,
) -> None:
    """Certify images: an l2 radius each within which the smoothed classifier's prediction cannot change."""
    with reported(f"what is finished is in {out}"), options.joined() as ranks:
        from art_rs_plugin.experiments import runs

        at = options.numbers(radii)
        rule = options.budget(budget, at, n0, n, bound, cost)
        images = options.load(data, split, data_root, download)
        estimator = options.smoothed(
            checkpoint,
            images,
            sigma,
            model,
            device,
            precision,
            compile_,
            n0=n0,
            n=n,
            alpha=alpha,
            seed=seed,
            sound=sound,
            randomness=randomness.value,
        )
        with bar("certify") as on_row:
            runs.certify(
                estimator,
                images,
                options.selection(images, max_, every),
                out,
                budget=rule,
                known_labels=known_labels,
                batch_size=batch_size,
                ranks=ranks,
                on_row=on_row,
            )
        if not ranks.first:
            return
        print_table([out], at)
        if budget is not Rule.FIXED:
            print_votes(out, n)
        say(f"Ledger: {out}")


@app.command(
    epilog="Example: art-rs predict --checkpoint runs/digits --data digits --n 1000 --max 20 --out digits-votes.jsonl"
)
def predict(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Ledger, a line per image; if it exists, the run goes on.")],
    n: Annotated[int, typer.Option(help="Votes per image.")] = 1_000,
    alpha: Annotated[float, typer.Option(help="Probability of a class that is not g's, at most.")] = 0.001,
    sigma: Annotated[float | None, typer.Option(help="Noise to predict with, if not the checkpoint's own.")] = None,
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
    sound: options.Sound = False,
    randomness: options.Random = options.Randomness.TORCH,
) -> None:
    """Predict images with the smoothed classifier, or abstain."""
    with reported(f"what is finished is in {out}"), options.joined() as ranks:
        from art_rs_plugin.experiments import runs
        from art_rs_plugin.experiments.logs import read_log

        images = options.load(data, split, data_root, download)
        estimator = options.smoothed(
            checkpoint,
            images,
            sigma,
            model,
            device,
            precision,
            compile_,
            alpha=alpha,
            seed=seed,
            sound=sound,
            randomness=randomness.value,
        )
        with bar("predict") as on_row:
            runs.predict(
                estimator,
                images,
                options.selection(images, max_, every),
                out,
                n=n,
                batch_size=batch_size,
                ranks=ranks,
                on_row=on_row,
            )
        if not ranks.first:
            return
        log = read_log(out)
        correct = float((log["prediction"] == log["label"]).mean())
        abstained = float((log["prediction"] == -1).mean())
        say("| examples | right | wrong | abstained |\n| ---: | ---: | ---: | ---: |")
        say(f"| {len(log)} | {correct:.3f} | {1 - correct - abstained:.3f} | {abstained:.3f} |")
        say(f"Ledger: {out}")


@app.command(epilog="Example: art-rs curve digits.jsonl --radii 0,0.25,0.5 --out curves")
def curve(
    logs: Annotated[list[Path], typer.Argument(help="Ledgers, or TSV logs of the authors' code.")],
    radii: options.Radii = DEFAULT_RADII,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table (Markdown, CSV) and picture (PNG, SVG).")
    ] = None,
) -> None:
    """Certified accuracy of ledgers: a table, and with --out a picture of the curves."""
    with reported("nothing is half-written"):
        from art_rs_plugin.experiments.curve import write_curve
        from art_rs_plugin.experiments.logs import read_logs

        print_table(logs, options.numbers(radii))
        if out is not None:
            for path in write_curve(read_logs(logs), options.numbers(radii), out):
                say(f"{path}")


for command, words in (
    (training.train, training.TRAIN_EXAMPLE),
    (planning.plan, planning.PLAN_EXAMPLE),
    (attacks.attack, attacks.ATTACK_EXAMPLE),
    (attacks.tightness, attacks.TIGHTNESS_EXAMPLE),
    (comparing.compare, comparing.COMPARE_EXAMPLE),
    (paper.paper, paper.PAPER_EXAMPLE),
    (pairing.paired, pairing.PAIRED_EXAMPLE),
    (auditing.audit, auditing.AUDIT_EXAMPLE),
    (reporting.report, reporting.REPORT_EXAMPLE),
    (about.version, about.VERSION_EXAMPLE),
):
    app.command(epilog=f"Example: art-rs {words}")(command)


def main() -> None:
    """Entry point of `art-rs`."""
    sys.path.append("")  # for a user's own module:factory in the current folder
    try:
        app()
    except SystemExit as end:
        leave_if_stopped(end.code)
        raise
