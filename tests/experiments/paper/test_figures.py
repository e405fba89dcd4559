"""What figures draw: their lines against the definition, and what must be written on them."""

import math
from itertools import islice

import numpy as np
import pytest
from matplotlib.figure import Figure
from paper_logs import radius_of, write_certified
from scipy.stats import binom, norm

from art_rs_plugin.core.records import Certificate
from art_rs_plugin.experiments.curve import DASHES, styles
from art_rs_plugin.experiments.ledger import Ledger
from art_rs_plugin.experiments.paper import accuracy, baselines, bounds, sources
from art_rs_plugin.experiments.paper.log import Log
from art_rs_plugin.experiments.rows import row_of


def names(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def height(line, at):
    """What a step curve drawn with `where="pre"` is at `at`."""
    x, y = line.get_data()
    return float(y[np.searchsorted(x, at, side="left")]) if at <= x[-1] else 0.0


def share(log: Log, at):
    right = log.frame["prediction"] == log.frame["label"]
    return float((right & (log.frame["radius"] >= at)).mean())


def words(figure: Figure):
    return " ".join([figure.get_supxlabel(), *(text.get_text() for axes in figure.axes for text in axes.texts)])


def test_figure_6_draws_every_sigma_in_a_panel_for_each_data_set(logs):
    figure = accuracy.by_sigma(logs)
    assert [axes.get_title() for axes in figure.axes] == [
        "cifar10, n = 1\u2009000 (supposed)",
        "imagenet, n = 1\u2009000 (supposed)",
    ]
    cifar, imagenet = figure.axes
    assert names(cifar) == ["σ = 0.12, α = 0.01 (inferred)", "σ = 0.25, α = 0.01 (inferred)"]
    for line, log in zip(imagenet.get_lines(), logs.by_sigma("imagenet").values(), strict=True):
        for at in (0.001, 0.1, 0.31, 0.58, 0.9, 1.2):
            assert height(line, at) == pytest.approx(share(log, at))
    # sigma .25 is drawn alike in both
    assert cifar.get_lines()[1].get_color() == imagenet.get_lines()[0].get_color()
    assert cifar.get_lines()[1].get_linestyle() == imagenet.get_lines()[0].get_linestyle()
    assert "TSV logs say neither n nor α" in words(figure)
    for axes in figure.axes:
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            r"$\ell_2$ radius $r$ (unit of the input)",
            "certified accuracy",
        )


def write_comparison(folder, *, data="digits"):
    """Ledgers as `art-rs compare` writes them: certificates of f and g, and distances of an attack on f."""
    about = {"data": {"name": data, "split": "test", "images": 9}, "seed": 0}
    rows = {"crown": [0.1, 0.2, 0.3, 0.4], "smoothing": [0.0, 0.1, 0.5, 0.6]}
    for name, radii in rows.items():
        certifies, alpha = ("g", 0.001) if name == "smoothing" else ("f", 0.0)
        rule = {"name": "fixed", "n": 500, "alpha": alpha} if alpha else {"name": name}
        about_it = {"certifies": certifies, "norm": "2.0", "alpha": alpha}
        with Ledger.open(
            folder / f"{name}.jsonl", {"kind": "certify", "certifier": about_it, "rule": rule, **about}
        ) as made:
            for index, radius in enumerate(radii):
                answer = Certificate(prediction=1 if radius else -1, radius=radius, index=index, alpha=alpha)
                made.append(row_of(answer, 1, 0.5))
    about_it = {"certifies": "f", "norm": "2.0"}
    header = {"kind": "distance", "certifier": about_it, "rule": {"name": "attack-bound"}, **about}
    with Ledger.open(folder / "attack.jsonl", header) as made:
        for index, distance in enumerate([0.0, 0.3, 0.7, None]):
            made.append({"index": index, "label": 1, "seconds": 0.1, "distance": distance})
    return folder


