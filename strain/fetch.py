"""Fetch the strain around events, given by name, or between two GPS times from gwosc.org, and print the files' paths.

    python -m gwtwins.strain.fetch GW170814                          an event's files, one a detector
    python -m gwtwins.strain.fetch --gps 1186740000 1186750000       what was recorded between two GPS times
    python scan_strain.py $(python -m gwtwins.strain.fetch GW170814)

Files are kept in $GWTWINS_CACHE/strain (~/.cache/gwtwins/strain), each with its SHA-256, and fetched once; a transfer
that was cut goes on where it was. What has been fetched is there without a network too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from gwtwins.strain.command import parse, write_text
from gwtwins.strain.download import download
from gwtwins.strain.errors import EXIT_TERMINATED, InputError, run_command
from gwtwins.strain.http_session import Unreachable, open_session
from gwtwins.strain.published import DETECTORS, Archive, StrainFile
from gwtwins.strain.small_file import read_json

_MAX_LISTING = 16 << 20  # bytes; a month of three detectors has 200 KiB

HOST = "https://gwosc.org"
RATES = (4096, 16384)  # Hz
DURATIONS = (4096, 32)  # s, of an event's files


@dataclasses.dataclass
class FetchConfig:
    """What to fetch, and to where."""

    gps: list[float] | None = None
    """Two GPS times, A B, in the place of event names: every file of the observing runs with strain between them."""
    detectors: str = ""
    """Detectors as in H1,L1; each of them must have strain there. All of H1 L1 V1 K1 that have some, if empty."""
    rate: int = 4096
    """Samples per second, 4096 or 16384."""
    duration: int = 4096
    """Seconds of an event's files, 4096 or 32. 32 s (1 MB) will do for a look; a background and its false-alarm rate
    need 4096 s (130 MB a detector), and from GWTC-4 on nothing shorter is published."""
    host: str = HOST
    """Server to ask."""
    out: str = ""
    """Folder for the files; strain/ in the cache if empty."""

    def names(self) -> list[str]:
        """The detectors that were named, in their order; none if any will do."""
        return [name.strip() for name in self.detectors.split(",") if name.strip()]

    def check(self) -> None:
        """Raise InputError for what cannot be asked for."""
        if self.rate not in RATES:
            raise InputError(f"--rate {self.rate}", "is not published", "4096 or 16384 Hz")
        if self.duration not in DURATIONS:
            raise InputError(f"--duration {self.duration}", "is not published", "4096 or 32 s")
        for name in self.names():
            if name not in DETECTORS:
                raise InputError(f"--detectors {self.detectors}", f"unknown {name!r}", "some of " + ",".join(DETECTORS))
        if self.gps is not None and (len(self.gps) != 2 or not 0 < self.gps[0] < self.gps[1] < 1e10):
            said = " ".join(f"{each:.12g}" for each in self.gps)
            raise InputError(f"--gps {said}", "is no stretch of time", "two GPS times in seconds, the earlier first")
        if not re.fullmatch(r"https?://[\w.:\[\]-]+(/[\w./-]*)?", self.host):
            raise InputError(f"--host {self.host}", "is not a server", f"an address like {HOST}")


def fetch(config: FetchConfig, events: Sequence[str] = (), progress: bool = True) -> list[Path]:
    """Fetch what ``config`` and ``events`` name, unless it is there, and return where it is.

    Raises:
        Unreachable: no network, and the files or their list are not in the folder.
        InputError: an unknown event (the nearest names are said); no such strain; no room; a server out of order.
    """
    config.check()
    if bool(events) == bool(config.gps):
        raise InputError("gwtwins.strain.fetch", "nothing to fetch, or too much", "names of events, or --gps A B")
    folder = _folder(config)
    queries: list[str | list[float]] = [*events] if config.gps is None else [config.gps]
    with open_session() as session:
        archive = Archive(config.host.rstrip("/"), session, config.rate, config.names())
        listed = [file for query in queries for file in _files(query, archive, config.duration, folder)]
        files = {file.name: file for file in listed}  # two events may lie in one file
        return [
            download(file.url, folder, session, partial(_check, file=file, rate=config.rate), progress)
            for file in files.values()
        ]


def _folder(config: FetchConfig) -> Path:
    if config.out:
        folder = Path(config.out)
    else:
        from gwtwins.strain.bank import cache_folder  # brings torch, which takes seconds

        folder = cache_folder() / "strain"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made: {error.strerror}", "a folder for --out") from error
    return folder


def _files(query: str | list[float], archive: Archive, duration: int, folder: Path) -> list[StrainFile]:
    """The files that answer a query. The answer is kept: where there is no network, what it named is still found."""
    asked = [query, archive.detectors, archive.rate, duration, archive.host]
    kept = folder / f".listing-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"
    try:
        if isinstance(query, str):
            files = archive.of_event(query, duration)
        else:
            files = archive.between(math.floor(query[0]), math.ceil(query[1]))
    except Unreachable as fault:
        try:
            answer = read_json(kept, _MAX_LISTING, "a listing of strain files")
            files = [StrainFile.at(url) for url in answer["urls"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise fault from None
        print(f"{archive.host} cannot be reached; going by its answer of {_date(answer)}", file=sys.stderr)
        return files
    with suppress(OSError):  # a folder that others filled and nobody may write to
        write_text(kept, json.dumps({"date": time.strftime("%Y-%m-%d"), "urls": [file.url for file in files]}))
    return files


def _date(answer: dict[str, Any]) -> str:
    date = str(answer.get("date"))
    return date if re.fullmatch(r"\d{4}-\d\d-\d\d", date) else "an unknown day"


def _check(path: Path, file: StrainFile, rate: int) -> None:
    """Raise InputError unless the file can be read and holds what its name says."""
    from gwtwins.strain.gwosc import read_gwosc

    held = read_gwosc(path, required=())
    said = (file.detector, file.start, file.duration, rate)
    found = (held.detector, held.gps_start, held.good.size, held.rate)
    if said != found:
        words = "{} from {:.0f} on for {} s at {:.0f} Hz"
        raise InputError(path, "holds " + words.format(*found), words.format(*said))


def _with_both_times(argv: list[str]) -> list[str]:
    """``--gps A B`` as the one word that the parser takes."""
    if "--gps" not in argv:
        return argv
    at = argv.index("--gps")
    times = argv[at + 1 : at + 3]
    if len(times) != 2 or not all(re.fullmatch(r"\d+(\.\d*)?", each) for each in times):
        raise InputError(" ".join(["--gps", *times]), "is no stretch of time", "two GPS times in seconds, A B")
    return [*argv[:at], f"--gps=[{times[0]},{times[1]}]", *argv[at + 3 :]]


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring. Returns 0, or raises what :func:`fetch` raises."""
    argv = _with_both_times(list(sys.argv[1:] if argv is None else argv))
    what, _, kept = (__doc__ or "").split("\n\n")
    (config,), flat = parse("gwtwins.strain.fetch", f"{what} {kept}", [FetchConfig], argv, positional="events")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    try:
        paths = fetch(config, flat["events"])
    except (KeyboardInterrupt, SystemExit):
        print("what has arrived is kept; the same command goes on from there", file=sys.stderr)
        raise
    print(*paths, sep="\n")  # only now: $(...) gets all of them or none
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
