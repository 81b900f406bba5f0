"""Where the parts of a scan are computed: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch

from gwtwins.strain.errors import InputError

LOCAL = "local"


class Workers:
    """Runs tasks, each on one thread, wherever: results do not depend on how many there are or where."""

    def __init__(self, executor: Executor | None = None, count: int = 1) -> None:
        self._executor, self.count = executor, count

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*task)`` for each task, the results in whatever order they come."""
        if self._executor is None:
            for task in tasks:
                yield function(*task)
            return
        futures = [self._executor.submit(_one_thread, function, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def workers(processes: int, scheduler: str = LOCAL) -> Iterator[Workers]:
    """Those of this machine, or of the Dask scheduler at an address such as tcp://head:8786.

    Everything here runs on one thread of torch's as long as the context lasts: sums over more threads round
    differently, and a machine is used better by more processes.

    Raises:
        InputError: Dask is not installed, or nobody answers at the address.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if scheduler != LOCAL:
            with _dask(scheduler) as crew:
                yield crew
        elif processes > 1:
            # A forked process would share torch's threads and HDF5's state with this one.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(os.getpid(),)) as pool:
                yield Workers(pool, processes)
        else:
            yield Workers()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _dask(address: str) -> Iterator[Workers]:
    try:
        from distributed import Client
    except ImportError as error:
        fault = "Dask is not installed"
        raise InputError(f"--scheduler {address}", fault, "pip install gwtwins[cluster]") from error
    try:
        client = Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {address}", "no scheduler answers", "the address that dask printed") from error
    with client:
        threads = sum(client.nthreads().values())
        yield Workers(client.get_executor(pure=False), max(threads, 2))


def _one_thread(function: Callable[..., Any], *task: Any) -> Any:
    torch.set_num_threads(1)
    return function(*task)


def _begin(parent: int) -> None:
    """A process whose parent was killed ends too, whatever it was doing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
