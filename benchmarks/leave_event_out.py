"""Real events in real strain, found by an encoder that never saw the seconds it is asked about.

    python benchmarks/leave_event_out.py                  GW150914, GW170814 and GW190521_074359; about 10 minutes
    python benchmarks/leave_event_out.py --each           a pretraining for each event, leaving out only its own files
    python benchmarks/leave_event_out.py --all --each     all twelve events of the test strain
    python benchmarks/leave_event_out.py --weights RUN    scan with a run that is there already, with its probe

Pretraining and the probe's labelled rows take simulated signals in the off-event strain of the other files; the files
of the events that are judged are left out of both, whole. Each event's own files are then scanned together. The table
(Markdown, and JSON with --json) says at which place among the triggers of its files the event comes, the statistic
beside that of the loudest other trigger and of the loudest time-slid one (the event's own strain among what is slid),
how many slid triggers are as loud as the event with and without its own seconds, and how far the time is off.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

from gwtwins import eval_probe, scan_strain, train_ssl
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.events import EVENTS, Event
from gwtwins.strain.strain_index import index_strain
from gwtwins.strain.whole_files import strain_files

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ("GW150914", "GW170814", "GW190521_074359")
NEAR = 1.0  # s: a trigger this close to an event is the event; further off it is something else


def chosen_events(names: list[str]) -> list[Event]:
    """The events of those names, in order of time."""
    known = {event.name: event for event in EVENTS}
    for name in names:
        if name not in known:
            raise InputError(f"--events {name}", "is not known", ", ".join(known))
    return [event for event in EVENTS if event.name in names]


def files_of(event: Event, spec: str) -> list[Path]:
    """The strain files that hold the event."""
    held = []
    for path in strain_files(spec):
        if any(file.start <= event.gps < file.end for file in index_strain([path]).files):
            held.append(path)
    if not held:
        raise InputError(spec, f"no file holds {event.name}", f"strain at GPS {event.gps}")
    return held


def pretrained(left_out: list[Event], args: argparse.Namespace, folder: Path) -> Path:
    """A run with its probe, in whose noise none of these events' files took part."""
    exclude = ",".join(str(event.gps) for event in left_out)
    noise = ["--noise", args.noise, "--noise-exclude", exclude]
    budget = ["--steps", str(args.steps)] if args.steps else ["--minutes", str(args.minutes)] if args.minutes else []
    train = ["--config", str(args.config), "--seed", str(args.seed), "--out", str(folder), "--watch", "0"]
    if train_ssl.train([*train, *noise, *budget]):
        raise InputError("pretraining", "was stopped", "a whole run")
    probe(folder, noise, args)
    return folder


def probe(run: Path, noise: list[str], args: argparse.Namespace) -> None:
    """Fit the run's probe on simulated signals in the same noise."""
    fit = ["--weights", str(run), "--out", str(run / "probe"), "--frac", args.frac, "--features", args.features]
    eval_probe.probe([*fit, *noise, "--label-counts", "[]", "--templates", "0"])


def judged(event: Event, run: Path, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Scan the event's files and find it among the triggers."""
    files = [str(path) for path in files_of(event, args.noise)]
    options = ["--weights", str(run), "--out", str(out), "--stride", str(args.stride)]
    options += ["--probe", args.probe] if args.probe else []
    scan_strain.scan([*files, *options])
    with open(out / "triggers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    near = [i for i, row in enumerate(rows) if abs(float(row["time"]) - event.gps) < NEAR]
    place = near[0] if near else None
    others = [float(row["stat"]) for i, row in enumerate(rows) if i not in near]
    report = json.loads((out / "scan.json").read_text())
    slid = [network.get("loudest") for network in report["background"]["networks"].values()]
    own = rows[place] if place is not None else {}
    return {
        "event": event.name,
        "detectors": list(report["analysed_seconds"]),
        "network": own.get("network"),
        "snr": list(event.snr),
        "rank": None if place is None else place + 1,
        "triggers": len(rows),
        "time_error": float(own["time"]) - event.gps if own else None,
        "stat": float(own["stat"]) if own else None,
        "next": max(others, default=None),
        "loudest_slid": max((stat for stat in slid if stat is not None), default=None),
        "slid_seconds": sum(n.get("slid_seconds", 0.0) for n in report["background"]["networks"].values()),
        "louder_slid": {"inclusive": louder(own, "far_inclusive"), "without_its_seconds": louder(own, "far")},
    }


def louder(row: dict[str, str], which: str) -> str | None:
    """Whether slid triggers of the event's network are as loud: "none", "some"; None where there is no background."""
    flag = row.get(f"{which}_is_limit")
    return {"1": "none", "0": "some"}.get(flag or "")


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| event | seen in | network SNR | place among triggers | time error (s) | statistic | loudest other "
        "| loudest slid (of s) | slid ones as loud: with its seconds, without |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["snr"]
        snr = f"{low:g}" if low == high else f"{low:g}-{high:g}"
        found = row["rank"] is not None
        place = f"{row['rank']} of {row['triggers']}" if found else f"not among {row['triggers']}"
        error, stat = (f"{row['time_error']:+.2f}", f"{row['stat']:.2f}") if found else ("", "")
        other = "" if row["next"] is None else f"{row['next']:.2f}"
        slid = "" if row["loudest_slid"] is None else f"{row['loudest_slid']:.2f} ({row['slid_seconds']:.0f})"
        as_loud = ", ".join(str(answer or "unknown") for answer in row["louder_slid"].values())
        seen = row["network"] or " ".join(row["detectors"])
        lines.append("| " + " | ".join([row["event"], seen, snr, place, error, stat, other, slid, as_loud]) + " |")
    return "\n".join(lines)


def run() -> int:
    """Train, fit, scan, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", nargs="+", default=list(DEFAULT), help="names of events to judge")
    parser.add_argument("--all", action="store_true", help="judge all twelve")
    parser.add_argument("--each", action="store_true", help="pretrain for each event anew, leaving out its files only")
    parser.add_argument("--noise", default=str(ROOT.parent / "shared" / "data" / "gwosc"), help="GWOSC files")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "real_noise.yaml")
    parser.add_argument("--steps", type=int, default=0, help="steps of a pretraining; the config's minutes if 0")
    parser.add_argument("--minutes", type=float, default=0.0, help="minutes of a pretraining")
    parser.add_argument("--frac", default="1", help="labelled rows of the probe")
    parser.add_argument("--features", default="concat", help="concat or coherent")
    parser.add_argument("--stride", type=float, default=0.1, help="seconds between windows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="", help="scan with this run; nothing is trained, and nothing left out")
    parser.add_argument("--probe", default="", help="with this probe, of --weights")
    parser.add_argument("--out", type=Path, default=None, help="keep runs and scans in this folder")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    args = parser.parse_args()
    if args.all and not args.each and not args.weights:
        raise InputError("--all", "leaves nothing to pretrain on", "--each with it, or --weights RUN")
    events = list(EVENTS) if args.all else chosen_events(args.events)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        home = args.out or Path(temporary)
        shared = Path(args.weights) if args.weights else None
        for event in events:
            if args.each and not args.weights:
                encoder = pretrained([event], args, home / f"run-{event.name}")
            else:
                encoder = shared = shared or pretrained(events, args, home / "run")
            rows.append(judged(event, encoder, args, home / f"scan-{event.name}"))
    print(f"\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(run))
