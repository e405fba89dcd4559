"""Smoothing beside deterministic certifiers, each on a network of its own: what is certified, and how far.

    python examples/compare_certifiers.py            # MNIST; a quarter of an hour on two cores
    python examples/compare_certifiers.py --quick    # digits, embedded; seconds

A network is trained under noise and certified by votes, with today's radius and those that came before it; a network of
the same architecture is trained without noise worth speaking of and certified by linear bounds; attacks say how far any
certificate could reach. Certificates of g and of f are of different classifiers: what a user gets is the whole row.
"""

import argparse
import tempfile
from pathlib import Path

from art_rs_plugin.experiments import compare, datasets, recipes, side_by_side, training


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, help="folder to keep and to go on from; a temporary one if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare_in(options.out or Path(temporary), options)


def compare_in(out, options):
    name, epochs, images, n = ("digits", 3, 5, 500) if options.quick else ("mnist", 10, 100, 10_000)
    data = datasets.load(name, "train", root=options.data_root)
    # in the unit of a pixel's range: .02 is next to nothing, and keeps one training loop
    for sigma in (0.5, 0.02):
        folder = out / f"sigma-{sigma:g}"
        recipe = recipes.Recipe(epochs=epochs, batch_size=64, lr=0.05)
        training.train(data, "mlp", sigma, folder, recipe=recipe, seed=0)
    smooth, plain = (out / f"sigma-{sigma:g}" for sigma in (0.5, 0.02))
    votes = {"n": n, "alpha": 0.001}
    comparison = compare.Comparison(
        data=name,
        images=images,
        radii=(0.0, 0.1, 0.25, 0.5, 1.0),
        entries=(
            compare.Entry(certifier="smoothing", checkpoint=smooth, options=votes),
            compare.Entry(certifier="smoothing-li", checkpoint=smooth, options=votes),
            compare.Entry(certifier="smoothing-lecuyer", checkpoint=smooth, options=votes),
            compare.Entry(
                certifier="attack-bound", checkpoint=smooth, label="attacks on smoothing", options={"sigma": 0.5}
            ),
            compare.Entry(certifier="crown", checkpoint=plain),
            compare.Entry(certifier="fast-lin", checkpoint=plain),
            compare.Entry(certifier="attack-bound", checkpoint=plain, label="attacks on the network"),
        ),
    )
    ledgers = compare.run(comparison, out, data_root=options.data_root)
    dimension = data.arrays([0])[0].size
    for path in side_by_side.write(ledgers, comparison.radii, comparison.norm, dimension, out):
        if path.suffix == ".md":
            print(path.read_text())


if __name__ == "__main__":
    main()
