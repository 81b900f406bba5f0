"""Which strain files GWOSC publishes for an event or a stretch of time, asked through the gwosc client.

An event has files of its own, of 32 and 4096 s; from GWTC-4 on only the observing run's, 4096 s each, are there.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from gwtwins.strain.errors import InputError
from gwtwins.strain.http_session import http_fault

DETECTORS = ("H1", "L1", "V1", "K1")

_EVENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{1,60}")
# LIGO-T050017 lays it down: X-X1_TAG-START-DURATION.hdf5.
_NAME = re.compile(r"([A-Z])-(?P<detector>\1\d)_\w{1,80}-(?P<start>\d{9,10})-(?P<duration>\d{1,5})\.hdf5", re.ASCII)
_PAGE = 500  # rows of a listing at a time


@dataclass(frozen=True)
class StrainFile:
    """A published file, as its name describes it."""

    url: str
    name: str
    detector: str
    start: int
    """GPS s."""
    duration: int
    """s."""

    @property
    def end(self) -> int:
        """One past the last second, GPS s."""
        return self.start + self.duration

    @classmethod
    def at(cls, url: str) -> StrainFile:
        """The file behind a URL.

        Raises:
            InputError: the URL is not of the web, or its last part is not a strain file's name.
        """
        parts = urlsplit(url)
        name = parts.path.rpartition("/")[2]
        described = _NAME.fullmatch(name)
        if parts.scheme not in ("http", "https") or described is None:
            raise InputError(url[:200], "is not a strain file", "http(s)://.../X-X1_TAG-START-DURATION.hdf5")
        return cls(url, name, described["detector"], int(described["start"]), int(described["duration"]))


@dataclass
class Archive:
    """GWOSC, or a server that answers as it does."""

    host: str
    session: requests.Session
    rate: int
    """Samples per second of the files, 4096 or 16384."""
    detectors: Sequence[str] = ()
    """Each must have strain; any of ``DETECTORS`` that do, if none is named."""

    def __post_init__(self) -> None:
        try:
            import gwosc.api.v2
            import gwosc.datasets
            import gwosc.locate
        except ImportError as error:
            raise InputError("gwosc", "is not installed", "pip install 'gwtwins[fetch]'") from error
        self._client: Any = gwosc
        self._server = {"host": self.host, "session": self.session, "pagesize": _PAGE}

    def of_event(self, event: str, duration: int) -> list[StrainFile]:
        """One file a detector: ``duration`` seconds around the event, or those of the run that it lies in.

        Raises:
            InputError: an unknown event (the nearest names are said); no such strain; an answer nobody understands.
        """
        if not _EVENT.fullmatch(event):
            raise InputError(event[:80], "is not the name of an event", "a name like GW170814 or GW190521_074359-v2")
        urls: list[str] | None = None
        with _answers(self.host):
            try:
                urls = self._client.locate.get_event_urls(
                    event, sample_rate=self.rate, duration=duration, **self._server
                )
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code != 404:
                    raise
        if urls is None:
            near = self._nearest(event)
            raise InputError(event, f"is not an event {self.host} knows", " or ".join(near) or "a name it lists")
        first = {file.detector: file for file in reversed(self._files(urls))}  # one of each
        files = [first[name] for name in self._present(event, list(first))]
        if lengths := sorted({file.duration for file in files} - {duration}):
            said = " or ".join(map(str, lengths))
            print(f"{event}: no {duration} s files of it are published; {said} s instead", file=sys.stderr)
        return files

    def between(self, start: int, end: int) -> list[StrainFile]:
        """Every file of the observing runs with a second of [start, end), GPS s, in the order of time.

        Raises:
            InputError: there is none; an answer nobody understands.
        """
        files: dict[tuple[str, int], StrainFile] = {}
        with _answers(self.host):
            for name in self.detectors or DETECTORS:
                urls: list[str] = []
                runs = self._client.datasets.find_datasets(
                    detector=name, type="run", segment=(start, end), **self._server
                )
                for run in runs:
                    urls += self._client.locate.get_run_urls(
                        run, name, start, end, sample_rate=self.rate, **self._server
                    )
                for file in self._files(urls):
                    if file.detector == name and file.start < end and file.end > start:
                        files.setdefault((name, file.start), file)  # two runs may list the same
        found = sorted(files.values(), key=lambda file: (file.start, DETECTORS.index(file.detector)))
        for name in self._present(f"{start} to {end}", [file.detector for file in found]):
            own = [file for file in found if file.detector == name]
            covered = sum(min(file.end, end) - max(file.start, start) for file in own)
            if covered < end - start:
                print(f"{name}: {covered} of {end - start} s are published, {len(own)} files", file=sys.stderr)
        return found

    def _files(self, urls: list[str]) -> list[StrainFile]:
        """The files of detectors that can be read; GEO's, which some answers hold, cannot."""
        if self.host.startswith("https:"):  # what was asked for under TLS is not fetched without
            urls = [re.sub(r"\Ahttp:", "https:", url) for url in urls]
        files = [StrainFile.at(url) for url in urls]
        return [file for file in files if file.detector in (self.detectors or DETECTORS)]

    def _present(self, query: str, found: Sequence[str]) -> list[str]:
        """The detectors asked for, every one of which was found, or those found; in order."""
        names = list(self.detectors) or [name for name in DETECTORS if name in found]
        missing = [name for name in names if name not in found]
        if missing or not names:
            fault = f"{self.host} lists no {self.rate} Hz strain" + (f" of {' '.join(missing)}" if missing else "")
            raise InputError(query, fault, "fewer --detectors" if found else "another event or time")
        return names

    def _nearest(self, event: str) -> list[str]:
        """Up to three names of events most like ``event``; none where the server will not list them."""
        try:
            with _answers(self.host):
                listed = self._client.api.v2.fetch_event_versions(**self._server)
                alike = {str(each["name"]).upper(): str(each["name"]) for each in listed}
        except InputError:
            return []
        return [alike[name] for name in difflib.get_close_matches(event.upper(), sorted(alike), 3, 0.6)]


@contextmanager
def _answers(host: str) -> Iterator[None]:
    """Whatever the client raises about a server's answer, as an InputError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about lengths that are not published: said here in other words
            yield
    except InputError:
        raise
    except requests.RequestException as error:
        raise http_fault(host, error) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(host, "the answer cannot be understood", "a server that answers as gwosc.org does") from error
