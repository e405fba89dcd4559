"""What folders and headers say of logs, and what is said where they do not hold what is needed."""

import json

import pytest
from paper_logs import checkout, write_certified

from art_rs_plugin.experiments.ledger import Ledger
from art_rs_plugin.experiments.paper import sources


def ledger(path, *, rule=None, certifier=None, kind="certify", data="mnist", sigma=0.25):
    header = {"kind": kind, "data": {"name": data, "split": "test", "images": 10}, "seed": 0}
    header |= {"noise": {"name": "gaussian", "sigma": sigma}, "rule": rule or {"name": "fixed", "n": 500}}
    if certifier is not None:
        header["certifier"] = certifier
    with Ledger.open(path, header):
        pass
    return path


def test_the_authors_folders_say_it_all(logs, authors):
    assert len(logs) == 9  # README.md and what is hidden are none
    log = logs.by_sigma("imagenet")[0.5]
    assert (log.data, log.split, log.sigma, log.trained, log.method) == ("imagenet", "test", 0.5, 0.5, "resnet50")
    assert log.path == authors / "certify/imagenet/resnet50/noise_0.50/test/sigma_0.50"
    assert (log.n, log.votes, log.alphas) == (1000, None, (0.01,))
    assert log.setting == "n = 1\u2009000 (supposed), α = 0.01 (inferred)"
    assert list(logs.by_sigma("cifar10")) == [0.12, 0.25]
    assert list(logs.by_training("imagenet", 0.5)) == [0.25, 0.5]
    assert logs.datasets() == ["cifar10", "imagenet"]
    assert [log.votes for log in logs if log.kind == "predict"] == [100, 1000, 100_000]


def test_the_data_set_is_the_first_name_after_certify(tmp_path):
    path = tmp_path / "mnist/certify/best/cifar10/ours/cifar10/steps/resnet110/noise_0.25/test/sigma_0.25"
    (log,) = sources.find([write_certified(path, [990], n=1000, alpha=0.01, sigma=0.25)])
    assert (log.data, log.method, log.sigma) == ("cifar10", "ours", 0.25)


def test_a_header_says_more_than_a_path(tmp_path):
    path = ledger(tmp_path / "cifar10" / "sigma_0.50.jsonl")
    (log,) = sources.find([path])
    assert (log.data, log.sigma, log.trained, log.votes, log.fixed) == ("mnist", 0.25, None, 500, True)
    looks = ledger(tmp_path / "looks.jsonl", rule={"name": "looks", "n_max": 500})
    (log,) = sources.find([looks])
    assert (log.votes, log.fixed) == (None, False)


def test_no_logs_and_two_logs_of_the_same_are_told_with_what_to_give(tmp_path, logs):
    none = sources.find([])
    with pytest.raises(ValueError, match=r"certification logs of `cifar10` are needed .*; give them by --logs"):
        none.by_sigma("cifar10")
    with pytest.raises(ValueError, match=r"certification logs of `svhn` .* among the 9 logs in .* there are none"):
        logs.by_sigma("svhn")
    with pytest.raises(ValueError, match="a folder that `art-rs compare` wrote is needed"):
        logs.compared()
    with pytest.raises(ValueError, match=r"a log of `imagenet` at sigma 1 is needed, got 0\.25, 0\.5"):
        logs.at("imagenet", 1.0)
    with pytest.raises(FileNotFoundError, match=r"logs `.*nowhere` do not exist"):
        sources.find([tmp_path / "nowhere"])
    checkout(tmp_path / "a")
    checkout(tmp_path / "b")
    with pytest.raises(ValueError, match=r"one log of `cifar10` at sigma 0.12 is needed, got .*/a/.* and .*/b/.*"):
        sources.find([tmp_path]).by_sigma("cifar10")
    assert len(sources.find([tmp_path / "a", tmp_path / "a"])) == 9


def test_a_number_of_votes_that_cannot_be_is_noticed(authors):
    log = sources.find([authors], n=30).by_sigma("imagenet")[0.25]
    assert log.alphas == ()
    assert log.level == "α unknown"
    with pytest.raises(ValueError, match=r"are attainable at none of the published levels with 30 votes: .* --n"):
        sources.find([authors], n=30).at("imagenet", 0.25)


def test_an_undetermined_level_gives_a_frame_for_each(tmp_path):
    path = tmp_path / "certify/mnist/net/noise_0.25/test/sigma_0.25"
    counts = [60_000, 70_000, 90_000, 20_000]
    (log,) = sources.find([write_certified(path, counts, n=100_000, alpha=0.001, sigma=0.25)])
    assert log.level == "α = 0.001 or 0.01 (undetermined)"
    frames = log.projected(alpha=0.001)
    assert list(frames) == ["if log's α = 0.001", "if log's α = 0.01"]
    one, other = (frame["radius"].tolist() for frame in frames.values())
    assert one[3] == other[3] == 0.0
    assert all(0 < b < a for a, b in zip(one[:3], other[:3], strict=True))


def test_ledgers_of_comparisons_are_no_logs_of_smoothing(tmp_path):
    ledger(tmp_path / "crown.jsonl", rule={"name": "crown"}, certifier={"certifies": "f", "norm": "2.0", "alpha": 0.0})
    path = ledger(
        tmp_path / "attack.jsonl", kind="distance", rule={"name": "x"}, certifier={"certifies": "f", "norm": "2.0"}
    )
    ledger(tmp_path / "inf.jsonl", kind="distance", rule={"name": "x"}, certifier={"certifies": "f", "norm": "inf"})
    found = sources.find([tmp_path])
    assert len(found.compared()) == 3
    assert [log.path for log in found.attacked("mnist")] == [path]
    with pytest.raises(ValueError, match="certification logs of `mnist` are needed"):
        found.certified("mnist")


def test_other_files_are_passed_over(tmp_path):
    (tmp_path / "a.json").write_text('{"format": "art-rs-ledger/1", broken\n')
    (tmp_path / "d.json").write_text('{"format": "art-rs-ledger/1", "kind": "certify", "data": []}\n')
    (tmp_path / "b.json").write_text(json.dumps({"format": "else"}))
    (tmp_path / "c.bin").write_bytes(bytes(range(256)))
    (tmp_path / "empty").touch()
    assert len(sources.find([tmp_path])) == 0
