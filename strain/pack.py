"""Pack a folder in the G2Net layout into one window store:  python -m gwtwins.strain.pack SRC OUT.hdf5

Half a million files become one that is read in any order at disk speed. Every file is checked on the way.
Rows are written to OUT.hdf5.partial, which is renamed when all is there; stopped at any moment, even by
SIGKILL, the same command goes on where it was. Memory does not grow with the number of windows beyond their
names.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gwtwins.strain.errors import EXIT_TERMINATED, InputError, run_command
from gwtwins.strain.g2net import G2NetFolder, read_window
from gwtwins.strain.pack_blocks import Block, run_blocks, write_at
from gwtwins.strain.processes import usable_cores
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.window_psd import measure_psds, pretraining_rows
from gwtwins.strain.window_store import PENDING, SKIPPED, WindowStore, create_store, offsets, read_columns

BLOCK = 128  # rows a process packs at a time: 6 MB
PSD_WINDOWS = 4096  # of which the median PSD is taken: 2% noise a bin
_SCALE_WINDOWS = 64


def pack(
    source: str | Path,
    out: str | Path,
    workers: int | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    psd_windows: int = PSD_WINDOWS,
    block: int = BLOCK,
    progress: bool = True,
) -> WindowStore:
    """Pack the folder ``source`` into the store ``out``, going on from ``out.partial`` if there is one.

    Args:
        source: a folder in the G2Net layout.
        out: the file to write; its folder must exist.
        workers: processes; as many as there are cores to use if not given. They are spawned: a script that
            calls this with more than one needs ``if __name__ == "__main__":``.
        overwrite: replace ``out``, and a partial file made from other windows.
        skip_bad: leave bad windows out and name them on stderr, instead of stopping at the first.
        psd_windows: how many windows the PSD is measured from.
        block: rows packed at a time by one process, and lost when it is killed.
        progress: show it, with the time left.

    Raises:
        InputError: what :class:`G2NetFolder` and :func:`read_window` raise; ``out`` exists; no room for it;
            the partial file is of other windows, or another process is at work on it.
    """
    out = Path(out)
    workers = usable_cores() if workers is None else workers
    if min(workers, psd_windows, block) < 1:
        raise InputError("pack", f"workers {workers}, psd windows {psd_windows}, block {block}", "at least 1")
    if not out.parent.is_dir():
        raise InputError(out, "no such folder to write to", "an existing folder")
    _refuse_existing(out, overwrite)
    folder = G2NetFolder(source)
    partial = out.with_name(out.name + ".partial")
    with _locked(partial) as descriptor:
        scale, state = _begin(folder, partial, overwrite)
        if not skip_bad:
            state[state == SKIPPED] = PENDING  # an earlier run left them out; this one has to stop at them
        where = offsets(partial)
        _check_room(partial, folder, int(np.count_nonzero(state == PENDING)))
        jobs = [
            Block(
                root=str(folder.root),
                ids=folder.ids[first:last],
                pretrain_only=folder.pretrain_only[first:last],
                first=first,
                partial=str(partial),
                strain_at=where["strain"],
                state_at=where["state"],
                scale=tuple(scale),
                skip_bad=skip_bad,
            )
            for first, last in _pending_runs(state, block)
        ]
        done = np.count_nonzero(state != PENDING)
        with progress_bar(len(state), "packing", "window", progress, int(done)) as bar:
            with closing(run_blocks(jobs, workers)) as results:
                for job, bad in results:
                    _report(folder, bad, skip_bad)
                    bar.update(len(job.ids))
        _finish(partial, descriptor, where, psd_windows)
        _refuse_existing(out, overwrite)
        os.replace(partial, out)
    return WindowStore(out)


def _pending_runs(state: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """First and one-past-last row of each run of pending rows, cut to at most ``most`` rows."""
    edges = np.diff(np.concatenate([[False], state == PENDING, [False]]).astype(np.int8))
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        for first in range(int(start), int(end), most):
            yield first, min(first + most, int(end))


@contextmanager
def _locked(partial: Path) -> Iterator[int]:
    """The partial file, made if absent, for this process alone; kept on errors unless nothing is in it."""
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(partial, f"cannot be written: {error.strerror}", "a folder to write to") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(partial, "another process is packing into it", "one at a time") from error
    except OSError:
        pass  # a file system without locks: then nothing guards against two at once
    try:
        yield descriptor
    except OSError as error:
        raise InputError(partial, f"cannot be written: {error.strerror or error}", "room and leave to write") from error
    finally:
        if os.fstat(descriptor).st_size == 0:
            partial.unlink(missing_ok=True)
        os.close(descriptor)


def _begin(folder: G2NetFolder, partial: Path, overwrite: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale (D,) and state (N,) of the partial file, which is laid out first unless it fits these windows."""
    if partial.stat().st_size:
        try:
            begun = read_columns(partial)
        except InputError:
            print(f"{partial}: stopped before it was laid out; starting again", file=sys.stderr)
        else:
            ids = np.array(folder.ids, dtype=bytes)
            wanted = {"id": ids, "label": folder.label, "pretrain_only": folder.pretrain_only}
            if all(np.array_equal(begun[name], column) for name, column in wanted.items()):
                return begun["scale"], begun["state"]
            if not overwrite:
                fault = f"was begun from windows other than those of {folder.root}"
                raise InputError(partial, fault, "another name, --overwrite, or this file deleted")
    scale = _measured_scale(folder)
    origin = folder.root.resolve().name.encode("ascii", "replace").decode()
    try:
        create_store(
            partial,
            ids=folder.ids,
            label=folder.label,
            gps=folder.gps,
            pretrain_only=folder.pretrain_only,
            scale=scale,
            detectors=folder.detectors,
            rate=folder.rate,
            samples=folder.samples,
            origin=origin,
        )
    except RuntimeError as error:  # what h5py makes of a file that cannot be as long as it should
        raise OSError(str(error)) from error
    return scale, np.full(len(folder), PENDING, np.uint8)


