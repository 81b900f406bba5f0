"""The ranges of setup.cfg, the sets that the tests are run with, and what the docs say of them are one story."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def pinned(path: Path) -> dict[str, Version]:
    """Name and version of each line ``name==version``."""
    rows = [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(row.name): Version(next(iter(row.specifier)).version) for row in rows}


@pytest.fixture(scope="module")
def setup_cfg(root: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def required(setup_cfg: configparser.ConfigParser) -> list[Requirement]:
    """What a user, and a user who exports, installs; and what the tests need."""
    extras = [setup_cfg["options.extras_require"][name] for name in ("export", "dev")]
    lines = "\n".join([setup_cfg["options"]["install_requires"], *extras]).split("\n")
    return [Requirement(line) for line in lines if line]


def test_the_oldest_set_is_the_lower_bounds(root: Path, required: list[Requirement]) -> None:
    oldest = pinned(root / "constraints-oldest.txt")
    for one in required:
        bounds = [Version(s.version) for s in one.specifier if s.operator == ">="]
        assert len(bounds) == 1, f"{one} has no lower bound to test"
        at = oldest[canonicalize_name(one.name)]
        # Where X.Y.0 was withdrawn or never was, the oldest there is.
        assert at.release[: len(bounds[0].release)] == bounds[0].release or at == bounds[0], f"{one}: {at}"


def test_the_classifiers_are_the_pythons_allowed(setup_cfg: configparser.ConfigParser) -> None:
    named = re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"])
    allowed = Requirement(f"python{setup_cfg['options']['python_requires']}").specifier
    assert named == [f"3.{minor}" for minor in range(8, 30) if allowed.contains(f"3.{minor}.1")]


def test_the_docs_say_with_which_versions_the_tests_were_run(root: Path) -> None:
    text = (root / "docs" / "reliability.md").read_text()
    for name in ("torch", "lightly", "numpy", "pycbc"):
        for path in ("constraints-oldest.txt", "constraints.txt"):
            assert f"{name} {pinned(root / path)[name]}" in text, f"{name} of {path}"
