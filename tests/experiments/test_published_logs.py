"""The authors' own logs, against pandas on the raw text and against the printed tables."""

import numpy as np
import pandas as pd
import pytest

from art_rs_plugin.core.curves import certified_accuracy
from art_rs_plugin.experiments.logs import read_log, write_tsv

CIFAR, IMAGENET = "certify/cifar10/resnet110", "certify/imagenet/resnet50"
ROWS = {f"{IMAGENET}/noise_0.25/test/sigma_0.25": 427, f"{IMAGENET}/noise_0.50/train/sigma_0.50": 513}

# Cohen et al. 2019, Tables 2 and 3 as printed: radii 0, .5, ... 3 on ImageNet, and 0, .25, ... 1.5 on CIFAR-10
PRINTED = {
    f"{IMAGENET}/noise_0.25/test/sigma_0.25": [0.67, 0.49, 0, 0, 0, 0, 0],
    f"{IMAGENET}/noise_0.50/test/sigma_0.50": [0.57, 0.46, 0.37, 0.29, 0, 0, 0],
    f"{IMAGENET}/noise_1.00/test/sigma_1.00": [0.44, 0.38, 0.33, 0.26, 0.19, 0.15, 0.12],
    f"{CIFAR}/noise_0.12/test/sigma_0.12": [0.83, 0.60, 0, 0, 0, 0, 0],
    f"{CIFAR}/noise_0.25/test/sigma_0.25": [0.77, 0.61, 0.42, 0.25, 0, 0, 0],
    f"{CIFAR}/noise_0.50/test/sigma_0.50": [0.66, 0.55, 0.43, 0.32, 0.22, 0.14, 0.08],
    f"{CIFAR}/noise_1.00/test/sigma_1.00": [0.47, 0.41, 0.34, 0.28, 0.22, 0.17, 0.14],
}
# Table 3 prints all 10 000 images, the logs hold 500 of them: where the two differ, this is what the logs give
COUNTED = {
    f"{CIFAR}/noise_0.12/test/sigma_0.12": [0.814, 0.586, 0, 0, 0, 0, 0],
    f"{CIFAR}/noise_0.25/test/sigma_0.25": [0.748, 0.600, 0.428, 0.266, 0, 0, 0],
    f"{CIFAR}/noise_0.50/test/sigma_0.50": [0.652, 0.546, 0.414, 0.320, 0.234, 0.152, 0.094],
    f"{CIFAR}/noise_1.00/test/sigma_1.00": [0.472, 0.392, 0.340, 0.278, 0.216, 0.174, 0.140],
}


def radii_of(name):
    return np.arange(7) * (0.25 if name.startswith(CIFAR) else 0.5)


def share_certified(log, radii):
    return certified_accuracy(log["prediction"].to_numpy(), log["radius"].to_numpy(), log["label"].to_numpy(), radii)


def test_every_published_log_is_read(reference):
    folder = reference / "certlogs" / "cohen2019"
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) == 17
    for path in paths:
        name, raw, log = path.relative_to(folder).as_posix(), pd.read_csv(path, sep="\t"), read_log(path)
        assert len(log) == len(raw) == ROWS.get(name, 500)
        assert log.attrs["source"] == str(path)
        seconds = pd.to_timedelta(raw["time"]).dt.total_seconds() if raw["time"].dtype != float else raw["time"]
        columns = {"index": raw["idx"], "label": raw["label"], "prediction": raw["predict"]}
        columns |= {"radius": raw["radius"]} if name.startswith("certify") else {}
        pd.testing.assert_frame_equal(log, pd.DataFrame(columns | {"seconds": seconds}), check_like=False)


@pytest.mark.parametrize("name", PRINTED)
def test_tables_2_and_3_from_the_logs(reference, name):
    path = reference / "certlogs" / "cohen2019" / name
    raw, radii = pd.read_csv(path, sep="\t"), radii_of(name)
    independent = [((raw.correct == 1) & (raw.radius >= r)).mean() for r in radii]
    ours = share_certified(read_log(path), radii)
    np.testing.assert_array_equal(ours, independent)
    if name in COUNTED:
        np.testing.assert_allclose(ours, COUNTED[name], rtol=0, atol=1e-12)
        # the print is within chance: two standard errors of a share of 500 are up to .045
        np.testing.assert_allclose(ours, PRINTED[name], rtol=0, atol=0.045)
    else:  # Table 2 prints these very logs
        np.testing.assert_allclose(ours, PRINTED[name], rtol=0, atol=0.005)


def test_written_and_read_again_a_published_log_is_the_same(reference, tmp_path):
    for path in (reference / "certlogs" / "cohen2019").rglob("*_*"):
        if path.is_file():
            log = read_log(path)
            write_tsv(log, tmp_path / "log", decimals=20)
            pd.testing.assert_frame_equal(read_log(tmp_path / "log"), log)


# ledgers
