"""How sensitive the scan of long strain is at a stated false-alarm rate, beside pycbc's matched filter.

    python benchmarks/scan_sensitivity.py               three hours with signals, three of noise; about 10 minutes
    python benchmarks/scan_sensitivity.py --quick       ten minutes of each and 8 templates
    python benchmarks/scan_sensitivity.py --weights runs/x --probe runs/x/probe --out sensitivity --json x.json

Both searches get the same two files of simulated strain of H1, L1 and V1: one with a signal of the standard population
about every 30 s, half of them of network SNR 4-8 and half of 8-16, and one of noise alone, whose time slides say above
which statistic there is one false alarm an hour and one a day. A signal counts as found if a trigger above that
statistic lies within 0.25 s of its merger. The matched filter is that of `matched_search.py` with a small bank.

The sensitive volume is that of signals spread evenly in space, whose mergers have the population's masses, spins and
orientations. With a_i the distance at which injection i would have SNR 1, r_i its SNR and q the density that the SNRs
were drawn from,

    V = 1/N sum_i 4 pi a_i^3 r_i^-4 / q(r_i) [found_i]  +  1/N sum_i 4 pi / 3 (a_i / 16)^3

as the volume element is 4 pi d^2 dd = 4 pi a^3 r^-4 dr at d = a / r; the second term is what lies nearer than the
loudest injections, taken as found, and what is fainter than the faintest as lost. The sensitive distance is that of a
sphere of this volume. Errors: 95% intervals, Wilson's for efficiencies, the bootstrap over injections for distances.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwtwins import scan_strain
from gwtwins.benchmarks import matched_search
from gwtwins.benchmarks.long_strain import (
    GPS_START,
    LOUDNESS,
    Injection,
    design_psds,
    draw_injections,
    save_injections,
    snr_density,
    strain_blocks,
    write_mlgwsc,
)
from gwtwins.probes.metrics import wilson
from gwtwins.strain.command import claim_folder
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.population import Population

Array = NDArray[np.float64]

DETECTORS = ("H1", "L1", "V1")
RATE = 2048  # Hz, as the challenge's strain
RATES = {"1 per hour": 1 / 3600.0, "1 per day": 1 / 86400.0}
"""False alarms per second."""
EDGES = (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)
"""Of the bins in network SNR."""
NEAR = 0.25
"""Seconds between a trigger and the merger it is of: at 1 false alarm an hour, 1 in 7,000 is near one by chance."""
QUICK = {"hours": 1 / 6, "every": 20.0, "templates": 8}
_BOOTSTRAPS = 2000


@dataclass
class Searched:
    """What a search says of the injections."""

    name: str
    stat: Array
    """(N,) of the loudest trigger near each injection; -inf without one."""
    error: Array
    """(N,) seconds by which that trigger is late; NaN without one."""
    threshold: dict[str, float | None]
    """Statistic at each of `RATES`; None where the slides do not reach that far."""
    slid_days: float
    """Live time of the background."""
    seconds: float
    """That the search of both files took."""

    def found(self, rate: str) -> NDArray[np.bool_] | None:
        """(N,) which injections are above the threshold."""
        threshold = self.threshold[rate]
        return None if threshold is None else self.stat >= threshold


def nearest_triggers(injections: Sequence[Injection], gps: Array, stat: Array) -> tuple[Array, Array]:
    """The loudest statistic within `NEAR` of each injection (-inf if there is none) and its lateness in seconds."""
    loudest, error = np.full(len(injections), -np.inf), np.full(len(injections), np.nan)
    for i, one in enumerate(injections):
        near = np.flatnonzero(np.abs(gps - one.time) < NEAR)
        if near.size:
            best = near[np.argmax(stat[near])]
            loudest[i], error[i] = stat[best], gps[best] - one.time
    return loudest, error


def statistic_at(histogram: dict[str, Any], seconds: float, rate: float) -> float | None:
    """Where a histogram of slid triggers (``low``, ``bin``, ``count``) reaches ``rate`` times a second.

    Between the edges of the bins the logarithm of the number of louder triggers is taken to be a straight line.
    """
    count = np.asarray(histogram["count"], float)
    louder = np.cumsum(count[::-1])[::-1]  # at and above each lower edge
    louder = louder[louder > 0]
    edge = histogram["low"] + histogram["bin"] * np.arange(louder.size)
    wanted = rate * seconds
    if louder.size < 2 or not 1 <= wanted <= louder[0]:
        return None
    return float(np.interp(-np.log(wanted), -np.log(louder), edge))


def scanned(foreground: Path, noise: Path, injections: Sequence[Injection], args: argparse.Namespace) -> Searched:
    """Scan both files with gwtwins."""
    options = ["--weights", args.weights] if args.weights else ["--weights", "gwtwins/small"]
    options += ["--probe", args.probe] if args.probe else []
    options += ["--processes", str(args.processes), "--loudest", "0"]
    began = time.perf_counter()
    scan_strain.scan([str(noise), *options, "--out", str(noise.with_suffix(""))])
    scan_strain.scan([str(foreground), *options, "--slides", "0", "--out", str(foreground.with_suffix(""))])
    seconds = time.perf_counter() - began
    with open(foreground.with_suffix("") / "triggers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    gps, stat = (np.array([float(row[key]) for row in rows]) for key in ("time", "stat"))
    about = json.loads((noise.with_suffix("") / "scan.json").read_text())["background"]["networks"]
    slid = about.get(" ".join(DETECTORS), {})
    if "histogram" not in slid:
        raise InputError(noise, f"no background of {' '.join(DETECTORS)}", "longer strain")
    live = slid["slid_seconds"]
    threshold = {name: statistic_at(slid["histogram"], live, rate) for name, rate in RATES.items()}
    return Searched("gwtwins", *nearest_triggers(injections, gps, stat), threshold, live / 86400, seconds)


def filtered(
    foreground: Path, noise: Path, injections: Sequence[Injection], bank: matched_search.SmallBank, length: int
) -> Searched:
    """Search both files with pycbc's matched filter."""
    began = time.perf_counter()
    slid, live = matched_search.background(matched_search.single_triggers(noise, DETECTORS, bank), length)
    found = matched_search.coincidences(matched_search.single_triggers(foreground, DETECTORS, bank))
    seconds = time.perf_counter() - began
    threshold = {name: matched_search.threshold_at(slid, live, rate) for name, rate in RATES.items()}
    name = f"pycbc matched filter, {len(bank.parameters)} templates"
    stat, error = nearest_triggers(injections, GPS_START + found.time, found.stat)
    return Searched(name, stat, error, threshold, live / 86400, seconds)


