"""How well frozen probes detect, over several training seeds, beside the untrained encoder and the matched filter.

    python benchmarks/detection.py                          3 seeds of configs/demo.yaml; about 20 minutes on 2 cores
    python benchmarks/detection.py --seeds 1 --minutes 0.5  a quick look
    python benchmarks/detection.py --views detector pairs   a row for each kind of views

All rows are judged on the same 6,000 test rows of the standard population, probes fitted on the same labelled rows. The
table (Markdown, and JSON with --json) gives the mean over training seeds and, behind +-, their standard deviation; one
seed alone has the standard error of the test set, 0.004 in AUC and 0.01 in efficiency, which all rows share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from gwtwins import eval_probe, train_ssl
from gwtwins.strain.errors import run_command

ROOT = Path(__file__).resolve().parents[1]


def one(views: str, seed: int, args: argparse.Namespace, limits: bool) -> dict[str, Any]:
    """Figures of one training run; ``untrained`` is the same encoder after no step at all."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = ["--config", str(args.config), "--seed", str(seed), "--out", str(run), "--watch", "0"]
        if views == "untrained":
            # One step at a learning rate of nothing: the encoder leaves as it came, through the same export.
            train += ["--steps", "1", "--learning-rate", "1e-12"]
        else:
            train += ["--views", views] + (["--minutes", str(args.minutes)] if args.minutes else [])
        began = time.perf_counter()
        if train_ssl.train(train):
            raise SystemExit("pretraining was interrupted")
        seconds = time.perf_counter() - began
        probe = ["--weights", str(run), "--frac", "0.25", "--templates", "250" if limits else "0"]
        probe += ["--label-counts", "[60]", "--out", str(Path(folder) / "probe")]
        eval_probe.probe(probe)
        figures = json.loads((Path(folder) / "probe" / "probe.json").read_text())
        steps = yaml.safe_load((run / "config.yaml").read_text())["steps"]
    few = figures["by_labels"][0]
    return {
        "auc": figures["auc"],
        "efficiency": figures["efficiency"]["0.01"]["value"],
        "auc_60": few["auc"],
        "efficiency_60": few["efficiency"],
        "knn_auc": figures["knn_auc"],
        "steps": steps,
        "seconds": seconds,
        "limit": figures["limit"],
    }


def cell(values: list[float], digits: int) -> str:
    """Mean and spread over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def benchmark(args: argparse.Namespace) -> int:
    """Run every row and print the table."""
    rows: dict[str, list[dict[str, Any]]] = {}
    limit: dict[str, Any] = {}
    for views in [*args.views, "untrained"]:
        for seed in range(args.seeds):
            result = one(views, seed, args, limits=not limit)
            limit = limit or result["limit"]
            rows.setdefault(views, []).append(result)
    print(f"\n{args.config.name}, {args.seeds} training seed(s), 6,000 test rows\n")
    print("| | steps | AUC, 1,500 labels | eff. at 1%, 1,500 | AUC, 60 labels | eff. at 1%, 60 | kNN AUC |")
    print("|---|---|---|---|---|---|---|")
    for views, results in rows.items():
        columns = [("auc", 4), ("efficiency", 3), ("auc_60", 4), ("efficiency_60", 3), ("knn_auc", 4)]
        cells = [cell([r[key] for r in results], digits) for key, digits in columns]
        steps = "0" if views == "untrained" else f"{statistics.mean(r['steps'] for r in results):,.0f}"
        name = "untrained encoder" if views == "untrained" else f"frozen probe, `--views {views}`"
        print(f"| {name} | {steps} | {' | '.join(cells)} |")
    for key, name in (("bank_maximum", "matched-filter bank, maximum"), ("bank", "matched-filter bank, marginalised")):
        print(f"| {name} | | {limit[key]['auc']:.4f} | {limit[key]['efficiency']['0.01']:.3f} | | | |")
    known = limit["known_signal"]
    print(f"| everything about the signal known | | {known['auc']:.4f} | {known['efficiency']['0.01']:.3f} | | | |")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "limit": limit}, indent=1))
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--views", nargs="+", default=["detector"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="budget of each run instead of the config's")
    parser.add_argument("--json", type=Path)
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
