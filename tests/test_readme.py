"""Every command of README.md runs: what a reader types works, with small numbers in the place of large ones.

Commands are the lines of its ```bash blocks, and whatever stands between backticks and begins like a command. Each runs
in a folder that looks like a clone in which a run, a probe, windows and strain files are there already. A command, a
placeholder or an option that this file does not know is a failure: then say below what it stands for.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwosc_server import GwoscServer
from gwosc_writer import GPS_START, write_gwosc
from gwosc_writer import coloured_noise as long_noise
from gwtwins import eval_probe, scan_strain, train_ssl
from gwtwins.encoders import export
from gwtwins.probes import embed
from gwtwins.strain import fetch
from gwtwins.strain import pack as packer
from gwtwins.strain.errors import InputError, run_command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# What a reader would put in the place of README's placeholders; a list is several words.
STANDS_FOR: dict[str, str | list[str]] = {
    "FOLDER": "g2net",
    "FILES": ["recordings/H1-early.hdf5", "recordings/L1-early.hdf5", "recordings/V1-early.hdf5"],
    "FILES...": ["recordings/H1-early.hdf5", "recordings/L1-early.hdf5", "recordings/V1-early.hdf5"],
    "FILES_OR_FOLDER": "recordings",
    "RUN": "runs/latest",
    "WEIGHTS": "runs/latest",
    "SRC": "g2net",
    "OUT.hdf5": "windows.hdf5",
    "yours.yaml": "yours.yaml",
    "NAME_OR_FILE,NAME_OR_FILE,…": "aLIGOZeroDetHighPower,asd.txt,AdVDesignSensitivityP1200087",
}
_PLACEHOLDER = re.compile(r"(?<![\w.-])[A-Z][A-Z_]{2,}(?![\w-])|…|\.\.\.|[<>]")
# Values that mean something of the reader's data: here, a time that the files of this test hold.
VALUES = {"--noise-exclude": f"{GPS_START + 12}"}
# Budgets, the reader's first, are replaced by these; other options are left as they stand.
SMALL_ENCODER = "{width: 8, hidden: 8, embedding: 16}"
SMALL_DATA = {"--bank-size": "64", "--n-labelled": "64", "--n-test": "64", "--device": "cpu"}
TRAIN = {"--steps": "2", "--minutes": None, "--batch": "8", "--watch": "0", **SMALL_DATA}
RESUME = {"--steps": "4", "--minutes": None, "--device": "cpu"}
PROBE = {"--templates": "0", "--label-counts": "[]", **SMALL_DATA}
SCAN = {"--stride": "0.5", "--loudest": "1", "--device": "cpu"}
SLIM_2021 = {"--encoder-args": "{width: 4, embedding: 64}", "--projector": "64"}
# A shell made ready: there is nothing to run in a clone that is set up.
SHELL = ("git clone ", "cd ", "source ", "pip install ", "python -m pip install ", "python -m venv ")
BEGINNINGS = ("python ", "python3 ", "make ", "gwtwins-", "tensorboard ", "pytest ")


def fenced(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def inline() -> list[str]:
    """What stands between single backticks outside of the blocks."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def commands() -> list[str]:
    """Every command of the README, once each."""
    lines = [line for block in fenced("bash") for line in block.replace("\\\n", " ").splitlines()]
    typed = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    typed += [code for code in inline() if code.startswith(BEGINNINGS)]
    return list(dict.fromkeys(command for command in typed if command))


def words(command: str) -> list[str]:
    """A command's words with README's placeholders filled in."""
    found: list[str] = []
    for word in shlex.split(command):
        stands = STANDS_FOR.get(word)
        if stands is None:
            pattern = r"(?<![\w.-])(" + "|".join(re.escape(k) for k in STANDS_FOR) + r")(?![\w.-])"
            stands = re.sub(pattern, lambda m: str(STANDS_FOR[m[1]]), word)
            if _PLACEHOLDER.search(stands):
                pytest.fail(
                    f"README.md: {word!r} in {command!r}: tests/test_readme.py does not know what it stands for"
                )
        found += [stands] if isinstance(stands, str) else stands
    while found and re.fullmatch(r"[A-Z_]+=\S*", found[0]):
        found.pop(0)  # a variable of the environment, set for the command
    return found


