"""Bad input, through the commands themselves: exit status 2, one line of where, what and what else, no traceback.

Every case runs the function behind a command as its entry point does; a few run as real processes. The line names the
file or option at fault and ends with what was expected. What was there before is there afterwards, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwosc_writer import coloured_noise as long_noise
from gwosc_writer import write_gwosc
from gwtwins import eval_probe, scan_strain, train_ssl
from gwtwins.encoders import export
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder, save_encoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.strain import pack as packer
from gwtwins.strain.errors import run_command
from gwtwins.strain.g2net import LABELS, window_path
from gwtwins.strain.population import POPULATIONS
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.splits import is_test

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_ssl.train,
    "probe": eval_probe.probe,
    "scan": scan_strain.scan,
    "pack": packer.main,
    "export": export.export,
}
TINY = ["--bank-size", "64", "--device", "cpu"]
TRAIN = ["train", "--steps", "2", "--batch", "8", "--watch", "0", *TINY]
PROBE = ["probe", "--n-labelled", "64", "--n-test", "64", "--templates", "0", "--label-counts", "[]", *TINY]
SMALL = ["--encoder-args", "{width: 8, hidden: 8, embedding: 16}"]
IDS = names(64)
TRAINED, TESTED = ([id for id in IDS if is_test(id) == test] for test in (False, True))
_BAR = re.compile(r"^[a-z ]+: +(\d+%|\d+ )")  # what a progress bar's line begins with


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Commands set handlers of signals for the process they are usually alone in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_source: SimulatedSource) -> Path:
    """Sound things to spoil: runs a and b (the same encoder, other weights) and wide, g2net/, windows.hdf5, strain/."""
    here = tmp_path_factory.mktemp("made")
    for seed, (name, width) in enumerate((("a", 8), ("b", 8), ("wide", 12))):
        torch.manual_seed(seed)
        (here / name).mkdir()
        encoder = PairedEncoder("cnn_gru", {"width": width, "hidden": 8, "embedding": 16}, psds=small_source.psds)
        save_encoder(encoder, here / name, {"steps": 1})
        probe = a_probe(fingerprint(load_encoder(here / name)), seed)
        (here / name / "probe").mkdir()
        probe.save(here / name / "probe" / "probe.safetensors")
    write_g2net_folder(here / "g2net", coloured_noise(len(IDS)), IDS, [k % 2 for k in range(len(IDS))])
    packer.pack(here / "g2net", here / "windows.hdf5", workers=1, progress=False)
    (here / "strain").mkdir()
    for seed, detector in enumerate(("H1", "L1", "V1")):
        strain = long_noise(24, 1024, seed)
        write_gwosc(here / "strain" / f"{detector}.hdf5", strain, 1024, detector)
    return here


def a_probe(encoder: str, seed: int) -> LinearProbe:
    rng = np.random.default_rng(seed)
    label = np.arange(64) % 2
    embeddings = (rng.normal(size=(64, 3, 16)) + label[:, None, None]).astype(np.float32)
    present = np.ones((64, 3), bool)
    return LinearProbe.fit(embeddings, present, label, np.arange(64), "concat", 0, ("H1", "L1", "V1"), encoder)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy of them (hard links: replace files, never write into them), which is the working folder."""
    shutil.copytree(made, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spoil(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def error_line(stderr: str) -> str:
    """The one line that is not a progress bar's, checked for its form."""
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert "Traceback" not in stderr, stderr
    said = [line for line in lines if not _BAR.match(line)]
    assert len(said) == 1 and lines[-1] == said[0] and said[0].startswith("error: "), stderr
    return said[0].removeprefix("error: ")


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``command --options``; it must be refused, say all of ``says`` and what it expected, and change nothing."""

    def refused(*argv: str, says: tuple[str, ...] = (), out: bool = False, started: bool = False) -> str:
        command, *options = argv
        if not out and command in ("train", "probe", "scan"):
            options += ["--out", "out"]
        before = contents(here)
        capsys.readouterr()
        status = run_command(lambda: COMMANDS[command](options))
        line = error_line(capsys.readouterr().err)
        assert status == 2, line
        assert "; expected " in line, line
        for text in says:
            assert text in line, line
        after = contents(here)
        assert {name: after.get(name) for name in before} == before
        if not started:  # nothing is left behind where nothing was begun
            assert set(after) == set(before), set(after) - set(before)
        return line

    return refused


def test_what_the_cases_spoil_is_sound(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data in ("g2net", "windows.hdf5", "strain", "simulated"):
        assert COMMANDS["train"]([*TRAIN[1:], *SMALL, "--data", data, "--out", f"run-{data}"]) == 0
    assert COMMANDS["probe"]([*PROBE[1:], "--weights", "a", "--data", "g2net", "--probe", "a/probe", "--out", "p"]) == 0
    assert COMMANDS["scan"](["strain", "--weights", "a", "--loudest", "0", "--out", "s"]) == 0
    assert "Traceback" not in capsys.readouterr().err


# --- no such file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [*TRAIN, "--data", "nowhere.hdf5"],
        [*TRAIN, "--data", "nowhere/"],
        [*TRAIN, "--data", "strain/H1.hdf5,nowhere.hdf5"],
        [*TRAIN, "--config", "nowhere.yaml"],
        [*TRAIN, "--population", "nowhere.yaml"],
        [*TRAIN, "--population", "nowhere"],
        [*TRAIN, "--psds", "nowhere.txt,nowhere.txt,nowhere.txt"],
        [*TRAIN, "--noise", "nowhere.hdf5"],
        [*PROBE, "--weights", "a", "--data", "nowhere.hdf5"],
        [*PROBE, "--weights", "nowhere"],
        [*PROBE, "--weights", "gwtwins/nowhere"],
        [*PROBE, "--weights", "a", "--data", "windows.hdf5", "--probe", "nowhere"],
        [*PROBE, "--weights", "a", "--config", "nowhere.yaml"],
        ["scan", "nowhere.hdf5", "--weights", "a"],
        ["scan", "strain", "--weights", "nowhere"],
        ["scan", "strain", "--weights", "a", "--probe", "nowhere"],
        ["pack", "nowhere", "out.hdf5"],
        ["export", "nowhere", "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there(refused: Callable[..., str], argv: list[str]) -> None:
    refused(*argv, says=("nowhere",))


def test_a_folder_that_holds_no_data(refused: Callable[..., str], here: Path) -> None:
    (here / "empty").mkdir()
    for argv in ([*TRAIN, "--data", "empty"], [*PROBE, "--weights", "a", "--data", "empty"]):
        refused(*argv, says=("empty",))
    refused("scan", "empty", "--weights", "a", says=("empty",))
    refused("pack", "empty", "out.hdf5", says=("empty",))
    refused(*PROBE, "--weights", "empty", says=("empty",))


def test_neither_weights_nor_a_run_to_take_them_from(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gwtwins.encoders.weights.SHIPPED", tmp_path / "none-shipped")
    refused(*PROBE, "--data", "windows.hdf5", says=("--weights", "runs/latest"))


def test_a_scan_without_files(refused: Callable[..., str]) -> None:
    refused("scan", "--weights", "a", says=("no files",))


# --- windows ---------------------------------------------------------------------------------------------------


class Mischief:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def with_value(value: float) -> np.ndarray:
    window = coloured_noise(1, seed=5)[0]
    window[1, 2000] = value
    return window


def flat(value: float) -> np.ndarray:
    window = coloured_noise(1, seed=5)[0]
    window[2] = value
    return window


_GOOD = coloured_noise(1, seed=5)[0]
WINDOWS = {
    "too short": (npy(_GOOD[:, :4095]), "(3, 4095)"),
    "two detectors": (npy(_GOOD[:2]), "(2, 4096)"),
    "transposed": (npy(_GOOD.T.copy()), "(4096, 3)"),
    "one axis": (npy(_GOOD.ravel()), "(12288,)"),
    "integers": (npy((_GOOD * 1e24).astype(np.int64)), "int64"),
    "complex": (npy(_GOOD.astype(complex)), "complex128"),
    "half precision": (npy(_GOOD.astype(np.float16)), "float16"),
    "strings": (npy(_GOOD.astype(str)), "type <U"),
    "pickled": (npy(np.array([[Mischief()] * 4096] * 3), allow_pickle=True), "pickle"),
    "a pickle by itself": (pickle.dumps(Mischief()), "not a .npy file"),
    "empty": (b"", "empty"),
    "truncated": (npy(_GOOD)[:-8], "truncated"),
    "half a header": (npy(_GOOD)[:60], "truncated .npy header"),
    "NaN": (npy(with_value(np.nan)), "NaN"),
    "infinite": (npy(with_value(np.inf)), "infinite"),
    "an all-zero detector": (npy(flat(0.0)), "V1 is all zero"),
    "a constant detector": (npy(flat(1e-21)), "V1 is constant"),
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("command", ["train", "probe", "pack"])
def test_a_spoilt_window(refused: Callable[..., str], here: Path, command: str, kind: str) -> None:
    data, fault = WINDOWS[kind]
    # What a command reads first is another window for each: pretraining never opens the test rows.
    id = TESTED[1] if command == "probe" else TRAINED[3]
    spoil(window_path(here / "g2net", "train", id), data)
    argv = {
        "train": [*TRAIN, "--data", "g2net"],
        "probe": [*PROBE, "--weights", "a", "--data", "g2net", "--frac", "1"],
        "pack": ["pack", "g2net", "out.hdf5", "--workers", "1"],
    }[command]
    refused(*argv, says=(f"{id}.npy", fault), started=command != "train")
    assert not (here / "pickle-was-run").exists() and not (here / "out.hdf5").exists()


@pytest.mark.parametrize("command", ["train", "probe"])
def test_nan_in_a_packed_window(refused: Callable[..., str], here: Path, command: str) -> None:
    shutil.copyfile(here / "windows.hdf5", here / "spoilt.hdf5")
    id = TESTED[2] if command == "probe" else TRAINED[2]
    with h5py.File(here / "spoilt.hdf5", "r+") as file:
        file["strain"][list(file["id"][()]).index(id.encode()), 1, 99] = np.nan
    argv = {
        "train": [*TRAIN, "--data", "spoilt.hdf5", "--steps", "20"],  # met in some step, in another thread
        "probe": [*PROBE, "--weights", "a", "--data", "spoilt.hdf5", "--frac", "1"],
    }[command]
    refused(*argv, says=("spoilt.hdf5", id, "NaN"), started=True)
    assert not (here / "out" / "encoder.safetensors").exists() and not (here / "out" / "probe.json").exists()


# --- labels ----------------------------------------------------------------------------------------------------

LINES = [f"{id},{k % 2}" for k, id in enumerate(IDS)]
LABELLINGS = {
    "ids without a file": (["id,target", *LINES, "0123456789,1", "fffffffff0,0"], "2 of 66 labelled ids have no file"),
    "files without a label": (["id,target", *LINES[:-3]], "3 of 64 windows in train/ have no label"),
    "no line at all": (["id,target"], "64 of 64 windows in train/ have no label"),
    "an id twice": (["id,target", *LINES, LINES[0]], "a second time"),
    "a target of 2": (["id,target", *LINES[1:], LINES[0][:-1] + "2"], "target '2'"),
    "a target of 0.5": (["id,target", *LINES[1:], LINES[0][:-1] + "0.5"], "target '0.5'"),
    "three columns": (["id,target", *LINES[1:], LINES[0] + ",1"], "3 columns"),
    "no header": (LINES, "header"),
    "another header": (["id,label", *LINES], "header"),
    "an empty file": ([""], "header"),
}


@pytest.mark.parametrize("kind", LABELLINGS)
def test_labels_that_do_not_fit_the_windows(refused: Callable[..., str], here: Path, kind: str) -> None:
    lines, fault = LABELLINGS[kind]
    spoil(here / "g2net" / LABELS, ("\n".join(lines) + "\n").encode())
    for argv in (
        [*TRAIN, "--data", "g2net"],
        [*PROBE, "--weights", "a", "--data", "g2net", "--frac", "1"],
        ["pack", "g2net", "out.hdf5", "--workers", "1"],
    ):
        refused(*argv, says=(LABELS, fault))


def test_a_probe_of_windows_without_labels_or_of_one_class(refused: Callable[..., str], here: Path) -> None:
    (here / "g2net" / LABELS).unlink()
    refused(*PROBE, "--weights", "a", "--data", "g2net", says=("no labelled rows", "--probe"))
    (here / "g2net" / LABELS).write_text("\n".join(["id,target", *(f"{id},0" for id in IDS)]) + "\n")
    refused(*PROBE, "--weights", "a", "--data", "g2net", "--frac", "1", says=("0 signals",), started=True)


# --- how many labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["simulated", "windows.hdf5"])
@pytest.mark.parametrize("frac", ["0", "0.0", "2.5", "3", "9", "-1", "-0.5", "nan", "inf", "abc", "", "10.5"])
def test_a_frac_that_is_neither_a_fraction_nor_a_count(refused: Callable[..., str], frac: str, data: str) -> None:
    refused(
        *PROBE, "--weights", "a", "--data", data, "--frac", frac, says=(f"--frac {frac}", "expected a fraction in (0")
    )


def test_more_labels_than_there_are(refused: Callable[..., str]) -> None:
    for data, n in (("simulated", 64), ("windows.hdf5", len(TRAINED))):
        refused(*PROBE, "--weights", "a", "--data", data, "--frac", f"{n + 1}", says=(f"only {n} rows", f"at most {n}"))


# --- truncated and foreign HDF5 --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_window_store(refused: Callable[..., str], here: Path, part: float) -> None:
    whole = (here / "windows.hdf5").read_bytes()
    (here / "cut.hdf5").write_bytes(whole[: int(part * len(whole))])
    refused(*TRAIN, "--data", "cut.hdf5", says=("cut.hdf5",))
    refused(*PROBE, "--weights", "a", "--data", "cut.hdf5", says=("cut.hdf5",))


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_a_truncated_strain_file(refused: Callable[..., str], here: Path, part: float) -> None:
    whole = (here / "strain" / "L1.hdf5").read_bytes()
    spoil(here / "strain" / "L1.hdf5", whole[: int(part * len(whole))])
    refused(*TRAIN, "--data", "strain", says=("L1.hdf5", "truncated"))
    refused(*TRAIN, "--noise", "strain", says=("L1.hdf5", "truncated"))
    refused("scan", "strain", "--weights", "a", says=("L1.hdf5", "truncated"))


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_a_truncated_waveform_bank(
    refused: Callable[..., str], here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    monkeypatch.setenv("GWTWINS_CACHE", str(here / "cache"))
    (here / "cache").mkdir()
    for path in cache.glob("bank-*.hdf5"):
        (here / "cache" / path.name).write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refused(*TRAIN, says=("bank-", "delete it"))
    refused(*PROBE, "--weights", "a", says=("bank-", "delete it"))


def test_files_of_another_kind(refused: Callable[..., str], here: Path) -> None:
    (here / "text.hdf5").write_text("not HDF5\n")
    with h5py.File(here / "other.hdf5", "w") as file:
        file["x"] = np.zeros(3)
    for name in ("text.hdf5", "other.hdf5", "a/encoder.json"):
        refused(*TRAIN, "--data", name, says=(name,))
        refused(*PROBE, "--weights", "a", "--data", name, says=(name,))
    for name in ("text.hdf5", "other.hdf5", "windows.hdf5"):
        refused("scan", name, "--weights", "a", says=(name,))
        refused(*TRAIN, "--noise", name, says=(name,))


def test_strain_that_is_no_strain(refused: Callable[..., str], here: Path) -> None:
    flat, missing = np.zeros(24 * 1024), np.full(24 * 1024, np.nan)
    write_gwosc(here / "flat.hdf5", flat, 1024, "H1")
    write_gwosc(here / "missing.hdf5", missing, 1024, "H1")
    write_gwosc(here / "short.hdf5", long_noise(3, 1024), 1024, "H1")
    write_gwosc(here / "kagra.hdf5", long_noise(24, 1024), 1024, "K1")
    for name in ("flat.hdf5", "missing.hdf5", "short.hdf5", "kagra.hdf5"):
        refused("scan", name, "--weights", "a", says=(name,))


# --- weights ---------------------------------------------------------------------------------------------------


def test_weights_and_descriptions_that_do_not_belong_together(refused: Callable[..., str], here: Path) -> None:
    a, wide = here / "a", here / "wide"
    spoil(a / "encoder.safetensors", (wide / "encoder.safetensors").read_bytes())
    for argv in ([*PROBE, "--weights", "a"], ["scan", "strain", "--weights", "a"], ["export", "a", "--out", "out"]):
        refused(*argv, says=("a/encoder.safetensors", "two files of one export"))
    described = json.loads((wide / "encoder.json").read_text())
    described["shared"] = False
    spoil(wide / "encoder.json", json.dumps(described).encode())
    refused(*PROBE, "--weights", "wide", says=("wide/encoder.safetensors", "tensors do not match encoder.json"))


JSONS = {
    "absent": (None, "no such file"),
    "not JSON": ("{", "is not JSON"),
    "not a mapping": ("[]", "does not describe an encoder"),
    "another format": ({"format": "gwtwins-encoder-999"}, "does not describe an encoder of this version"),
    "another architecture": ({"encoder": {"name": "cnn_gru_2021", "args": {}}}, "encoder.json"),
    "an unknown architecture": ({"encoder": {"name": "transformer", "args": {}}}, "transformer"),
    "an unknown argument": ({"encoder": {"name": "cnn_gru", "args": {"depth": 3}}}, "depth"),
    "an argument out of bounds": ({"encoder": {"name": "cnn_gru", "args": {"width": 10**6}}}, "1000000"),
    "an argument of another type": ({"encoder": {"name": "cnn_gru", "args": {"width": "8"}}}, "width"),
    "detectors of nowhere": ({"detectors": ["H1", "X9"]}, "X9"),
    "fewer detectors": ({"detectors": ["H1", "L1"]}, "V1"),
    "a band upside down": ({"f_low": 400.0, "f_high": 300.0}, "300"),
    "a negative band": ({"f_low": -20.0}, "-20"),
    "an infinite band": ({"f_high": float("inf")}, "Infinity"),
    "a band of text": ({"f_low": "20"}, "f_low"),
}


@pytest.mark.parametrize("kind", JSONS)
def test_a_spoilt_encoder_json(refused: Callable[..., str], here: Path, kind: str) -> None:
    change, fault = JSONS[kind]
    path = here / "a" / "encoder.json"
    if change is None:
        path.unlink()
    else:
        node = {**json.loads(path.read_text()), **change} if isinstance(change, dict) else change
        spoil(path, (node if isinstance(node, str) else json.dumps(node)).encode())
    refused(*PROBE, "--weights", "a", "--data", "windows.hdf5", says=(fault,))
    refused("scan", "strain", "--weights", "a", says=(fault,))


@pytest.mark.parametrize("kind", ["empty", "truncated", "pickle", "checkpoint"])
def test_spoilt_weights(refused: Callable[..., str], here: Path, kind: str) -> None:
    path = here / "a" / "encoder.safetensors"
    whole = path.read_bytes()
    named = "a"
    if kind == "checkpoint":
        named = "a/last.ckpt"
        (here / named).write_bytes(pickle.dumps(Mischief()))
    else:
        spoil(path, {"empty": b"", "truncated": whole[: len(whole) // 2], "pickle": pickle.dumps(Mischief())}[kind])
    for argv in ([*PROBE, "--weights"], ["scan", "strain", "--weights"], ["export", "--out", "out"]):
        refused(*argv, named, says=(named, "safetensors"))
    assert not (here / "pickle-was-run").exists()


def test_a_probe_of_another_encoder_is_refused_before_hours_of_embedding(
    refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwtwins.probes.features.embed", lambda *_, **__: pytest.fail("embedded"))
    for argv in ([*PROBE, "--data", "windows.hdf5"], ["scan", "strain"]):
        refused(*argv, "--weights", "b", "--probe", "a/probe", says=("a/probe", "fitted to another encoder"))


def test_a_spoilt_probe(refused: Callable[..., str], here: Path) -> None:
    probe = here / "a" / "probe"
    other = (here / "b" / "probe" / "probe.safetensors").read_bytes()
    for data, fault in ((other, "does not belong to probe.safetensors"), (b"", "does not belong")):
        spoil(probe / "probe.safetensors", data)
        for argv in ([*PROBE, "--data", "windows.hdf5", "--probe", "a/probe"], ["scan", "strain"]):
            refused(*argv, "--weights", "a", says=("probe.json", fault))
    for text, fault in (("{", "is not JSON"), ("{}", "holds no linear probe")):
        spoil(probe / "probe.json", text.encode())
        for argv in ([*PROBE, "--data", "windows.hdf5", "--probe", "a/probe"], ["scan", "strain"]):
            refused(*argv, "--weights", "a", says=("probe.json", fault))


# --- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["train", "--view", "detector"], "--views"),
        (["train", "--learning-rat", "1"], "--learning-rate"),
        (["train", "--learningrate=1"], "--learning-rate"),
        (["train", "--step", "1"], "--steps"),
        (["train", "--aug-sign-prob", "1"], "--aug-sign-probability"),
        (["probe", "--fraction", "0.5"], "--frac"),
        (["probe", "--wheights", "a"], "--weights"),
        (["probe", "--n-lablled", "3"], "--n-labelled"),
        (["scan", "--strid", "0.1", "strain"], "--stride"),
        (["export", "a", "--onx"], "--onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_an_unknown_option_names_the_nearest(refused: Callable[..., str], argv: list[str], nearest: str) -> None:
    line = refused(*argv, says=(argv[1].split("=")[0] if argv[0] != "export" else "--onx",))
    assert line.endswith(f"expected {nearest}")


def test_unknown_keys_and_what_is_no_config(refused: Callable[..., str], here: Path) -> None:
    for text, says in (
        ("learning_rte: 1\n", ("unknown key 'learning_rte'", "'learning_rate'")),
        ("viewz: detector\nsteps: 2\n", ("'viewz'", "'views'")),
        ("- views\n", ("not a mapping",)),
        ("views: [\n", ("not YAML",)),
        ("steps: many\n", ("steps", "many")),
        ("!!python/object/apply:os.mkdir [pickle-was-run]\n", ("holds a tag",)),
    ):
        (here / "run.yaml").write_text(text)
        refused("train", "--config", "run.yaml", says=says)
    (here / "run.yaml").write_text("fraction: 0.5\n")
    refused("probe", "--config", "run.yaml", says=("'fraction'", "'frac'"))
    (here / "run.yaml").unlink()
    assert not (here / "pickle-was-run").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*TRAIN, "--views", "twins"], ("twins", "detector, pairs, noise, augment")),
        ([*TRAIN, "--views", "noise", "--data", "windows.hdf5"], ("--views noise", "one noise")),
        ([*TRAIN, "--views", "detector", "--detectors", "H1,L1"], ("--views detector", "H1 L1")),
        ([*TRAIN, "--views", "pairs", "--detectors", "H1"], ("--views pairs", "one detector")),
        ([*TRAIN, "--encoder", "transformer"], ("transformer", "cnn_gru or cnn_gru_2021")),
        ([*TRAIN, "--encoder-args", "{depth: 3}"], ("depth", "width")),
        ([*TRAIN, "--encoder-args.width", "1000000"], ("width", "1000000")),
        ([*TRAIN, "--encoder-args.width", "wide"], ("width", "wide")),
        ([*TRAIN, "--objective", "simclr"], ("simclr", "barlow")),
        ([*TRAIN, "--optimiser", "adam"], ("adam", "adamw or lars")),
        ([*TRAIN, "--precision", "8"], ("--precision 8",)),
        ([*TRAIN, "--device", "tpu"], ("tpu",)),
        ([*TRAIN, "--steps", "many"], ("steps", "many")),
        ([*TRAIN, "--steps", "1.5"], ("steps", "1.5")),
        ([*TRAIN, "--steps", "-3"], ("--steps -3",)),
        ([*TRAIN, "--steps", "0", "--minutes", "0"], ("--minutes 0",)),
        ([*TRAIN, "--batch", "1"], ("--batch", "1")),
        ([*TRAIN, "--batch", "-8"], ("--batch", "-8")),
        ([*TRAIN, "--seed", "-1"], ("--seed", "-1")),
        ([*TRAIN, "--seed", "99999999999999999999"], ("--seed", "99999999999999999999")),
        ([*TRAIN, "--monitor-every", "0"], ("--monitor-every", "0")),
        ([*TRAIN, "--checkpoint-every", "0"], ("--checkpoint-every", "0")),
        ([*TRAIN, "--bank-size", "0"], ("bank", "0")),
        ([*TRAIN, "--learning-rate", "nan"], ("learning_rate", "nan")),
        ([*TRAIN, "--lambda-param", "-1"], ("-1",)),
        ([*TRAIN, "--projector", "0"], ("projector 0",)),
        ([*TRAIN, "--f-low", "0"], ("0",)),
        ([*TRAIN, "--f-low", "-5"], ("-5",)),
        ([*TRAIN, "--f-low", "300", "--f-high", "200"], ("300", "200")),
        ([*TRAIN, "--f-high", "5000"], ("5000",)),
        ([*TRAIN, "--detectors", "X9"], ("X9",)),
        ([*TRAIN, "--detectors", "H1,H1,V1"], ("H1,H1,V1", "once")),
        ([*TRAIN, "--psds", "aLIGOZeroDetHighPower"], ("1 PSDs for 3 detectors",)),
        ([*TRAIN, "--psds", "nothing,nothing,nothing"], ("nothing", "pycbc PSD name")),
        ([*TRAIN, "--signal-fraction", "2"], ("signal", "2")),
        ([*TRAIN, "--noise", "strain", "--noise-exclude", "yesterday"], ("yesterday",)),
        ([*TRAIN, "--noise", "strain", "--noise-exclude", "12"], ("12",)),
        ([*TRAIN, "--aug-sign-probability", "7"], ("aug_sign_probability", "7")),
        ([*TRAIN, "stray"], ("stray",)),
        ([*PROBE, "--weights", "a", "--features", "raw"], ("raw", "concat or coherent")),
        ([*PROBE, "--weights", "a", "--device", "tpu"], ("tpu",)),
        ([*PROBE, "--weights", "a", "--seed", "-1"], ("--seed", "-1")),
        ([*PROBE, "--weights", "a", "--templates", "-1"], ("--templates", "-1")),
        ([*PROBE, "--weights", "a", "--label-counts", "[20]", "--label-draws", "0"], ("--label-draws", "0")),
        ([*PROBE, "--weights", "a", "--label-counts", "few"], ("label_counts", "few")),
        ([*PROBE, "--weights", "a", "--n-labelled", "0"], ("0 labelled rows",)),
        ([*PROBE, "--weights", "a", "--n-test", "0"], ("no test rows", "--n-test")),
        (["scan", "strain", "--weights", "a", "--stride", "0"], ("--stride", "0")),
        (["scan", "strain", "--weights", "a", "--stride", "nan"], ("stride", "nan")),
        (["scan", "strain", "--weights", "a", "--min-detectors", "4"], ("--min-detectors", "4")),
        (["scan", "strain", "--weights", "a", "--device", "tpu"], ("tpu",)),
        (["pack", "g2net"], ("OUT.hdf5",)),
        (["pack", "g2net", "windows.hdf5"], ("windows.hdf5", "exists")),
        (["pack", "g2net", "nowhere/out.hdf5"], ("nowhere",)),
        (["pack", "g2net", "out.hdf5", "--workers", "0"], ("0",)),
        (["pack", "g2net", "out.hdf5", "--quick"], ("--quick",)),
        (["export"], ("0 weights",)),
        (["export", "a", "b"], ("2 weights",)),
    ],
    ids=lambda value: (
        " ".join(value).replace(" ".join(TRAIN), "train").replace(" ".join(PROBE), "probe")
        if isinstance(value, list)
        else ""
    ),
)
def test_an_option_that_makes_no_sense(refused: Callable[..., str], argv: list[str], says: tuple[str, ...]) -> None:
    refused(*argv, says=says)


STANDARD = (POPULATIONS / "standard.yaml").read_text()
POPULATION_FILES = {
    "an unknown key": (STANDARD + "mass3: {uniform: [1, 2]}\n", "mass3"),
    "a missing key": ("\n".join(s for s in STANDARD.splitlines() if not s.startswith("snr")), "snr"),
    "an unknown distribution": (re.sub(r"snr: .*", "snr: {normal: [8, 1]}", STANDARD), "normal"),
    "ends the wrong way round": (re.sub(r"snr: .*", "snr: {uniform: [16, 4]}", STANDARD), "[16, 4]"),
    "not a number": (re.sub(r"mass1: .*", "mass1: {uniform: [8, .nan]}", STANDARD), "mass1"),
    "a mass of nothing": (re.sub(r"mass1: .*", "mass1: {uniform: [0, 70]}", STANDARD), "mass1"),
    "a spin beyond one": (re.sub(r"spin1z: .*", "spin1z: {uniform: [-1.5, 1.5]}", STANDARD), "spin1z"),
    "a merger outside the window": (re.sub(r"merger: .*", "merger: {uniform: [1.2, 3.5]}", STANDARD), "merger"),
    "an approximant of no library": (re.sub(r"approximant: .*", "approximant: IMRNothing", STANDARD), "IMRNothing"),
    "not a mapping": ("- standard\n", "keys"),
    "not YAML": ("name: [\n", "is not YAML"),
}


@pytest.mark.parametrize("kind", POPULATION_FILES)
def test_a_population_that_makes_no_sense(refused: Callable[..., str], here: Path, kind: str) -> None:
    text, fault = POPULATION_FILES[kind]
    (here / "ours.yaml").write_text(text)
    refused(*TRAIN, "--population", "ours.yaml", says=(fault,))


@pytest.mark.parametrize(
    ("lines", "fault"),
    [(["ten 1e-23"], "table of numbers"), (["20 1e-23 1"], "3 columns"), (["20 -1e-23", "30 1e-23"], "not positive")]
    + [(["30 1e-23", "20 1e-23"], "ascending"), (["100 1e-23", "200 1e-23"], "100"), ([], "columns")],
)
def test_an_asd_file_that_makes_no_sense(refused: Callable[..., str], here: Path, lines: list[str], fault: str) -> None:
    (here / "asd.txt").write_text("\n".join(lines) + "\n")
    refused(*TRAIN, "--detectors", "H1,V1", "--psds", "asd.txt,asd.txt", says=("asd.txt", fault))


# --- folders of results ----------------------------------------------------------------------------------------


def test_an_output_folder_that_holds_another_run_is_left_as_it_is(
    refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(here / "a")
    for argv in ([*TRAIN], [*TRAIN, "--data", "windows.hdf5"], [*PROBE, "--weights", "b"]):
        refused(*argv, "--out", "a", out=True, says=("a: already holds", "--out"))
    submission = [*PROBE, "--weights", "a", "--data", "g2net", "--probe", "a/probe"]
    monkeypatch.setattr("gwtwins.probes.features.embed", lambda *_, **__: pytest.fail("embedded"))
    refused(*submission, "--out", "a", out=True, says=("a: already holds", "--out"))
    refused("scan", "strain", "--weights", "a", "--out", "b", out=True, says=("b: already holds", "--out"))
    assert contents(here / "a") == before


def test_an_output_folder_that_is_a_file(refused: Callable[..., str]) -> None:
    for out in ("windows.hdf5", "windows.hdf5/run"):
        refused(*TRAIN, "--out", out, out=True, says=("windows.hdf5", "folder"))
        refused(*PROBE, "--weights", "a", "--out", out, out=True, says=("windows.hdf5", "folder"))
        refused("scan", "strain", "--weights", "a", "--out", out, out=True, says=("windows.hdf5", "folder"))


def test_resuming_what_is_not_there_or_is_something_else(refused: Callable[..., str], here: Path) -> None:
    refused("train", "--resume", "nowhere", out=True, says=("nowhere", "config.yaml"))
    refused("train", "--resume=nowhere", out=True, says=("nowhere", "config.yaml"))
    refused("train", "--resume", "a", out=True, says=("a", "config.yaml"))
    (here / "b" / "config.yaml").write_text("views: detector\nlearning_rte: 1\n")
    refused("train", "--resume", "b", out=True, says=("b/config.yaml", "learning_rte"))
    (here / "b" / "config.yaml").write_text("views: detector\n")
    refused("train", "--resume", "b", "--views", "pairs", out=True, says=("--views", "another run"))
    refused("train", "--resume", "b", "--learning-rate=1", out=True, says=("--learning-rate", "another run"))


def test_resuming_from_a_spoilt_checkpoint(
    refused: Callable[..., str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMANDS["train"]([*TRAIN[1:], *SMALL, "--data", "windows.hdf5", "--out", "run"]) == 0
    (here / "run" / "encoder.safetensors").unlink()  # as if it had been stopped before its end
    last = here / "run" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for data in (b"", whole[: len(whole) // 2], pickle.dumps(Mischief())):
        spoil(last, data)
        refused("train", "--resume", "run", "--steps", "4", out=True, says=("last.ckpt",))
    assert not (here / "pickle-was-run").exists()


# --- as real processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train_ssl.py", "--view", "detector"], "expected --views"),
        (["eval_probe.py", "--frac", "2.5", "--weights", "a"], "--frac 2.5"),
        (["-m", "gwtwins.strain.pack", "g2net", "out.hdf5", "--workers", "1"], "pickle"),
    ],
    ids=["train", "probe", "pack"],
)
def test_the_process_ends_with_status_2_and_one_line(root: Path, here: Path, argv: list[str], says: str) -> None:
    spoil(window_path(here / "g2net", "train", TRAINED[0]), WINDOWS["pickled"][0])
    first = str(root / argv[0]) if argv[0].endswith(".py") else argv[0]
    ended = subprocess.run([sys.executable, first, *argv[1:]], cwd=here, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    line = error_line(ended.stderr)
    assert says in line and ended.stdout == ""
    assert not (here / "pickle-was-run").exists() and not (here / "out").exists()


def test_control_characters_in_a_name_do_not_act(refused: Callable[..., str], here: Path) -> None:
    for name in ("evil\x1b[2J.hdf5", "two\nlines.hdf5"):
        (here / name).write_text("nothing")
        refused(*TRAIN, "--data", name, says=("hdf5",))
