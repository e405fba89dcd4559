"""What starting costs: seconds of a processor of a fresh process, beside Python's, torch's and ART's own.

    python benchmarks/startup.py

The claims: `import art_rs_plugin` takes less than .05 s beyond Python itself, `art-rs --help` less than .5 s in all.
What certifies needs torch and ART, which cannot be spared; the last row says what is ours beside them.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile

COMMAND = "import sys; sys.argv[1:] = {words!r}.split(); from art_rs_plugin.cli import main; main()"
TRAIN = COMMAND.format(words="train --data digits --model mlp --sigma 0.25 --epochs 1 --seed 0 --out digits")
CERTIFY = COMMAND.format(words="certify --checkpoint digits --data digits --n 100 --max 3 --seed 0 --out digits.jsonl")
CODE = {
    "python alone": "pass",
    "import art_rs_plugin": "import art_rs_plugin",
    "art-rs --help": COMMAND.format(words="--help"),
    "import torch": "import torch",
    "import ART's PyTorchClassifier": "from art.estimators.classification import PyTorchClassifier",
    "import RandomizedSmoothingPyTorch": "from art_rs_plugin import RandomizedSmoothingPyTorch",
    "art-rs certify, three digits": CERTIFY,
}


def seconds(code, folder):
    """Seconds of a processor, user and system, of a process that runs the code."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    return spent() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        seconds(TRAIN, folder)
        taken = {name: [] for name in CODE}
        for _ in range(repeats):  # interleaved, so that whatever else runs slows all of them
            for name, code in CODE.items():
                taken[name].append(seconds(code.replace("digits.jsonl", f"{len(taken[name])}.jsonl"), folder))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    print(f"medians of {repeats}\n\n| start | seconds | beyond Python |\n| --- | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {median - medians['python alone']:.3f} |")
    ours = medians["art-rs certify, three digits"] / medians["import ART's PyTorchClassifier"]
    print(f"\nart-rs certify takes {ours:.2f} times what importing ART's classifier does")


if __name__ == "__main__":
    main()
