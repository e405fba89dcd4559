"""Are large images harder to certify? Twice the resolution, twice the noise, twice the radius (Proposition 7).

Cohen et al. 2019, Appendix G: a network that averages every 2 x 2 pixels sees noise of half the sigma, so that at
twice the resolution the same accuracy comes with twice the l2 radius. On embedded digits, within a minute; other data
sets are read from `--data-root`. With --out, the table as CSV and the picture of the paper's Figure 4.

python examples/resolution.py
"""

import argparse
from pathlib import Path

from art_rs_plugin.experiments import curve, datasets
from art_rs_plugin.experiments.paper import images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--sigma", type=float, default=0.25, help="at the low resolution")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer images and votes")
    options = parser.parse_args()
    many, n = (20, 1_000) if options.quick else (200, 10_000)

    train, test = (datasets.load(options.data, split, root=options.data_root) for split in ("train", "test"))
    table = images.doubled_radius(train, test, sigma=options.sigma, images=many, n=n)
    print(curve.to_markdown(table))
    low, high = table["average radius"]
    print(f"average radius at twice the resolution: {high / low:.2f} times that at the low one")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "resolution.csv", index=False)
        curve.save_figure(images.resolutions(test, sigma=options.sigma), options.out / "resolution.png")


if __name__ == "__main__":
    main()
