"""Tables against plain counting on the text of the logs."""

import numpy as np
import pytest
from paper_logs import write_predicted

from art_rs_plugin.experiments.paper import sources, tables


def counted(path, radius):
    """The share of lines that are right with a radius of at least `radius`, from the text alone."""
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return sum(line[4] == "1" and float(line[3]) >= radius for line in lines) / len(lines)


@pytest.mark.parametrize(("data", "radii"), [("cifar10", tables.CIFAR_RADII), ("imagenet", tables.IMAGENET_RADII)])
def test_tables_2_and_3(logs, data, radii):
    table = tables.by_sigma(logs, data=data, radii=radii)
    assert list(table.columns) == ["sigma", *radii]
    assert table["sigma"].is_monotonic_increasing
    for _, row in table.iterrows():
        path = logs.by_sigma(data)[row["sigma"]].path
        assert row[list(radii)].tolist() == pytest.approx([counted(path, r) for r in radii], abs=1e-15)
    assert table.attrs["notes"][0].startswith(
        f"σ = {table['sigma'][0]:g}: 9 images, n = 1\u2009000 (supposed), α = 0.01"
    )


def test_table_1_takes_the_best_sigma_for_each_radius(logs):
    table = tables.best_by_radius(logs, data="imagenet", radii=(0.0, 0.3, 0.6, 1.1))
    paths = {sigma: log.path for sigma, log in logs.by_sigma("imagenet").items()}
    for radius, (_, row) in zip((0.0, 0.3, 0.6, 1.1), table.iterrows(), strict=True):
        shares = {sigma: counted(path, radius) for sigma, path in paths.items()}
        assert row["certified accuracy"] == pytest.approx(max(shares.values()))
        assert row["sigma"] == min(sigma for sigma, share in shares.items() if share == max(shares.values()))
        assert row["standard accuracy"] == pytest.approx(counted(paths[row["sigma"]], 0.0))
    assert table["sigma"].tolist() == [0.25, 0.5, 0.5, 0.5]
    assert table.attrs["notes"][0].startswith("Upper envelope")


def test_envelopes_take_each_methods_best_network(logs, authors, tmp_path):
    table = tables.envelope(logs, data="cifar10", radii=(0.0, 0.2, 0.4))
    paths = [log.path for log in logs.by_sigma("cifar10").values()]  # not the one of other training noise
    assert table.iloc[0].tolist() == [
        "resnet110",
        2,
        *(max(counted(path, r) for path in paths) for r in (0.0, 0.2, 0.4)),
    ]
    text = (authors / "certify/cifar10/resnet110/noise_0.12/test/sigma_0.12").read_text()
    for method in ("ours", "theirs"):
        for sigma in ("0.12", "0.25"):
            path = tmp_path / f"certify/cifar10/{method}/deep/noise_{sigma}/test/sigma_{sigma}"
            path.parent.mkdir(parents=True)
            path.write_text(text if method == "theirs" else text.replace("\t1\t1\t", "\t1\t1\t3"))
    both = tables.envelope(sources.find([tmp_path]), data="cifar10", radii=(0.0, 3.0))
    assert both["method"].tolist() == ["ours", "theirs", "all of them"]
    assert both["networks"].tolist() == [2, 2, 4]
    assert both[3.0].tolist() == [both[3.0][0], 0.0, both[3.0][0]]
    assert both[3.0][0] > 0


def test_in_l_inf_a_radius_is_that_of_the_cube_within_the_ball(logs):
    table = tables.l_inf(logs, data="cifar10", eps=(1, 2))
    paths = [log.path for log in logs.by_sigma("cifar10").values()]
    for eps in (1, 2):
        radius = eps / 255 * np.sqrt(3072)
        assert table[f"{eps}/255"][0] == pytest.approx(max(counted(path, radius) for path in paths))
    assert tables.PIXELS == {
        "digits": 8 * 8,
        "mnist": 28**2,
        "cifar10": 3 * 32**2,
        "svhn": 3 * 32**2,
        "imagenet": 3 * 224**2,
    }
    with pytest.raises(ValueError, match=r"`data` must be one of digits, .*, got 'imagefolder'"):
        tables.l_inf(logs, data="imagefolder")


def test_table_4_by_hand(logs):
    table = tables.predictions(logs, data="imagenet")
    # labels 0 1 2 3; 100 votes say 0 - 1 -, 1 000 say 0 1 1 2, and 100 000 say 0 1 1 3
    assert table["n"].tolist() == [100, 1000]
    assert table.iloc[0].tolist()[1:] == [0.25, 0.0, 0.25, 0.0, 0.5]
    assert table.iloc[1].tolist()[1:] == [0.5, 0.0, 0.25, 0.25, 0.0]
    assert (table.iloc[:, 1:].sum(axis=1) == 1).all()


def test_where_the_gold_standard_abstains_nothing_is_accurate(tmp_path):
    for n, answers in ((100, [0, 1, -1]), (1000, [0, -1, -1])):
        write_predicted(tmp_path / f"predict/mnist/net/noise_0.25/test/N_{n}", [0, 1, 2], answers)
    table = tables.predictions(sources.find([tmp_path]), data="mnist")
    np.testing.assert_allclose(table.iloc[0].tolist(), [100, 1 / 3, 1 / 3, 0, 0, 1 / 3])
    assert "of 3 images they leave 2 open" in table.attrs["notes"][0]


def test_table_4_needs_two_logs_of_the_same_images(tmp_path):
    folder = tmp_path / "predict/mnist/net/noise_0.25/test"
    write_predicted(folder / "N_100", [0, 1], [0, 1])
    with pytest.raises(ValueError, match="logs of PREDICT on `mnist` at two n or more are needed"):
        tables.predictions(sources.find([tmp_path]), data="mnist")
    write_predicted(folder / "N_1000", [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="must be of the same images, got different ones"):
        tables.predictions(sources.find([tmp_path]), data="mnist")
