"""Small files that are read whole: plain ones, of a bounded size, of text, JSON or YAML that holds nothing but data."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from gwtwins.strain.errors import InputError

MAX_DEPTH = 64  # lists and mappings inside each other; what gwtwins writes has 8
MAX_YAML = 1 << 20  # bytes; a run's config.yaml has 2 KiB, and more only where a list of files is long
MAX_NODES = 10_000  # values in a YAML file: a second of parsing


@contextmanager
def open_plain(path: str | Path, most: int, expected: str) -> Iterator[BinaryIO]:
    """Open a file of at most ``most`` bytes.

    Raises:
        InputError: absent, larger, or no plain file: a device or a pipe may have no end, or never begin.
    """
    try:
        file = open(path, "rb", opener=_open_at_once)
    except FileNotFoundError as error:
        raise InputError(path, "no such file", expected) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}", expected) from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(path, "is not a plain file", expected)
        if status.st_size > most:
            raise InputError(path, f"is over {_size(most)}", expected)
        yield file


def read_bytes(path: str | Path, most: int, expected: str) -> bytes:
    """The whole of a file of at most ``most`` bytes; errors as :func:`open_plain`."""
    with open_plain(path, most, expected) as file:
        try:
            return file.read(most)
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}", expected) from error


def read_text(path: str | Path, most: int, expected: str) -> str:
    """The same of UTF-8 text."""
    try:
        return read_bytes(path, most, expected).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, "is not text in UTF-8", expected) from error


def read_json(path: str | Path, most: int, expected: str) -> Any:
    """The same of JSON, nested at most ``MAX_DEPTH`` deep, whose numbers are finite and not beyond float64's."""
    data = read_bytes(path, most, expected)
    try:
        node = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except _NotFinite as error:
        raise InputError(path, f"holds {error}, which is no finite number", expected) from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not JSON", expected) from error
    if deeper_than(node, MAX_DEPTH):
        raise InputError(path, f"is nested more than {MAX_DEPTH} deep", expected)
    return node


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


class _NotFinite(ValueError):
    """JSON's NaN, Infinity and numbers beyond float64, which no reader would be ready for."""


def _no_number(text: str) -> NoReturn:
    raise _NotFinite(text if len(text) < 20 else f"{text[:20]}...")


def read_yaml(path: str | Path, expected: str, most: int = MAX_YAML) -> Any:
    """The same of YAML: one document, no tags, no anchors, and each key of a mapping once."""
    text = read_text(path, most, expected)
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506 (a SafeLoader, which takes less)
    except _Unwanted as error:
        raise InputError(path, str(error), expected) from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(path, "is not YAML", expected) from error


def deeper_than(node: Any, most: int) -> bool:
    """Whether lists and mappings lie inside each other more than ``most`` deep."""
    level = [node]
    for _ in range(most + 1):
        level = [
            item
            for held in level
            if isinstance(held, list | dict)
            for item in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return False
    return True


class _Unwanted(yaml.YAMLError):
    """YAML that could be read, and is not."""


class _PlainLoader(yaml.SafeLoader):
    """Plain data alone. An alias may stand for a list of aliases: ten lines of them are a billion numbers."""

    _depth = _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Unwanted("holds an anchor (&) or an alias (*)")
        if event.tag is not None:
            raise _Unwanted(f"holds a tag ({event.tag[:40]})")
        if self._depth > MAX_DEPTH:
            raise _Unwanted(f"is nested more than {MAX_DEPTH} deep")
        if self._nodes == MAX_NODES:
            raise _Unwanted(f"holds more than {MAX_NODES:,} values")
        self._nodes += 1
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _Unwanted(f"holds the key {twice[:40]!r} twice")
        return super().construct_mapping(node, deep)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # else a pipe without a writer would be waited for


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
