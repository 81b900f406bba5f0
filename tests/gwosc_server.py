"""A server on this machine that answers as gwosc.org does: api/v2 listings in pages, and strain files with ranges.

The paths and keys are those that gwosc 0.8 asks for and reads. A test makes it misbehave, a given number of times.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Row = dict[str, object]


@dataclass
class Misbehaviour:
    """What happens to the next ``times`` requests of a path that contains ``where``."""

    where: str
    times: int = 1
    status: int = 0
    """Answer that, and no body."""
    cut_after: int | None = None
    """Close the connection after that many bytes of the body."""
    promise: int = 0
    """Bytes by which the declared length exceeds the body."""
    pause: float = 0.0
    """s between blocks of 64 KiB."""
    length: bool = True
    """Whether to say how long the body is; without, it ends with the connection."""
    body: bytes | None = None
    """In the place of what is asked for."""


@dataclass
class GwoscServer:
    """The server; ``with GwoscServer() as server`` starts and stops it."""

    ranges: bool = True
    """Whether it can send a part of a file."""
    files: dict[str, bytes] = field(default_factory=dict)
    events: dict[str, Row] = field(default_factory=dict)
    runs: dict[str, Row] = field(default_factory=dict)
    event_files: dict[str, list[Row]] = field(default_factory=dict)
    run_files: dict[str, list[Row]] = field(default_factory=dict)
    misbehaviours: list[Misbehaviour] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path with query, and the Range header, of every request."""

    def __enter__(self) -> GwoscServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def add_event(self, name: str, gps: float, run: str = "O2", version: int = 1) -> None:
        self.events[f"{name}-v{version}"] = {
            "name": name,
            "shortName": f"{name}-v{version}",
            "gps": gps,
            "version": version,
            "catalog": "GWTC-1-confident",
            "run": run,
            "detectors": ["H1", "L1"],
        }
        self.event_files.setdefault(f"{name}-v{version}", [])

    def add_event_file(self, event: str, path: Path, url: str | None = None) -> str:
        """Publish a file of an event; where it is to be had."""
        place = url or f"/eventapi/json/GWTC-1-confident/{event}/{path.name}"
        self.files[place] = path.read_bytes()
        row = _row(path)
        self.event_files[event].append({**row, "file_format": "HDF5", "download_url": f"{self.host}{place}"})
        return place

    def add_run(self, name: str, start: int, end: int, detectors: list[str]) -> None:
        self.runs[name] = {"name": name, "gps_start": start, "gps_end": end, "detectors": detectors}
        self.run_files[name] = []

    def add_run_file(self, run: str, path: Path) -> str:
        """Publish a file of an observing run; where it is to be had."""
        place = f"/archive/data/{run}/{path.name}"
        self.files[place] = path.read_bytes()
        self.run_files[run].append({**_row(path), "hdf5_url": f"{self.host}{place}?format=api"})
        return place

    def fetched(self, ending: str = ".hdf5") -> list[tuple[str, str]]:
        """File name and Range header of every request for a file."""
        paths = [(urlsplit(path).path, span) for path, span in self.asked]
        return [(path.rpartition("/")[2], span) for path, span in paths if path.endswith(ending)]

    def misbehaviour(self, path: str) -> Misbehaviour | None:
        for each in self.misbehaviours:
            if each.times and each.where in path:
                each.times -= 1
                return each
        return None

    def answer(self, target: str) -> object | None:
        """The JSON of an API path; None for what there is not."""
        parts = [part for part in urlsplit(target).path.split("/") if part][2:]
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        match parts:
            case ["event-versions"]:
                return self._page(target, list(self.events.values()), query)
            case ["event-versions", name]:
                return self.events.get(self._latest(name))
            case ["event-versions", name, "strain-files"] if self._latest(name) in self.events:
                rows = [row for row in self.event_files[self._latest(name)] if _asked_for(row, query)]
                return self._page(target, rows, query)
            case ["runs"]:
                return self._page(target, list(self.runs.values()), query)
            case ["runs", name, "strain-files"] if name in self.runs:
                rows = [row for row in self.run_files[name] if _asked_for(row, query)]
                return self._page(target, rows, query)
        return None

    def _latest(self, name: str) -> str:
        versions = sorted(short for short, event in self.events.items() if event["name"] == name)
        return versions[-1] if versions else name

    def _page(self, target: str, rows: list[Row], query: dict[str, str]) -> Row:
        size, number = min(int(query.get("pagesize", 20)), 20), int(query.get("page", 1))
        pages = max(1, math.ceil(len(rows) / size))
        base = f"{self.host}{target.split('&page=')[0]}"
        return {
            "next": f"{base}&page={number + 1}" if number < pages else None,
            "previous": None,
            "results_count": len(rows),
            "results_per_page": size,
            "num_pages": pages,
            "page_number": number,
            "results": rows[(number - 1) * size : number * size],
        }


def _row(path: Path) -> Row:
    """What GWOSC lists of a file, all of which its name says."""
    _, tag, start, duration = path.stem.split("-")
    return {
        "detector": tag[:2],
        "gps_start": int(start),
        "duration": int(duration),
        "sample_rate_kHz": 16 if "_16" in tag else 4,
    }


def _asked_for(row: Row, query: dict[str, str]) -> bool:
    start, duration = int(str(row["gps_start"])), int(str(row["duration"]))
    return (
        query.get("detector", row["detector"]) == row["detector"]
        and int(query.get("sample-rate", str(row["sample_rate_kHz"]))) == row["sample_rate_kHz"]
        and int(query.get("duration", duration)) == duration
        and int(query.get("start", start)) < start + duration
        and int(query.get("stop", start)) >= start
    )


def _handler(server: GwoscServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            span = self.headers.get("Range", "")
            server.asked.append((self.path, span))
            bad = server.misbehaviour(self.path) or Misbehaviour("")
            if bad.status:
                return self._send(bad.status, b"", {}, Misbehaviour(""))
            if urlsplit(self.path).path in server.files:
                return self._file(server.files[urlsplit(self.path).path], span, bad)
            found = server.answer(self.path) if self.path.startswith("/api/v2/") else None
            body = json.dumps({"detail": "Not found."} if found is None else found).encode()
            self._send(404 if found is None else 200, body, {"Content-Type": "application/json"}, bad)

        def _file(self, body: bytes, span: str, bad: Misbehaviour) -> None:
            tag = f'"{hash(body) & 0xFFFFFFFF:x}"'
            headers = {"Content-Type": "application/x-hdf5", "ETag": tag}
            same = self.headers.get("If-Range", tag) == tag
            if not (span and server.ranges and same):
                return self._send(200, body, headers, bad)
            first = int(span.removeprefix("bytes=").rstrip("-"))
            if first >= len(body):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"}, bad)
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self._send(206, body[first:], headers, bad)

        def _send(self, status: int, body: bytes, headers: dict[str, str], bad: Misbehaviour) -> None:
            body = body if bad.body is None else bad.body
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if bad.length:
                self.send_header("Content-Length", str(len(body) + bad.promise))
            if not bad.length or bad.promise or bad.cut_after is not None:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            body = body[: bad.cut_after]
            write: Callable[[bytes], object] = self.wfile.write
            try:
                for at in range(0, len(body), 1 << 16):
                    write(body[at : at + (1 << 16)])
                    time.sleep(bad.pause)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the other side was interrupted

    return Handler
