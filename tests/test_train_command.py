"""The training command: what a run leaves behind, how it is stopped and gone on with, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gwtwins.encoders.weights import load_encoder
from gwtwins.ssl.pretrain import Pretraining
from gwtwins.ssl.resumption import Checkpoint
from gwtwins.ssl.views import Views
from gwtwins.strain.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, InputError, run_command
from gwtwins.train_ssl import train

# The smallest run there is, on the bank that the tests share.
TINY = [
    *("--encoder_args", "{width: 8, hidden: 8, embedding: 16}", "--projector", "32", "--batch", "32"),
    *("--bank_size", "64", "--n_labelled", "64", "--n_test", "64", "--watch", "0", "--device", "cpu"),
    *("--monitor_every", "2", "--checkpoint_every", "2"),
]


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps; to be looked at only."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train([*TINY, "--steps", "6", "--out", str(out)]) == 0
    return out


def status_and_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and the one line on stderr of a command that is refused."""
    capsys.readouterr()
    status = run_command(lambda: train(argv))
    (line,) = capsys.readouterr().err.splitlines()
    return status, line


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Have something happen in the middle of a step."""
    original = Pretraining.training_step

    def patched(self: Pretraining, views: Views, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            act()
        return original(self, views, batch_idx)

    patch.setattr(Pretraining, "training_step", patched)


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(folder / "encoder.safetensors") for folder in (first, second))
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in lines(out)]


# What a run leaves behind


def test_a_run_leaves_what_the_interface_says(finished: Path) -> None:
    there = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    there = {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in there}
    pictures = {name for name in there if name.startswith("plots/") and name.endswith(".png")}
    assert there - pictures == {
        "encoder.safetensors",
        "encoder.json",
        "config.yaml",
        "metrics.jsonl",
        "checkpoints/last.ckpt",
        "tb/events",
    }
    assert pictures


def test_the_encoder_is_ready_to_use(finished: Path) -> None:
    encoder = load_encoder(finished)
    out = encoder(torch.randn(2, 3, 4096), torch.tensor([[True, True, False], [True, True, True]]))
    assert out.shape == (2, 3, 16) and out.isfinite().all() and (out[0, 2] == 0).all()
    assert encoder(1e-21 * torch.randn(1, 3, 4096, dtype=torch.float64), whitened=False).isfinite().all()


def test_encoder_json_tells_how_it_was_made(finished: Path) -> None:
    card = json.loads((finished / "encoder.json").read_text())
    wanted = {"objective": "barlow", "views": "detector", "steps": 6, "batch": 32, "seed": 0}
    assert wanted.items() <= card.items()
    assert card["licence"] == "GPL-3.0-or-later"
    assert card["data"]["population"]["name"] == "standard"
    assert card["data"]["psds"] == card["psds"]
    assert {"gwtwins", "python", "torch", "lightly"} <= card["versions"].keys()
    assert card["figures"]["step"] == 6


def test_metrics_are_lines_of_json(finished: Path) -> None:
    found = lines(finished)
    assert [line["step"] for line in found] == [2, 4, 6]
    keys = {"loss", "invariance", "redundancy", "floor", "mean_diagonal", "effective_rank", "learning_rate"}
    keys |= {"samples_per_second", "waited_for_data"}
    for line in found:
        assert keys <= line.keys()
        assert all(isinstance(line[key], float) for key in keys - {"floor"})
        assert line["loss"] == pytest.approx(line["invariance"] + 5e-3 * line["redundancy"], rel=1e-3)
        assert line["floor"] == pytest.approx(32 * 31 / 31)
        assert 1 <= line["effective_rank"] <= 16 and line["samples_per_second"] > 0
        assert 0 <= line["waited_for_data"] <= 1.01


def test_tensorboard_reads_the_events(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tb")).Reload()
    tags = events.Tags()
    assert {"loss", "invariance", "effective_rank"} <= set(tags["scalars"])
    found = events.Scalars("loss")
    assert [event.step for event in found] == [2, 4, 6]
    assert [event.value for event in found] == pytest.approx([loss for _, loss in losses(finished)], rel=1e-4)
    assert tags["images"] == ["cross_correlation"]


def test_the_saved_config_makes_the_same_encoder_again(finished: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["steps"] == 6 and config["encoder_args"] == {"width": 8, "hidden": 8, "embedding": 16}
    assert train(["--config", str(finished / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert same_weights(finished, tmp_path / "again")
    assert losses(finished) == losses(tmp_path / "again")
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert config == again and config["out"] == ""


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    config = str(finished / "config.yaml")
    assert train(["--config", config, "--out", str(tmp_path / "other"), "--seed", "1", "--steps", "2"]) == 0
    assert losses(tmp_path / "other")[0] != losses(finished)[0]


def test_minutes_become_steps_that_are_saved(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*TINY, "--minutes", "0.005", "--monitor-every", "5", "--out", str(tmp_path / "run")]) == 0
    said = re.search(r"0\.005 minutes are (\d+) steps of 32 rows", capsys.readouterr().out)
    assert said is not None
    steps = int(said[1])
    assert steps >= 10
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == steps
    assert json.loads((tmp_path / "run" / "encoder.json").read_text())["steps"] == steps
    assert lines(tmp_path / "run")[-1]["step"] == steps


@pytest.mark.parametrize(
    "args",
    [
        ["--views", "pairs", "--objective", "vicreg", "--no-shared"],
        ["--views", "noise", "--objective", "ntxent", "--optimiser", "lars"],
        ["--views", "augment", "--detectors", "H1,L1"],
        ["--detectors", "H1,K1", "--augment", "--precision", "bf16-mixed", "--clip", "0"],
        ["--encoder", "cnn_gru_2021", "--encoder-args", "{width: 4, embedding: 16}", "--f-high", "600"],
    ],
    ids=["pairs", "noise", "augment", "K1", "2021"],
)
def test_other_kinds_of_run(cache: Path, tmp_path: Path, args: list[str]) -> None:
    args = ["--shared=false" if word == "--no-shared" else word for word in args]
    assert train([*TINY, "--steps", "2", "--out", str(tmp_path / "run"), *args]) == 0
    encoder = load_encoder(tmp_path / "run")
    assert encoder(torch.randn(2, len(encoder.detectors), 4096)).isfinite().all()


def test_a_run_without_a_folder_goes_to_runs_and_latest_follows(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train([*TINY, "--steps", "2"]) == 0
        newest = max((p for p in (tmp_path / "runs").iterdir() if not p.is_symlink()), key=lambda p: p.stat().st_mtime)
        assert (tmp_path / "runs" / "latest").resolve() == newest
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert train(["--resume", "runs/latest", "--steps", "4"]) == 0
    assert (tmp_path / "runs" / "latest").resolve() == newest
    assert yaml.safe_load((newest / "config.yaml").read_text())["steps"] == 4


# Stopping and going on


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_TERMINATED)])
def test_an_interrupted_run_goes_on_to_the_same_encoder(
    finished: Path, tmp_path: Path, number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "run", signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(number))
        assert train([*TINY, "--steps", "6", "--out", str(out)]) == status
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert f"stopped at step 3 of 6; go on with --resume {out}" in said
    assert not (out / "encoder.safetensors").exists()
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, finished)
    assert losses(out) == losses(finished)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_died_goes_on_to_the_same_encoder(finished: Path, tmp_path: Path, step: int) -> None:
    """As after a SIGKILL or a loss of power: only the last checkpoint, if there is one, is left."""

    def die() -> None:
        raise RuntimeError("lost power")

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, die)
        with pytest.raises(RuntimeError, match="lost power"):
            train([*TINY, "--steps", "6", "--out", str(out)])
    assert (out / "checkpoints" / "last.ckpt").exists() == (step > 2)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 7, "lo')  # written after the checkpoint, and cut short
    assert train([f"--resume={out}"]) == 0
    assert same_weights(out, finished)
    assert losses(out) == losses(finished)


def test_an_interrupt_in_the_last_step_leaves_only_the_export_to_do(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert train([*TINY, "--steps", "6", "--out", str(out)]) == EXIT_INTERRUPTED
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, finished)
    assert losses(out) == losses(finished)


def test_a_second_ctrl_c_ends_it_at_once(cache: Path, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, twice)
        status = run_command(lambda: train([*TINY, "--steps", "6", "--out", str(tmp_path / "run")]))
    assert status == EXIT_INTERRUPTED
    assert [line["step"] for line in lines(tmp_path / "run")] == [2]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_has_the_same_status(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Pretraining, "configure_optimizers", interrupted)  # Lightning is at work, but not in a step
    assert run_command(lambda: train([*TINY, "--out", str(tmp_path / "run"), "--steps", "6"])) == EXIT_INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is before  # whoever goes on, in a notebook, can interrupt again


def test_sigterm_before_the_first_step_ends_as_sigterm_does(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression: Lightning's own handler was at work, and its exception was taken for Ctrl-C's."""

    def terminated(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    out, before = tmp_path / "run", signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever a command left here
    monkeypatch.setattr(Checkpoint, "on_train_start", terminated)  # callbacks before our own handlers are set
    try:
        assert run_command(lambda: train([*TINY, "--out", str(out), "--steps", "6"])) == EXIT_TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped at step 1 of 6" in capsys.readouterr().err
    monkeypatch.setattr(Checkpoint, "on_train_start", lambda *_: None)
    assert train(["--resume", str(out)]) == 0
    assert json.loads((out / "encoder.json").read_text())["steps"] == 6


def test_a_finished_run_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert train(["--resume", str(finished)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


def test_a_finished_run_may_be_made_longer(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert train(["--resume", str(out), "--steps", "8"]) == 0
    assert json.loads((out / "encoder.json").read_text())["steps"] == 8
    assert [line["step"] for line in lines(out)] == [2, 4, 6, 8]
    assert not same_weights(out, finished)


def test_a_run_that_died_while_it_wrote_its_encoder_is_not_finished(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "encoder.json").unlink()  # written after encoder.safetensors
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, finished) and (out / "encoder.json").exists()


def test_a_budget_below_what_is_done_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "encoder.json").unlink()
    before = (out / "config.yaml").read_text()
    status, line = status_and_line(["--resume", str(out), "--steps", "4"], capsys)
    assert status == 2 and "--steps 4" in line and "has 6 behind it; expected 6 or more" in line
    assert (out / "config.yaml").read_text() == before


def test_minutes_may_be_given_anew(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert train(["--resume", str(out), "--minutes", "0.005"]) == 0
    steps = yaml.safe_load((out / "config.yaml").read_text())["steps"]
    assert steps >= 10 and json.loads((out / "encoder.json").read_text())["steps"] == steps


@pytest.mark.parametrize("name", ["--learning-rate", "--batch", "--seed", "--out", "--config", "--views"])
def test_other_options_beside_resume_are_refused(finished: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = status_and_line(["--resume", str(finished), name, "1"], capsys)
    assert status == 2 and f"{name} would make it another run" in line


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "truncated", "text"])
def test_a_checkpoint_that_is_none_is_refused_and_runs_nothing(
    finished: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mark = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "it ran"
    (out / "encoder.safetensors").unlink()
    (out / "encoder.json").unlink()
    checkpoint = out / "checkpoints" / "last.ckpt"
    if kind == "pickle":
        checkpoint.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    elif kind == "torch":
        torch.save({"state_dict": Bomb(mark)}, checkpoint)
    elif kind == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-5000])
    else:
        checkpoint.write_text("not a checkpoint")
    status = run_command(lambda: train(["--resume", str(out)]))
    assert not mark.exists()
    assert status == 2
    assert re.search(r"last\.ckpt: is not a whole checkpoint", capsys.readouterr().err)


# What is refused


def test_a_folder_that_holds_a_run_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    status, line = status_and_line([*TINY, "--steps", "2", "--out", str(finished)], capsys)
    assert status == 2 and f"{finished}: already holds a result" in line
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--views", "dectector"], "--views dectector: not a kind of views; expected detector, pairs, noise, augment"),
        (["--view", "detector"], "unknown option --view; expected --views"),
        (["--steps", "six"], "steps"),
        (["--steps", "0", "--minutes", "0"], "more than nothing"),
        (["--steps", "-3"], "more than nothing"),
        (["--batch", "2"], "at least 4"),
        (["--objective", "byol"], "expected barlow, vicreg, ntxent"),
        (["--encoder", "resnet"], "no encoder of that name"),
        (["--encoder-args.widht", "8"], "expected 'width'"),
        (["--detectors", "H1,L1"], "the data hold H1 L1 only"),
        (["--detectors", "H1,X1"], "X1"),
        (["--data", "nowhere.hdf5"], "no such file or folder"),
        (["--device", "tpu"], "expected cpu, cuda or auto"),
        (["--f-high", "600"], "at least twice f_high"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--resume", "nowhere"], "nowhere: holds no config.yaml"),
        (["runs/latest"], "unexpected argument 'runs/latest'"),
        (["--checkpoint-every", "0"], "checkpoint-every"),
        (["--monitor-every", "0"], "monitor-every"),
    ],
)
def test_bad_arguments_end_with_one_line_and_leave_no_folder(
    cache: Path, tmp_path: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--resume" in args else ["--out", str(tmp_path / "run")]
    base = [] if "--resume" in args else [*TINY, "--steps", "2"]
    status, line = status_and_line([*base, *out, *args], capsys)
    assert status == 2 and line.startswith("error: ") and says in line
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_not_known_names_the_nearest(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("learning_rat: 0.1\n")
    for argv in (["--config", str(tmp_path / "config.yaml")], ["--resume", str(tmp_path)]):
        status, line = status_and_line(argv, capsys)
        assert status == 2 and "unknown key 'learning_rat'; expected 'learning_rate'" in line


def test_a_poisoned_batch_ends_the_run_with_the_state_before_it(finished: Path, tmp_path: Path) -> None:
    original, out = Pretraining.training_step, tmp_path / "run"

    def poisoned(self: Pretraining, views: Views, batch_idx: int) -> torch.Tensor:
        if self.global_step == 4:
            views.first[3, 7] = float("nan")
        return original(self, views, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "training_step", poisoned)
        with pytest.raises(InputError, match=r"data: 1 rows of step 4 hold NaN or infinity \(row 3\)"):
            train([*TINY, "--steps", "6", "--out", str(out)])
    assert not (out / "encoder.safetensors").exists()
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, finished)


# In a process of its own


def start(out: Path, steps: int) -> subprocess.Popen[str]:
    """A run in a process of its own, with as many threads as the tests have."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "PYTHONWARNINGS": ""}
    argv = [*TINY, "--monitor_every", "1", "--checkpoint_every", "5", "--steps", str(steps), "--out", str(out)]
    command = "import sys; from gwtwins.train_ssl import main; main()"
    return subprocess.Popen([sys.executable, "-c", command, *argv], stderr=subprocess.PIPE, env=env, text=True)


@pytest.fixture(scope="module")
def longer(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 60 steps."""
    out = tmp_path_factory.mktemp("runs") / "longer"
    with start(out, 60) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return out


@pytest.mark.slow
def test_nothing_is_said_but_progress(cache: Path, tmp_path: Path) -> None:
    with start(tmp_path / "run", 3) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0
    assert all(re.search("waveforms|pretraining", line) for line in re.split(r"[\r\n]+", said) if line), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_from_outside_and_going_on(longer: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process, until = start(out, 60), time.monotonic() + 240
    metrics = out / "metrics.jsonl"
    while time.monotonic() < until and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 8:
            process.send_signal(number)
            break
        time.sleep(0.01)
    _, said = process.communicate(timeout=120)
    kept = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == kept[number], said
    assert ("go on with --resume" in said) == (number != signal.SIGKILL)
    assert not (out / "encoder.safetensors").exists()
    assert (out / "checkpoints" / "last.ckpt").exists()
    assert train(["--resume", str(out)]) == 0
    assert same_weights(out, longer)
    assert losses(out) == losses(longer)
