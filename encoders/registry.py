"""Encoders by name, with bounded arguments: what a weights file says is checked before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from gwtwins.strain.errors import InputError

_ENCODERS: dict[str, tuple[type[nn.Module], type]] = {}
M = TypeVar("M", bound=type[nn.Module])


def bounded(default: Any, low: float, high: float) -> Any:
    """A dataclass field with a default and bounds that :func:`build` enforces (for a list, on each item)."""
    metadata = {"low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


def register(name: str, config: type) -> Callable[[M], M]:
    """Class decorator: make an encoder known as ``name``, its arguments those of the dataclass ``config``."""

    def remember(cls: M) -> M:
        _ENCODERS[name] = (cls, config)
        return cls

    return remember


def names() -> list[str]:
    """The known encoders."""
    _load()
    return sorted(_ENCODERS)


def build(name: str, args: dict[str, Any] | None = None) -> nn.Module:
    """The encoder ``name`` with fresh weights.

    Raises:
        InputError: no such encoder, no such argument, a wrong type, or a value out of its bounds.
    """
    cls, config = _lookup(name)
    fields = {f.name: f for f in dataclasses.fields(config)}
    checked = {}
    for key, value in (args or {}).items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise InputError(
                f"encoder {name}", f"no argument {key!r}", f"{near[0]!r}" if near else f"one of {sorted(fields)}"
            )
        checked[key] = _check(name, fields[key], value)
    return cls(config(**checked))


def _check(name: str, field: dataclasses.Field[Any], value: Any) -> Any:
    default = field.default
    where = f"encoder {name}, {field.name}"
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
            raise InputError(where, f"{value!r}", f"a list like {list(default)}")
        return tuple(_check_scalar(where, field, default[0], item) for item in value)
    return _check_scalar(where, field, default, value)


def _check_scalar(where: str, field: dataclasses.Field[Any], like: Any, value: Any) -> Any:
    kind = type(like)
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind:
        raise InputError(where, f"{value!r} is a {type(value).__name__}", f"a {kind.__name__}")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is not None and not low <= value <= high:
        raise InputError(where, f"{value!r} is out of bounds", f"{low} to {high}")
    choices = field.metadata.get("choices")
    if choices is not None and value not in choices:
        raise InputError(where, f"{value!r}", f"one of {', '.join(choices)}")
    return value


def _lookup(name: str) -> tuple[type[nn.Module], type]:
    _load()
    if name not in _ENCODERS:
        raise InputError(f"encoder {name}", "no encoder of that name", " or ".join(sorted(_ENCODERS)))
    return _ENCODERS[name]


def _load() -> None:
    """Import the encoders that come with the package, so that they have registered themselves."""
    import gwtwins.encoders.cnn_gru
    import gwtwins.encoders.cnn_gru_2021  # noqa: F401
