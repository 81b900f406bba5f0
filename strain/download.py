"""One file over HTTP into a folder: resumed where it was cut, checked, kept with its SHA-256.

The bytes go to NAME.part, which becomes NAME when all are there and the caller's check has passed. NAME.json beside it
says where the file came from, its size and, once it is whole, its SHA-256; a file that no longer agrees with it is
fetched again. A process killed at any moment leaves a part that the next one goes on from. Of two processes that want
the same file one fetches it and the other waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from gwtwins.strain.command import write_text
from gwtwins.strain.errors import InputError, shown
from gwtwins.strain.http_session import BACKOFF, RETRIES, TIMEOUT, Unreachable, http_fault
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.small_file import read_json

MAX_BYTES = 1 << 30  # twice the largest strain file there is: 4096 s at 16384 Hz, float64
_SAID = 400  # characters of a line about a file
_BLOCK = 1 << 16  # bytes between two writes, and lost where a connection breaks
_HEADWAY = 1 << 20  # bytes: a connection that brought this many does not count as a failed try

Check = Callable[[Path], None]


def download(url: str, folder: Path, session: requests.Session, check: Check, progress: bool = True) -> Path:
    """The file behind ``url`` in ``folder``, under the last part of the URL's path; fetched unless it is there, whole.

    Args:
        check: raises InputError for a file whose content is not what it should be.
        progress: show a bar with the time left on stderr.

    Raises:
        Unreachable: no connection, or it broke ``RETRIES`` times in a row without bringing a MiB.
        InputError: the server refuses; sends more or fewer bytes than it says; the content fails ``check``; no room.
    """
    path = folder / urlsplit(url).path.rpartition("/")[2]
    if _is_whole(path, url, check):
        return path
    with _alone(path) as waited:
        if waited and _is_whole(path, url, check):
            return path
        with _opened(path.with_name(f"{path.name}.part")) as file:
            part = _Part.of(url, path, file)
            pieced = _fill(part, session, progress)
            fault = _fault(check, part.path)
            if fault and pieced:
                print(f"{path.name}: does not read back when continued; fetching it whole", file=sys.stderr)
                part.restart()
                _fill(part, session, progress)
                fault = _fault(check, part.path)
            if fault:
                part.restart()
                raise InputError(url, f"is not what its name says: {fault}")
            os.fsync(file.fileno())
            part.note(sha256=_sha256(part.path))
            os.replace(part.path, path)
    return path


def _is_whole(path: Path, url: str, check: Check) -> bool:
    """Whether ``path`` is what was once fetched from ``url``, or a good file of that name that somebody put there."""
    if not path.is_file():
        return False
    known, size = _read_record(path), path.stat().st_size
    if not known:
        if fault := _fault(check, path):
            print(f"{fault}; fetching it again", file=sys.stderr)
            return False
        with suppress(InputError):  # a folder that others filled and nobody may write to
            _write_record(path, {"url": url, "size": size, "sha256": _sha256(path)})
        return True
    if not _same_path(known.get("url"), url):
        print(shown(f"{path.name}: is {known.get('url')}; fetching {url}")[:_SAID], file=sys.stderr)
        return False
    if known.get("size") != size or known.get("sha256") != _sha256(path):
        print(f"{path.name}: has changed since it was fetched; fetching it again", file=sys.stderr)
        return False
    return True


@dataclass
class _Part:
    """The bytes that have arrived, and what the server has said about the whole."""

    url: str
    path: Path
    kept: Path
    """Where the file goes when it is whole."""
    file: FileIO
    have: int
    size: int | None = None
    """Bytes of the whole file; None where the server does not say."""
    validator: str | None = None
    """What names this very content to the server: its strong ETag, else its date."""

    @classmethod
    def of(cls, url: str, kept: Path, file: FileIO) -> _Part:
        """What an earlier process left, if it was fetching the same; else nothing."""
        part = cls(url, kept.with_name(f"{kept.name}.part"), kept, file, os.fstat(file.fileno()).st_size)
        known = _read_record(kept)
        size, validator = known.get("size"), known.get("validator")
        if not _same_path(known.get("url"), url) or not isinstance(size, int) or part.have > size:
            part.restart()
        else:
            part.size, part.validator = size, validator if isinstance(validator, str) else None
        return part

    def restart(self) -> None:
        """Forget what has arrived."""
        self.have, self.size, self.validator = 0, None, None
        self.file.truncate(0)

    def note(self, **more: str) -> None:
        """Write down what is known, so that another process can go on."""
        _write_record(self.kept, {"url": self.url, "size": self.size, "validator": self.validator, **more})

    def receive(self, response: requests.Response, bar: Any) -> None:
        """Take what one answer brings, from where it begins in the file."""
        if response.status_code == 416:
            return self.restart()  # there is nothing to go on with there
        response.raise_for_status()
        if response.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != self.have:
                raise InputError(self.url, "the server sends other bytes than it was asked for")
            self.size = int(span[2])
        else:
            self.restart()
            length, tag = response.headers.get("Content-Length", ""), response.headers.get("ETag", "W/")
            self.size = int(length) if length.isdecimal() else None
            self.validator = response.headers.get("Last-Modified") if tag.startswith("W/") else tag
        most = MAX_BYTES if self.size is None else self.size
        if most > MAX_BYTES:
            raise InputError(self.url, f"is of {most} bytes", f"at most {MAX_BYTES}")
        self.note()
        _check_room(self.path, (self.size or 0) - self.have)
        bar.total = most >> 20
        self.file.seek(self.have)
        for block in response.iter_content(_BLOCK):
            if self.have + len(block) > most:
                raise InputError(self.url, f"the server sends more than {most} bytes")
            self._write(block)
            bar.update((self.have >> 20) - bar.n)
        if self.size is None:
            self.size = self.have  # no length was said, and the answer ended in good order

    def _write(self, block: bytes) -> None:
        left = memoryview(block)
        try:
            while left:
                written = self.file.write(left)
                self.have += written
                left = left[written:]
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def _fill(part: _Part, session: requests.Session, progress: bool) -> bool:
    """Receive until the part has its full size; whether that took the bytes of more than one answer."""
    pieced, failures = part.have > 0, 0
    with progress_bar(0, part.kept.name, "MiB", progress, part.have >> 20) as bar:
        while part.size is None or part.have < part.size:
            headers, began = {"Accept-Encoding": "identity"}, part.have
            if part.have:
                headers["Range"] = f"bytes={part.have}-"
                if part.validator:
                    headers["If-Range"] = part.validator
            fault: InputError
            try:
                with session.get(part.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                    pieced = response.status_code == 206
                    part.receive(response, bar)
                fault = InputError(part.url, f"ends after {part.have} of {part.size} bytes")
            except requests.RequestException as error:
                fault = http_fault(part.url, error)
                if not isinstance(fault, Unreachable):
                    raise fault from error
            failures = 0 if part.have - began >= _HEADWAY else failures + 1
            if part.size is None or part.have < part.size:
                if failures > RETRIES:
                    raise fault
                time.sleep(BACKOFF * 2**failures)
    return pieced


def _check_room(path: Path, need: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise InputError(path, f"{free / 1e6:.1f} MB free on its disk", f"{need / 1e6:.1f} MB")


@contextmanager
def _opened(part: Path) -> Iterator[FileIO]:
    """The part, made if absent, unmade if nothing is in it; unbuffered, so that a kill loses nothing that arrived."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_write(part, error) from error
    with FileIO(descriptor, "r+") as file:
        try:
            yield file
        finally:
            if os.fstat(descriptor).st_size == 0:
                part.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Be the one process that fetches ``path``, waiting for another one; whether there was one.

    The lock is a file of its own: HDF5 locks the files it reads, and would not open a part that is locked here.
    """
    lock, waited = path.with_name(f".{path.name}.lock"), False
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{path.name}: another process is fetching it; waiting", file=sys.stderr)
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks: then nothing guards against two at once
            try:
                held = os.path.samestat(os.fstat(descriptor), lock.stat())
            except FileNotFoundError:
                held = False  # the other process was done and took its lock away: it is another file's name by now
            if held:
                try:
                    yield waited
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _same_path(known: object, url: str) -> bool:
    """Whether two URLs are the same file of the same release, be it on another mirror."""
    with suppress(ValueError):  # what stands beside the file may be no URL
        return isinstance(known, str) and urlsplit(known).path == urlsplit(url).path
    return False


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any]:
    """What is known of a file; nothing, if that cannot be read."""
    try:
        known = read_json(_record(path), 1 << 20, "what is known of a file")
    except InputError:
        return {}
    return known if isinstance(known, dict) else {}


def _write_record(path: Path, known: dict[str, Any]) -> None:
    try:
        write_text(_record(path), json.dumps(known, indent=1) + "\n")
    except OSError as error:
        raise _cannot_write(_record(path), error) from error


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(path, f"cannot be written: {error.strerror}", "room and leave to write")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(check: Check, path: Path) -> str:
    """What is wrong with a file, with its name in the place of its path; empty if nothing is."""
    try:
        check(path)
    except InputError as error:
        return str(error).replace(str(path), path.name)
    return ""
