"""Encoders on disk: ``encoder.safetensors`` and an ``encoder.json`` that rebuilds them without the training code.

Nothing is unpickled: the JSON names an encoder of the registry with bounded arguments, the safetensors hold its
numbers and the PSDs that its windows were whitened with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from gwtwins.encoders.paired import BRANCH, PairedEncoder
from gwtwins.strain.command import holds_result, write_bytes, write_text
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD
from gwtwins.strain.small_file import open_plain, read_json

FORMAT = "gwtwins-encoder-1"
SHIPPED = Path(__file__).parent / "shipped"
_MAX_JSON_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20  # of a safetensors file; 100 tensors have 10 KiB
_PSD_POINTS = 1 << 16  # at most: 1 MiB a detector


def save_encoder(encoder: PairedEncoder, folder: Path, card: dict[str, Any]) -> None:
    """Write the encoder and what a user should know of it (``card``: objective, views, data, steps, figures, ...)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    if encoder.shared:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("v.")}
    for name, psd in encoder.psds.items():
        held = psd.frequency[(psd.frequency > 0.9 * encoder.f_low) & (psd.frequency < 1.02 * encoder.f_high)]
        # A PSD's own points, lines and all; the two ends of the band whatever they are.
        frequency = np.unique(np.concatenate([held[:_PSD_POINTS], [encoder.f_low, encoder.f_high]]))
        tensors[f"psd.{name}.frequency"] = torch.from_numpy(frequency)
        tensors[f"psd.{name}.value"] = torch.from_numpy(psd.at(frequency))
    description = {
        "format": FORMAT,
        "encoder": {"name": encoder.name, "args": encoder.args},
        "detectors": list(encoder.detectors),
        "shared": encoder.shared,
        "rate": encoder.rate,
        "window": encoder.window,
        "f_low": encoder.f_low,
        "f_high": encoder.f_high,
        "embedding": encoder.embedding_dim,
        "psds": {name: psd.name for name, psd in encoder.psds.items()},
        **card,
    }
    # safetensors' own save_file hides the file from others
    write_bytes(folder / "encoder.safetensors", save(tensors, {"format": FORMAT}))
    write_text(folder / "encoder.json", json.dumps(description, indent=2) + "\n")


def find_weights(path_or_name: str | Path) -> Path:
    """The safetensors file behind a path (file or folder) or the name of a shipped encoder ("gwtwins/small").

    Raises:
        InputError: nothing is there.
    """
    text = str(path_or_name)
    if text.startswith("gwtwins/") and not Path(text).exists():
        path = SHIPPED / text.removeprefix("gwtwins/") / "encoder.safetensors"
        if not path.resolve().is_relative_to(SHIPPED.resolve()) or not path.is_file():
            raise InputError(f"encoder {text}", "does not come with this version", shipped_names() or "a path")
        return path
    path = Path(text)
    if path.is_dir():
        path = path / "encoder.safetensors"
    elif path.suffix == ".json":
        path = path.with_suffix(".safetensors")
    if not path.is_file():
        raise InputError(path, "no such file", "a run's folder, its encoder.safetensors, or gwtwins/NAME")
    if path.suffix != ".safetensors":
        raise InputError(path, "is not a safetensors file", "an exported encoder, not a checkpoint")
    return path


def shipped_names() -> str:
    """The shipped encoders' names, joined by "or"."""
    return " or ".join(sorted(f"gwtwins/{p.parent.name}" for p in SHIPPED.glob("*/encoder.safetensors")))


def find_encoder(named: str) -> str:
    """The encoder a command is to use: as named, else runs/latest, else the one that comes with the package.

    Raises:
        InputError: there is none.
    """
    if named:
        find_weights(named)
        return named
    if Path("runs/latest/encoder.safetensors").is_file():
        return os.path.relpath(Path("runs/latest").resolve())
    if Path("runs/latest").exists():
        where = os.path.relpath(Path("runs/latest").resolve())
        raise InputError(where, "the newest run has no encoder yet", f"--resume {where} first, or --weights")
    if shipped_names():
        return shipped_names().split(" or ")[0]
    raise InputError("--weights", "none named, no runs/latest, none shipped", "a run of train_ssl.py first")


def result_folder(weights: str, kind: str) -> Path:
    """Where a result of ``kind`` goes by default: <run>/kind, or the first <run>/kind-N that is not there yet."""
    home = find_weights(weights).parent
    if home.resolve().is_relative_to(SHIPPED.resolve()):
        home = Path("runs")
    path, n = home / kind, 1
    while path.exists() and (not path.is_dir() or holds_result(path)):
        n += 1
        path = home / f"{kind}-{n}"
    return path


