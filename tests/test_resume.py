"""A run that is killed, at whatever moment, by whatever, goes on to the very weights that it would have come to."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gwtwins.strain.command import claim_folder, hold_folder, write_bytes
from gwtwins.strain.errors import EXIT_TERMINATED, InputError, run_command
from gwtwins.train_ssl import train
from test_train_command import TINY, at_step, losses, same_weights

COMMAND = "import sys; from gwtwins.train_ssl import main; main()"
EVERY_STEP = ["--monitor-every", "1", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps; to be looked at only."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train([*TINY, "--steps", "6", "--out", str(out)]) == 0
    return out


def stopped(out: Path, step: int = 4) -> Path:
    """A run of six steps that has died in one of them, with the checkpoint of the even step before."""

    def die() -> None:
        raise RuntimeError("lost power")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, die)
        with pytest.raises(RuntimeError, match="lost power"):
            train([*TINY, "--steps", "6", "--out", str(out)])
    return out


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of a command that exits 2."""
    capsys.readouterr()
    assert run_command(lambda: train(argv)) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


# SIGKILL


def _lines(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def killed_on_the_way(out: Path, steps: int, kills: int, seed: int, more: Sequence[str] = ()) -> int:
    """Start a run, kill it at random moments, start it again; how many checkpoints the kills found."""
    moments, found = random.Random(seed), 0
    env = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "PYTHONWARNINGS": ""}
    for kill in range(kills):
        anew = [*TINY, *more, *EVERY_STEP, "--steps", str(steps), "--out", str(out)]
        argv = ["--resume", str(out)] if (out / "config.yaml").exists() else anew
        run = subprocess.Popen([sys.executable, "-c", COMMAND, *argv], env=env, stderr=subprocess.DEVNULL)
        before, until, on = _lines(out), time.monotonic() + 200, moments.randint(1, 8)
        while _lines(out) < before + on and run.poll() is None and time.monotonic() < until:
            before = min(before, _lines(out))  # lines after the checkpoint are taken away
            time.sleep(0.002)
        time.sleep(0.1 * moments.random())  # within a step, its line or its checkpoint
        assert run.poll() is None, f"the run ended before kill {kill}"
        run.kill()
        run.wait()
        found += (out / "checkpoints" / "last.ckpt").exists()
    return found


def goes_on_to_the_same(out: Path, reference: Path) -> None:
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, reference)
    assert losses(out) == losses(reference)
    left = [str(p) for p in out.rglob(".*")]
    assert not left  # neither locks nor half-written files


