"""Ways to spoil a sound file, each a pure function of the generator it draws from.

A mutation says what it did and what may come of it: ANY (a refusal, or a result that keeps the reader's promises),
SAME (a refusal, or the very result of the sound file) or REFUSED.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ANY, SAME, REFUSED = "any", "same", "refused"

Rng = np.random.Generator
Mutation = Callable[[Rng, Path], tuple[str, str]]
"""Spoils the file at the path; returns (what was done, what may come of it)."""

_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def pick(rng: Rng, items: Any) -> Any:
    """One of a sequence, as it is (numpy would turn it into an array's item)."""
    return items[int(rng.integers(len(items)))]


# ---- any file


def flip_bytes(rng: Rng, path: Path) -> tuple[str, str]:
    """A few bytes become others; half of the time near the start, where headers are."""
    data = bytearray(path.read_bytes())
    places = []
    for _ in range(int(rng.integers(1, 9))):
        reach = min(len(data), 4096) if rng.random() < 0.5 else len(data)
        at = int(rng.integers(reach))
        data[at] = int(rng.integers(256)) if rng.random() < 0.5 else data[at] ^ (1 << int(rng.integers(8)))
        places.append(at)
    path.write_bytes(data)
    return f"bytes {places}", ANY


def write_word(rng: Rng, path: Path) -> tuple[str, str]:
    """A number of 2, 4 or 8 bytes, where sizes may stand, becomes a telling one."""
    data = bytearray(path.read_bytes())
    size, value = pick(rng, ("<H", "<I", "<Q", ">I")), pick(rng, _WORDS)
    width = struct.calcsize(size)
    reach = min(len(data), 2048) if rng.random() < 0.6 else len(data)
    at = int(rng.integers(max(1, reach - width)))
    data[at : at + width] = struct.pack(size, value % (1 << 8 * width))
    path.write_bytes(data)
    return f"{size} {value} at {at}", ANY


def truncate(rng: Rng, path: Path) -> tuple[str, str]:
    """The end is missing."""
    size = path.stat().st_size
    left = int(rng.integers(size)) if rng.random() < 0.7 else max(0, size - int(rng.integers(1, 64)))
    os.truncate(path, left)
    return f"cut to {left} of {size} bytes", SAME if left else REFUSED


def move_block(rng: Rng, path: Path) -> tuple[str, str]:
    """A block is copied elsewhere, zeroed, taken out, put in twice, or replaced by noise."""
    data = path.read_bytes()
    length = int(min(len(data), 2 ** rng.uniform(2, 14)))
    source, to = (int(rng.integers(len(data) - length + 1)) for _ in range(2))
    block = data[source : source + length]
    kind = pick(rng, ("copied", "zeroed", "cut out", "put in", "noise"))
    new = {
        "copied": data[:to] + block + data[to + length :],
        "zeroed": data[:to] + bytes(length) + data[to + length :],
        "cut out": data[:to] + data[to + length :],
        "put in": data[:to] + block + data[to:],
        "noise": data[:to] + rng.bytes(length) + data[to + length :],
    }[kind]
    path.write_bytes(new)
    return f"{length} bytes {kind} at {to}", ANY


def cut_text(rng: Rng, path: Path) -> tuple[str, str]:
    """The end is missing of a file that does not say how long it is."""
    return truncate(rng, path)[0], ANY


BYTES: tuple[Mutation, ...] = (flip_bytes, write_word, truncate, move_block)
TEXT: tuple[Mutation, ...] = (flip_bytes, write_word, cut_text, move_block)


# ---- trees: JSON and YAML

_NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"),
    "", "x", "8", "nan", "../../etc/passwd", "=1+1", "\x1b[31mred", "<script>alert(1)</script>", "a\nb", "\ud800", "H1",
    "x" * 100_000, [], {}, [[]], [None], [1] * 10_000, {"a": {"b": [1, {}]}}, [float("nan")], ["H1", "L1", "V1"],
)  # fmt: skip


def _places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    items = node.items() if isinstance(node, dict) else enumerate(node[:20]) if isinstance(node, list) else ()
    for key, value in items:
        found += _places(value, (*at, key))
    return found


