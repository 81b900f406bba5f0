"""The device a command computes on."""

from __future__ import annotations

import torch

from gwtwins.strain.errors import InputError
from gwtwins.strain.memory import keep_freed_memory


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda`` from ``--device``; ``auto`` takes a GPU where there is one.

    For a CPU the process is prepared for tensors that come and go, see `keep_freed_memory`.

    Raises:
        InputError: another name, or a GPU where there is none.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {wanted}", "is not to be had here", "cpu, cuda or auto")
    if device == "cpu":
        keep_freed_memory()
    return device
