"""Commands from dataclasses: flags, ``--help``, a YAML of the same keys, and the folder a result goes to."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentParser, set_parsing_settings

from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_yaml

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.([0-9]{1,9})\.tmp")  # .NAME.PROCESS.tmp, as `write_bytes` and its like say
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help says what stands under each field


class _Parser(ArgumentParser):
    """jsonargparse, with ``--dashed-options`` and errors of one line that name the nearest option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(self.prog, _one_line(message), "see --help")

    def format_help(self, *args: Any) -> str:
        return re.sub(r"--[a-z0-9]+(?:_[a-z0-9_]+)+", lambda m: m[0].replace("_", "-"), super().format_help(*args))


def _one_line(message: str) -> str:
    return " ".join(message.replace("Parser key", "option").split())[:400]


def _parser(prog: str, description: str, concerns: list[type]) -> _Parser:
    parser = _Parser(prog=prog, description=description, exit_on_error=False, env_prefix=False)
    parser.add_argument("--config", type=str | None, default=None, help="YAML file of the same keys as the options.")
    for concern in concerns:
        parser.add_class_arguments(concern, nested_key=None)
    return parser


def parse(
    prog: str, description: str, concerns: list[type], argv: list[str] | None = None, positional: str | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Options of several dataclasses at once, all flat: default < YAML of ``--config`` < command line.

    Args:
        concerns: dataclasses of plain fields, one per concern; no two share a field name.
        positional: name of a list of positional arguments, returned under that key of the dict.

    Returns:
        An instance of each dataclass, and the flat dict of all resolved values.

    Raises:
        InputError: an unknown option or key (the nearest one is named) or a value of the wrong type.
    """
    parser = _parser(prog, description, concerns)
    known = [f.name for concern in concerns for f in dataclasses.fields(concern)]
    flags = {f.name for concern in concerns for f in dataclasses.fields(concern) if isinstance(f.default, bool)}
    argv = _spell_out(list(sys.argv[1:] if argv is None else argv), flags)
    argv, values = _split(argv, [*known, "config", "help"], prog, positional)
    given = parser.parse_args(argv, defaults=False)
    config = given.config if "config" in given else None
    layers = [parser.get_defaults(), given]
    if config:
        words = {f.name for concern in concerns for f in dataclasses.fields(concern) if f.type in ("str", str)}
        node = {key: _worded(value) if key in words else value for key, value in read_config(config, known).items()}
        layers.insert(1, parser.parse_object(node, defaults=False))
    flat: dict[str, Any] = {}
    for layer in layers:  # later ones override; --name.key adds to a dict
        for name in known:
            if name in layer:
                added = layer is given and any(word.startswith(f"--{name}.") for word in argv)
                flat[name] = {**flat[name], **layer[name]} if added else layer[name]
    for concern in concerns:
        for field in dataclasses.fields(concern):
            if flat[field.name] is None and "None" not in str(field.type):
                raise InputError(config or prog, f"{field.name} is null", f"a value of type {field.type}")
    made = [c(**{f.name: flat[f.name] for f in dataclasses.fields(c)}) for c in concerns]
    flat = {key: plain(value) for key, value in flat.items()}
    if positional:
        flat[positional] = values
    return made, flat


def _spell_out(argv: list[str], flags: set[str]) -> list[str]:
    """A bare ``--flag`` as ``--flag=true``."""
    said = ("true", "false", "yes", "no")
    return [
        f"{word}=true"
        if word.startswith("--") and word[2:].replace("-", "_") in flags and after.lower() not in said
        else word
        for word, after in zip(argv, [*argv[1:], ""], strict=False)
    ]


def _split(argv: list[str], known: list[str], prog: str, positional: str | None) -> tuple[list[str], list[str]]:
    """Options with underscores for dashes, and the positional arguments apart; unknown options are refused here."""
    options, values = [], []
    takes_value = False
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name.split(".")[0] not in known:
                near = _nearest(name, known)
                expected = f"--{near.replace('_', '-')}" if near else "an option that --help lists"
                raise InputError(prog, f"unknown option {word.split('=')[0]}", expected)
            options.append(f"--{name}{equals}{value}")
            takes_value = not equals and name != "help"
        elif takes_value or word == "-h":
            options.append(word)
            takes_value = False
        elif positional is None:
            raise InputError(prog, f"unexpected argument {word!r}", "options only, see --help")
        else:
            values.append(word)
    return options, values


def _nearest(name: str, known: list[str]) -> str | None:
    """The known name most like ``name``: one that goes on from it or that it goes on from, else the most alike."""
    akin = [k for k in known if name and (k.startswith(name) or name.startswith(k))]
    near = sorted(akin, key=lambda k: abs(len(k) - len(name))) or difflib.get_close_matches(name, known, 1, 0.5)
    return near[0] if near else None


def read_config(path: str | Path, known: list[str]) -> dict[str, Any]:
    """A flat YAML mapping whose keys are all ``known``.

    Raises:
        InputError: absent, not such a mapping, or a key that is not known (the nearest is named).
    """
    node = read_yaml(path, "a small YAML file of options, lines of the form option: value")
    if not isinstance(node, dict):
        raise InputError(path, "is not a mapping", "lines of the form option: value")
    node = {str(key).replace("-", "_"): value for key, value in node.items()}
    for key in node:
        if key not in known:
            near = _nearest(key, known)
            raise InputError(path, f"unknown key {key!r}", f"{near!r}" if near else "a key that --help lists")
    return node


def _worded(value: Any) -> Any:
    """A number as the text that it stands for, as on the command line: ``frac: 0.5``."""
    return str(value) if type(value) in (int, float) else value


def plain(value: Any) -> Any:
    """Namespaces, tuples and paths as what YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whatever ends the process or the machine meanwhile."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a loss of power could leave the new name on an empty file
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # of a full disk it holds what was left
        raise


@contextmanager
def disk_faults(folder: Path, advice: str) -> Iterator[None]:
    """A disk that is full or gone becomes an InputError: ``folder``, what is wrong, and ``advice``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        raise InputError(folder, f"cannot be written to ({os.strerror(error.errno)})", advice) from error


@contextmanager
def hold_folder(path: Path, *inside: Path) -> Iterator[None]:
    """Make a folder and keep it to this process until the end, also where several machines share it.

    What a process that was killed has left half-written there (`write_bytes`), and in the folders ``inside``, goes.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    make_folder(path)
    lock = path / _LOCK
    with _open_lock(path, lock) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for left in (left for folder in (path, *inside) for left in folder.glob(".*.tmp")):
            if _left_behind(left.name):
                left.unlink(missing_ok=True)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _left_behind(name: str) -> bool:
    """Whether a file is one of `write_bytes`, and of a process that no longer runs here."""
    written = _TEMPORARY.fullmatch(name)
    if not written:
        return False
    try:
        os.kill(int(written[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's
    return False


def _open_lock(folder: Path, lock: Path) -> TextIO:
    while True:
        try:
            file = lock.open("a+")
        except OSError as error:
            raise InputError(folder, "may not be written to", "a folder for --out") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            by = file.read(200) or "another process"
            file.close()
            raise InputError(folder, f"{by} is at work in it", "another folder, or to wait for its end") from error
        except OSError:
            return file  # a file system without locks: nothing better is to be had there
        try:
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # whoever held it has taken it away in between


def claim_folder(out: str, default: Path) -> Path:
    """Make the folder of a new result; one that already holds anything is left alone.

    Raises:
        InputError: ``out`` is there and not empty, or cannot be made.
    """
    path = Path(out) if out else default
    make_folder(path)
    if holds_result(path):
        raise InputError(path, "already holds a result", "a new or empty folder for --out")
    return path


def holds_result(folder: Path) -> bool:
    """Whether there is anything in it but what a command leaves that was killed before it had a result."""
    return any(held.name != _LOCK and not _TEMPORARY.fullmatch(held.name) for held in folder.iterdir())


def new_file(path: Path | None) -> None:
    """See that a file can be written where none is yet, before what it is to hold has been computed.

    Raises:
        InputError: it is there already, or the folder that it is to lie in is not.
    """
    if path and not path.parent.is_dir():
        raise InputError(path, "its folder does not exist", "a file in a folder that does")
    if path and path.exists():
        raise InputError(path, "is there already", "a new file")


def make_folder(path: Path) -> None:
    """Make a folder, or see that it is one; InputError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(path, "is a file", "a folder for --out") from error
    except OSError as error:  # no permission, a read-only disk, a name that is too long
        raise InputError(path, "may not be written to", "a folder for --out") from error


def new_run_folder(root: Path = Path("runs")) -> Path:
    """``runs/<date-time>``, with a number behind it if two start in one second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path, n = root / stamp, 1
    while path.exists():
        n += 1
        path = root / f"{stamp}-{n}"
    return path


def point_latest(run: Path, root: Path = Path("runs")) -> None:
    """Atomically point ``runs/latest`` at ``run``."""
    root.mkdir(parents=True, exist_ok=True)
    link = root / "latest"
    if link.exists() and not link.is_symlink():
        return  # a folder of the user's own making by that name is not ours to replace
    partial = root / f".latest.{os.getpid()}.tmp"
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(run.resolve(), root.resolve()))
    os.replace(partial, link)
