"""How many processes it makes sense to start."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores this process may run on; those of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
