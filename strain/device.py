"""The device a command computes on."""

from __future__ import annotations

import torch

from gwtwins.strain.errors import InputError


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda`` from ``--device``; ``auto`` takes a GPU where there is one.

    Raises:
        InputError: another name, or a GPU where there is none.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {wanted}", "is not to be had here", "cpu, cuda or auto")
    return device
