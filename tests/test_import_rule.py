"""The rooms import one way only, by full names, and no room can take the place of a standard module."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOMS, SCRIPTS

# The data flow: strain -> encoders -> ssl, and strain -> encoders -> probes.
MAY_IMPORT = {
    "strain": {"strain"},
    "encoders": {"encoders", "strain"},
    "ssl": {"ssl", "encoders", "strain"},
    "probes": {"probes", "encoders", "strain"},
}
# From the root these names work bare, and load every module a second time. A bare `ssl` is Python's own.
NEVER_BARE = {"strain", "encoders", "probes", "configs"} | {Path(script).stem for script in SCRIPTS}
MOST_LINES = 400
# Written apart, so that this file does not name one.
PACKAGE_INDEX_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "download." + "pytorch.org",
    "con" + "da.org",
    "ana" + "conda.com",
]


def imported_names(source: str) -> Iterator[tuple[str, bool]]:
    """(full dotted name, whether at module level) of each import; a relative one starts with a dot."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield "." * node.level + (f"{node.module}." if node.module else "") + alias.name, top
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value, top


def faults(room: str | None, source: str) -> list[str]:
    """What breaks the import rule in a module of ``room``, or in a script, test or benchmark (None)."""
    found = []
    for name, _ in imported_names(source):
        parts = name.split(".")
        if name.startswith("."):
            found.append(f"relative import {name}")
        elif parts[0] in NEVER_BARE or (parts[0] == "ssl" and parts[1:2] and _is_module("ssl", parts[1])):
            found.append(f"bare import {name}")
        elif parts[0] == "gwtwins" and room and (len(parts) < 2 or parts[1] not in MAY_IMPORT[room]):
            found.append(f"{room} imports {name}")
    return found


def _is_module(room: str, name: str) -> bool:
    root = Path(__file__).resolve().parent.parent
    return (root / room / f"{name}.py").exists() or (root / room / name).is_dir()


def room_of(path: Path) -> str | None:
    """The room a source file lies in; None for scripts, tests and benchmarks."""
    return path.parts[0] if path.parts[0] in ROOMS else None


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("strain", "import gwtwins.encoders.registry"),
        ("strain", "from gwtwins import ssl"),
        ("encoders", "from gwtwins.ssl.views import detector_views"),
        ("probes", "def late():\n    from gwtwins.ssl import views"),
        ("probes", "import importlib\nimportlib.import_module('gwtwins.ssl.views')"),
        ("ssl", "from gwtwins.probes.metrics import auc"),
        ("ssl", "from gwtwins.train_ssl import main"),
        ("ssl", "from . import views"),
        ("encoders", "import strain.psd"),
        (None, "from strain.psd import PSD"),
        (None, "import eval_probe"),
    ],
)
def test_the_rule_notices(room: str | None, source: str) -> None:
    assert faults(room, source)


def test_the_rule_lets_the_allowed_through() -> None:
    assert not faults("ssl", "import ssl\nfrom gwtwins.encoders.registry import build")
    assert not faults("ssl", "from gwtwins.strain import psd")
    assert not faults("probes", "from gwtwins.encoders.paired import load_encoder\nimport numpy as np")
    assert not faults(None, "from gwtwins.ssl.views import detector_views\nimport ssl")


def test_every_module_keeps_the_import_rule(root: Path, source_files: list[Path]) -> None:
    found = [
        f"{path}: {fault}"
        for path in source_files
        if path.suffix == ".py"
        for fault in faults(room_of(path), (root / path).read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_no_room_is_a_regular_package(source_files: list[Path]) -> None:
    # An __init__.py in ssl/ would take the place of Python's ssl for every script in the root.
    found = [str(path) for path in source_files if path.name == "__init__.py" and path.parts[0] != "tests"]
    assert not found


def test_no_module_in_the_root_hides_a_standard_one(source_files: list[Path]) -> None:
    names = {path.stem for path in source_files if len(path.parts) == 1 and path.suffix == ".py"}
    assert not names & set(sys.stdlib_module_names)


def test_modules_stay_short(root: Path, source_files: list[Path]) -> None:
    own = [path for path in source_files if path.suffix == ".py" and path.parts[0] not in {"tests", "docs"}]
    lengths = {str(path): len((root / path).read_text(encoding="utf-8").splitlines()) for path in own}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}


def test_what_is_imported_is_declared(root: Path, source_files: list[Path]) -> None:
    """A module's top imports only what install_requires brings; an extra is imported inside a function."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    always = _distributions(config["options"]["install_requires"])
    extras = _distributions("\n".join(config["options.extras_require"].values()))
    providers = importlib.metadata.packages_distributions()
    found = []
    for path in source_files:
        if path.suffix != ".py" or not (room_of(path) or str(path) in SCRIPTS):
            continue
        for name, top in imported_names((root / path).read_text(encoding="utf-8")):
            module = name.split(".")[0]
            if module in sys.stdlib_module_names or module == "gwtwins":
                continue
            brought_by = {_normalised(each) for each in providers.get(module, [module])}
            if not brought_by & (always if top else always | extras):
                found.append(f"{path}: {name}" + (" at module level" if brought_by & extras else ""))
    assert not found, "\n".join(found)


def _distributions(requirements: str) -> set[str]:
    return {_normalised(re.split(r"[\[<>=!~; ]", line)[0]) for line in requirements.split("\n") if line}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_package_index(root: Path, source_files: list[Path]) -> None:
    # Where packages come from is the machine's business: a mirror or an offline cache must work unchanged.
    found = []
    for path in source_files:
        content = (root / path).read_bytes().lower()
        found += [f"{path}: {host}" for host in PACKAGE_INDEX_HOSTS if host.encode() in content]
    assert not found
