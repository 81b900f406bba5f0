"""Whether hours of pretraining or of scanning need more memory or more file handles, or go slower, than minutes.

    python benchmarks/long_run.py pretraining                      20 minutes of configs/demo.yaml
    python benchmarks/long_run.py pretraining --minutes 60 -- --config configs/flagship.yaml
    python benchmarks/long_run.py scan                             24 hours of H1, L1 and V1, the flagship and its probe
    python benchmarks/long_run.py scan --hours 240 --json long.json -- --processes 8

The command runs as a user would start it, with the options after `--`, and is looked at from outside: memory (shared
pages divided among those that hold them, Linux' Pss), open file handles and CPU time, each summed over the process and
its children. The scan's strain is simulated, in GWOSC's layout at 4096 Hz, in files of 4096 s: 4 GB for 24 hours,
removed at the end.

Pretraining is one stretch of steps. A scan works through its strain twice: blocks through the encoder, then time
slides. Of each the first quarter of the work is compared with the last. Memory and handles are medians over a quarter,
for a look may fall on a moment when further files are open. Memory may be 2% higher at the end, handles may not be
more, and a unit of work may take 10% more CPU time: that, other than wall time, other users of the machine change
little. Exit status 0 if all of that holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gwtwins.benchmarks.long_strain import FILE_SECONDS, GPS_START
from gwtwins.benchmarks.scan_speed import memory_of, process_tree, write_strain
from gwtwins.strain.command import write_text
from gwtwins.strain.errors import InputError, run_command

MORE_MEMORY = 0.02
"""By which the last quarter may need more than the first."""
MORE_TIME = 0.10
"""By which a unit of work may take more CPU time in the last quarter than in the first."""
_LOOK = 2.0  # s
_STARTED = 0.05  # of a stage's work: before it, caches and pools of memory are being filled
_MIB = 1 << 20


@dataclass(frozen=True)
class Look:
    """What is seen of a command and its children at a moment."""

    wall: float
    """Seconds since the command's start."""
    work: dict[str, float]
    """Done of each stage: a share of it, 0 to 1."""
    memory: int
    """Bytes, shared pages divided among those that hold them."""
    handles: int
    """Open files, pipes and sockets."""
    cpu: float
    """Seconds of CPU time."""


@dataclass(frozen=True)
class Quarter:
    """A quarter of a stage's work."""

    memory: float
    """MiB, median."""
    peak: float
    """MiB, largest."""
    handles: int
    """Median."""
    wall: float
    """Seconds of a unit of work."""
    cpu: float
    """Seconds of CPU time of a unit of work."""


@dataclass(frozen=True)
class Stage:
    """First and last quarter of a stage of the work."""

    name: str
    unit: str
    units: int
    """Of work in the whole stage."""
    first: Quarter
    last: Quarter

    @property
    def faults(self) -> list[str]:
        """What became worse, in words; nothing if all is well."""
        found = []
        if self.last.memory > (1 + MORE_MEMORY) * self.first.memory:
            found.append(f"memory grew by {self.last.memory / self.first.memory - 1:.1%}")
        if self.last.handles > self.first.handles:
            found.append(f"{self.last.handles - self.first.handles} more file handles")
        if self.last.cpu > (1 + MORE_TIME) * self.first.cpu:
            found.append(f"{self.last.cpu / self.first.cpu - 1:.0%} more CPU time a {self.unit}")
        return found


def look(pid: int, began: float, work: dict[str, float]) -> Look:
    """At the process and its children (Linux)."""
    handles, ticks = 0, 0
    pids = process_tree(pid)
    for one in pids:
        try:
            handles += len(os.listdir(f"/proc/{one}/fd"))
            # Fields 14 to 17 of proc(5), counted from behind the name, which may hold spaces: with ended children's.
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
        except OSError:  # it has ended meanwhile
            continue
    return Look(time.monotonic() - began, work, memory_of(pids)[1], handles, ticks / os.sysconf("SC_CLK_TCK"))


def watched(command: Sequence[str], log: Path, done: Callable[[], dict[str, float]]) -> list[Look]:
    """Run the command, its words in ``log``, and look at it until it ends; ``done`` tells how far each stage is."""
    began, looks = time.monotonic(), []
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                looks.append(look(process.pid, began, done()))
                time.sleep(_LOOK)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise InputError(command[2], f"ended with {process.returncode}: {log.read_text()[-300:]}", "0")
    return looks


def stage(name: str, unit: str, units: int, looks: Sequence[Look]) -> Stage:
    """The quarters of a stage, from its looks."""
    return Stage(name, unit, units, _quarter(name, units, looks, _STARTED, 0.25), _quarter(name, units, looks, 0.75, 1))


def _quarter(name: str, units: int, looks: Sequence[Look], low: float, high: float) -> Quarter:
    inside = [one for one in looks if low <= one.work[name] < high]
    # Time from where the work is seen to have moved on to where it is seen to have moved on: not within a unit.
    moved = [b for a, b in zip(looks, looks[1:]) if b.work[name] > a.work[name] and low <= b.work[name] <= high]
    if not inside or len(moved) < 2:
        raise InputError(name, f"too short: {len(inside)} looks at a quarter of it", "more minutes or hours")
    amount = (moved[-1].work[name] - moved[0].work[name]) * units
    memory = [one.memory / _MIB for one in inside]
    return Quarter(
        memory=statistics.median(memory),
        peak=max(memory),
        handles=statistics.median_high(one.handles for one in inside),
        wall=(moved[-1].wall - moved[0].wall) / amount,
        cpu=(moved[-1].cpu - moved[0].cpu) / amount,
    )


