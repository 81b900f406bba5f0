"""Commands: options from the command line over a YAML over defaults, folders of results, how a command ends."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from gwtwins.strain.command import (
    claim_folder,
    hold_folder,
    new_run_folder,
    parse,
    plain,
    point_latest,
    write_text,
)
from gwtwins.strain.errors import InputError


@dataclasses.dataclass
class Run:
    """The run."""

    seed: int = 0
    """Seed of every draw."""
    learning_rate: float = 1e-3
    """At the top of the schedule."""
    views: str = "detector"
    """What two views are."""
    shared: bool = True
    """One encoder for all."""
    minutes: float | None = None
    """Budget."""


@dataclasses.dataclass
class Model:
    """The model."""

    encoder_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the encoder."""
    bands: list[float] = dataclasses.field(default_factory=lambda: [20.0, 500.0])
    """Edges of bands, Hz."""


DEFAULTS = {
    "seed": 0,
    "learning_rate": 1e-3,
    "views": "detector",
    "shared": True,
    "minutes": None,
    "encoder_args": {},
    "bands": [20.0, 500.0],
}


def options(*argv: str, positional: str | None = None) -> dict[str, Any]:
    """What is resolved otherwise than by default."""
    (run, model), flat = parse("train", "Pretrain.", [Run, Model], list(argv), positional)
    assert {**dataclasses.asdict(run), **dataclasses.asdict(model)} == {
        key: value for key, value in flat.items() if key != positional
    }
    return {key: value for key, value in flat.items() if key == positional or value != DEFAULTS[key]}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 5\nlearning-rate: 0.5\nviews: pairs\nencoder_args: {hidden: 8, width: 16}\n")
    return path


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {}),
        (("--seed", "3"), {"seed": 3}),
        (("--seed=3", "--learning-rate", "0.1"), {"seed": 3, "learning_rate": 0.1}),
        (("--learning_rate=1e-2",), {"learning_rate": 0.01}),
        (("--learning-rate", "2"), {"learning_rate": 2.0}),
        (("--seed", "1", "--seed", "2"), {"seed": 2}),
        (("--views", "noise"), {"views": "noise"}),
        (("--views", "3"), {"views": "3"}),
        (("--views=",), {"views": ""}),
        (("--minutes", "2.5"), {"minutes": 2.5}),
        (("--shared", "false"), {"shared": False}),
        (("--shared=false",), {"shared": False}),
        (("--shared",), {}),
        (("--shared", "--seed", "2"), {"seed": 2}),
        (("--encoder_args.width", "64"), {"encoder_args": {"width": 64}}),
        (
            ("--encoder-args.width=64", "--encoder_args.rate", "0.5"),
            {"encoder_args": {"width": 64, "rate": 0.5}},
        ),
        (("--encoder_args", "{width: 8, sizes: [1, 2]}"), {"encoder_args": {"width": 8, "sizes": [1, 2]}}),
        (("--bands", "[10, 20.5]"), {"bands": [10.0, 20.5]}),
    ],
)
def test_options(argv: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert options(*argv) == expected


def test_default_then_yaml_then_command_line(config: Path) -> None:
    given = {"seed": 5, "learning_rate": 0.5, "views": "pairs", "encoder_args": {"hidden": 8, "width": 16}}
    assert options("--config", str(config)) == given
    assert options(f"--config={config}", "--seed", "7") == {**given, "seed": 7}
    assert options("--seed", "7", "--config", str(config)) == {**given, "seed": 7}  # in any order
    # To say the default on the command line is to say it.
    expected = {key: value for key, value in given.items() if key != "views"}
    assert options("--config", str(config), "--views", "detector") == expected


def test_a_number_in_a_yaml_is_text_where_text_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("views: 0.5\nseed: 3\n")
    (run, _), _ = parse("x", "", [Run, Model], ["--config", str(path)])
    assert (run.views, run.seed) == ("0.5", 3)


def test_one_key_of_a_dict_is_changed_and_a_whole_dict_replaced(config: Path) -> None:
    one = options("--config", str(config), "--encoder_args.width", "64", "--encoder-args.depth=3")
    assert one["encoder_args"] == {"hidden": 8, "width": 64, "depth": 3}
    assert options("--config", str(config), "--encoder_args", "{depth: 3}")["encoder_args"] == {"depth": 3}


def test_resolved_options_are_a_config(config: Path, tmp_path: Path) -> None:
    _, flat = parse("train", "", [Run, Model], ["--config", str(config), "--shared", "false", "--minutes", "2"])
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(flat))
    _, again = parse("train", "", [Run, Model], ["--config", str(tmp_path / "resolved.yaml")])
    assert again == flat


