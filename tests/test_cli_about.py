"""`art-rs version`: the version alone, and what a bug report needs."""

import platform

import torch
from typer.testing import CliRunner

import art_rs_plugin
from art_rs_plugin.cli import app


def said(*words: str) -> list[str]:
    result = CliRunner().invoke(app, ["version", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.splitlines()


def test_the_version_alone() -> None:
    assert said() == [f"art-rs-plugin {art_rs_plugin.__version__}"]


def test_what_a_bug_report_needs_and_no_path() -> None:
    first, *lines = said("--verbose")
    facts = dict(line.split(": ", 1) for line in lines)
    assert first == said()[0]
    assert facts["python"].startswith(platform.python_version())
    assert facts["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["adversarial-robustness-toolbox"].startswith("1.")
    assert "missing" not in facts.values()
    assert facts["torch threads"] == str(torch.get_num_threads())
    assert "cores" in facts["processor"]
    assert "/" not in facts["compiler"]
    assert set(facts) >= {"platform", "gpu", "certifiers of other packages"}
