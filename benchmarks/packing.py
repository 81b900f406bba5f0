"""Packing a folder in the G2Net layout, and shuffled batches from the store beside np.load of the same files.

    python benchmarks/packing.py                        to 1/50 of the data set; a minute, 1.7 GB of disk for it
    sudo .venv/bin/python benchmarks/packing.py --drop-caches      cold as after a start of the machine

The data set is 560,000 training windows, files of (3, 4096) float64, 55 GB; with its 226,000 test windows 77 GB. The
files made here hold seeded Gaussian noise. Packing is the command itself, from cold files. Batches are of the same rows
in the same order for every way of reading, the order a permutation of all rows, and the ways take turns. Cold: the
kernel was told to forget the files' contents (posix_fadvise, DONTNEED), or with --drop-caches everything, names and
inodes too; warm: the third time in a row, for which the processor's time is told as well: other work on the machine
leaves that as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gwtwins.benchmarks.throughput import make, train_step
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.pretrain import Feed
from gwtwins.ssl.views import make_views
from gwtwins.strain.command import write_text
from gwtwins.strain.g2net import DETECTORS, LABELS, SAMPLES, window_path
from gwtwins.strain.recorded_windows import WindowStoreSource
from gwtwins.strain.sources import Window
from gwtwins.strain.versions import versions
from gwtwins.strain.window_store import WindowStore

DATA_SET = 560_000  # windows
LEVEL = 1e-21  # RMS of the strain
BATCH = 256  # rows of a pretraining step
STEPS = 8  # of pretraining that are timed


def write_windows(root: Path, first: int, last: int) -> None:
    """The windows ``first`` to ``last`` of an endless set, and the labels of all of them so far."""
    ids = [f"{(k * 2654435761) % 2**40:010x}" for k in range(last)]
    for k in range(first, last):
        path = window_path(root, "train", ids[k])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, LEVEL * np.random.default_rng(k).standard_normal((len(DETECTORS), SAMPLES)))
    lines = [f"{id},{k % 2}" for k, id in enumerate(ids)]
    (root / LABELS).write_text("\n".join(["id,target", *lines]) + "\n")


def forget(paths: Sequence[str], everything: bool) -> None:
    """Have the kernel forget what it holds of some files, or everything it can."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if everything:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


# The peak is this process's own: what the kernel tells of a child counts its parent's memory as well.
_PACK = """
import re, resource, sys, time
from pathlib import Path
from gwtwins.strain.pack import main
if __name__ == "__main__":
    main(sys.argv[1:])
    own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(max(own, others.ru_maxrss) * 1024, time.process_time() + others.ru_utime + others.ru_stime)
"""