def _measured_scale(folder: G2NetFolder) -> np.ndarray:
    """(D,) the power of two nearest each detector's RMS in some windows; packing will meet the bad ones."""
    powers = []
    for row in np.random.default_rng(len(folder)).permutation(len(folder))[:_SCALE_WINDOWS]:
        try:
            powers.append(np.log2(np.std(read_window(folder.path(int(row))), axis=1)))
        except InputError:
            continue
    return np.exp2(np.round(np.median(powers, axis=0))) if powers else np.ones(len(folder.detectors))


def _check_room(partial: Path, folder: G2NetFolder, pending: int) -> None:
    need = pending * len(folder.detectors) * folder.samples * 4
    free = shutil.disk_usage(partial.parent).free
    if need > free:
        raise InputError(partial, f"{free / 1e9:.2f} GB free on its disk", f"{need / 1e9:.2f} GB")


def _report(folder: G2NetFolder, bad: list[tuple[int, str]], skip_bad: bool) -> None:
    for row, message in bad:
        path = folder.path(row)
        if not skip_bad:
            raise InputError(path, message.removeprefix(f"{path}: "))
        tqdm.write(f"skipped: {message}", file=sys.stderr)


def _finish(partial: Path, descriptor: int, where: dict[str, int], psd_windows: int) -> None:
    """Measure the PSDs from the packed rows, and mark the store as complete."""

    store = WindowStore(partial, finished=False)
    psds = [*measure_psds(store, pretraining_rows(store), psd_windows).values()]
    store.close()
    write_at(descriptor, psds[0].frequency, where["psd_frequency"])
    write_at(descriptor, np.stack([psd.value for psd in psds]), where["psd"])
    write_at(descriptor, np.ones(1, np.uint8), where["complete"])
    os.fsync(descriptor)


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise InputError(out, "is a folder", "a file to write")
    if out.exists() and not overwrite:
        raise InputError(out, "exists", "another name, or --overwrite")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(self.prog, message, "--help tells the options")


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's docstring. Returns 0, or raises what :func:`pack` raises."""
    parser = _Parser(prog="gwtwins.strain.pack", description=__doc__.split("\n\n")[1], allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", help="folder in the G2Net layout, with or without labels")
    parser.add_argument("out", metavar="OUT.hdf5", help="window store to write")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.hdf5 if it exists")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad windows out instead of stopping")
    parser.add_argument("--psd-windows", type=int, default=PSD_WINDOWS, metavar="N", help="default %(default)s")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    try:
        store = pack(
            options.source,
            options.out,
            options.workers,
            options.overwrite,
            options.skip_bad,
            options.psd_windows,
        )
    except (KeyboardInterrupt, SystemExit):
        print(f"{options.out}.partial is kept; the same command goes on from there", file=sys.stderr)
        raise
    labelled, size = np.count_nonzero(store.label >= 0), os.path.getsize(options.out)
    print(
        f"{options.out}: {len(store)} windows of {' '.join(store.detectors)}, {labelled} labelled, "
        f"{len(store.skipped)} bad ones left out, {size / 1e9:.2f} GB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
