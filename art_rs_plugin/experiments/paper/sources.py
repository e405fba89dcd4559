"""The logs that tables and figures are made from: ledgers, and TSV files where a checkout of the authors has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from art_rs_plugin.experiments.paper.log import LAYOUT, Log, recognised
from art_rs_plugin.experiments.projection import PAPER_VOTES


class Logs:
    """All logs in some folders.

    :ivar folders: Where they were looked for.
    """

    def __init__(self, logs: Iterable[Log], folders: Sequence[Path]) -> None:
        self._logs = tuple(logs)
        self.folders = tuple(folders)

    def __len__(self) -> int:
        return len(self._logs)

    def __iter__(self) -> Iterator[Log]:
        return iter(self._logs)

    def certified(self, data: str, *, split: str = "test") -> list[Log]:
        """Logs of certificates of g on `data`, by smoothing as in the paper: none that `art-rs compare` wrote.

        :raises ValueError: There are none; says what to give.
        """
        found = [
            log
            for log in self._logs
            if (log.kind, log.data, log.split) == ("certify", data, split)
            and log.sigma is not None
            and "certifier" not in log.header
        ]
        if not found:
            raise ValueError(
                f"certification logs of `{data}` are needed ({split} images): ledgers of `art-rs certify`, or TSV logs "
                f"laid out as {LAYOUT}; {self.looked}"
            )
        return sorted(found, key=lambda log: (log.sigma or 0.0, str(log.path)))

    def by_sigma(self, data: str) -> dict[float, Log]:
        """The log of each sigma on `data`, of networks trained at the sigma that they are certified at.

        :raises ValueError: There are none, or two at the same sigma.
        """
        chosen = self.matched(data)
        return self._one_each(chosen, [log.sigma for log in chosen], f"of `{data}` at sigma")

    def matched(self, data: str) -> list[Log]:
        """Logs of networks trained at the sigma that they are certified at, or that do not say at which.

        :raises ValueError: There are none.
        """
        found = [log for log in self.certified(data) if log.trained in (None, log.sigma)]
        if not found:
            raise ValueError(f"logs of networks certified at the sigma of their training are needed; {self.looked}")
        return found

    def at(self, data: str, sigma: float) -> Log:
        """The log of `by_sigma` at one sigma.

        :raises ValueError: There is none, or nothing is known of its alpha.
        """
        chosen = self.by_sigma(data)
        if sigma not in chosen:
            raise ValueError(
                f"a log of `{data}` at sigma {sigma:g} is needed, got {', '.join(f'{s:g}' for s in chosen)}"
            )
        if not chosen[sigma].alphas:
            raise ValueError(
                f"the radii of {chosen[sigma].path} are attainable at none of the published levels with "
                f"{chosen[sigma].n} votes: give the number of its votes by --n"
            )
        return chosen[sigma]

    def by_training(self, data: str, sigma: float) -> dict[float, Log]:
        """The logs on `data` at one sigma, by the sigma of training.

        :raises ValueError: There are none, or two of the same training.
        """
        chosen = [log for log in self.certified(data) if log.sigma == sigma and log.trained is not None]
        if not chosen:
            raise ValueError(
                f"certification logs of `{data}` at sigma {sigma:g} are needed, of networks trained at several sigmas, "
                f"laid out as {LAYOUT}; {self.looked}"
            )
        return self._one_each(chosen, [log.trained for log in chosen], f"of `{data}` trained at sigma")

    def datasets(self) -> list[str]:
        """Data sets that there are certification logs of, those of the paper first."""
        names = {log.data for log in self._logs if log.kind == "certify" and log.data and "certifier" not in log.header}
        return sorted(names, key=lambda name: (name not in ("cifar10", "imagenet"), name))

    def compared(self) -> list[Log]:
        """Ledgers that `art-rs compare` wrote.

        :raises ValueError: There are none.
        """
        found = [log for log in self._logs if "certifier" in log.header]
        if not found:
            raise ValueError(f"a folder that `art-rs compare` wrote is needed; {self.looked}")
        return found

    def attacked(self, data: str) -> list[Log]:
        """Ledgers of the least l2 distance at which an attack changed f, the base classifier, on `data`; maybe none."""
        return [
            log
            for log in self._logs
            if (log.kind, log.data) == ("distance", data)
            and (log.header["certifier"]["certifies"], float(log.header["certifier"]["norm"])) == ("f", 2.0)
        ]

    @property
    def looked(self) -> str:
        """Where logs were looked for and how many there are, for errors."""
        if not self.folders:
            return "give them by --logs"
        return f"among the {len(self)} logs in {', '.join(map(str, self.folders))} there are none"

    def _one_each(self, logs: Sequence[Log], keys: Sequence[float | None], what: str) -> dict[float, Log]:
        chosen: dict[float, Log] = {}
        for log, key in zip(logs, keys, strict=True):
            assert key is not None
            if key in chosen:
                raise ValueError(
                    f"one log {what} {key:g} is needed, got {chosen[key].path} and {log.path}: give a narrower folder"
                )
            chosen[key] = log
        return dict(sorted(chosen.items()))


def find(paths: Iterable[Path], *, n: int = PAPER_VOTES) -> Logs:
    """Every log in files and folders, hidden folders left out; other files are passed over.

    :param n: Votes of certification logs that do not say theirs, which no TSV log does.
    :raises FileNotFoundError: A path does not exist.
    """
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"logs `{folder}` do not exist")
    files = dict.fromkeys(file for folder in folders for file in _files(folder))
    return Logs([log for file in files if (log := recognised(file, n)) is not None], folders)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith("."):
                yield from _files(inner)
