"""ART's SecurityCurve on the smoothed classifier, beside our own attack and judge, on embedded digits.

ART's curve takes the argmax of `predict`, which makes class 0 of an abstention; the other columns tell the three
outcomes apart. No attack succeeds on a certified image within its radius: the last column is what no attack can go
below, but for errors of probability alpha. Runs within a minute.

python examples/security_curve.py
"""

import argparse

import numpy as np
import torch
from art.evaluations.security_curve import SecurityCurve

from art_rs_plugin import GaussianAugmentationTrainer, Looks, RandomizedSmoothingPyTorch, SmoothedPGD, evaluate_attack
from art_rs_plugin.experiments import datasets

EPS = (0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and steps")
    quick = parser.parse_args().quick
    images, steps = (20, 5) if quick else (100, 20)

    # 1. As in get_started.py: data, a network, training under noise.
    x_train, y_train = datasets.load("digits", "train").arrays()
    x, y = datasets.load("digits", "test").arrays(range(images))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    estimator = RandomizedSmoothingPyTorch(model, sigma=0.25, seed=0, optimizer=optimizer, clip_values=(0, 1))
    GaussianAugmentationTrainer(estimator, nb_epochs=20).fit(x_train, y_train)

    # 2. ART's curve: PGD at every eps, on g's gradient.
    curve = SecurityCurve(eps=list(EPS))
    options = {"norm": 2, "eps_step": 0.1, "max_iter": steps, "verbose": False}
    _, by_art, clean = curve.evaluate(estimator, x, np.eye(10, dtype=np.float32)[y], **options)

    # 3. Our attack, our judge, and the certificates that bound both from below.
    prediction, radius = estimator.certify(x, budget=Looks(radii=EPS, n_max=2_000 if quick else 20_000))
    print(f"clean accuracy by ART's count: {clean:.3f}")
    print("| eps | ART's PGD and count | SmoothedPGD: right | abstaining | wrong | certified |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for eps, accuracy in zip(EPS, by_art, strict=True):
        x_adversarial = SmoothedPGD(estimator, eps=eps, max_iter=steps).generate(x, y)
        judged = evaluate_attack(estimator, x, x_adversarial, y)
        certified = np.mean((prediction == y) & (radius >= eps))
        shares = (accuracy, judged.right.value, judged.abstain.value, judged.wrong.value, certified)
        print(f"| {eps} |", " | ".join(f"{share:.3f}" for share in shares), "|")


if __name__ == "__main__":
    main()
