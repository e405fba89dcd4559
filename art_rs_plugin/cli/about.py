"""`art-rs version`."""

from __future__ import annotations

from typing import Annotated

import typer

from art_rs_plugin.cli.console import say

VERSION_EXAMPLE = "version --verbose"

_PACKAGES = (
    "adversarial-robustness-toolbox", "torch", "torchvision", "numpy", "scipy", "statsmodels", "scikit-learn", "pandas",
    "matplotlib", "safetensors", "typer",
)  # fmt: skip


def version(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what a bug report needs: platform, packages, processor, GPUs.")
    ] = False,
) -> None:
    """Print the version."""
    import art_rs_plugin

    say(f"art-rs-plugin {art_rs_plugin.__version__}")
    if verbose:
        for name, value in _facts().items():
            say(f"{name}: {value}")


def _facts() -> dict[str, str]:
    import os
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, entry_points
    from importlib.metadata import version as installed

    import torch

    facts = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    facts["platform"] = platform.platform()
    for package in _PACKAGES:
        try:
            facts[package] = installed(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    facts["processor"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    facts["torch threads"] = str(torch.get_num_threads())
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    facts["compiler"] = "none" if compiler is None else os.path.basename(compiler)
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU alone"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts["gpu"] = f"{', '.join(names) or 'none found'}; {cuda}"
    theirs = [f"{entry.name} = {entry.value}" for entry in entry_points(group="art_rs_plugin.certifiers")]
    facts["certifiers of other packages"] = ", ".join(theirs) or "none"
    return facts