def pretraining(folder: Path, minutes: float, options: Sequence[str]) -> tuple[list[Look], list[Stage]]:
    """Pretrain for so many minutes."""
    out = folder / "run"
    given = options if "--config" in options else ["--config", str(_root() / "configs" / "demo.yaml"), *options]
    command = [sys.executable, "-m", "gwtwins.train_ssl", *given, "--out", str(out), "--minutes", str(minutes)]

    def done() -> dict[str, float]:
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        step = json.loads(lines[-1])["step"] if lines else 0
        return {"pretraining": float(step)}

    looks = watched(command, folder / "log.txt", done)
    steps = json.loads((out / "encoder.json").read_text())["steps"]
    looks = [Look(**{**vars(one), "work": {"pretraining": one.work["pretraining"] / steps}}) for one in looks]
    return looks, [stage("pretraining", "step", steps, looks)]


def scan(folder: Path, hours: float, options: Sequence[str]) -> tuple[list[Look], list[Stage]]:
    """Write strain of so many hours, and scan it with the shipped encoder and probe."""
    strain, out = folder / "strain", folder / "scan"
    strain.mkdir()
    seconds = write_strain(strain, round(max(1, hours * 3600 / FILE_SECONDS)), "float32", seed=0)
    given = options if "--weights" in options else ["--weights", "gwtwins/flagship", *options]
    command = [sys.executable, "-m", "gwtwins.scan_strain", str(strain), *given, "--out", str(out), "--keep-blocks"]
    counted = {"frames": "block-*.hdf5", "time slides": "slides-*.hdf5"}

    def done() -> dict[str, float]:
        return {name: float(len(list((out / "blocks").glob(pattern)))) for name, pattern in counted.items()}

    looks = watched(command, folder / "log.txt", done)
    totals = done()
    looks = [Look(**{**vars(one), "work": {n: one.work[n] / totals[n] for n in totals}}) for one in looks]
    print(f"{seconds / 3600:.1f} h of strain from GPS {GPS_START} on", file=sys.stderr)
    units = {"frames": "block of 512 s", "time slides": "stretch of 1024 s"}
    return looks, [stage(name, units[name], round(totals[name]), looks) for name in counted]


def _root() -> Path:
    return Path(__file__).resolve().parent.parent


def table(stages: Sequence[Stage]) -> str:
    """The figures as Markdown."""
    lines = ["| | first quarter | last quarter | change |", "|---|---|---|---|"]
    for one in stages:
        a, b = one.first, one.last
        more = b.memory / a.memory - 1
        lines += [
            f"| {one.name}: memory, median (MiB) | {a.memory:,.0f} | {b.memory:,.0f} | {more:+.1%} |",
            f"| memory, peak (MiB) | {a.peak:,.0f} | {b.peak:,.0f} | {b.peak / a.peak - 1:+.1%} |",
            f"| file handles, median | {a.handles} | {b.handles} | {b.handles - a.handles:+d} |",
            f"| CPU time of a {one.unit} (s) | {a.cpu:.3g} | {b.cpu:.3g} | {b.cpu / a.cpu - 1:+.1%} |",
            f"| wall time of it (s) | {a.wall:.3g} | {b.wall:.3g} | {b.wall / a.wall - 1:+.1%} |",
        ]
    return "\n".join(lines)


def verdict(stages: Sequence[Stage]) -> str:
    """In a sentence."""
    faults = [f"{one.name}: {fault}" for one in stages for fault in one.faults]
    return "; ".join(faults) if faults else "memory flat, file handles stable, no slower at the end than at the start"


def benchmark(args: argparse.Namespace) -> int:
    """Run, print; the exit status."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("long_run.py", "no /proc/self/smaps_rollup here", "Linux, whose memory figures it reads")
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        if args.what == "pretraining":
            looks, stages = pretraining(folder, args.minutes, args.options)
        else:
            looks, stages = scan(folder, args.hours, args.options)
    finally:
        shutil.rmtree(folder)
    peak = max(one.memory for one in looks) / _MIB
    print(f"{looks[-1].wall / 60:.1f} minutes; {', '.join(f'{s.units} times a {s.unit}' for s in stages)}")
    print(f"memory at most, over all: {peak:,.0f} MiB\n")
    print(table(stages))
    print(f"\n{verdict(stages)}")
    if args.json:
        listed = [{**asdict(one), "faults": one.faults} for one in stages]
        kept = looks[:: max(1, len(looks) // 500)]
        figures = {"minutes": looks[-1].wall / 60, "peak_mib": peak, "stages": listed, "looks": [vars(x) for x in kept]}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
    return 1 if any(one.faults for one in stages) else 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pretraining", "scan"))
    parser.add_argument("--minutes", type=float, default=20.0, help="of pretraining")
    parser.add_argument("--hours", type=float, default=24.0, help="of strain, rounded to whole files of 4096 s")
    parser.add_argument("--folder", default=None, help="where the run or the strain is written, and removed again")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    # Split by hand: argparse wants everything that has no name in one place.
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:at], argparse.Namespace(options=sys.argv[at + 1 :]))
    raise SystemExit(run_command(lambda: benchmark(args)))


if __name__ == "__main__":
    main()
