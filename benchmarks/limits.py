"""How well signals can be found at all: the optimum, matched-filter banks and the known signal, on the same test rows.

    python benchmarks/limits.py               6,000 rows of the standard population
    python benchmarks/limits.py --rows 600    a quick look

The optimum is the likelihood ratio averaged over the population (`gwtwins.probes.optimal`). That it is one is checked
on these rows: among rows with log likelihood ratio x the signals must be a fraction 1 / (1 + exp(-x)), so a logistic
regression of the labels on x must find slope 1 and intercept 0. The dense bank has a minimal match of 0.97. Errors are
standard errors (AUC), 95% intervals (efficiency), and for differences of AUC those of the same rows (DeLong).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwtwins.probes.limits import MatchedFilterBank, known_signal, snr_in_window
from gwtwins.probes.metrics import auc, auc_difference, efficiency
from gwtwins.probes.optimal import LikelihoodRatio, calibration_line
from gwtwins.strain.batch import Batch
from gwtwins.strain.command import new_file, write_bytes, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.strain.template_bank import search_bank

FALSE_ALARM = (0.01, 0.001)
OPTIMUM = "optimum: likelihood ratio averaged over the population"
_BATCH = 16
Statistic = Callable[[Batch], dict[str, torch.Tensor]]


def statistics(source: SimulatedSource, samples: int, dense: bool) -> dict[str, Statistic]:
    """What is computed of each batch, each giving some scores (B,) by name."""
    optimum = LikelihoodRatio(source, samples, progress=True)

    def ratio(batch: Batch) -> dict[str, torch.Tensor]:
        found = optimum(batch)
        return {OPTIMUM: found.value, "effective": found.effective}

    def bank(filter_: MatchedFilterBank, name: str) -> Statistic:
        def scores(batch: Batch) -> dict[str, torch.Tensor]:
            found = filter_(batch)
            return {f"{name}, log-mean-exp": found["marginalised"], f"{name}, maximum": found["maximum"]}

        return scores

    chosen = {OPTIMUM: ratio, "bank": bank(MatchedFilterBank(source, 250, progress=True), "250 random templates")}
    if dense:
        psds = tuple(source.psds[name].name for name in source.detectors)
        templates = search_bank(source.population, psds, source.f_low, source.f_high)
        name = f"{len(templates)} templates of minimal match 0.97"
        chosen["dense"] = bank(MatchedFilterBank(source, bank=templates), name)
    return chosen


def benchmark(args: argparse.Namespace) -> int:
    """Score the rows and print the table."""
    if args.rows < 2:
        raise InputError("--rows", f"{args.rows}", "2 or more: signals and noise")
    for path in (args.json, args.scores):  # hours before they are written
        new_file(path)
    config = SimulationConfig(population=args.population, n_test=args.rows, n_labelled=2, bank_size=2)
    source = SimulatedSource(config, Window(), device=args.device)
    chosen = statistics(source, args.samples, args.dense)
    scores: dict[str, list[np.ndarray]] = {}
    seconds = dict.fromkeys(chosen, 0.0)
    label, inside = [], []
    with progress_bar(args.rows, "limits", "row") as bar:
        for batch in source.batches("test", _BATCH, signal=True):
            assert batch.label is not None
            label.append(batch.label.cpu().numpy())
            inside.append(snr_in_window(batch.truth["signal"], source.f_low, source.f_high, source.rate).cpu().numpy())
            for name, statistic in chosen.items():
                began = time.perf_counter()
                for key, value in statistic(batch).items():
                    scores.setdefault(key, []).append(value.cpu().numpy())
                seconds[name] += time.perf_counter() - began
            bar.update(len(batch))
    y = np.concatenate(label)
    found = {name: np.concatenate(parts) for name, parts in scores.items()}
    effective = found.pop("effective")
    report = table(y, found, np.concatenate(inside))
    slope = calibration_line(y, found[OPTIMUM])
    ess = {"median": float(np.median(effective)), "5%": float(np.quantile(effective, 0.05))}
    line = f"slope {slope['slope']:.3f} ± {slope['slope_se']:.3f}, intercept {slope['intercept']:.3f} ±"
    print(f"\nCalibration of the optimum (1 and 0 are true): {line} {slope['intercept_se']:.3f}")
    line = f"{ess['median']:.0f} (median), {ess['5%']:.0f} (5% quantile) of {args.samples}"
    print(f"Effective samples of the optimum: {line}")
    per_row = {name: 1e3 * value / args.rows for name, value in seconds.items()}
    print("Milliseconds a row: " + ", ".join(f"{name} {value:.0f}" for name, value in per_row.items()))
    if args.json:
        extra = {"calibration": slope, "effective_samples": ess, "milliseconds": per_row, "rows": args.rows}
        write_text(args.json, json.dumps({"limits": report, **extra}, indent=1))
    if args.scores:
        content = io.BytesIO()
        np.savez(content, label=y, effective=effective, **found)
        write_bytes(args.scores, content.getvalue())
    return 0


def table(label: np.ndarray, scores: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, Any]:
    """Print the figures, and give them back."""
    known = known_signal(inside[label == 1], FALSE_ALARM)
    report: dict[str, Any] = {"everything about the signal known": known}
    print(f"\n{len(label):,} rows, half of them signals\n")
    print("| statistic | AUC | below the optimum by | efficiency at 1% | at 0.1% |\n|---|---|---|---|---|")
    ideal: Any = known["efficiency"]
    print(f"| everything about the signal known | {known['auc']:.4f} | | {ideal['0.01']:.3f} | {ideal['0.001']:.3f} |")
    for name, score in scores.items():
        area = auc(label, score)
        less = auc_difference(label, scores[OPTIMUM], score)
        detected = {f"{p:g}": efficiency(label, score, p) for p in FALSE_ALARM}
        cells = [_interval(value) for value in detected.values()]
        below = "" if name == OPTIMUM else f"{less['value']:.4f} ± {less['se']:.4f}"
        print(f"| {name} | {area['value']:.4f} ± {area['se']:.4f} | {below} | {' | '.join(cells)} |")
        report[name] = {"auc": area, "below_optimum": less, "efficiency": detected}
    return report


def _interval(detected: dict[str, Any]) -> str:
    if detected["value"] is None:
        return "too few rows"
    low, high = detected["ci95"]
    return f"{detected['value']:.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_000, help="test rows, half of them signals")
    parser.add_argument("--samples", type=int, default=512, help="of the optimum, a power of two")
    parser.add_argument("--population", default="standard")
    parser.add_argument("--no-dense", dest="dense", action="store_false", help="leave the dense bank out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--scores", type=Path, help="write every row's scores here (.npz)")
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
