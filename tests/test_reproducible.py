"""The same command gives the same bytes in another process, says what it was made from, and has its folder to itself.

Elsewhere: packing with any number of processes (test_pack.py), a scan with one, two and three and on a Dask cluster
(test_scan_command.py), training rows and steps that are split among processes (test_simulated.py, test_distributed.py),
runs that are killed (test_resume.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml

import all_commands
from all_commands import SEED, SMALL
from g2net_writer import coloured_noise, names, write_g2net_folder
from gwtwins import eval_probe, scan_strain
from gwtwins.probes import evaluate, scan
from gwtwins.probes.scan_folder import describe_data
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.pretrain import Feed
from gwtwins.ssl.views import make_views
from gwtwins.strain.command import hold_folder
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.strain_index import index_strain
from scan_scene import write_strain
from toy_source import ToySource

MEASURED = {"seconds", "seconds_by_stage", "samples_per_second", "waited_for_data"}  # how long it took
WITH_TIMES = {"encoder.json", "metrics.jsonl", "probe.json", "scan.json", "report.html", "scan.html"}
OF_THE_MACHINE = {"scan-config.json"}  # where the files lay, and when they were written
SEEDED = ["--seed", str(SEED)]
VERSIONS = {"python", "gwtwins", "torch", "numpy"}


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every command leaves, made in this process; to be looked at only."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        all_commands.everything()
    return folder


@pytest.fixture(scope="module")
def again(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from a new process, with an order of hashes and a cache of its own."""
    folder = tmp_path_factory.mktemp("there")
    new = {"PYTHONHASHSEED": "5", "GWTWINS_CACHE": str(tmp_path_factory.mktemp("cache")), "PYTHONWARNINGS": ""}
    subprocess.run([sys.executable, all_commands.__file__], cwd=folder, env=os.environ | new, check=True)
    return folder


def without_times(value: Any) -> Any:
    """What JSON holds, without what was measured with a clock."""
    if isinstance(value, dict):
        return {key: without_times(held) for key, held in value.items() if key not in MEASURED}
    return [without_times(held) for held in value] if isinstance(value, list) else value


def documents(path: Path) -> list[Any]:
    """JSON, or lines of it."""
    text = path.read_text()
    return without_times([json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])])


@pytest.mark.parametrize(
    ("folder", "least"),
    [
        (".", {"simulate.json"}),
        ("pretrain", {"encoder.safetensors", "encoder.json", "config.yaml", "metrics.jsonl", "checkpoints/last.ckpt"}),
        ("embed", {"embeddings.hdf5"}),
        ("probe", {"probe.json", "probe.safetensors", "predictions.csv", "config.json", "plots/roc.png"}),
        ("scan", {"triggers.csv", "events.hdf5", "scan.json", "plots/trigger-1.png"}),
    ],
)
def test_the_same_seed_gives_the_same_bytes_in_another_process(
    made: Path, again: Path, folder: str, least: set[str]
) -> None:
    def files(root: Path) -> dict[str, Path]:
        found = (root / folder).rglob("*") if folder != "." else root.glob("*")
        return {str(p.relative_to(root / folder)): p for p in found if p.is_file() and "events.out." not in p.name}

    here, there = files(made), files(again)
    assert least <= set(here) and set(here) == set(there)
    for name, path in here.items():
        if path.name in OF_THE_MACHINE:
            continue
        if path.suffix in (".json", ".jsonl"):
            assert documents(path) == documents(there[name]), name
        elif path.name not in WITH_TIMES:
            assert path.read_bytes() == there[name].read_bytes(), name


