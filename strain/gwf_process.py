"""Frame files, read in a process of their own: on some damaged ones the frame library crashes, or never comes back.

One such process serves all frame files of the process that asks; it is started anew where it has died. What came to
light of its end, or the lack of one, is an InputError that names the file.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.strain_file import StrainFile

LIMIT_SECONDS = 120  # for one answer; a frame of 4096 s at 16384 Hz takes 5
_LIMIT_BYTES = 4 << 30  # of address space; such a frame takes 1.5 GiB
_LAYOUT = "a complete frame file"


def index_gwf(path: Path, channel: str | None = None, required: Sequence[str] | None = None) -> list[StrainFile]:
    """As :func:`gwtwins.strain.gwf.index_gwf`."""
    answer = _server().ask(path, do="index", channel=channel, required=required and list(required))
    return [StrainFile(**file) for file in answer["files"]]


class GwfReader:
    """As :class:`gwtwins.strain.gwf.GwfReader`."""

    def __init__(self, path: Path, file: StrainFile, required: Sequence[str] | None = None) -> None:
        self.path, self._file, self._required = path, file, required
        self._opened: tuple[_Server, int] | None = None
        faults = self._open()["faults"]
        self.faults = None if faults is None else np.array(faults, object)

    def _open(self) -> dict[str, Any]:
        server = _server()
        described = {key: value for key, value in asdict(self._file).items() if key != "values"}
        answer = server.ask(self.path, do="open", file=described, required=self._required and list(self._required))
        self._opened = server, answer["key"]
        return answer

    def read(self, first: int, stop: int) -> np.ndarray:
        """Samples ``first`` to ``stop`` as float64."""
        if self._opened is None or self._opened[0] is not _server():  # another file's end was that of the process too
            self._open()
        assert self._opened is not None
        server, key = self._opened
        server.ask(self.path, do="read", key=key, first=int(first), stop=int(stop))
        return np.frombuffer(server.receive(self.path), np.float64).copy()

    def close(self) -> None:
        """Let go of the file."""
        if self._opened is not None and self._opened[0].alive:
            self._opened[0].ask(self.path, do="close", key=self._opened[1])
        self._opened = None


class _Server:
    """The process that reads, and the way to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        command = [sys.executable, "-P", "-W", "ignore", "-m", "gwtwins.strain.gwf_process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._from = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._from.recv_bytes()  # once it is ready: its imports are no file's fault, however long they take
        except EOFError as error:
            raise RuntimeError(f"the process that reads frame files ended with {self._process.wait()}") from error

    @property
    def alive(self) -> bool:
        """Whether it is this process's own, and there."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, path: Path, **request: Any) -> dict[str, Any]:
        """The answer to a request about a file; InputError if it is at fault."""
        try:
            self._to.send_bytes(json.dumps({"path": str(path), **request}).encode())
        except OSError as error:
            raise self._ended(path) from error
        answer = json.loads(self.receive(path))
        if "fault" in answer:
            raise InputError(answer["where"], answer["fault"], answer["expected"])
        return answer

    def receive(self, path: Path) -> bytes:
        """The next bytes that it sends."""
        try:
            if self._from.poll(LIMIT_SECONDS):
                return self._from.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._ended(path) from error
        self.stop()
        raise InputError(path, f"keeps the frame library busy for over {LIMIT_SECONDS} s", _LAYOUT)

    def _ended(self, path: Path) -> InputError:
        status = self._process.wait()
        self.stop()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return InputError(path, f"damaged: the frame library crashes on it ({how})", _LAYOUT)

    def stop(self) -> None:
        """End it."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._to.close()
        self._from.close()


_running: _Server | None = None


def _server() -> _Server:
    global _running
    if _running is None or not _running.alive:
        _running = _Server()
    return _running


@atexit.register
def _stop() -> None:
    if _running is not None and _running.alive:
        _running.stop()


def serve() -> None:
    """Answer requests on standard input until there are no more."""
    from gwtwins.strain import gwf

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES))
    asked, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the library prints is no answer
    answers.send_bytes(b"ready")
    readers: dict[int, gwf.GwfReader] = {}
    opened = 0
    while True:
        try:
            request = json.loads(asked.recv_bytes())
        except EOFError:
            return
        path, samples = Path(request["path"]), None
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "index":
                found = gwf.index_gwf(path, request["channel"], request["required"])
                answer["files"] = [{k: v for k, v in asdict(file).items() if k != "values"} for file in found]
            elif request["do"] == "open":
                opened += 1
                reader = gwf.GwfReader(path, StrainFile(**request["file"]), request["required"])
                readers[opened] = reader
                answer = {"key": opened, "faults": None if reader.faults is None else reader.faults.tolist()}
            elif request["do"] == "read":
                samples = readers[request["key"]].read(request["first"], request["stop"])
            else:
                readers.pop(request["key"]).close()
        except InputError as error:
            where, _, rest = str(error).partition(": ")
            fault, _, expected = rest.partition("; expected ")
            answer, samples = {"where": where, "fault": fault, "expected": expected or None}, None
        answers.send_bytes(json.dumps(answer).encode())
        if samples is not None:
            answers.send_bytes(samples.tobytes())


if __name__ == "__main__":
    serve()
