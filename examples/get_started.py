"""ART's get-started, smoothed: train under noise, certify, attack, evaluate. Runs in seconds on embedded digits.

python examples/get_started.py
"""

import argparse

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent

from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch, evaluate_attack
from art_rs_plugin.experiments import datasets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and votes")
    quick = parser.parse_args().quick
    images, votes = (10, 1_000) if quick else (50, 10_000)

    # 1. Data: real scans of digits, float32 in [0, 1], and any PyTorch model that returns logits.
    x_train, y_train = datasets.load("digits", "train").arrays()
    x_test, y_test = datasets.load("digits", "test").arrays(range(images))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    # 2. The smoothed classifier: sigma is in the unit of x.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    estimator = RandomizedSmoothingPyTorch(model, sigma=0.25, n=votes, seed=0, optimizer=optimizer, clip_values=(0, 1))

    # 3. Train the base classifier under the noise it will vote with.
    GaussianAugmentationTrainer(estimator, nb_epochs=20).fit(x_train, y_train)

    # 4. Certify. An abstention is (-1, 0.0).
    prediction, radius = estimator.certify(x_test)
    for r in (0.0, 0.25, 0.5):
        print(f"certified accuracy at radius {r:.2f}: {np.mean((prediction == y_test) & (radius >= r)):.2f}")

    # 5. Attack the smoothed classifier with ART, at a norm beyond most of those radii, and judge by PREDICT on votes
    #    it has not seen. Pass y: ART would else derive it from predict, where an abstention names no class.
    attack = ProjectedGradientDescent(estimator, norm=2, eps=1.0, eps_step=0.25, max_iter=10, verbose=False)
    x_adversarial = attack.generate(x_test, y=y_test)
    judged = evaluate_attack(estimator, x_test, x_adversarial, y_test)
    print(f"clean: {judged.clean_right.value:.2f} right")
    print(f"attacked: {judged.right.value:.2f} right and {judged.abstain.value:.2f} abstaining")


if __name__ == "__main__":
    main()
