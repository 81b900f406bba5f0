"""The packer's processes: each checks some windows and writes them to their place in the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait

import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import FOLDERS, read_window, window_path
from gwtwins.strain.window_store import PACKED, SKIPPED


@dataclass(frozen=True)
class Block:
    """Consecutive rows for one process: where their files are, and where in the store they go."""

    root: str
    ids: list[str]
    pretrain_only: np.ndarray
    first: int
    partial: str
    strain_at: int
    state_at: int
    scale: tuple[float, ...]
    skip_bad: bool


def pack_block(job: Block) -> list[tuple[int, str]]:
    """Check and write the rows of one block; return (row, fault) of the bad ones.

    Unless they are to be skipped, the first bad one ends it, and nothing of the block is written.
    """
    bad: list[tuple[int, str]] = []
    rows: np.ndarray | None = None
    state = np.full(len(job.ids), PACKED, np.uint8)
    scale = np.array(job.scale)[:, None]
    for k, id in enumerate(job.ids):
        path = window_path(job.root, FOLDERS[int(job.pretrain_only[k])], id)
        try:
            window = read_window(path) / scale
            if np.abs(window).max() > np.finfo(np.float32).max:
                raise InputError(path, "a sample is far beyond all other windows", "strain of one size")
        except InputError as error:
            bad.append((job.first + k, str(error)))
            if not job.skip_bad:
                return bad
            state[k] = SKIPPED
            continue
        if rows is None:
            rows = np.zeros((len(job.ids), *window.shape), "<f4")
        rows[k] = window
    descriptor = os.open(job.partial, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if rows is not None:
            write_at(descriptor, rows, job.strain_at + job.first * rows[0].nbytes)
            # The rows must be on the disk before the mark that says so, or a power cut would leave holes.
            os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)
        write_at(descriptor, state, job.state_at + job.first)
    finally:
        os.close(descriptor)
    return bad


def write_at(descriptor: int, array: np.ndarray, offset: int) -> None:
    """Write an array's bytes at an offset of an open file."""
    left = memoryview(array.tobytes())
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def run_blocks(jobs: list[Block], workers: int) -> Generator[tuple[Block, list[tuple[int, str]]], None, None]:
    """Pack blocks in several processes and give each as it is done; when closed, end those begun."""
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, pack_block(job)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        futures: dict[Future[list[tuple[int, str]]], Block] = {pool.submit(pack_block, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        fault = "a packing process was killed; what is packed is kept"
        raise InputError("pack", fault, "the same command again, with fewer --workers if memory ran out") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends: after a SIGKILL this would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
