"""A finished scan as its folder tells it: triggers with their rates, each network's background, what was analysed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwtwins.probes.scan_folder import CONFIG, RESULT
from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_text

SEEN = 1.0
"""A detector has seen a trigger if the statistic, a log-odds, falls by this or more with noise in its place."""
_TRIGGERS = "triggers.csv"
_MAX_BYTES = 256 << 20  # of a file: a million triggers
_BROKEN = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError, csv.Error)


@dataclass(frozen=True)
class StatedRate:
    """A false-alarm rate per year, with the ends of its 68% interval."""

    value: float
    low: float
    high: float
    is_limit: bool
    """No slid trigger is as loud, and `value` is one over the slid live time."""


@dataclass(frozen=True)
class Candidate:
    """A row of triggers.csv."""

    number: int
    """Its place among the triggers, 1 for the loudest."""
    time: float
    """Merger at the geocentre, GPS seconds."""
    stat: float
    part: dict[str, float]
    """For each detector that was on, by how much the statistic is above what it would be with noise there."""
    start: float
    """GPS time at which its window starts."""
    far: StatedRate | None
    """Without its own seconds in the background; None where there is no background."""
    far_inclusive: StatedRate | None
    """With them."""

    @property
    def network(self) -> tuple[str, ...]:
        """The detectors that were on."""
        return tuple(self.part)

    @property
    def seen_in(self) -> tuple[str, ...]:
        """Those of them that the statistic needs."""
        return tuple(name for name, value in self.part.items() if value >= SEEN)


@dataclass(frozen=True)
class Network:
    """A set of detectors: how long they were searched together, and what their slides gave."""

    names: tuple[str, ...]
    searched: float
    """Seconds."""
    slid: float = 0.0
    """Seconds of slid live time, 0 where there is no background."""
    triggers: int = 0
    """Slid ones."""
    loudest: float | None = None
    """Statistic of the loudest of them."""
    low: float = 0.0
    """Statistic at which the first bin of `count` begins."""
    bin: float = 1.0
    count: NDArray[np.int64] | None = None
    """(K,) slid triggers in bins of the statistic."""
    why_none: str = ""
    """Why there is no background."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan wrote."""

    folder: Path
    report: dict[str, Any]
    """scan.json."""
    candidates: list[Candidate]
    """The loudest first."""
    networks: list[Network]
    """That were searched, and those that only the slides made; the longest searched first."""
    analysed: dict[str, list[Span]]
    """GPS time, for each detector there is strain of."""
    left_out: dict[str, list[Span]]
    """The rest of the files' time, with the reason."""
    window: float
    """Seconds of a window."""
    threshold: float
    """Lowest statistic of a trigger."""
    files: list[str]
    """Names of the strain files, empty if the folder does not say."""

    @property
    def detectors(self) -> tuple[str, ...]:
        """Those there is strain of."""
        return tuple(self.analysed)

    @property
    def stretches(self) -> list[Span]:
        """GPS time of the files, those of all detectors together."""
        spans = [Span(s.start, s.end) for part in (self.analysed, self.left_out) for own in part.values() for s in own]
        out: list[Span] = []
        for span in merged(spans):  # which joins what it has in order of the start
            if out and span.start <= out[-1].end + 1e-3:
                out[-1] = Span(out[-1].start, max(out[-1].end, span.end))
            else:
                out.append(span)
        return out

    def network_of(self, names: Sequence[str]) -> Network | None:
        """The network of these detectors."""
        return next((n for n in self.networks if n.names == tuple(names)), None)

    def plot(self, name: str) -> Path | None:
        """A picture that the scan drew, if it is there."""
        path = self.folder / "plots" / name
        return path if path.is_file() else None


def read_scan(folder: Path) -> ScanResult:
    """Read a scan's folder: ``scan.json`` and ``triggers.csv``.

    Raises:
        InputError: one of them is missing, or is not as scan_strain.py writes it.
    """
    folder = Path(folder)
    report = _read(folder / RESULT, lambda text: dict(json.loads(text)))
    candidates = _read(folder / _TRIGGERS, _candidates)
    files = _read(folder / CONFIG, _file_names) if (folder / CONFIG).exists() else []
    try:
        return ScanResult(
            folder,
            report,
            candidates,
            _networks(report),
            {str(name): _spans(spans) for name, spans in report["analysed"].items()},
            {str(name): _spans(spans) for name, spans in report["not_analysed"].items()},
            _number(report["windows"]["seconds"]),
            _number(report["config"]["threshold"]),
            files,
        )
    except _BROKEN as error:
        raise InputError(folder / RESULT, f"cannot be used: {_words(error)}", "what scan_strain.py writes") from error


def _read(path: Path, parse: Any) -> Any:
    text = read_text(path, _MAX_BYTES, "the folder of a finished scan")
    try:
        return parse(text)
    except _BROKEN as error:
        raise InputError(path, f"cannot be used: {_words(error)}", "what scan_strain.py writes") from error


def _words(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _candidates(text: str) -> list[Candidate]:
    found = []
    for number, row in enumerate(csv.DictReader(text.splitlines()), 1):
        names = row["network"].split()
        found.append(
            Candidate(
                number,
                _number(row["time"]),
                _number(row["stat"]),
                {name: _number(row[f"stat_{name}"]) for name in names},
                _number(row["window_start"]),
                _rate(row, "far_per_year", "far"),
                _rate(row, "far_per_year_inclusive", "far_inclusive"),
            )
        )
    return found


def _file_names(text: str) -> list[str]:
    return [Path(str(file["path"])).name for file in json.loads(text)["strain files"]]


def _rate(row: dict[str, str], value: str, ends: str) -> StatedRate | None:
    if not row[value]:
        return None
    low, high = (_number(row[f"{ends}_{end}"]) for end in ("low", "high"))
    return StatedRate(_number(row[value]), low, high, row[f"{ends}_is_limit"] == "1")


def _networks(report: dict[str, Any]) -> list[Network]:
    searched = {str(name): _number(value) for name, value in report["analysed_seconds_by_network"].items()}
    slid = dict(report["background"]["networks"])
    networks = []
    for key in {**searched, **slid}:
        names, seconds, node = tuple(str(key).split()), searched.get(key, 0.0), slid.get(key, {})
        if "slid_seconds" not in node:
            networks.append(Network(names, seconds, why_none=str(node.get("why_none", "it was not slid"))))
            continue
        histogram = node["histogram"]
        networks.append(
            Network(
                names,
                seconds,
                _number(node["slid_seconds"]),
                int(node["triggers"]),
                None if node["loudest"] is None else _number(node["loudest"]),
                _number(histogram["low"]),
                _number(histogram["bin"]),
                np.array(histogram["count"], np.int64).reshape(-1),
            )
        )
    return sorted(networks, key=lambda n: (-n.searched, -n.slid, n.names))


def _spans(nodes: Sequence[dict[str, Any]]) -> list[Span]:
    return [Span(_number(n["start"]), _number(n["end"]), str(n.get("why", ""))) for n in nodes]


def _number(value: Any) -> float:
    """``value`` as a finite number."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} where a number is expected")
    return number
