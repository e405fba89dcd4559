"""Not only images: a certificate for a table of measurements, on scikit-learn's breast-cancer data. Runs in seconds.

sigma and radii are in the unit of `x`. Columns in different units must be brought to one scale first, for one sigma
serves all of them: here each is standardised, so that a radius of 0.5 says that the answer stays the same if the
measurements move by half a standard deviation together, or one of them alone does.

python examples/tabular.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from art_rs_plugin import GaussianAugmentationTrainer, RandomizedSmoothingPyTorch, SmoothedPGD, evaluate_attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer patients and votes")
    quick = parser.parse_args().quick
    patients, votes = (20, 1_000) if quick else (140, 10_000)

    # 1. Thirty measurements of 569 tumours, standardised by what the training set says.
    table = load_breast_cancer()
    x_train, x_test, y_train, y_test = train_test_split(table.data, table.target, test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(x_train)
    x_train, x_test = (scaler.transform(x).astype(np.float32) for x in (x_train, x_test))
    x_test, y_test = x_test[:patients], y_test[:patients]

    # 2. Any network that takes (m, 30). There are no clip_values: a standardised measurement has no bounds.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    estimator = RandomizedSmoothingPyTorch(model, sigma=0.5, n=votes, seed=0, optimizer=optimizer)
    GaussianAugmentationTrainer(estimator, nb_epochs=40).fit(x_train, y_train)

    # 3. Certified accuracy, in standard deviations.
    prediction, radius = estimator.certify(x_test)
    for r in (0.0, 0.5, 1.0):
        print(f"certified accuracy at radius {r:.2f}: {np.mean((prediction == y_test) & (radius >= r)):.2f}")

    # 4. The least certain of those certified right, and what its radius says of one measurement, in its own unit.
    right = np.flatnonzero(prediction == y_test)
    row = right[radius[right].argmin()]
    print(f"least certain: row {row} is {table.target_names[prediction[row]]} within {radius[row]:.3f}")
    for column in (0, 1):
        reach, mean = radius[row] * scaler.scale_[column], scaler.mean_[column]
        print(f"  {table.feature_names[column]} alone may be off by {reach:.3g}, its mean being {mean:.3g}")

    # 5. An attack, twice as far as was certified.
    attack = SmoothedPGD(estimator, eps=2 * radius, max_iter=10)
    judged = evaluate_attack(estimator, x_test, attack.generate(x_test, y=y_test), y_test)
    print(f"attacked at twice the radius: {judged.right.value:.2f} right, {judged.abstain.value:.2f} abstaining")


if __name__ == "__main__":
    main()
