"""How well signals are detected: frozen probes, their rivals and the limits, on the same test rows, over several seeds.

    python benchmarks/detection.py --out results/detection       every row, 3 seeds; about a day on 2 cores
    python benchmarks/detection.py --out DIR --rows detector supervised --seeds 2     some of it; the rest another day
    python benchmarks/detection.py --out quick --quick           minutes: 1 seed, 6,000 test rows, six rows, 30 s each
    python benchmarks/detection.py --list                         the rows

All rows are judged on the same 20,000 test rows (half of them signals), and below 1% false alarms on 100,000 noise-only
rows (dense and optimum, which take too long, and known on the noise among the test rows); counts of labels below 6,000
are drawn 20 times (supervised: 3 times), from the same 6,000 labelled rows. Every training has the same budget:
``--minutes`` of wall clock turned into steps by the speed that is measured first, or ``--steps``. The table says how
long each took, and which took longer than they might.

DIR keeps the encoder and the result of each row and seed; what is there is not made again, so a benchmark that was
stopped goes on where it was. Results made with other settings are refused. DIR/table.md and DIR/table.json hold the
table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.benchmarks.detection_rows import ROWS, Row, chosen_rows
from gwtwins.benchmarks.detection_table import Result, write_table
from gwtwins.benchmarks.detection_training import Settings, make, trained, training_options
from gwtwins.probes.linear import MIN_LABELS
from gwtwins.strain.command import hold_folder, make_folder, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.small_file import read_json

ROOT = Path(__file__).resolve().parents[1]
_MOST_BYTES = 1 << 20


def benchmark(args: argparse.Namespace) -> int:
    """Make what is missing of the rows that are asked for, and write the table of all that is there."""
    rows = chosen_rows(args.rows, args.quick, args.noise)
    if args.against not in ROWS:
        raise InputError(f"--against {args.against}", "is not a row of the benchmark", ", ".join(ROWS))
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}", "is none", "1 or more")
    settings = settings_of(args)
    check_settings(args.out, settings)
    work = [one for row in rows for one in parts(row, settings, range(args.seeds))]
    for number, (row, seed, count) in enumerate(work, 1):
        where = args.out / row.name / part_name(seed, count)
        if (where / "result.json").exists():
            continue
        labels = "" if count is None else f", {count} labels"
        print(f"\n[{number} of {len(work)}] {row.name}, seed {seed}{labels}", flush=True)
        with hold_folder(where):  # another process may be at other parts
            if not trained(where):
                shutil.rmtree(where / "run", ignore_errors=True)  # of a run that was cut short
            result, replicates = make(row, seed, count, settings, where, args.out)
            np.savez(where / "replicates.npz", **replicates)  # type: ignore[arg-type]
            write_text(where / "result.json", json.dumps(result, indent=1) + "\n")  # last: it says that all is there
    results = read_results(args.out)
    text = write_table(args.out, results, dataclasses.asdict(settings), args.against)
    print("\n" + text)
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """What all rows have in common; fixed once the first result is there."""
    counts = [20, 60, 200, 600, 1_500, 6_000] + ([60_000] if args.full else [])
    return Settings(
        config=str(args.config),
        minutes=args.minutes or (0.5 if args.quick else 4.0),
        steps=args.steps,
        label_counts=tuple(args.label_counts or ([60, 600, 6_000] if args.quick else counts)),
        label_draws=args.label_draws or (5 if args.quick else 20),
        test_rows=args.test_rows or (6_000 if args.quick else 20_000),
        noise_rows=args.noise_rows if args.noise_rows is not None else (20_000 if args.quick else 100_000),
        noise=args.noise,
        evaluation_seed=args.evaluation_seed,
        options=args.options,
        device=args.device,
    )


def check_settings(out: Path, settings: Settings) -> None:
    """Refuse to mix results of unlike budgets or rows; remember the settings of the first.

    Raises:
        InputError: ``out`` holds results made with others, or the trained rows' config or options cannot be used.
    """
    training_options(settings)
    if min(settings.label_counts) < MIN_LABELS or settings.label_draws < 1:
        least = f"{MIN_LABELS} labels or more, and a draw or more of each"
        raise InputError("--label-counts, --label-draws", "too few", least)
    if settings.test_rows < 100 or settings.noise_rows < 0 or settings.minutes <= 0 or settings.steps < 0:
        raise InputError("--test-rows, --noise-rows, --minutes, --steps", "too few", "100 test rows, and none below 0")
    path = out / "settings.json"
    mine = json.loads(json.dumps(dataclasses.asdict(settings)))
    mine["config"] = Path(settings.config).read_text()  # wherever it lies, and whatever it will say tomorrow
    make_folder(out)
    if path.exists():
        theirs = read_json(path, _MOST_BYTES, "what this benchmark wrote")
        if not isinstance(theirs, dict) or not isinstance(theirs.get("noise"), str):
            raise InputError(path, "holds no settings", "what this benchmark wrote")
        # Real noise may come later or be left out for once: it adds rows, and changes none.
        mine["noise"] = mine["noise"] or theirs["noise"]
        theirs["noise"] = theirs["noise"] or mine["noise"]
        unlike = [key for key in mine if key != "device" and mine[key] != theirs.get(key)]
        if unlike:
            key = unlike[0]
            fault = f"holds results made with {key} {_short(theirs.get(key))}, not {_short(mine[key])}"
            raise InputError(out, fault, "the same settings, or another --out")
    write_text(path, json.dumps(mine, indent=1) + "\n")


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 80 else "of another text"


def parts(row: Row, settings: Settings, seeds: range) -> list[tuple[Row, int, int | None]]:
    """What a row is made of: a part for each seed, and for each label count if supervised; one if nothing is learnt."""
    if row.kind in ("limit", "evidence"):
        return [(row, 0, None)]
    if row.kind == "supervised":
        return [(row, seed, count) for seed in seeds for count in settings.label_counts]
    return [(row, seed, None) for seed in seeds]


def part_name(seed: int, count: int | None) -> str:
    return f"seed{seed}" if count is None else f"seed{seed}-{count}labels"


def read_results(out: Path) -> dict[str, list[Result]]:
    """All results in ``out``, by row in the table's order, one for each seed."""
    found: dict[str, list[Result]] = {}
    for name in ROWS:
        by_seed: dict[int, Result] = {}
        for path in sorted((out / name).glob("seed*/result.json")):
            node: dict[str, Any] = json.loads(path.read_text())
            with np.load(path.with_name("replicates.npz"), allow_pickle=False) as file:
                part = Result(node, {key: file[key] for key in file.files})
            by_seed[node["seed"]] = by_seed[node["seed"]].joined(part) if node["seed"] in by_seed else part
        if by_seed:
            found[name] = [by_seed[seed] for seed in sorted(by_seed)]
    return found


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/detection"), help="folder of the results")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--list", action="store_true", help="print the rows' names and what they are")
    parser.add_argument("--seeds", type=int, default=0, help="training seeds; 3, and 1 with --quick")
    parser.add_argument("--minutes", type=float, default=0.0, help="budget of each training; 4, and 0.5 with --quick")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps instead")
    parser.add_argument("--quick", action="store_true", help="few rows, one seed, 6,000 test rows")
    parser.add_argument("--full", action="store_true", help="60,000 labels too")
    parser.add_argument("--noise", default="", help="GWOSC files or folders: adds the rows in real noise")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="of the trained rows")
    parser.add_argument("--options", default="", help="further options of train_ssl.py, for every trained row")
    parser.add_argument("--label-counts", type=int, nargs="+", default=[])
    parser.add_argument("--label-draws", type=int, default=0, help="of each count below 6,000; 20, and 5 with --quick")
    parser.add_argument("--test-rows", type=int, default=0)
    parser.add_argument("--noise-rows", type=int)
    parser.add_argument(
        "--evaluation-seed", type=int, default=1, help="2 and up: other labelled and test rows than those of the docs"
    )
    parser.add_argument(
        "--against", default="detector", help="row that others of its group are compared with (other groups: the first)"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or (1 if args.quick else 3)
    return args


def main() -> None:
    """Entry point."""
    args = arguments()
    if args.list:
        for row in ROWS.values():
            print(f"{row.name:<22s} {row.group}: {row.title}")
        return
    raise SystemExit(run_command(lambda: benchmark(args)))


if __name__ == "__main__":
    main()
