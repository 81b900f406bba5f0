"""How pretraining's throughput grows with the processes: samples a second, as Lightning runs them.

    python benchmarks/scaling.py                       1 and 2 processes, the same batch, one core each; 3 minutes
    python benchmarks/scaling.py --processes 1 2 4 8 --device cuda --per-process 256

Strong scaling keeps the batch of a step and divides it among the processes; with --per-process every process has so
many rows (weak scaling). On a CPU each process has the same number of threads. The runs take turns, so that a machine
that slows down slows all; figures are the median over the lines of metrics.jsonl after the first, and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gwtwins.strain.command import write_text


def rates(processes: int, batch: int, args: argparse.Namespace, out: Path) -> list[float]:
    """Samples per second, figure by figure, of one run."""
    argv = ["--devices", str(processes), "--batch", str(batch), "--steps", str(args.steps)]
    argv += ["--monitor-every", str(max(1, args.steps // 6)), "--checkpoint-every", str(args.steps), "--watch", "0"]
    argv += ["--device", args.device, *args.options]
    return command_rates(argv, out, {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"})


def command_rates(argv: list[str], out: Path, environment: dict[str, str] | None = None) -> list[float]:
    """Samples per second, line after line of its metrics.jsonl but the first, of train_ssl.py with these options."""
    command = "from gwtwins.train_ssl import main; main()"
    argv = [sys.executable, "-c", command, "--out", str(out), *argv]
    done = subprocess.run(argv, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"train_ssl.py for {out.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["samples_per_second"] for line in lines[1:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=256, help="rows of a step, over all processes")
    parser.add_argument("--per-process", type=int, default=0, help="rows of a process instead: the batch grows")
    parser.add_argument("--steps", type=int, default=24, help="of a run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each number of processes")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("options", nargs="*", help="further options of train_ssl.py, after --")
    args = parser.parse_args()
    found: dict[int, list[float]] = {n: [] for n in args.processes}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for n in args.processes:
                batch = n * args.per_process or args.batch
                found[n] += rates(n, batch, args, Path(folder) / f"{n}-{repeat}")
    one = statistics.median(found[args.processes[0]]) / args.processes[0]
    print("| processes | batch | samples/s (range) | of linear |\n|---|---|---|---|")
    for n, every in found.items():
        median = statistics.median(every)
        batch = n * args.per_process or args.batch
        print(f"| {n} | {batch} | {median:,.0f} ({min(every):,.0f}-{max(every):,.0f}) | {median / (n * one):.0%} |")
    if args.json:
        about = {"device": args.device, "threads": args.threads, "steps": args.steps, "repeats": args.repeats}
        write_text(args.json, json.dumps({**about, "samples_per_second": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
