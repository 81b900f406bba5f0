"""Processes of a test's own, which all have to end well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def run_all(target: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    """``target`` in a process for each of ``arguments``, all at the same time; within four minutes."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=given) for given in arguments]
    for process in processes:
        process.start()
    until = time.monotonic() + 240
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        assert process.exitcode == 0