def volume_weights(injections: Sequence[Injection]) -> tuple[Array, Array]:
    """(N,) Mpc^3 that each injection stands for if found, and that beyond the loudest SNR: V is a mean of these."""
    reach = np.array([one.reach for one in injections])
    snr = np.array([one.snr for one in injections])
    loudest = LOUDNESS[-1].high
    return 4 * np.pi * reach**3 * snr**-4.0 / snr_density(snr), 4 * np.pi / 3 * (reach / loudest) ** 3


def distance(volume: Array) -> Array:
    """Radius in Mpc of a sphere of ``volume`` (Mpc^3)."""
    return (3 * volume / (4 * np.pi)) ** (1 / 3)


def sensitive_distances(
    found: Sequence[NDArray[np.bool_]], injections: Sequence[Injection], seed: int = 0
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Sensitive distance of each search in Mpc, and the first's over the second's, with 95% intervals.

    All searches are resampled together: their ratio has less of the population's scatter.
    """
    weight, nearer = volume_weights(injections)
    n = len(injections)
    sample = np.random.default_rng(seed).integers(0, n, (_BOOTSTRAPS, n))

    def interval(values: Array, value: float) -> dict[str, float]:
        low, high = np.quantile(values, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high)}

    each = [weight * hits + nearer for hits in found]
    resampled = [distance(volume[sample].mean(axis=1)) for volume in each]
    best = [float(distance(volume.mean())) for volume in each]
    listed = [interval(values, value) for values, value in zip(resampled, best, strict=True)]
    return listed, interval(resampled[0] / resampled[-1], best[0] / best[-1])


def figures(searches: Sequence[Searched], injections: Sequence[Injection]) -> list[dict[str, Any]]:
    """A row for each search and false-alarm rate."""
    snr = np.array([one.snr for one in injections])
    rows = []
    for rate in RATES:
        hits = [search.found(rate) for search in searches]
        known = [found for found in hits if found is not None]
        distances, ratio = sensitive_distances(known, injections) if known else ([], {})
        left = iter(distances)
        for search, found in zip(searches, hits, strict=True):
            row: dict[str, Any] = {"search": search.name, "rate": rate, "threshold": search.threshold[rate]}
            if found is not None:
                bins = []
                for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
                    inside = (snr >= low) & (snr < high)
                    total, count = int(inside.sum()), int((found & inside).sum())
                    ends = [float(end) for end in wilson(count, total)] if total else [0.0, 1.0]
                    bins.append({"snr": [low, high], "found": count, "of": total, "ci95": ends})
                error = np.abs(search.error[found])
                row |= {"efficiency": bins, "distance_mpc": next(left), "found": int(found.sum())}
                if error.size:
                    row["time_error"] = {"median": float(np.median(error)), "95%": float(np.quantile(error, 0.95))}
                if len(known) > 1 and search is searches[0]:
                    row["distance_ratio"] = ratio
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    bins = [f"{low:g}-{high:g}" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)]
    head = ["false alarms", "search", *(f"SNR {name}" for name in bins)]
    head += ["sensitive distance (Mpc)", "over the matched filter's"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["rate"], row["search"]]
        if row["threshold"] is None:
            cells += ["too little background"] + [""] * (len(bins) + 1)
        else:
            for one in row["efficiency"]:
                half = 0.5 * (one["ci95"][1] - one["ci95"][0])
                cells.append(f"{one['found'] / one['of']:.2f} ± {half:.2f}" if one["of"] else "")
            d = row["distance_mpc"]
            cells.append(f"{d['value']:,.0f} ({d['low']:,.0f}-{d['high']:,.0f})")
            ratio = row.get("distance_ratio")
            cells.append(f"{ratio['value']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})" if ratio else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace) -> int:
    """Write the strain, search it twice, print the table; the exit status."""
    if args.quick:
        vars(args).update(QUICK)
    length = round(args.hours * 3600)
    if length < 300 or args.templates < 1 or args.every < 15:
        expected = "--hours 0.1 or more, --templates 1 or more, --every 15 or more"
        raise InputError("scan_sensitivity.py", "too little to search", expected)
    population, psds = Population.load("standard"), design_psds(DETECTORS)
    with tempfile.TemporaryDirectory() as temporary:
        out = claim_folder(args.out, Path(temporary))
        injections = draw_injections(population, psds, args.seed, GPS_START, length, args.every)
        save_injections(out / "injections.json", injections)
        foreground, noise = out / "signals.hdf", out / "noise.hdf"
        for path, seed, signals in ((foreground, 2 * args.seed, injections), (noise, 2 * args.seed + 1, [])):
            blocks = strain_blocks(psds, RATE, seed, GPS_START, length, signals)
            write_mlgwsc(path, blocks, DETECTORS, RATE, GPS_START, length)
        searches = [scanned(foreground, noise, injections, args)]
        bank = matched_search.SmallBank.of(population, args.templates)
        searches.append(filtered(foreground, noise, injections, bank, length))
    rows = figures(searches, injections)
    hours = length / 3600
    print(f"\n{len(injections)} signals in {hours:.3g} h of {' '.join(DETECTORS)}, background of {hours:.3g} h more;")
    print(f"a bank of {len(bank.parameters)} templates with a mean cubed match of {bank.recovered:.2f}\n")
    print(table(rows))
    print()
    for search in searches:
        print(f"{search.name}: {search.seconds:.0f} s; {search.slid_days:.3g} days of slid strain")
    for row in rows:
        if "time_error" in row:
            median, most = (f"{1e3 * row['time_error'][key]:.0f} ms" for key in ("median", "95%"))
            said = f"{row['found']} found, mergers off by {median} (median), {most} (95%)"
            print(f"{row['search']}, {row['rate']}, statistic {row['threshold']:.2f}: {said}")
    if args.json:
        about = {"hours": hours, "injections": len(injections), "templates": len(bank.parameters)}
        timing = [{"search": s.name, "seconds": s.seconds, "slid_days": s.slid_days} for s in searches]
        args.json.write_text(json.dumps({**about, "rows": rows, "searches": timing}, indent=2) + "\n")
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0, help="of strain with signals, and as many of noise alone")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between signals, on average")
    parser.add_argument("--templates", type=int, default=40, help="of the matched filter's bank")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}, whatever else is said")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="", help="encoder; the shipped one if empty")
    parser.add_argument("--probe", default="", help="its probe; the one beside the weights if empty")
    parser.add_argument("--processes", type=int, default=0, help="of the scan; 0 for all cores")
    parser.add_argument("--out", default="", help="keep strain, truth and scans in this folder")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
