"""Curves: the table against plain counting, the drawn steps against the definition, the files as files."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from art_rs_plugin.experiments.curve import curve_table, plot, save_figure, to_markdown, write_curve
from art_rs_plugin.experiments.logs import read_log


def log_of(seed=0, size=200, **columns):
    chance = np.random.default_rng(seed)
    label = chance.integers(0, 3, size)
    prediction = chance.integers(-1, 3, size)
    radius = np.where(prediction < 0, 0.0, np.round(chance.exponential(0.3, size), 2))
    frame = pd.DataFrame({"index": range(size), "label": label, "prediction": prediction, "radius": radius})
    return frame.assign(seconds=1.0, **columns)


def at_least(log, radius):
    """The definition: share of the examples that are right and certified at this radius."""
    right = sum(p == y and r >= radius for p, y, r in zip(log.prediction, log.label, log.radius, strict=True))
    return right / len(log)


# the table


def test_the_table_counts_as_the_definition_does():
    logs, radii = {"a": log_of(0), "b": log_of(1, 77)}, [0.5, 0, 0.25, 0.5]
    table = curve_table(logs, radii)
    assert list(table.columns) == ["name", "examples", "abstained", 0.0, 0.25, 0.5, "average radius"]
    for (name, log), (_, row) in zip(logs.items(), table.iterrows(), strict=True):
        assert (row["name"], row["examples"]) == (name, len(log))
        assert row["abstained"] == pytest.approx(sum(log.prediction == -1) / len(log), abs=1e-15)
        assert [row[r] for r in (0.0, 0.25, 0.5)] == pytest.approx(
            [at_least(log, r) for r in (0, 0.25, 0.5)], abs=1e-15
        )
        right = log[log.prediction == log.label]
        assert row["average radius"] == pytest.approx(right.radius.sum() / len(log), rel=1e-12)


def test_an_abstention_is_wrong_even_where_the_label_is_also_minus_one():
    log = pd.DataFrame({"label": [-1, 0], "prediction": [-1, 0], "radius": [9.0, 1.0]})
    row = curve_table({"log": log}, [0.5]).iloc[0]
    assert (row["abstained"], row[0.5], row["average radius"]) == (0.5, 0.5, 0.5)
    assert drawn(plot({"log": log}))(0.5) == 0.5


def test_markdown_is_aligned_and_its_numbers_are_rounded_down():
    table = pd.DataFrame(
        [["σ = 0.25 | a\nb", 500, 0.0996, 0.748, 0.42899], ["b", 7, 0.0, 1.0, 0.9999]],
        columns=["name", "examples", "abstained", 0.25, "average radius"],
    )
    assert to_markdown(table) == (
        "| name            | examples | abstained | r = 0.25 | average radius |\n"
        "| --------------- | -------: | --------: | -------: | -------------: |\n"
        "| σ = 0.25 \\| a b |      500 |     0.099 |    0.748 |          0.428 |\n"
        "| b               |        7 |     0.000 |    1.000 |          0.999 |\n"
    )


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
def test_a_radius_to_report_must_be_finite_and_not_negative(radius):
    with pytest.raises(ValueError, match="`radii` must be finite numbers of at least 0"):
        curve_table({"a": log_of()}, [radius])


def test_logs_without_examples_or_radii_are_refused_by_name():
    for act in (lambda logs: curve_table(logs, [0]), plot):
        with pytest.raises(ValueError, match="log 'p' has no radii"):
            act({"a": log_of(), "p": log_of().drop(columns="radius")})
        with pytest.raises(ValueError, match="log 'e' has no examples"):
            act({"e": log_of(size=0)})
    with pytest.raises(ValueError, match="at least one log"):
        plot({})


# the picture


def drawn(figure, line=0):
    """The function that a step line shows, read off its vertices."""
    x, y = figure.axes[0].lines[line].get_data()
    assert figure.axes[0].lines[line].get_drawstyle() == "steps-pre"
    assert (np.diff(x) >= 0).all()
    return lambda radius: y[np.searchsorted(x, radius, side="left")] if radius <= x[-1] else 0.0


def test_the_steps_are_exact_at_between_and_just_beyond_the_radii():
    logs = {"a": log_of(0), "b": log_of(1, 77)}
    figure = plot(logs)
    for line, log in enumerate(logs.values()):
        curve, radii = drawn(figure, line), np.unique(log.radius)
        for radius in [*radii, *np.nextafter(radii, 9), *(radii[:-1] + np.diff(radii) / 2), 99]:
            assert curve(radius) == pytest.approx(at_least(log, radius), abs=1e-15)


def test_a_log_with_nothing_certified_is_a_line_at_zero():
    log = log_of().assign(prediction=-1, radius=0.0)
    figure = plot({"nothing": log})
    assert drawn(figure)(0) == 0
    assert figure.axes[0].get_xlim() == (0, 1)


def test_six_lines_differ_without_colour_and_the_axes_say_what_they_show():
    figure = plot({str(seed): log_of(seed) for seed in range(6)})
    axes = figure.axes[0]
    assert len({str(line._dash_pattern) for line in axes.lines}) == 6
    assert len({line.get_color() for line in axes.lines}) == 6
    assert "radius" in axes.get_xlabel()
    assert "unit of the input" in axes.get_xlabel()
    assert axes.get_ylabel() == "certified accuracy"


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_n_and_alpha_stand_in_the_title_where_shared_and_else_in_the_legend():
    one, other = log_of(n=100_000, alpha=0.001), log_of(n=1000, alpha=0.05)
    shared, mixed = plot({"a": one, "b": one}), plot({"a": one, "b": other, "c": log_of()})
    assert shared.axes[0].get_title() == "Certified accuracy (n = 100\u2009000, α = 0.001)"
    assert legend_of(shared) == ["a", "b"]
    assert mixed.axes[0].get_title() == "Certified accuracy"
    assert legend_of(mixed) == ["a (n = 100\u2009000, α = 0.001)", "b (n = 1\u2009000, α = 0.05)", "c"]


def test_hostile_names_are_shown_as_they_are(tmp_path):
    names = ["$\\frac{1$", "_hidden", "<b>&--\x01\n", "x" * 300, "\udc80"]
    paths = write_curve({name: log_of() for name in names}, [0], tmp_path)
    figure = plot({name: log_of() for name in names})
    assert legend_of(figure) == ["$\\frac{1$", "_hidden", "<b>&--??", f"{'x' * 28} … {'x' * 28}", "?"]
    ET.parse(paths[3])


# the files


def test_the_folder_holds_table_and_picture(tmp_path):
    logs = {"a": log_of(0, n=1000, alpha=0.001), "b": log_of(1, n=1000, alpha=0.001)}
    paths = write_curve(logs, [0, 0.25, 0.5], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["curve.md", "curve.csv", "curve.png", "curve.svg"]
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)  # nothing half-written is left
    table = curve_table(logs, [0, 0.25, 0.5])
    assert paths[0].read_text(encoding="utf-8") == to_markdown(table)
    pd.testing.assert_frame_equal(pd.read_csv(paths[1]), table.rename(columns=str), check_exact=True)
    picture = imread(paths[2])
    assert picture.shape[0] > 600
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20
    assert ET.parse(paths[3]).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_logs_give_the_same_svg(tmp_path):
    content = []
    for name in ("a.svg", "b.svg"):
        save_figure(plot({"log": log_of()}), tmp_path / name)
        content.append((tmp_path / name).read_bytes())
    assert content[0] == content[1]
    assert b"dc:date" not in content[0]


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    write_curve({"log": log_of()}, [0], tmp_path)
    assert dict(matplotlib.rcParams) == before
    code = "import sys, art_rs_plugin.experiments.curve; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_authors_logs_give_their_table_and_curve(reference):
    name = "certify/cifar10/resnet110/noise_0.25/test/sigma_0.25"
    log = read_log(reference / "certlogs" / "cohen2019" / name)
    table = curve_table({"σ = 0.25": log}, [0, 0.25, 0.5, 0.75, 1])
    assert to_markdown(table).splitlines()[2].split("|")[4:9] == [
        f" {share:>{len(head)}} "
        for share, head in zip(
            ["0.748", "0.600", "0.428", "0.266", "0.000"],
            ["r = 0", "r = 0.25", "r = 0.5", "r = 0.75", "r = 1"],
            strict=True,
        )
    ]
    curve = drawn(plot({"log": log}))
    assert [curve(r) for r in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0.748, 0.6, 0.428, 0.266, 0], abs=1e-12)