def change_tree(rng: Rng, node: Any) -> tuple[Any, str]:
    """The tree with one to three of its members replaced, removed, renamed or moved."""
    said = []
    for _ in range(int(rng.integers(1, 4))):
        at = pick(rng, _places(node))
        kind = pick(rng, ("set", "set", "set", "remove", "rename", "swap", "nest"))
        said.append(f"{kind} {at}")
        if not at:
            if kind == "set" and rng.random() < 0.2:
                node = pick(rng, _NASTY)
            continue
        holder = node
        for key in at[:-1]:
            holder = holder[key]
        if kind == "set":
            holder[at[-1]] = value = json.loads(json.dumps(pick(rng, _NASTY)))
            said[-1] += f" to {str(value)[:40]!a}"
        elif kind == "remove":
            del holder[at[-1]]
        elif kind == "rename" and isinstance(holder, dict):
            holder[pick(rng, ("", "x", "__class__", f"{at[-1]}s"))] = holder.pop(at[-1])
        elif kind == "nest":
            holder[at[-1]] = [holder[at[-1]]]
        else:
            other = pick(rng, list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[at[-1]], holder[other] = holder[other], holder[at[-1]]
    return node, "; ".join(said)


def json_tree(rng: Rng, path: Path) -> tuple[str, str]:
    """JSON with other members."""
    node, said = change_tree(rng, json.loads(path.read_text()))
    path.write_text(json.dumps(node))
    return said, ANY


def json_text(rng: Rng, path: Path) -> tuple[str, str]:
    """Text that strains a JSON parser."""
    text = path.read_text()
    deep = int(2 ** rng.uniform(4, 18))
    name, new = pick(
        rng,
        (
            ("deep list", b"[" * deep),
            ("deep closed list", b"[" * deep + b"]" * deep),
            ("deep mapping", b'{"a":' * deep),
            ("deep member", text.replace(":", ": " + "[" * deep + "]" * deep + ', "x":', 1).encode()),
            ("UTF-16", text.encode("utf-16")),
            ("BOM", text.encode("utf-8-sig")),
            ("twice", (text + text).encode()),
            ("long number", text.replace("1", "1" * deep, 1).encode()),
            ("exponent", text.replace("1", "1e999", 1).encode()),
            ("large", text.encode() + b" " * (3 << 20)),
            ("keys twice", text.replace("{", '{"format": 1, "encoder": 2, ', 1).encode()),
        ),
    )
    path.write_bytes(new)
    return f"{name}, {len(new)} bytes", ANY


def yaml_tree(rng: Rng, path: Path) -> tuple[str, str]:
    """YAML with other members."""
    node, said = change_tree(rng, yaml.safe_load(path.read_text()))
    path.write_text(yaml.safe_dump(node, allow_unicode=bool(rng.integers(2))))
    return said, ANY


def yaml_text(rng: Rng, path: Path) -> tuple[str, str]:
    """Text that strains a YAML parser, or asks it for more than data."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    at = int(rng.integers(len(lines)))
    key = lines[at].split(":")[0].strip(" -") or "seed"
    deep = int(2 ** rng.uniform(4, 17))
    bomb = ["&a [1,1,1,1,1,1,1,1,1]"] + [f"&{b} [{','.join(9 * ['*' + a])}]" for a, b in zip("abcdefgh", "bcdefghi")]
    name, new, may = pick(
        rng,
        (
            ("a tag that calls", f"{key}: !!python/object/apply:os.mkdir [it-ran]", REFUSED),
            ("a tag that names", f"{key}: !!python/name:os.system", REFUSED),
            ("an own tag", f"{key}: !x 1", REFUSED),
            ("bomb", f"{key}: [{', '.join(bomb)}]", REFUSED),
            ("a list in itself", f"{key}: &a [*a]", REFUSED),
            ("a mapping in itself", f"{key}: &a {{a: *a}}", REFUSED),
            ("deep list", f"{key}: " + "[" * deep, REFUSED),
            ("deep closed list", f"{key}: " + "[" * deep + "]" * deep, REFUSED),
            ("deep mapping", f"{key}: " + "{a: " * deep + "}" * deep, REFUSED),
            ("merge", f"<<: {{{key}: 1}}", ANY),
            ("set", f"{key}: !!set {{a, b}}", ANY),
            ("date", f"{key}: 2001-01-01", ANY),
            ("binary", f"{key}: !!binary aGVsbG8=", ANY),
            ("pairs", f"{key}: !!omap [a: 1]", ANY),
            ("sexagesimal", f"{key}: 1:1:1:1:1:1", ANY),
            ("infinity", f"{key}: .inf", ANY),
            ("NaN", f"{key}: .nan", ANY),
            ("long integer", f"{key}: {'1' * deep}", ANY),
            ("control", f"{key}: \x1b[31m", ANY),
            ("escape", f'{key}: "\\e[31m\\0\\n"', ANY),
            ("a list as key", "[1, 2]: 3", ANY),
            ("a mapping as key", "{a: b}: 3", ANY),
            ("two documents", "---\na: 1\n---\nb: 2", ANY),
        ),
    )  # fmt: skip
    lines[at : at + 1] = new.split("\n")
    path.write_text("\n".join(lines) + "\n")
    return f"{name} at line {at}", may


# ---- tables of text


def table_text(rng: Rng, path: Path) -> tuple[str, str]:
    """A cell, a line or the encoding of a table of text changes."""
    text = path.read_text()
    lines = text.splitlines()
    at = int(rng.integers(len(lines)))
    cells = lines[at].replace(",", " , ").split()
    cell = int(rng.integers(len(cells))) if cells else 0
    nasty = (
        "", "nan", "inf", "-inf", "1e400", "-1", "0", "1e-400", "0x10", "1_0", "٣", "=1+1", "../x", "a/b", "<b>",
        "\x1b[0m", "\x00", '"', '"' * 3, "'", "#", "1" * 5000, "x" * 200_000, "1+1j",
        ",", "\r", "\u2028", "H1", "\ufeff",
    )  # fmt: skip
    kind = pick(rng, ("cell", "cell", "cell", "double", "drop", "swap", "encode", "many"))
    if kind == "cell" and cells:
        cells[cell] = pick(rng, nasty)
        lines[at] = " ".join(cells).replace(" , ", ",")
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "drop":
        del lines[at]
    elif kind == "swap":
        other = int(rng.integers(len(lines)))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "many":
        lines += [lines[at]] * int(2 ** rng.uniform(1, 16))
    data = ("\n".join(lines) + "\n").encode(
        pick(rng, ("utf-16", "utf-8-sig", "utf-32")) if kind == "encode" else "utf-8"
    )
    path.write_bytes(data)
    return f"{kind} at line {at}, {len(data)} bytes", ANY
