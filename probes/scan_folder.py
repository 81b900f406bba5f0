"""The folder of a scan: what it belongs to, so that an interrupted scan is gone on with and no other is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan import NothingToSearch, ScanSettings
from gwtwins.strain.command import claim_folder, disk_faults, hold_folder, plain, write_text
from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_json
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.versions import versions

_MAX_CONFIG = 256 << 20  # bytes: half a million strain files
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


def describe_data(index: StrainIndex) -> dict[str, Any]:
    """The strain for scan.json: how much there is, and a digest over its files' names, sizes, places and times.

    The digest does not depend on the folder that the files lie in; of a series in memory it is over the samples.
    """
    digest = hashlib.sha256()
    for file in index.files:
        held = None if file.values is None else hashlib.sha256(np.ascontiguousarray(file.values).tobytes()).hexdigest()
        name = Path(file.path).name
        parts = (name, file.size, file.place, file.detector, file.start, file.samples, file.rate, file.offset, held)
        digest.update(f"{json.dumps(parts)}\n".encode())
    return {"files": len({file.path for file in index.files}), "sha256": digest.hexdigest()}


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
        held = read_json(config, _MAX_CONFIG, "the settings of a scan")
        for key, value in belongs.items():
            if not isinstance(held, dict) or held.get(key) != value:
                fault = f"belongs to an unfinished scan with other {key}"
                raise InputError(folder, fault, "the same command to go on with it, or another folder for --out")
        return True
    claim_folder(str(folder), folder)
    write_text(config, json.dumps(belongs, indent=2) + "\n")
    return False


@contextmanager
def held_scan_folder(folder: Path, belongs: dict[str, Any], blocks: str) -> Iterator[bool]:
    """`claim_scan_folder`, kept to this process until the end; a scan that comes to nothing leaves nothing.

    Args:
        folder: of the scan.
        belongs: its `identity`.
        blocks: name of the folder in it where the scan keeps its work.

    Raises:
        InputError: as `claim_scan_folder`; another process is at work in it; its disk is full.
    """
    try:
        with hold_folder(folder, folder / blocks), disk_faults(folder, "room; then the same command goes on"):
            going_on = claim_scan_folder(folder, belongs)
            try:
                yield going_on
            except NothingToSearch:
                shutil.rmtree(folder / blocks, ignore_errors=True)
                (folder / CONFIG).unlink(missing_ok=True)
                raise
    except NothingToSearch:
        with suppress(OSError):  # there was something else in it
            folder.rmdir()
        raise