def test_another_seed_gives_other_bytes(made: Path, tmp_path: Path) -> None:
    """Else the test above would hold of commands that look at no seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_commands, "SEED", SEED + 1)
        assert all_commands.simulated() != json.loads((made / "simulate.json").read_text())


def test_making_views_in_a_thread_ahead_of_the_steps_changes_none_of_them() -> None:
    maker = make_views("detector", ToySource(), AugmentConfig(), True)
    ahead, asked = ([*Feed(maker, SEED, 5, 8, lambda: 0, background=background)] for background in (True, False))
    assert len(ahead) == len(asked) == 5
    for one, other in zip(ahead, asked):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


# What a result says of itself


def test_every_result_says_versions_seed_configuration_and_data(made: Path) -> None:
    card = json.loads((made / "pretrain" / "encoder.json").read_text())
    config = yaml.safe_load((made / "pretrain" / "config.yaml").read_text())
    assert set(card["versions"]) >= VERSIONS and card["seed"] == config["seed"] == SEED
    assert card["data"]["source"] == "simulated" and card["data"]["bank_size"] == config["bank_size"] == 64

    with h5py.File(made / "embed" / "embeddings.hdf5") as file:
        about = dict(file.attrs)
    assert set(json.loads(about["versions"])) >= VERSIONS
    assert (about["seed"], about["split"], about["weights"]) == (SEED, b"test", b"pretrain")
    assert len(about["encoder"]) >= 32 and json.loads(about["data"]) == card["data"]

    figures, config = (json.loads((made / "probe" / name).read_text()) for name in ("probe.json", "config.json"))
    assert set(figures["versions"]) >= VERSIONS and figures["context"]["seed"] == config["seed"] == SEED
    assert figures["context"]["data"] == card["data"] and config["weights"] == "pretrain"
    assert figures["context"]["encoder"]["steps"] == 4

    report = json.loads((made / "scan" / "scan.json").read_text())
    assert set(report["versions"]) >= VERSIONS and report["config"]["slides"] == 5
    assert report["data"]["files"] == 2 and len(report["data"]["sha256"]) == 64
    assert report["encoder"]["seed"] == SEED and report["probe"]["seed"] == SEED  # a scan draws nothing itself


def test_scores_of_unlabelled_windows_say_the_same(made: Path, tmp_path: Path) -> None:
    write_g2net_folder(tmp_path / "g2net", coloured_noise(12), names(12), folder="test")
    given = ["--weights", str(made / "pretrain"), "--probe", str(made / "probe"), "--device", "cpu", *SEEDED]
    assert eval_probe.probe([*given, "--data", str(tmp_path / "g2net"), "--out", str(tmp_path / "out")]) == 0
    about = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert set(about["versions"]) >= VERSIONS and about["context"]["seed"] == about["probe"]["seed"] == SEED
    assert about["windows"] == about["context"]["data"]["windows"] == 12
    assert len(about["context"]["data"]["sha256"]) == 64


def test_the_digest_of_a_scans_data_is_of_the_files_and_not_of_their_folder(made: Path, tmp_path: Path) -> None:
    files = sorted((made / "strain").iterdir())
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = describe_data(index_strain([made / "strain"]))
    assert describe_data(index_strain([tmp_path])) == whole
    assert describe_data(index_strain(files[:1]))["sha256"] != whole["sha256"]


# One folder, one process


def refused(command: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of a command that exits 2."""
    capsys.readouterr()
    assert run_command(lambda: command(argv)) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


@pytest.mark.parametrize("kind", ["probe", "scan"])
def test_a_second_command_is_refused_while_the_first_is_at_work(
    made: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", []
    module, at = {"probe": (evaluate, "evaluate"), "scan": (scan, "scan")}[kind]
    command, argv = {
        "probe": (eval_probe.probe, ["--frac", "40", "--label-counts", "[]", "--templates", "0", *SMALL, *SEEDED]),
        "scan": (scan_strain.scan, [str(made / "strain"), "--slides", "5", "--loudest", "0", "--threshold", "-4"]),
    }[kind]
    argv = [*argv, "--weights", str(made / "pretrain"), "--out", str(out)]
    argv += ["--probe", str(made / "probe")] if kind == "scan" else []
    original = getattr(module, at)

    def interrupted(*args: Any, **options: Any) -> Any:
        if not said:
            said.append("")
            before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
            said[0] = refused(command, argv, capsys)
            assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        return original(*args, **options)

    monkeypatch.setattr(module, at, interrupted)
    assert command(argv) == 0
    assert f"{out}: process {os.getpid()} on " in said[0] and "is at work in it" in said[0]
    assert not list(out.rglob(".*"))  # neither locks nor half-written files
    table = "predictions.csv" if kind == "probe" else "triggers.csv"
    assert (out / table).read_bytes() == (made / kind / table).read_bytes()


def test_a_scan_that_comes_to_nothing_leaves_no_folder(made: Path, tmp_path: Path) -> None:
    short = write_strain(tmp_path, "L1", 8, None)
    argv = [str(short), "--weights", str(made / "pretrain"), "--probe", str(made / "probe"), "--device", "cpu"]
    with pytest.raises(InputError, match="no stretch"):
        scan_strain.scan([*argv, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The kernel lets go of a lock with its process; the file that stays says nothing."""
    hold = f"with hold_folder(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    code = f"import os, pathlib; from gwtwins.strain.command import hold_folder\n{hold}"
    environment = os.environ | {"PYTHONWARNINGS": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    assert (tmp_path / ".lock").exists()
    with hold_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