def test_killed_three_times(cache: Path, tmp_path: Path) -> None:
    out, reference = tmp_path / "run", tmp_path / "reference"
    assert killed_on_the_way(out, 60, 3, seed=1) >= 2
    assert train([*TINY, *EVERY_STEP, "--steps", "60", "--out", str(reference)]) == 0
    goes_on_to_the_same(out, reference)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times(cache: Path, tmp_path: Path) -> None:
    out, reference = tmp_path / "run", tmp_path / "reference"
    assert killed_on_the_way(out, 400, 20, seed=2) >= 18
    assert train([*TINY, *EVERY_STEP, "--steps", "400", "--out", str(reference)]) == 0
    goes_on_to_the_same(out, reference)


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path: Path, finished: Path) -> None:
    """Other numbers of threads add in another order."""
    out, before = stopped(tmp_path / "run"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train(["--resume", str(out)]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert same_weights(out, finished)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_a_scheduler_sends_saves_and_ends_with_143(
    tmp_path: Path, finished: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice in a row, as when one is handed on by a launcher that got it too."""
    out, before = tmp_path / "run", signal.getsignal(number)

    def twice() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, twice)
        assert train([*TINY, "--steps", "6", "--out", str(out)]) == EXIT_TERMINATED == 143
    assert signal.getsignal(number) is before
    assert f"stopped at step 3 of 6; go on with --resume {out}" in capsys.readouterr().err
    assert not (out / "encoder.json").exists()
    goes_on_to_the_same(out, finished)


# Disks


def test_a_full_disk_stops_with_one_line_and_the_last_checkpoint(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next checkpoint does not fit: here by the limit on a file's size, met as a full disk is."""
    out, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1])))
            line = refused([*TINY, "--steps", "6", "--out", str(out)], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{out}: cannot be written to (File too large); expected room; then --resume {out} goes on" in line
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["last.ckpt"]
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2  # noqa: TID251
    goes_on_to_the_same(out, finished)


FULL = """
    import os, sys
    from pathlib import Path
    from gwtwins.strain.errors import run_command
    from gwtwins.train_ssl import train
    from test_resume import TINY
    disk = Path(sys.argv[1])
    filler = disk / "filler"
    filler.write_bytes(b"0" * int(sys.argv[2]))
    print(run_command(lambda: train([*TINY, "--steps", "6", "--out", str(disk / "run")])))
    print(sorted(p.name for p in (disk / "run" / "checkpoints").iterdir()))
    filler.unlink()
    print(run_command(lambda: train(["--resume", str(disk / "run")])))
    Path(sys.argv[3]).write_bytes((disk / "run" / "encoder.safetensors").read_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a file system of its own")
def test_a_small_file_system_that_fills_up(tmp_path: Path, finished: Path) -> None:
    """With room for one checkpoint and a half; the first falls on step 2, the second on step 4."""
    disk, script = tmp_path / "disk", tmp_path / "full.py"
    disk.mkdir()
    script.write_text(textwrap.dedent(FULL))
    room = int(1.6 * (finished / "checkpoints" / "last.ckpt").stat().st_size)
    size = 8 << 20
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    encoder = tmp_path / "encoder.safetensors"
    act = f"{sys.executable} {script} {disk} {size - room} {encoder}"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": ""}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && {act}"], env=env, capture_output=True, text=True)
    assert "cannot be written to (No space left on device); expected room" in done.stderr, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith(("run:", "encoder:"))]
    assert said == ["2", "['last.ckpt']", "0"]
    first, second = load_file(encoder), load_file(finished / "encoder.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, before = tmp_path / "last.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_bytes(path, b"one")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, b"two" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


# Folders


def test_a_run_that_was_gone_on_with_counts_the_time_before(tmp_path: Path) -> None:
    out = stopped(tmp_path / "run")
    metrics = out / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines][:2] == [2, 4]
    lines[0]["samples_per_second"] = 2 * 32 / 1000.0  # as if its two steps of 32 rows had taken 1,000 s
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train(["--resume", str(out)]) == 0
    assert 999 < json.loads((out / "encoder.json").read_text())["seconds"] < 1100


def test_a_run_at_work_is_left_alone(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = stopped(tmp_path / "run")
    with hold_folder(out):
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        for argv in (["--resume", str(out)], [*TINY, "--steps", "2", "--out", str(out)]):
            assert f"{out}: process {os.getpid()} on " in refused(argv, capsys)
        assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    (out / ".lock").write_text("process 1 on a machine that lost power")
    (out / "checkpoints" / ".last.ckpt.999999999.tmp").write_text("half")
    goes_on_to_the_same(out, finished)


def test_of_many_that_want_a_folder_one_gets_it(tmp_path: Path) -> None:
    got, ready, done = [], threading.Barrier(8), threading.Event()

    def want(name: int) -> None:
        ready.wait()
        try:
            with hold_folder(tmp_path / "run"):
                claim_folder(str(tmp_path / "run"), tmp_path)
                got.append(name)
                done.wait(20)
                (tmp_path / "run" / f"{name}.txt").touch()
        except InputError:
            if len(got) == 1:
                done.set()

    wanting = [threading.Thread(target=want, args=(name,)) for name in range(8)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(got) == 1 and [p.name for p in (tmp_path / "run").iterdir()] == [f"{got[0]}.txt"]


# Checkpoints that are not the run's own


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        held = torch.load(path, weights_only=True)  # noqa: TID251
        change(held)
        torch.save(held, path)

    return edit


def _of_another_encoder(held: dict[str, Any]) -> None:
    name = next(iter(held["state_dict"]))
    held["state_dict"][name] = held["state_dict"][name][..., :-1]


@pytest.fixture(scope="module")
def stopped_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to be copied."""
    return stopped(tmp_path_factory.mktemp("runs") / "stopped")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held["gwtwins"]["options"].update(batch=64), "was written with batch 64, config.yaml has 32"),
        (lambda held: held["gwtwins"]["options"].update(seed="\x1b[2J" * 99), r"was written with seed \?\[2J"),
        (_of_another_encoder, "its tensors are not those of this run"),
        (lambda held: held["state_dict"].popitem(), "its tensors are not those of this run"),
        (lambda held: next(iter(held["state_dict"].values())).fill_(torch.nan), "holds NaN or infinity"),
        (lambda held: held["optimizer_states"][0]["state"][0].update(exp_avg=torch.ones(3)), "its optimiser is not"),
        (lambda held: held.update(global_step=-1), "-1 steps"),
        (lambda held: held.update(global_step="six"), "is not a whole checkpoint"),
        (lambda held: held.pop("optimizer_states"), "is not a whole checkpoint"),
        (lambda held: held.pop("gwtwins"), "is not a whole checkpoint"),
        (lambda held: held.clear(), "is not a whole checkpoint"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    stopped_run: Path, tmp_path: Path, change: Callable[..., Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    edited(change)(out / "checkpoints" / "last.ckpt")
    line = refused(["--resume", str(out)], capsys)
    assert f"{out / 'checkpoints' / 'last.ckpt'}: " in line
    assert re.search(says, line)
    assert not (out / "encoder.json").exists()