def test_figure_6_draws_what_an_attack_left_of_an_undefended_network(authors, tmp_path):
    write_comparison(tmp_path, data="cifar10")
    figure = accuracy.by_sigma(sources.find([authors, tmp_path], n=1000), "cifar10")
    (axes,) = figure.axes
    assert names(axes)[2:] == ["upper bound: attack on f"]
    line = axes.get_lines()[2]
    # 0.7 and the one never fooled lie beyond the certificates, and are drawn as far as these go
    assert [height(line, at) for at in (0.001, 0.3, 0.301, 0.59)] == [0.75, 0.75, 0.5, 0.5]
    assert "No ledger of an attack" not in words(figure)
    both = words(accuracy.by_sigma(sources.find([authors, tmp_path], n=1000))).replace("\n", " ")
    assert "No ledger of an attack on the undefended network is among the logs of imagenet: no upper bound" in both
    none = words(accuracy.by_sigma(sources.find([authors], n=1000))).replace("\n", " ")
    assert "No ledger of an attack on the undefended network is among the logs: no upper bound" in none


def test_figure_14_draws_theorem_6_in_both_forms(logs):
    figure = accuracy.guaranteed(logs, data="imagenet", sigma=0.25, alpha=None, rho=0.01)
    (axes,) = figure.axes
    assert names(axes) == ["approximate (no guarantee)", "Theorem 6, exact binomial", "Theorem 6, Bernstein"]
    log, m = logs.by_sigma("imagenet")[0.25], 9
    exact = binom.isf(0.01, m, 0.01) / m
    bernstein = 0.01 + math.sqrt(2 * 0.01 * 0.99 * math.log(100) / m) + math.log(100) / (3 * m)
    for line, deduction in zip(axes.get_lines(), (0, exact, bernstein), strict=True):
        for at in (0.001, 0.2, 0.5):
            assert height(line, at) == pytest.approx(max(share(log, at) - deduction, 0), abs=1e-12)
    for said in ("imagenet", "σ = 0.25", "m = 9", "ρ = 0.01", "n = 1\u2009000", "α = 0.01"):
        assert said in axes.get_title().replace("\n", " ")
    assert "Estimand: the share of these 9 images" in words(figure).replace("\n", " ")


def test_the_table_of_guarantees_names_what_each_is_of(logs):
    table = accuracy.confidence(logs, data="imagenet", sigma=0.25, radii=(0.0, 0.2), alpha=None, rho=0.01)
    log, m = logs.by_sigma("imagenet")[0.25], 9
    assert table["of"].tolist() == [
        "nothing: no guarantee",
        *["this test set"] * 2,
        *["the population"] * 2,
        "this test set",
    ]
    assert table["radii"].tolist()[1:] == ["all at once", "all at once", "each by itself", "all at once", "all at once"]
    share_at = np.array([share(log, 0.0), share(log, 0.2)])
    np.testing.assert_allclose(table.iloc[0, 4:].tolist(), share_at)
    exact = binom.isf(0.01, m, 0.01) / m
    np.testing.assert_allclose(table.iloc[1, 4:].tolist(), share_at - exact, atol=1e-12)
    np.testing.assert_allclose(
        table.iloc[4, 4:].tolist(), np.maximum(share_at - math.sqrt(math.log(100) / (2 * m)) - 0.01, 0), atol=1e-12
    )
    # every certificate at once: the counts of the log, bounded at alpha / m
    counts = [1000, 1000, 999, 950, 800, 700, 600, 520]
    stricter = np.array([radius_of(k, 1000, 0.01 / m, 0.25) for k in counts])
    np.testing.assert_allclose(table.iloc[5, 4:].tolist(), [(stricter > 0).sum() / m, (stricter >= 0.2).sum() / m])
    assert table["fails at most"].tolist() == ["", *["0.01"] * 5]


