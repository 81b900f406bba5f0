"""What every test stands on: the source tree, real strain where there is some, seeded draws, no windows."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("strain", "encoders", "ssl", "probes")
SCRIPTS = ("train_ssl.py", "eval_probe.py", "scan_strain.py")
# Made by make, by runs and by the tools (as in .gitignore): not part of the source.
_MADE_IN_ROOT = {".git", ".venv", "runs", "data", "build", "dist"}
_MADE_ANYWHERE = {"__pycache__", ".cache", ".hypothesis", "lightning_logs", ".DS_Store"}
_MADE_ENDINGS = (".egg-info", "_cache", ".tmp", ".partial")

matplotlib.use("Agg")
# Two threads: what the smallest machine has, and the same sums in the same order everywhere.
torch.set_num_threads(2)
hypothesis.settings.register_profile("gwtwins", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("gwtwins")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Global draws start from the same place in every test, alone or in the suite."""
    torch.manual_seed(20150914)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder, which is the package ``gwtwins``."""
    return ROOT


@pytest.fixture(scope="session")
def source_files() -> list[Path]:
    """Every file of the source tree, relative to the root; found without git, which a machine may lack."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = sorted(name for name in folders if not _is_made(here / name))
        found += [here / name for name in sorted(files) if not _is_made(here / name)]
    return found


def _is_made(path: Path) -> bool:
    name = path.name
    return name in _MADE_ANYWHERE or name.endswith(_MADE_ENDINGS) or str(path) in _MADE_IN_ROOT


@pytest.fixture(scope="session")
def gwosc() -> Path:
    """The folder of real strain files in the GWOSC layout."""
    given = os.environ.get("GWTWINS_DATA")
    folder = (Path(given) if given else ROOT.parent / "shared" / "data") / "gwosc"
    if not any(folder.glob("*.hdf5")):
        pytest.skip(f"no real strain in {folder} (GWTWINS_DATA names the folder that holds gwosc/)")
    return folder
