"""The registry: our names, other packages' entry points, and those that are broken."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from torch import nn

from art_rs_plugin import certifiers
from art_rs_plugin.certifiers import Certifier, UpperBound
from art_rs_plugin.core.certificate import Certificate
from art_rs_plugin.experiments import compare


class Theirs(Certifier):
    """Another package's."""

    name = "theirs"
    certifies = "f"

    @classmethod
    def build(cls, model, *, input_shape, nb_classes):
        return cls()

    def certify(self, x, y=None, *, indices=None):
        return [Certificate(prediction=0, radius=1.0, index=i, certifies="f", alpha=0.0) for i in range(len(x))]


NOT_ONE = 3


@pytest.fixture
def plugins(monkeypatch):
    """Pretends that these entry points are installed."""

    def install(*pairs):
        entries = [EntryPoint(name, value, certifiers.GROUP) for name, value in pairs]
        monkeypatch.setattr(certifiers, "entry_points", lambda group: entries if group == certifiers.GROUP else [])

    return install


def test_every_name_of_ours_has_a_class_of_that_name():
    assert {"attack-bound", "crown", "fast-lin", "smoothing", "smoothing-lecuyer", "smoothing-li"} <= set(
        certifiers.available()
    )
    for name in certifiers._OURS:
        kind = certifiers.get(name)
        assert issubclass(kind, (Certifier, UpperBound))
        assert kind.name == name
        assert kind.__doc__


def test_another_packages_certifier_is_found_and_made(plugins):
    plugins(("theirs", f"{__name__}:Theirs"))
    assert "theirs" in certifiers.available()
    made = certifiers.get("theirs").build(nn.Identity(), input_shape=(2,), nb_classes=2)
    assert [certificate.radius for certificate in made.certify(np.zeros((2, 2)))] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "no_such_package.module:Thing",
            r"`broken` of no_such_package.module:Thing cannot be imported: ModuleNotFoundError",
        ),
        (f"{__name__}:Missing", "cannot be imported: AttributeError"),
        (f"{__name__}:NOT_ONE", "must be a subclass of Certifier or UpperBound, got 3"),
    ],
)
def test_a_broken_one_is_reported_and_left_out_and_harms_no_other(plugins, value, said):
    plugins(("broken", value), ("theirs", f"{__name__}:Theirs"))
    with pytest.warns(UserWarning, match=f"{said}.*; it is left out"):
        names = certifiers.available()
    assert set(names) == {*certifiers._OURS, "theirs"}
    with pytest.raises(ImportError, match=said):
        certifiers.get("broken")
    with pytest.raises(ImportError, match=said):
        compare.Entry(certifier="broken", checkpoint="a")
    assert certifiers.get("theirs") is Theirs
    assert certifiers.get("crown").name == "crown"


def test_no_package_takes_a_name_that_is_taken(plugins):
    plugins(("crown", f"{__name__}:Theirs"), ("theirs", f"{__name__}:Theirs"), ("theirs", f"{__name__}:NOT_ONE"))
    with pytest.warns(UserWarning, match="is left out") as warned:
        names = certifiers.available()
    assert len(warned) == 2
    assert names.count("crown") == names.count("theirs") == 1
    with pytest.warns(UserWarning, match="is left out"):
        assert certifiers.get("theirs") is Theirs
    assert certifiers.get("crown") is not Theirs


def test_an_unknown_name_gets_the_names_that_there_are():
    with pytest.raises(ValueError, match=r"`certifier` must be one of .*crown, fast-lin.*, got 'corwn'"):
        certifiers.get("corwn")


def test_importing_the_registry_imports_no_certifier():
    code = (
        "import sys, art_rs_plugin.certifiers as c; c.available(); print([m for m in sys.modules if m[:4] == 'art.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