def test_figure_15_draws_a_curve_for_each_training_noise(logs):
    figure = accuracy.by_training(logs)
    # CIFAR-10 was certified at .5 by one network only, which was trained at .25
    assert [axes.get_title() for axes in figure.axes][1] == "imagenet, certified at σ = 0.5, n = 1\u2009000 (supposed)"
    assert [name.split(",")[0] for name in names(figure.axes[1])] == ["trained at σ = 0.25", "trained at σ = 0.5"]
    for line, log in zip(figure.axes[1].get_lines(), logs.by_training("imagenet", 0.5).values(), strict=True):
        assert height(line, 0.2) == pytest.approx(share(log, 0.2))
    with pytest.raises(ValueError, match=r"certification logs of `imagenet` at sigma 3 are needed"):
        accuracy.by_training(logs, data=["imagenet"], sigma=3.0)
    with pytest.raises(
        ValueError, match=r"logs of networks trained at another sigma .* are needed; give them by --logs"
    ):
        accuracy.by_training(sources.find([]))


def test_figure_5_draws_the_formulas():
    left, right = bounds.by_probability().axes
    assert names(left) == ["Cohen et al. (Theorem 1)", "Li et al.", "Lecuyer et al."]
    for line, at_9 in zip(left.get_lines(), (1.281552, 1.031930, 0.390267), strict=True):
        p, radius = line.get_data()
        assert np.interp(0.9, p, radius) == pytest.approx(at_9, abs=1e-3)
    n, radius = right.get_lines()[0].get_data()
    np.testing.assert_allclose(radius, np.maximum(norm.ppf(0.001 ** (1 / n)), 0), atol=1e-6)
    assert right.get_xscale() == "log"
    # 4 sigma at 99.9% take about 10^5 votes, says the paper: 2.2 10^5
    assert 1e5 < np.interp(4.0, radius, n) < 3e5
    assert "α = 0.001" in right.get_title()


def test_figure_16_draws_each_parameter_below_the_supremum():
    a, b, c, d = bounds.by_parameter().axes
    for axes in (a, b):
        *settings, best = (line.get_ydata() for line in axes.get_lines())
        assert all(np.all(setting <= best + 1e-9) for setting in settings)
        beyond = axes.get_lines()[0].get_xdata() > 0.6
        assert np.all(np.max(settings, axis=0)[beyond] > 0.5 * best[beyond])
    for axes, highest in ((c, 0.61), (d, 1.25)):
        radius, supremum = (line.get_ydata() for line in axes.get_lines())
        assert radius.max() == pytest.approx(supremum[0], rel=1e-3)
        assert axes.get_lines()[0].get_xdata()[radius.argmax()] == pytest.approx(highest, rel=0.05)


def test_figure_8_projects_and_says_what_is_an_extrapolation(logs):
    figure = bounds.on_data(logs, data="imagenet", sigma=0.25)
    left, middle, right = figure.axes
    log = logs.by_sigma("imagenet")[0.25]
    top = [radius_of(1000, 1000, 0.01, 0.25), *(radius_of(n, n, 0.001, 0.25) for n in bounds.VOTES)]
    assert [name.split(" (")[0] for name in names(left)] == ["Cohen et al.", "Li et al.", "Lecuyer et al."]
    assert left.get_lines()[0].get_xdata().max() == pytest.approx(top[0], abs=0.001)
    assert names(middle) == [
        "n = 1\u2009000",
        *(
            f"n = {n} (extrapolated)"
            for n in ("10\u2009000", "100\u2009000", "1\u2009000\u2009000", "10\u2009000\u2009000")
        ),
    ]
    assert "extrapolated n certifies nothing" in middle.get_title()
    for line, furthest in zip(middle.get_lines(), top[1:], strict=True):
        assert line.get_xdata().max() == pytest.approx(furthest, abs=1e-6)
    for line, alpha in zip(right.get_lines(), bounds.ALPHAS, strict=True):
        assert line.get_xdata().max() == pytest.approx(radius_of(1000, 1000, alpha, 0.25), abs=1e-6)
        truth = np.mean([radius_of(k, 1000, alpha, 0.25) >= 0.2 for k in (1000, 1000, 999, 950, 800, 700, 600, 520)])
        assert height(line, 0.2) == pytest.approx(truth * 8 / 9)
    assert log.setting.replace("\u2009", " ") in words(figure).replace("\u2009", " ").replace("\n", " ")


