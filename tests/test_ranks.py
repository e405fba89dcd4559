"""Ranks: who is one, what they agree on, and what they say of one that is missing."""

import threading
import time
from functools import partial

import company
import pytest

from art_rs_plugin import ranks
from art_rs_plugin.ranks import ALONE, RankError, started

FOUR = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch):
    for name in (*ranks.VARIABLES, "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def be(monkeypatch, **values):
    for name, value in {**FOUR, **values}.items():
        monkeypatch.setenv(name, value)


class TestStarted:
    def test_a_process_that_nobody_started_so_is_alone(self, monkeypatch):
        assert started() == (0, 1)
        monkeypatch.setenv("WORLD_SIZE", "8")  # a stray one
        assert started() == (0, 1)
        with ranks.joined() as alone:
            assert alone is ALONE

    def test_torchruns_variables_say_which_rank_this_is(self, monkeypatch):
        be(monkeypatch)
        assert started() == (1, 4)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"MASTER_PORT": ""}, "MASTER_PORT must be set"),
            ({"RANK": "4"}, "below WORLD_SIZE, got 4 of 4"),
            ({"WORLD_SIZE": "four"}, "whole numbers, got RANK='1', WORLD_SIZE='four'"),
        ],
    )
    def test_half_of_them_is_an_error(self, monkeypatch, values, said):
        be(monkeypatch, **values)
        with pytest.raises(ValueError, match=said):
            started()


class TestTogether:
    def test_what_one_finds_out_all_know(self):
        assert company.in_threads(3, lambda some: some.share("n", lambda: some.rank + 7)) == [7, 7, 7]
        assert ALONE.share("n", lambda: 7) == 7

    def test_an_error_of_rank_0_is_everybodys(self):
        def fail():
            raise ValueError("no such folder")

        first, second = company.in_threads(2, lambda some: some.share("n", fail))
        assert (type(first), str(first)) == (ValueError, "no such folder")
        assert isinstance(second, RankError)
        assert "no such folder" in str(second)

    def test_scopes_do_not_meet(self):
        def work(some):
            scopes = [some.scope() for _ in range(2)]
            return [scope.share("n", partial(scope.count, "rows", 1)) for scope in scopes]

        assert company.in_threads(2, work) == [[1, 1]] * 2

    def test_those_who_agree_go_on(self):
        about = {"model": {"hash": "sha256:1"}, "radii": (0.0, 0.5)}
        assert company.in_threads(3, lambda some: some.agree(about)) == [None] * 3

    @pytest.mark.parametrize(
        ("name", "other", "said"),
        [
            ("model", {"hash": "sha256:2"}, r'`model.hash` is "sha256:1" on rank 0, "sha256:2" on rank 2'),
            ("versions", {"torch": "2.6"}, r'`versions.torch` is "2.14" on rank 0, "2.6" on rank 2'),
            ("precision", "bf16", r'`precision` is "fp32" on rank 0, "bf16" on rank 2'),
            ("seed", None, r"`seed` is 0 on rank 0, null on rank 2"),
            ("images", "sha256:4", r'`images` is "sha256:3" on rank 0, "sha256:4" on rank 2'),
        ],
    )
    def test_those_who_do_not_agree_all_stop_and_say_in_what(self, name, other, said):
        about = {
            "model": {"hash": "sha256:1"}, "versions": {"torch": "2.14"}, "precision": "fp32", "seed": 0,
            "images": "sha256:3",
        }  # fmt: skip
        ends = company.in_threads(3, lambda some: some.agree({**about, name: other} if some.rank == 2 else about))
        for end in ends:
            assert isinstance(end, RankError)
            assert said in str(end)


class TestMissing:
    """Real stores, and seconds instead of minutes."""

    def test_a_rank_that_does_not_come_is_named(self, monkeypatch):
        be(monkeypatch, RANK="0", WORLD_SIZE="3", MASTER_PORT=str(company.free_port()))
        with pytest.raises(RankError, match=r"rank 1, 2 of 3 has not come in 1\.5 s"), ranks.joined(timeout=1.5):
            pass

    def test_a_store_that_nobody_serves_is_named(self, monkeypatch):
        be(monkeypatch, MASTER_PORT="1")
        with pytest.raises(RankError, match=r"no answer from 127.0.0.1:1 in 0\.3 s"), ranks.joined(timeout=0.3):
            pass

    @pytest.mark.slow
    def test_a_rank_that_falls_silent_is_named(self):
        """The second one comes, and is killed: rank 0 waits for it no longer than it must."""
        rank_1 = "import os; from art_rs_plugin import ranks; ranks.joined(9.0).__enter__(); os._exit(9)"
        rank_0 = (
            "import time; from art_rs_plugin import ranks\n"
            "with ranks.joined(9.0) as some:\n"
            "    some._life._timeout, some._life._every = 1.0, 0.1\n"
            "    begun = time.monotonic()\n"
            "    try: some.take('never')\n"
            "    except ranks.RankError as error: print(error, time.monotonic() - begun < 8)\n"
        )
        (code, said), (killed, _) = company.finished(company.start([["-c", rank_0], ["-c", rank_1]]))
        assert (code, killed) == (0, 9), said
        assert "rank 1 has not been heard of for 1 s" in said
        assert "True" in said

    def test_two_processes_of_one_rank_are_refused(self):
        from torch.distributed import HashStore

        store = HashStore()
        ranks._gather(store, 0, 1, 1.0)
        with pytest.raises(RankError, match="rank 0 has come before"):
            ranks._gather(store, 0, 1, 1.0)


def listen_until(life, until):
    while time.monotonic() < until:
        life.listen()
        time.sleep(0.05)


@pytest.mark.slow
def test_signs_of_life_are_heard():
    from torch.distributed import HashStore

    store = HashStore()
    first, second = (ranks._Life(store, rank, 2, 5.0) for rank in range(2))
    try:
        listen_until(first, time.monotonic() + 8)
        second.stop()
        until = time.monotonic() + 60
        with pytest.raises(RankError, match="rank 1 has not been heard of"):
            listen_until(first, until)
    finally:
        first.stop()
    assert "art-rs-life" not in [thread.name for thread in threading.enumerate()]
