"""What every test stands on: the source tree, real strain where there is some, seeded draws, no windows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import matplotlib
import pytest
import torch

if TYPE_CHECKING:
    from gwtwins.strain.simulated import SimulatedSource

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("strain", "encoders", "ssl", "probes")
SCRIPTS = ("train_ssl.py", "eval_probe.py", "scan_strain.py")
# Made by make, by runs and by the tools (as in .gitignore): not part of the source.
_MADE_IN_ROOT = {".git", ".venv", ".venv-oldest", ".venv-newest", "runs", "data", "build", "dist"}
_MADE_ANYWHERE = {"__pycache__", ".cache", ".hypothesis", "lightning_logs", ".DS_Store"}
_MADE_ENDINGS = (".egg-info", "_cache", ".tmp", ".partial")

matplotlib.use("Agg")
# A shell that starts the tests in the background has Ctrl-C ignored, and what is ignored is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder as the cache of waveform banks, for this process and for those it starts."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GWTWINS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_source(cache: Path) -> SimulatedSource:
    """The simulated source at its defaults, but with banks of 64 waveforms and 64 rows a split."""
    from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
    from gwtwins.strain.sources import Window

    return SimulatedSource(SimulationConfig(bank_size=64, n_labelled=64, n_test=64), Window(), progress=False)
