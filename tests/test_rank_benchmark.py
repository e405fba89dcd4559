"""The simulation of many devices in benchmarks/ranks.py, against what is known of it."""

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ranks.py"))
in_use, calls = SCRIPT["in_use"], SCRIPT["calls"]


def test_calls_ask_for_every_vote_once_and_in_looks():
    assert calls([350], n0=100, first=100) == [100, 100, 50, 75, 25]
    assert sum(calls([350, 100_100, 210], n0=100, first=100)) == 350 + 100_100 + 210
    assert calls([350, 100_100, 210], n0=100, first=100)[:3] == [300, 300, 50 + 50 + 10]


@pytest.mark.parametrize("help_", [False, True])
def test_equal_images_keep_all_devices_at_work(help_):
    assert in_use(np.full(64, 3_000), 8, 100, 100, help_) == pytest.approx(1.0)
    assert in_use(np.full(64, 3_000), 1, 100, 100, help_) == pytest.approx(1.0)


def test_one_image_alone_keeps_one_device_at_work_and_with_help_more():
    alone = in_use(np.array([100_100]), 4, 100, 100, False)
    assert alone == pytest.approx(1 / 4)
    assert 2 * alone < in_use(np.array([100_100]), 4, 100, 100, True) < 1


def test_hard_images_at_the_end_keep_nobody_waiting_where_there_is_help():
    each = np.random.default_rng(0).choice([325, 3_000, 100_100], 2_000, p=[0.5, 0.4, 0.1])
    alone, helped = (in_use(each, 64, 100, 100, help_) for help_ in (False, True))
    assert alone < 0.9
    assert 0.95 < helped < 1