def test_figure_8_shows_both_levels_where_they_cannot_be_told_apart(tmp_path):
    path = tmp_path / "certify/cifar10/resnet110/noise_0.50/test/sigma_0.50"
    write_certified(path, [90_000, 80_000, 70_000, 10], n=100_000, alpha=0.01, sigma=0.5)
    left, middle, right = bounds.on_data(sources.find([tmp_path]), data="cifar10", sigma=0.5).axes
    assert "α = 0.001 or 0.01 (undetermined)" in left.get_title()
    for axes, count in ((middle, len(bounds.VOTES)), (right, len(bounds.ALPHAS))):
        ends = [name.split(", ")[-1] for name in names(axes)]
        assert ends == ["if log's α = 0.001", "if log's α = 0.01"] * count
        lines = axes.get_lines()
        for one, other in zip(lines[::2], lines[1::2], strict=True):
            assert one.get_linestyle() == other.get_linestyle()
            assert one.get_color() == other.get_color()
            assert one.get_linewidth() > other.get_linewidth()


def test_lines_are_told_apart_without_colour():
    dashes = [str(look["linestyle"]) for look in islice(styles(), len(DASHES))]
    assert len(set(dashes)) == len(DASHES) == 9


def test_figure_8_in_numbers(logs):
    table = bounds.shares(logs, data="imagenet", radii=(0.0, 0.1, 0.3))
    assert table["sigma"].tolist() == [0.25] * 3 + [0.5] * 3
    ours, li, lecuyer = (table.iloc[row, 2:].astype(float).to_numpy() for row in range(3))
    assert np.all(ours >= li)
    assert np.all(li >= lecuyer)
    low = [share(logs.by_sigma("imagenet")[0.25], at + 0.0006) for at in (0.0, 0.1, 0.3)]
    np.testing.assert_allclose(ours, low)


def test_figure_7_draws_certifiers_of_f_and_of_g_and_where_they_cross(tmp_path):
    logs = sources.find([write_comparison(tmp_path)])
    figure = baselines.compared(logs)
    (axes,) = figure.axes
    assert names(axes) == ["attack (upper bound)", "crown (of f)", "smoothing (of g, n = 500, α = 0.001)"]
    attack, crown, smoothing = axes.get_lines()
    assert [height(crown, at) for at in (0.05, 0.25, 0.41)] == [1.0, 0.5, 0.0]
    assert [height(smoothing, at) for at in (0.05, 0.25, 0.6, 0.61)] == [0.75, 0.5, 0.25, 0.0]
    assert [height(attack, at) for at in (0.05, 0.31)] == [0.75, 0.5]
    assert axes.get_title() == "digits, 4 images"
    assert "Smoothing certifies the smoothed classifier g" in words(figure)
    table = baselines.crossing_points(logs)
    # at .2 < r <= .3 both certify a half; beyond .3 crown certifies a quarter
    assert table.to_dict("records") == [
        {"data": "digits", "below it": "crown", "beyond it": "smoothing", "radius": 0.3, "certified accuracy": 0.5}
    ]
    with pytest.raises(ValueError, match="ledgers of `art-rs compare` on `mnist` are needed"):
        baselines.compared(logs, data="mnist")


def test_hostile_names_are_shown_as_they_are(tmp_path):
    folder = write_comparison(tmp_path, data="$\\frac{data$")
    (folder / "crown.jsonl").rename(folder / "_$x^{.jsonl")
    figure = baselines.compared(sources.find([folder]))
    figure.canvas.draw()
    assert "_$x^{ (of f)" in names(figure.axes[0])
    assert figure.axes[0].get_title() == "$\\frac{data$, 4 images"


def test_figure_13_has_a_panel_for_each_data_set(tmp_path):
    for data in ("digits", "mnist"):
        write_comparison(tmp_path / data, data=data)
    assert [axes.get_title() for axes in baselines.compared(sources.find([tmp_path])).axes] == [
        "digits, 4 images",
        "mnist, 4 images",
    ]
