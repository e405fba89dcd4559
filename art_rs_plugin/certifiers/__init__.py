"""Certifiers by name: smoothing, ART's certifiers and the paper's baselines, on one protocol.

    certifier = get("crown").build(model, input_shape=(1, 28, 28), nb_classes=10)
    certificates = certifier.certify(x)

Other packages add theirs by the entry-point group `art_rs_plugin.certifiers`: a name, and where its `Certifier` is.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from art_rs_plugin.certifiers.certifier import Certifier as Certifier
from art_rs_plugin.certifiers.certifier import UpperBound as UpperBound
from art_rs_plugin.certifiers.network import UnsupportedNetwork as UnsupportedNetwork

GROUP = "art_rs_plugin.certifiers"

_OURS = {
    "attack-bound": "attack_bound:AttackBound",
    "art-deepz": "art_zonotopes:ArtDeepZ",
    "art-derandomized": "art_derandomized:ArtDerandomized",
    "art-ibp": "art_zonotopes:ArtIBP",
    "art-macer": "art_smoothing:ArtMACER",
    "art-smoothadv": "art_smoothing:ArtSmoothAdv",
    "art-smoothing": "art_smoothing:ArtSmoothing",
    "art-smoothmix": "art_smoothing:ArtSmoothMix",
    "crown": "crown:Crown",
    "fast-lin": "crown:FastLin",
    "lipschitz-margin": "lipschitz:LipschitzMargin",
    "smoothing": "smoothing:Smoothing",
    "smoothing-lecuyer": "smoothing:SmoothingLecuyer",
    "smoothing-li": "smoothing:SmoothingLi",
    "wong-kolter": "wong_kolter:WongKolter",
}
"""Name -> module of this package, and class: imported when first asked for."""


def available() -> list[str]:
    """Names of certifiers, ours and other packages', which are imported: one that fails is left out, with a warning."""
    names = list(_OURS)
    for name, entry in _theirs().items():
        try:
            _loaded(entry)
        except ImportError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
        else:
            names.append(name)
    return sorted(names)


def get(name: str) -> type[Certifier] | type[UpperBound]:
    """The class of a certifier, or of an upper bound, whose `build` makes one.

    :raises ValueError: There is none of that name; says which there are.
    :raises ImportError: It is another package's and cannot be imported, or is none.
    """
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        found: type[Certifier] | type[UpperBound] = getattr(import_module(f"{__name__}.{module}"), attribute)
        return found
    theirs = _theirs()
    if name not in theirs:
        raise ValueError(f"`certifier` must be one of {', '.join(available())}, got {name!r}")
    return _loaded(theirs[name])


def _loaded(entry: EntryPoint) -> type[Certifier] | type[UpperBound]:
    """Another package's certifier; ImportError if it cannot be imported, or is none."""
    try:
        loaded = entry.load()
    except Exception as error:
        raise ImportError(
            f"certifier `{entry.name}` of {entry.value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, (Certifier, UpperBound))):
        raise ImportError(
            f"certifier `{entry.name}` of {entry.value} must be a subclass of Certifier or UpperBound, got {loaded!r}"
        )
    return loaded


def _theirs() -> dict[str, EntryPoint]:
    """Entry points of other packages; of two with one name the first, and none with a name of ours, with a warning."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in _OURS or entry.name in found:
            taken = f"{__name__}" if entry.name in _OURS else found[entry.name].value
            warnings.warn(f"certifier `{entry.name}` of {entry.value} is left out: {taken} has that name", stacklevel=3)
        else:
            found[entry.name] = entry
    return found