def test_positional_arguments_go_apart() -> None:
    argv = ("a.hdf5", "--seed", "3", "b.hdf5", "--shared", "c.hdf5", "--views=noise")
    expected = {"files": ["a.hdf5", "b.hdf5", "c.hdf5"], "seed": 3, "views": "noise"}
    assert options(*argv, positional="files") == expected
    assert options(positional="files") == {"files": []}


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (("--sead", "3"), "train: unknown option --sead; expected --seed"),
        (("--lerning_rate=3",), "train: unknown option --lerning_rate; expected --learning-rate"),
        (("--zzzz",), "train: unknown option --zzzz; expected an option that --help lists"),
        (("--no-shared",), "unknown option --no-shared; expected --shared"),
        (("--encoder_arg.width", "3"), "unknown option --encoder_arg.width; expected --encoder-args"),
        (("extra",), "unexpected argument 'extra'; expected options only"),
        (("-s", "3"), "unexpected argument '-s'"),
        (("--shared", "maybe"), "unexpected argument 'maybe'"),
        (("--shared=maybe",), "shared.*maybe"),
        (("--seed", "x"), "seed.*int.*x"),
        (("--seed", "1.5"), "seed.*int.*1.5"),
        (("--seed", "null"), "seed.*int.*None"),
        (("--seed",), "seed.*expected one argument"),
        (("--seed", "--shared"), "seed.*expected one argument"),
        (("--seed.x", "3"), "seed"),
        (("--learning_rate", "fast"), "learning_rate.*float.*fast"),
        (("--encoder_args", "8"), "encoder_args.*dict.*8"),
        (("--bands", "20"), "bands.*list.*20"),
        (("--bands", "[low]"), "bands.*float.*low"),
        (("--bands", "20", "500"), "unexpected argument '500'"),
        (("--config", "/nowhere/at-all.yaml"), "/nowhere/at-all.yaml: no such file"),
    ],
)
def test_bad_options_are_refused_in_one_line(argv: tuple[str, ...], fault: str) -> None:
    with pytest.raises(InputError, match=fault) as error:
        options(*argv)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sead: 3\n", "unknown key 'sead'; expected 'seed'"),
        ("Zzzz: 3\n", "unknown key 'Zzzz'; expected a key that --help lists"),
        ("config: other.yaml\n", "unknown key 'config'"),
        ("run: {seed: 3}\n", "unknown key 'run'"),
        ("seed: x\n", "seed.*int.*x"),
        ("seed: 1.5\n", "seed.*int.*1.5"),
        ("seed: null\n", "seed is null; expected a value of type int"),
        ("seed:\n", "seed is null"),
        ("views: [3]\n", "views.*str.*3"),
        ("shared: maybe\n", "shared.*bool.*maybe"),
        ("encoder_args: 3\n", "encoder_args.*dict.*3"),
        ("bands: 20\n", "bands.*list.*20"),
        ("- seed\n", "not a mapping"),
        ("", "not a mapping"),
        ("seed: [1\n", "not YAML"),
        ("seed: !!python/object/apply:os.getcwd []\n", "holds a tag"),
        ("seed: 1\n" + "#" * (1 << 20), "over 1 MiB"),
    ],
)
def test_bad_configs_are_refused_in_one_line(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=fault) as error:
        options("--config", str(path))
    assert "\n" not in str(error.value)


def test_help_says_what_stands_under_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            options(word)
        assert ended.value.code == 0
        told = capsys.readouterr().out
        for text in ("Pretrain.", "--learning-rate", "At the top of the schedule.", "The model:", "0.001"):
            assert text in told


