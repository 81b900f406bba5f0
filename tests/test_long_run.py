"""Long work stays as it began: what benchmarks/long_run.py sees of leaks, and that short runs show none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gwtwins.benchmarks import long_run
from gwtwins.benchmarks.long_run import Look, stage, verdict
from gwtwins.strain.errors import InputError

MIB = 1 << 20
COUNT = 400
UNITS = 1000

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")


def looks(memory: float = 0.0, handles: int = 0, cpu: float = 0.0, wall: float = 0.0) -> list[Look]:
    """Of work that grows by these parts (handles: by so many) from its start to its end, the start-up before it."""
    seen, at, used = [Look(0.0, {"work": 0.0}, 10 * MIB, 3, 0.0)], 20.0, 30.0
    for i in range(COUNT + 1):
        done = i / COUNT
        seen.append(Look(at, {"work": done}, round(500 * MIB * (1 + memory * done)), 20 + round(handles * done), used))
        at, used = at + 2.0 * (1 + wall * done), used + 1.5 * (1 + cpu * done)
    return seen


def test_steady_work_passes_whatever_else_the_machine_does() -> None:
    one = stage("work", "step", UNITS, looks(wall=3.0))
    assert one.faults == []
    assert one.first.memory == pytest.approx(500)
    assert one.first.handles == 20
    assert one.first.cpu == pytest.approx(1.5 * COUNT / UNITS)
    assert one.first.wall == pytest.approx(2.0 * COUNT / UNITS * 1.45, rel=0.01)
    assert one.last.wall > 2 * one.first.wall
    assert verdict([one]).startswith("memory flat")


@pytest.mark.parametrize(
    ("grows", "says"),
    [
        ({"memory": 0.05}, "work: memory grew by 3.6%"),
        ({"handles": 40}, "work: 29 more file handles"),
        ({"cpu": 0.5}, "more CPU time a step"),
    ],
    ids=["memory", "handles", "cpu"],
)
def test_what_grows_is_named(grows: dict[str, float], says: str) -> None:
    assert says in verdict([stage("work", "step", UNITS, looks(**grows))])  # type: ignore[arg-type]


def test_work_that_was_over_at_once_tells_nothing() -> None:
    with pytest.raises(InputError, match="too short"):
        stage("work", "step", UNITS, looks()[:20])


@linux
def test_a_command_that_keeps_files_open_and_memory_is_seen_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "_LOOK", 0.02)
    counter = tmp_path / "done"
    leaks = (
        "import sys, time\nkept = []\nfor i in range(60):\n"
        "    kept.append((open(sys.argv[1] + '.open', 'w'), bytearray(b'x' * 1_000_000)))\n"
        "    open(sys.argv[1], 'w').write(str(i + 1))\n    time.sleep(0.03)\n"
    )

    def done() -> dict[str, float]:
        text = counter.read_text() if counter.exists() else ""
        return {"leaking": int(text or 0) / 60}

    command = [sys.executable, "-c", leaks, str(counter)]
    seen = long_run.watched(command, tmp_path / "log.txt", done)
    one = stage("leaking", "file", 60, seen)
    assert one.last.handles >= one.first.handles + 35  # a file each; the middles of the quarters are 43 apart
    assert one.last.memory > one.first.memory + 30
    assert one.last.memory < 200


@linux
def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    script = "import sys; sys.exit(print('no such strain') or 2)"
    with pytest.raises(InputError, match=r"ended with 2: no such strain"):
        long_run.watched([sys.executable, "-c", script], tmp_path / "log.txt", dict)


@linux
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "argv",
    [
        ["pretraining", "--minutes", "2", "--", "--batch", "16", "--bank-size", "64", "--monitor-every", "10"],
        ["scan", "--hours", "6", "--", "--slides", "20", "--processes", "2"],
    ],
    ids=["pretraining", "scan"],
)
def test_minutes_of_pretraining_and_hours_of_strain_leave_no_handles_open(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_run, "_LOOK", 0.1)
    monkeypatch.setattr(long_run, "MORE_MEMORY", 0.1)  # so short a run is still filling its caches
    monkeypatch.setattr(long_run, "MORE_TIME", 0.5)
    monkeypatch.setattr(sys, "argv", ["long_run.py", "--folder", str(tmp_path), "--json", str(tmp_path / "j"), *argv])
    with pytest.raises(SystemExit) as ended:
        long_run.main()
    figures = json.loads((tmp_path / "j").read_text())
    assert [fault for one in figures["stages"] for fault in one["faults"]] == []
    assert ended.value.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["j"]  # strain and run are gone