def describe_weights(path_or_name: str | Path) -> dict[str, Any]:
    """The JSON beside a weights file, checked for form.

    Raises:
        InputError: absent, not JSON, or of another kind.
    """
    path = find_weights(path_or_name).with_suffix(".json")
    expected = "the encoder.json that was written beside the weights"
    node = read_json(path, _MAX_JSON_BYTES, expected)
    if not isinstance(node, dict) or node.get("format") != FORMAT:
        raise InputError(path, "does not describe an encoder of this version", expected)
    encoder, detectors = node.get("encoder"), node.get("detectors")
    if not (
        isinstance(encoder, dict) and isinstance(encoder.get("name"), str) and isinstance(encoder.get("args"), dict)
    ):
        raise InputError(path, "names no encoder with arguments", expected)
    if (
        not isinstance(detectors, list)
        or not 0 < len(detectors) <= len(BRANCH)
        or not all(detectors.count(name) == 1 and name in list(BRANCH) for name in detectors)
    ):
        raise InputError(path, f"detectors {str(detectors)[:80]}", f"a list of some of {' '.join(BRANCH)}")
    numbers = all(type(node.get(key)) in (int, float) for key in ("f_low", "f_high"))
    if not numbers or type(node.get("shared")) is not bool:
        raise InputError(path, "f_low, f_high or shared is missing", expected)
    if not 0 < node["f_low"] < node["f_high"] < float("inf"):
        raise InputError(path, f"f_low {node['f_low']}, f_high {node['f_high']}", "0 < f_low < f_high, in Hz")
    return node


def load_encoder(path_or_name: str | Path, device: torch.device | str = "cpu") -> PairedEncoder:
    """The exported encoder, frozen, in eval mode, on ``device``.

    ``module(strain, present=None, whitened=True)`` takes (B, D, T) windows and gives embeddings (B, D, E).

    Raises:
        InputError: absent, damaged, or a JSON and a safetensors that do not belong together.
    """
    path = find_weights(path_or_name)
    node = describe_weights(path)
    name, args, band = node["encoder"]["name"], node["encoder"]["args"], (float(node["f_low"]), float(node["f_high"]))
    if name == "cnn_gru":
        # Those saved before there were mergers, or glitches beside them, have none.
        args = {"mergers": 0, "glitch_bursts": 0, **args}
    shape = name, args, tuple(node["detectors"]), node["shared"]
    with torch.device("meta"):  # takes no memory: the JSON may ask for an encoder of any size within its bounds
        planned = PairedEncoder(*shape, f_low=band[0], f_high=band[1])
    _check_shapes(path, planned, node["detectors"])
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, "is not a whole safetensors file", "an exported encoder") from error
    psds = {}
    for detector in node["detectors"]:
        if f"psd.{detector}.frequency" in tensors and f"psd.{detector}.value" in tensors:
            grid, value = (tensors.pop(f"psd.{detector}.{part}") for part in ("frequency", "value"))
            psds[detector] = PSD(grid.numpy(), value.numpy(), f"{path}, psd.{detector}")
    encoder = PairedEncoder(*shape, psds, *band)
    for tensor, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(path, f"tensor {tensor} holds NaN or infinity", "finite weights")
    encoder.load_state_dict(tensors, strict=not encoder.shared)
    return encoder.eval().requires_grad_(False).to(device)


def check_safetensors(path: Path) -> None:
    """Raise InputError unless the file begins as safetensors do, with a header that fits into it and into 1 MiB."""
    expected = "a safetensors file that gwtwins wrote"
    with open_plain(path, sys.maxsize, expected) as file:
        head = file.read(9)
        length = int.from_bytes(head[:8], "little")
        if head[8:] != b"{" or length > min(_MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
            raise InputError(path, "is not a whole safetensors file", expected)


def _check_shapes(path: Path, planned: PairedEncoder, detectors: list[str]) -> None:
    """By the header alone: the tensors that the planned encoder has, and PSDs of some detectors."""
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            held = {name: file.get_slice(name) for name in file.keys()}
            found = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in held.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, "is not a whole safetensors file", "an exported encoder") from error
    for detector in detectors:
        parts = [f"psd.{detector}.{part}" for part in ("frequency", "value")]
        for name in parts if all(part in found for part in parts) else ():
            shape, kind = found.pop(name)
            if kind != "F64" or len(shape) != 1 or shape[0] > _PSD_POINTS + 2:
                raise InputError(f"{path}, {name}", f"is {_dtype(kind)} {shape}", "(F,) float64")
    wanted = {k: v for k, v in planned.state_dict().items() if not (planned.shared and k.startswith("v."))}
    expected = "the two files of one export"
    if set(found) != set(wanted):
        unlike = sorted(set(found) ^ set(wanted))
        raise InputError(
            path, f"tensors do not match encoder.json ({len(unlike)} differ, such as {unlike[0]})", expected
        )
    for name, (shape, kind) in found.items():
        if shape != tuple(wanted[name].shape) or _dtype(kind) != wanted[name].dtype:
            shapes = f"{shape} {_dtype(kind)} where encoder.json says {tuple(wanted[name].shape)}"
            raise InputError(path, f"tensor {name} is {shapes}", expected)


def _dtype(kind: str) -> torch.dtype | str:
    return {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64}.get(kind, kind)
