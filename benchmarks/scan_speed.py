"""How fast `scan_strain.py` works through strain of three detectors, and how much memory it takes, by length.

    python benchmarks/scan_speed.py                    10 minutes, 1 hour and 10 hours; about 5 minutes, 4 GB of disk
    python benchmarks/scan_speed.py --files 0 --formats float64        10 minutes alone
    python benchmarks/scan_speed.py --processes 2 --stride 0.1 --json speed.json

The strain is Gaussian noise of H1, L1 and V1 in GWOSC's layout at 4096 Hz, compressed as theirs is, in files of 4096 s
(one for "1 hour", nine for "10 hours") or one of 600 s. A long scan's files are copies of the first one with the GPS
time moved on; the noise is cyclic, so they follow on each other without a step. The command runs as a user would start
it, in a process of its own, with pictures, triggers and the default background: wall time is from start to end,
imports included. Memory is the largest sum over the process and its children that a look every 0.2 s finds: of their
resident memory, and of their share of it when pages that several hold are divided among them (Linux' Pss).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py

from gwtwins.benchmarks.long_strain import FILE_SECONDS, GPS_START, design_psds, strain_blocks, write_gwosc
from gwtwins.strain.command import claim_folder
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.processes import usable_cores

DETECTORS = ("H1", "L1", "V1")
RATE = 4096  # Hz, of most of GWOSC's files
SHORT = 600
"""Seconds of the shortest scan; its length stands for 0 files."""
FORMATS = ("float64", "float32")
_LOOK = 0.2  # s
_MIB = 1 << 20


@dataclass
class Measured:
    """One scan."""

    seconds: int
    """Of strain of three detectors."""
    format: str
    wall: float
    """Seconds from the command's start to its end."""
    resident: int
    """Bytes, summed over processes, at most."""
    shared_out: int
    """Bytes with shared pages divided among those that hold them, at most."""
    stages: dict[str, float]
    """Seconds in each stage, as the scan itself says."""

    @property
    def speed(self) -> float:
        """Seconds of strain per second."""
        return self.seconds / self.wall


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants (Linux)."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return found


def memory_of(pids: Sequence[int]) -> tuple[int, int]:
    """Bytes of resident memory, summed, and with shared pages divided among those that hold them."""
    total = {"Rss:": 0, "Pss:": 0}
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                words = line.split()
                if words[0] in total:
                    total[words[0]] += int(words[1]) * 1024
        except OSError:
            continue
    return total["Rss:"], total["Pss:"]


def write_strain(folder: Path, files: int, dtype: str, seed: int) -> int:
    """Files of each detector, in ``folder``; the seconds they cover."""
    seconds = FILE_SECONDS if files else SHORT
    psds = design_psds(DETECTORS)
    blocks = strain_blocks(psds, RATE, seed, GPS_START, seconds)
    paths = write_gwosc(folder, blocks, DETECTORS, RATE, GPS_START, seconds, dtype)
    for path in paths:
        for k in range(1, files):
            start = GPS_START + k * seconds
            copy = path.with_name(path.name.replace(str(GPS_START), str(start)))
            shutil.copyfile(path, copy)
            with h5py.File(copy, "a") as file:
                file["strain/Strain"].attrs["Xstart"] = start
                file["meta/GPSstart"][()] = start
    return seconds * max(files, 1)


def measure(folder: Path, seconds: int, dtype: str, options: Sequence[str]) -> Measured:
    """Scan the files of ``folder`` in a process of its own."""
    out = folder / "scan"
    command = [sys.executable, "-m", "gwtwins.scan_strain", str(folder), "--out", str(out), *options]
    log = folder / "log.txt"
    began = time.perf_counter()
    most = [0, 0]
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            now = memory_of(process_tree(process.pid))
            most = [max(pair) for pair in zip(most, now, strict=True)]
            time.sleep(_LOOK)
    wall = time.perf_counter() - began
    if process.returncode:
        raise InputError("scan_strain.py", f"ended with {process.returncode}: {log.read_text()[-300:]}", "0")
    stages = json.loads((out / "scan.json").read_text())["seconds_by_stage"]
    return Measured(seconds, dtype, wall, most[0], most[1], stages)


def table(rows: Sequence[Measured]) -> str:
    """The figures as Markdown."""
    stages = list(rows[0].stages)
    head = ["strain of three detectors", "samples", "wall time (s)", "strain s per s", *(f"{s} (s)" for s in stages)]
    head += ["resident (MiB)", "shared pages once (MiB)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        length = f"{row.seconds / 3600:.1f} h" if row.seconds >= 3600 else f"{row.seconds / 60:.0f} min"
        cells = [length, row.format, f"{row.wall:.1f}", f"{row.speed:,.0f}", *(f"{row.stages[s]:.1f}" for s in stages)]
        cells += [f"{row.resident / _MIB:,.0f}", f"{row.shared_out / _MIB:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace) -> int:
    """Write, scan, print; the exit status."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("scan_speed.py", "no /proc/self/smaps_rollup here", "Linux, whose memory figures it reads")
    options = ["--weights", args.weights or "gwtwins/small", "--stride", str(args.stride)]
    options += ["--probe", args.probe] if args.probe else []
    options += ["--processes", str(args.processes)] if args.processes else []
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        for dtype in args.formats:
            for files in args.files:
                folder = claim_folder(str(Path(temporary) / f"{dtype}-{files}"), Path(temporary))
                seconds = write_strain(folder, files, dtype, args.seed)
                rows.append(measure(folder, seconds, dtype, options))
                shutil.rmtree(folder)
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    cores = min(args.processes or usable_cores(), usable_cores())
    print(f"\n{cores} of {os.cpu_count()} cores, a window every {args.stride:g} s (rounded down to whole frames)\n")
    print(table(rows))
    if args.json:
        listed = [{**asdict(row), "speed": row.speed} for row in rows]
        args.json.write_text(json.dumps({"cores": cores, "stride": args.stride, "rows": listed}, indent=2) + "\n")
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[0, 1, 9], help="of 4096 s, a scan each; 0: 600 s")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="of the samples")
    parser.add_argument("--stride", type=float, default=0.1, help="seconds between windows")
    parser.add_argument("--processes", type=int, default=0, help="of the scan; 0 for all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="", help="encoder; the shipped one if empty")
    parser.add_argument("--probe", default="", help="its probe; the one beside the weights if empty")
    parser.add_argument("--folder", default=None, help="where the strain is written, 4 GB at most, and removed again")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