def budgeted(argv: list[str], budget: dict[str, str | None]) -> list[str]:
    """``argv`` with the options of ``budget`` replaced, and those added that were not there; None takes one away."""
    kept: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in VALUES or name in budget:
            if not equals:
                next(rest, None)
            kept += [name, VALUES[name]] if name in VALUES else []
        else:
            kept.append(word)
    return kept + [part for name, value in budget.items() if value is not None for part in (name, value)]


# --- a clone with something in it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A clone (by links) with runs/latest and its probe, g2net/, windows.hdf5, recordings/, yours.yaml and asd.txt."""
    clone = tmp_path_factory.mktemp("ready") / "clone"
    clone.mkdir()
    made = ("runs", "build", "dist", "data")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in made and path.suffix != ".egg-info":
            (clone / path.name).symlink_to(path)
    ids = names(48)
    write_g2net_folder(clone / "g2net", coloured_noise(48), ids, [k % 2 for k in range(48)])
    packer.pack(clone / "g2net", clone / "windows.hdf5", workers=1, progress=False)
    (clone / "recordings").mkdir()
    for seed, detector in enumerate(("H1", "L1", "V1")):
        for later, when in enumerate(("early", "late")):
            path = clone / "recordings" / f"{detector}-{when}.hdf5"
            write_gwosc(path, long_noise(24, 1024, 2 * seed + later), 1024, detector, gps=GPS_START + 100 * later)
    shared = clone.parent / "shared" / "data"  # where configs/real_noise.yaml looks
    shared.mkdir(parents=True)
    shutil.copytree(clone / "recordings", shared / "gwosc")
    shutil.copyfile(ROOT / "strain" / "populations" / "standard.yaml", clone / "yours.yaml")
    (clone / "asd.txt").write_text("5 1e-21\n20 1e-22\n100 1e-23\n2000 1e-22\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setattr("gwtwins.probes.report.write_report", lambda *_: None)
        assert train_ssl.train(budgeted(["--encoder-args", SMALL_ENCODER], TRAIN)) == 0
        assert eval_probe.probe(budgeted(["--frac", "1"], PROBE)) == 0
    return clone


@pytest.fixture
def clone(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy, which is the working folder."""
    shutil.copytree(ready.parent, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work" / "clone")
    return tmp_path / "work" / "clone"


def newest(folder: Path, name: str, before: set[Path]) -> Path:
    """The one file of that name under ``folder`` that was not there before."""
    found = [path for path in folder.rglob(name) if path not in before and "latest" not in path.parts]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


# --- how each command is run -----------------------------------------------------------------------------------

Runner = Callable[[list[str], Path, set[Path]], None]


def run_train(argv: list[str], clone: Path, before: set[Path]) -> None:
    resumed = any(word.startswith("--resume") for word in argv)
    if "configs/g2net_2021.yaml" in argv or "cnn_gru_2021" in argv:
        small = SLIM_2021
    else:
        small = {} if resumed or "--encoder-args" in argv else {"--encoder-args": SMALL_ENCODER}
    budget = {**RESUME} if resumed else {**TRAIN, **small}
    assert run_command(lambda: train_ssl.train(budgeted(argv, budget))) == 0
    latest = Path("runs/latest").resolve()
    assert json.loads((latest / "encoder.json").read_text())["steps"] == (4 if resumed else 2)
    for name in ("encoder.safetensors", "config.yaml", "metrics.jsonl", "tb", "checkpoints/last.ckpt"):
        assert (latest / name).exists()
    if not resumed:
        newest(clone / "runs", "encoder.safetensors", before)


def run_probe(argv: list[str], clone: Path, before: set[Path]) -> None:
    budget = PROBE
    if "--frac" in argv and float(argv[argv.index("--frac") + 1]) > 64:
        budget = {**PROBE, "--n-labelled": argv[argv.index("--frac") + 1]}
    assert run_command(lambda: eval_probe.probe(budgeted(argv, budget))) == 0
    if "--probe" in argv:
        lines = newest(clone, "submission.csv", before).read_text().splitlines()
        assert lines[0] == "id,target" and len(lines) == 49
    else:
        out = newest(clone, "probe.json", before).parent
        assert 0 <= json.loads((out / "probe.json").read_text())["auc"] <= 1
        for name in ("predictions.csv", "probe.safetensors", "report.html"):
            assert (out / name).is_file()


def run_scan(argv: list[str], clone: Path, before: set[Path]) -> None:
    assert run_command(lambda: scan_strain.scan(budgeted(argv, SCAN))) == 0
    out = newest(clone, "triggers.csv", before).parent
    assert (out / "events.hdf5").is_file() and list((out / "plots").glob("*.png"))


def run_pack(argv: list[str], clone: Path, before: set[Path]) -> None:
    store = clone / argv[1]
    store.unlink(missing_ok=True)
    assert run_command(lambda: packer.main([*argv, "--workers", "1"])) == 0
    assert store.is_file()


def run_fetch(argv: list[str], clone: Path, before: set[Path]) -> None:
    """From a server of this machine that answers as GWOSC's."""
    event, start = argv[0], 1186741845
    path = clone / f"H-H1_GWOSC_TEST-{start}-32.hdf5"
    write_gwosc(path, long_noise(32, 4096), 4096, "H1", start)
    with GwoscServer() as server:
        server.add_event(event, start + 15.5, version=1)
        server.add_event_file(f"{event}-v1", path)
        options = ["--host", server.host, "--out", str(clone / "fetched"), "--duration", "32"]
        assert run_command(lambda: fetch.main([*argv, *options])) == 0
    newest(clone / "fetched", path.name, before)


def run_embed(argv: list[str], clone: Path, before: set[Path]) -> None:
    assert run_command(lambda: embed.embed_command([*argv, "--device", "cpu"])) == 0
    newest(clone, "embeddings.hdf5", before)


def run_export(argv: list[str], clone: Path, before: set[Path]) -> None:
    if "--onnx" in argv:
        pytest.importorskip("onnxruntime")
    assert run_command(lambda: export.export(argv)) == 0
    newest(clone, "encoder.pt2", before)


def run_benchmark(argv: list[str], clone: Path, before: set[Path]) -> None:
    """They take minutes: their options are read, and no more."""
    script, parse = argv[0], argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object) -> None:
        parse(self, argv[1:])
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0


def run_make(argv: list[str], clone: Path, before: set[Path]) -> None:
    """What it would do; the demo and the tests themselves have tests of their own."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    said = subprocess.run(["make", "-n", *argv], cwd=clone, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    for script in re.findall(r"[\w/]+\.py", said.stdout):
        assert (clone / script).exists(), script


def run_tensorboard(argv: list[str], clone: Path, before: set[Path]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--inspect", *argv]
    said = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=240)
    assert said.returncode == 0, said.stderr
    assert "loss" in said.stdout and "effective_rank" in said.stdout


RUNNERS: dict[str, Runner] = {
    "train_ssl.py": run_train,
    "gwtwins-train": run_train,
    "eval_probe.py": run_probe,
    "gwtwins-probe": run_probe,
    "scan_strain.py": run_scan,
    "gwtwins-scan": run_scan,
    "-m gwtwins.strain.pack": run_pack,
    "-m gwtwins.encoders.export": run_export,
    "-m gwtwins.strain.fetch": run_fetch,
    "-m gwtwins.probes.embed": run_embed,
    "make": run_make,
    "tensorboard": run_tensorboard,
}


def runner(command: str) -> tuple[Runner, list[str]]:
    """What runs a command, and the words behind its name; a failure where nothing does."""
    given = words(command)
    if given[0] in ("python", "python3", ".venv/bin/python"):
        given = given[1:]
    if given[0] == "-m":
        given = [" ".join(given[:2]), *given[2:]]
    if re.fullmatch(r"benchmarks/\w+\.py", given[0]):
        return run_benchmark, given
    if given[0] not in RUNNERS:
        pytest.fail(f"README.md: tests/test_readme.py does not know how to run {command!r}")
    return RUNNERS[given[0]], given[1:]


RUN = [command for command in commands() if not command.startswith(SHELL)]
SLOW = ("encoders.export", "tensorboard")  # ten seconds and more
FIRST_PROBE = next((command for command in RUN if "eval_probe.py" in command), "")


# --- the tests -------------------------------------------------------------------------------------------------


def test_the_readme_has_the_commands_that_everything_begins_with() -> None:
    said = " | ".join(commands())
    for needed in ("make demo", "make test", "python train_ssl.py", "python eval_probe.py", "scan_strain.py"):
        assert needed in said, said


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] if any(w in c for w in SLOW) else []) for c in RUN]
)
def test_a_command_of_the_readme_runs(
    clone: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, argv = runner(command)
    if command != FIRST_PROBE:  # one report is drawn; each takes seconds
        monkeypatch.setattr("gwtwins.probes.report.write_report", lambda out, _: (out / "report.html").write_text(""))
    before = set(clone.rglob("*"))
    run(argv, clone, before)
    assert "Traceback" not in capsys.readouterr().err


def options_said() -> Iterator[str]:
    """Inline code that is an option by itself, ``--data windows.hdf5``."""
    yield from dict.fromkeys(code for code in inline() if code.startswith("--") and code != "--help")


@pytest.mark.parametrize("said", [*options_said()])
def test_an_option_that_the_readme_names_is_one_of_some_command(said: str, clone: Path) -> None:
    argv = words(said)
    name, value = argv[0].partition("=")[0], argv[1:]
    refusals = []
    for command in (train_ssl.train, eval_probe.probe, lambda a: scan_strain.scan([*a, "nowhere"]), export.export):
        try:
            command([name, *(value or ["x"]), "--no-such-option"])
        except InputError as error:
            refusals.append(str(error))
    known = [text for text in refusals if f"unknown option {name};" not in text]
    assert known, f"README.md: no command has the option {name}"
    if value and any(text.startswith("train_ssl.py") for text in known):
        run_train(argv, clone, set(clone.rglob("*")))


def test_the_python_of_the_readme_runs(clone: Path) -> None:
    blocks = fenced("python")
    assert blocks
    given = {
        "strain": torch.randn(2, 3, 4096),
        "present": torch.tensor([[True, True, True], [True, False, True]]),
        "raw": 1e-21 * torch.randn(2, 3, 4096, dtype=torch.float64),
    }
    for block in blocks:
        names_: dict[str, object] = dict(given)
        exec(compile(block, "README.md", "exec"), names_)
        embedding = names_["embedding"]
        assert isinstance(embedding, torch.Tensor) and embedding.shape[:2] == (2, 3)
        assert torch.isfinite(embedding).all()


def test_the_readme_names_files_that_are_there() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for code in inline():
        if re.fullmatch(r"(configs|benchmarks|strain|encoders|ssl|probes|docs)/[\w./-]*", code):
            assert (ROOT / code).exists(), code


def test_console_commands_are_the_scripts() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    for command in (name for name in RUNNERS if name.startswith("gwtwins-")):
        module = entries[command].partition(":")[0]
        assert RUNNERS[f"{module.removeprefix('gwtwins.')}.py"] is RUNNERS[command]


@pytest.mark.slow
def test_make_demo_runs_with_few_steps(clone: Path) -> None:
    """The recipe itself, without its environment: pretraining, the probe, and the report where it says."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    options = {"DEMO_ARGS": {**TRAIN, "--encoder-args": SMALL_ENCODER}, "DEMO_PROBE_ARGS": PROBE}
    given = [f"{name}={shlex.join(budgeted([], budget))}" for name, budget in options.items()]
    made = subprocess.run(
        ["make", "-o", "env", "demo", f"PY={sys.executable}", *given],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    report = re.search(r"The report: (\S+)", made.stdout)
    assert report and (clone / report[1]).stat().st_size > 10_000
    assert (clone / "runs" / "latest").resolve() == (clone / report[1]).resolve().parent.parent