def packed(root: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Seconds that the command takes, seconds of processors' time in them, and MB of its largest process."""
    command = [sys.executable, "-c", _PACK, str(root), str(out), "--overwrite", "--workers", str(workers)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, busy = done.stdout.split()[-2:]
    return time.perf_counter() - began, float(busy), int(peak) / 1e6


def ways_of_reading(store: WindowStore, root: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions that give a batch of rows (B, D, T)."""
    paths = [str(window_path(root, "train", id)) for id in store.ids]
    scale = store.scale[:, None]

    def stacked(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.load(paths[row]) for row in rows])

    def ready_made(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), len(DETECTORS), SAMPLES), np.float32)
        for k, row in enumerate(rows):
            np.divide(np.load(paths[row]), scale, out=out[k], casting="same_kind")
        return out

    return {
        "`np.stack` of `np.load`, float64": stacked,
        "`np.load` and scaling into a float32 batch": ready_made,
        "the store, float32": store.read,
    }


def reading(store: WindowStore, root: Path, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Rows a second of each way, cold and warm, and warm rows a second of the processor's time."""
    order = np.random.default_rng(args.seed).permutation(len(store))
    batches = np.split(order, range(BATCH, len(order), BATCH))
    ways = ways_of_reading(store, root)
    stacked, ready, own = (read(batches[0]) for read in ways.values())
    assert np.array_equal(ready, own) and np.array_equal((stacked / store.scale[:, None]).astype(np.float32), own)
    files = [store.where, *(str(window_path(root, "train", id)) for id in store.ids)]
    rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": [], "cpu": []} for name in ways}
    for _ in range(args.repeats):
        for name, read in ways.items():
            forget(files, args.drop_caches)
            for state in ("cold", "", "warm"):
                began, busy = time.perf_counter(), time.process_time()
                for rows in batches:
                    read(rows)
                if state:
                    rates[name][state].append(len(order) / (time.perf_counter() - began))
            rates[name]["cpu"].append(len(order) / (time.process_time() - busy))
    return rates


def feeding(path: Path, device: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Rows a second of the training feed from the store, and of the steps that it feeds, one after the other."""
    module = make("cnn_gru", device)
    encoder = module.encoder
    source = WindowStoreSource(str(path), Window(encoder.rate, encoder.window, 20.0, 500.0), device)
    maker = make_views("detector", source, AugmentConfig(), False, 1.75, encoder.hop)
    feed = Feed(maker, args.seed, STEPS, BATCH, lambda: 0, background=False)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6)
    module.train()
    rates: dict[str, list[float]] = {"reading": [], "reading, whitening, views": [], "pretraining step": []}
    rows = np.random.default_rng(args.seed).permutation(len(source.windows.ids))
    began = 0.0

    def done(name: str) -> None:
        nonlocal began
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        rates[name].append(BATCH / (now - began))
        began = now

    for step in range(STEPS + 1):
        began = time.perf_counter()
        source.windows.read(rows[step * BATCH : (step + 1) * BATCH])
        done("reading")
        views = feed.make(step)
        done("reading, whitening, views")
        train_step(module, optimiser, views)
        done("pretraining step")
    return {name: measured[1:] for name, measured in rates.items()}  # the first of each sets things up


def shown(rates: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def print_packing(found: dict[int, tuple[float, float, float]]) -> None:
    """Cost by size, and on the line through the two largest that of the data set."""
    megabytes = len(DETECTORS) * SAMPLES * 8 / 1e6
    print("| windows | share | seconds | of processors | windows/s | MB/s read | largest process, MB |")
    print("|---|---|---|---|---|---|---|")
    for n, (seconds, busy, peak) in found.items():
        speed = f"{n / seconds:,.0f} | {n * megabytes / seconds:,.0f}"
        print(f"| {n:,} | 1/{DATA_SET / n:.0f} | {seconds:.1f} | {busy:.1f} | {speed} | {peak:.0f} |")
    if len(found) > 1:
        few, many = [*found][-2:]
        slope = (np.array(found[many]) - found[few]) / (many - few)
        seconds, busy, peak = found[many] + slope * (DATA_SET - many)
        print(f"| {DATA_SET:,} | extrapolated | {seconds:,.0f} | {busy:,.0f} | {1 / slope[0]:,.0f} | | {peak:.0f} |")


def print_reading(rates: dict[str, dict[str, list[float]]]) -> None:
    """Rows a second, and how many times as many the store (the last) gives."""
    own = {state: statistics.median(measured) for state, measured in [*rates.values()][-1].items()}
    heads = {"cold": "cold", "warm": "warm", "cpu": "warm, by processor time"}
    print("| way |" + "".join(f" {heads[state]} | store |" for state in own) + "\n|---|" + "---|---|" * len(own))
    for name, measured in rates.items():
        cells = [f"{shown(m)} | {own[state] / statistics.median(m):.1f} times" for state, m in measured.items()]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--windows",
        type=int,
        nargs="+",
        default=[DATA_SET // 200, DATA_SET // 100, DATA_SET // 50],
        help="sizes packed",
    )
    parser.add_argument("--workers", type=int, default=1, help="packing processes")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of reading")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    parser.add_argument("--drop-caches", action="store_true", help="cold: the whole machine's caches (root only)")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the training feed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    sizes = sorted(args.windows)
    found: dict[str, dict[int, tuple[float, float, float]]] = {"packing": {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root, out = Path(folder, "g2net"), Path(folder, "windows.hdf5")
        for before, n in zip([0, *sizes], sizes):
            write_windows(root, before, n)
            forget([str(path) for path in root.rglob("*.npy")], args.drop_caches)
            found["packing"][n] = packed(root, out, args.workers)
        rates = reading(WindowStore(out), root, args)
        fed = feeding(out, args.device, args)
    cold = "all caches of the machine dropped" if args.drop_caches else "contents of the files dropped"
    where = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads of torch"
    print(f"{where}, {args.device}; seed {args.seed}; cold: {cold}\n")
    print_packing(found["packing"])
    print(f"\nShuffled batches of {BATCH} of {sizes[-1]:,} windows, rows/s: median (range) of {args.repeats}\n")
    print_reading(rates)
    print(f"\nThe training feed, batches of {BATCH}, beside the step of `cnn_gru` that it feeds, rows/s\n")
    print("| | rows/s |\n|---|---|")
    for name, measured in fed.items():
        print(f"| {name} | {shown(measured)} |")
    if args.json:
        about = {"seed": args.seed, "drop_caches": args.drop_caches, "workers": args.workers, "versions": versions()}
        write_text(args.json, json.dumps({**about, **found, "reading": rates, "feeding": fed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