def test_plain_is_what_json_and_yaml_hold() -> None:
    value = {1: (Path("/a"), Run(seed=2)), "b": [{"c": None}, 1.5, True]}
    assert plain(value) == {
        "1": ["/a", {**{k: DEFAULTS[k] for k in ("learning_rate", "views", "shared", "minutes")}, "seed": 2}],
        "b": [{"c": None}, 1.5, True],
    }


def test_write_text_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "one\n")
    write_text(path, "two\n")
    assert path.read_text() == "two\n" and list(tmp_path.iterdir()) == [path]

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "three\n")
    assert path.read_text() == "two\n"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "metrics.json", {"a" * 200_000, "b" * 300_000}
    write_text(path, "a" * 200_000)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for text in texts:
            write_text(path, text)
    done.set()
    reader.join()
    assert seen <= texts


def test_claim_folder_makes_a_folder_or_takes_an_empty_one(tmp_path: Path) -> None:
    default = tmp_path / "runs" / "today"
    assert claim_folder("", default) == default and default.is_dir()
    given = tmp_path / "deep" / "er"
    assert claim_folder(str(given), default) == given and given.is_dir()
    assert claim_folder(str(given), default) == given  # still empty


def test_claim_folder_leaves_results_alone(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match="already holds a result; expected a new or empty folder for --out"):
        claim_folder(str(tmp_path), tmp_path / "x")
    for path in (tmp_path / "result.json", tmp_path / "result.json" / "run"):
        with pytest.raises(InputError, match="is a file; expected a folder for --out"):
            claim_folder(str(path), tmp_path / "x")
    assert (tmp_path / "result.json").read_text() == "{}"
    with pytest.raises(InputError, match="may not be written to"):
        claim_folder("/proc/nowhere/run", tmp_path / "x")


def test_only_what_our_own_dead_processes_left_is_swept_away(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f".probe.json.{dead.pid}.tmp"
    others = [tmp_path / name for name in (".notes.tmp", f".at.work.{os.getpid()}.tmp", "thesis.tex")]
    for path in (gone, *others):
        path.write_text("half")
    with hold_folder(tmp_path), pytest.raises(InputError, match="already holds a result"):
        claim_folder(str(tmp_path), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_run_folders_of_one_second_do_not_meet(tmp_path: Path) -> None:
    made = []
    for _ in range(3):
        made.append(new_run_folder(tmp_path))
        made[-1].mkdir()
    assert len(set(made)) == 3 and all(path.parent == tmp_path for path in made)


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        point_latest(root / name, root)
        assert (root / "latest").resolve() == root / name
    assert os.readlink(root / "latest") == "two"  # relative: the folder may be moved
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    point_latest(elsewhere, root)
    assert os.readlink(root / "latest") == "../elsewhere"
    moved = root.rename(tmp_path / "moved")
    assert (moved / "latest").resolve() == elsewhere
    assert sorted(path.name for path in moved.iterdir()) == ["latest", "one", "two"]


def test_latest_replaces_a_dangling_link_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to("gone")
    point_latest(tmp_path / "run", tmp_path)
    assert (tmp_path / "latest").resolve() == tmp_path / "run"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine.txt").write_text("keep")
    point_latest(tmp_path / "run", tmp_path)
    assert (tmp_path / "latest" / "mine.txt").read_text() == "keep"


def test_latest_is_there_at_every_moment(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        run.mkdir()
    point_latest(runs[0], tmp_path)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(os.readlink(tmp_path / "latest"))  # fails where there is no link

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(300):
        point_latest(runs[n % 2], tmp_path)
    done.set()
    reader.join()
    assert seen <= {"one", "two"} and seen


MAIN = """
import os, signal, sys
from gwtwins.strain.errors import InputError, run_command
def main():
    {body}
sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("return None", 0, ""),
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        (
            "raise InputError('a.npy', 'shape (2, 4096)', '(3, 4096)')",
            2,
            "error: a.npy: shape (2, 4096); expected (3, 4096)\n",
        ),
        (r"raise InputError('a\nb\x1b[31m.npy', 'is gone')", 2, "error: a?b?[31m.npy: is gone\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
    ],
)
def test_how_a_command_ends(body: str, code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(body=body)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (code, told, "")


def test_a_bug_keeps_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(body="return 1 / 0")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
