"""The wheel holds the whole package and nothing else, and Python's own ssl survives a folder of that name."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOMS, SCRIPTS

# Python's ssl and what stands on it; true wherever it is run.
STANDARD_LIBRARY = """
import ssl, urllib.request, asyncio, http.client
assert isinstance(ssl.create_default_context(), ssl.SSLContext), ssl
assert asyncio.run(asyncio.sleep(0, 7)) == 7
"""


def run_python(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, with neither this one's PYTHONPATH nor its arguments."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | env
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=clean, capture_output=True, text=True, timeout=120
    )


def assert_done(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def setup_cfg(root: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def wheel(root: Path, source_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the source alone: leftovers of earlier builds neither help nor hurt."""
    copy = tmp_path_factory.mktemp("source")
    for path in source_files:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, copy / path)
    out = tmp_path_factory.mktemp("wheel")
    # From an empty folder, and with the setuptools that is installed: no network.
    empty = tmp_path_factory.mktemp("empty")
    assert_done(run_python("-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=empty))
    (built,) = out.glob("gwtwins-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_standard_ssl_survives_in_the_root(root: Path) -> None:
    assert_done(run_python("-c", STANDARD_LIBRARY, cwd=root))


def test_the_standard_ssl_survives_in_a_script_of_the_root(root: Path, tmp_path: Path) -> None:
    # A script's own folder is the first entry of sys.path: a copy of the layout, with the script in it.
    for room in ROOMS:
        (tmp_path / room).symlink_to(root / room, target_is_directory=True)
    script = tmp_path / "a_script.py"
    script.write_text(STANDARD_LIBRARY, encoding="utf-8")
    assert_done(run_python(script, cwd=tmp_path))


def test_an_init_in_ssl_would_break_it(tmp_path: Path) -> None:
    # Why the rule is there; should Python one day resolve this otherwise, the rule can go.
    (tmp_path / "ssl").mkdir()
    (tmp_path / "ssl" / "__init__.py").touch()
    script = tmp_path / "a_script.py"
    script.write_text(STANDARD_LIBRARY, encoding="utf-8")
    assert run_python(script, cwd=tmp_path).returncode != 0


def test_the_wheel_holds_every_module_and_data_file(wheel: Path, source_files: list[Path]) -> None:
    kinds = {
        "configs": {".yaml"},
        "strain": {".py", ".yaml"},
        "encoders": {".py", ".safetensors", ".json", ".md"},
        "ssl": {".py"},
        "probes": {".py", ".html"},
    }
    expected = {f"gwtwins/{script}" for script in SCRIPTS}
    expected |= {f"gwtwins/{p.as_posix()}" for p in source_files if p.suffix in kinds.get(p.parts[0], ())}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected - held == set(), "missing"
    assert held - expected == set(), "in the wheel, but not of the package"


def test_the_wheel_has_the_licence_and_the_commands(unpacked: Path) -> None:
    (info,) = unpacked.glob("gwtwins-*.dist-info")
    assert "GNU GENERAL PUBLIC LICENSE" in next(info.rglob("LICENSE")).read_text(encoding="utf-8")
    points = configparser.ConfigParser()
    points.read(info / "entry_points.txt", encoding="utf-8")
    assert dict(points["console_scripts"]) == {
        "gwtwins-train": "gwtwins.train_ssl:main",
        "gwtwins-probe": "gwtwins.eval_probe:main",
        "gwtwins-scan": "gwtwins.scan_strain:main",
        "gwtwins-embed": "gwtwins.probes.embed:main",
    }


def test_every_module_imports_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    files = sorted((unpacked / "gwtwins").rglob("*.py"))
    modules = [".".join(path.relative_to(unpacked).with_suffix("").parts) for path in files]
    code = f"""
import importlib, sys
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(unpacked)!r}), module.__file__
"""
    assert_done(run_python("-c", code + STANDARD_LIBRARY, cwd=tmp_path, PYTHONPATH=str(unpacked)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_explain_themselves(unpacked: Path, tmp_path: Path, script: str) -> None:
    code = f"from gwtwins.{Path(script).stem} import main; raise SystemExit(main())"
    done = run_python("-c", code, "--help", cwd=tmp_path, PYTHONPATH=str(unpacked), COLUMNS="100")
    assert_done(done)
    assert "--help" in done.stdout


def test_setup_cfg_lists_every_folder_with_modules(
    setup_cfg: configparser.ConfigParser, source_files: list[Path]
) -> None:
    listed = set(setup_cfg["options"]["packages"].split())
    holding = {
        ".".join(("gwtwins", *path.parent.parts))
        for path in source_files
        if path.suffix == ".py" and (len(path.parts) == 1 or path.parts[0] in ROOMS)
    }
    assert holding - listed == set()


def test_constraints_lie_within_the_ranges(root: Path, setup_cfg: configparser.ConfigParser) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    wanted = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    for line in filter(None, "\n".join(wanted).split("\n")):
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no tested version in constraints.txt"
        assert requirement.specifier.contains(version), f"{line}, but the tested one is {version}"


def test_the_version_is_the_same_everywhere(root: Path, setup_cfg: configparser.ConfigParser) -> None:
    version = setup_cfg["metadata"]["version"]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == version
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == version
