"""The folder of a scan: what it belongs to, so that an interrupted scan is gone on with and no other is."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan import ScanSettings
from gwtwins.strain.command import claim_folder, plain, write_text
from gwtwins.strain.errors import InputError
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.versions import versions

CONFIG, RESULT = "scan-config.json", "scan.json"


def identity(index: StrainIndex, encoder: PairedEncoder, probe: LinearProbe, settings: ScanSettings) -> dict[str, Any]:
    """All that a scan's result depends on, for JSON: files by size and time of modification, weights by their hash."""
    files = []
    for file in index.files:
        entry = {k: v for k, v in vars(file).items() if k != "values"}
        if file.values is not None:
            entry["sha256"] = hashlib.sha256(np.ascontiguousarray(file.values).tobytes()).hexdigest()
        files.append(entry)
    state = [probe.features.state[key].ravel() for key in sorted(probe.features.state)]  # files keep no order
    weights = np.concatenate([probe.coef, [probe.intercept], *state])
    return plain(
        {
            "strain files": files,
            "required flags": index.required_flags,
            "channel": index.channel,
            "encoder": fingerprint(encoder),
            "probe": hashlib.sha256(weights.astype(np.float64).tobytes()).hexdigest(),
            "device": next(encoder.parameters()).device.type,
            "settings": asdict(settings),
            "versions": versions(),
        }
    )


def claim_scan_folder(folder: Path, belongs: dict[str, Any]) -> bool:
    """Make the folder of a new scan, or find that it holds an unfinished one of the same identity.

    Returns:
        Whether there is work in it to go on with.

    Raises:
        InputError: it holds a finished scan, an unfinished one of another identity (which differs is said), or anything
            else.
    """
    config = folder / CONFIG
    if config.is_file() and not (folder / RESULT).exists():
        try:
            held = json.loads(config.read_text())
        except ValueError as error:
            raise InputError(config, "is not JSON", "the settings of a scan") from error
        for key, value in belongs.items():
            if not isinstance(held, dict) or held.get(key) != value:
                fault = f"belongs to an unfinished scan with other {key}"
                raise InputError(folder, fault, "the same command to go on with it, or another folder for --out")
        return True
    claim_folder(str(folder), folder)
    write_text(config, json.dumps(belongs, indent=2) + "\n")
    return False


def withdraw(folder: Path, blocks: str) -> None:
    """Take back what `claim_scan_folder` made for a scan that came to nothing, and the folder if it was made for it."""
    shutil.rmtree(folder / blocks, ignore_errors=True)
    (folder / CONFIG).unlink(missing_ok=True)
    with suppress(OSError):  # there was something else in it
        folder.rmdir()
