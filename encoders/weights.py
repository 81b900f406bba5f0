"""Encoders on disk: ``encoder.safetensors`` and an ``encoder.json`` that rebuilds them without the training code.

Nothing is unpickled: the JSON names an encoder of the registry with bounded arguments, the safetensors hold its
numbers and the PSDs that its windows were whitened with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gwtwins.encoders.paired import BRANCH, PairedEncoder
from gwtwins.strain.command import write_bytes, write_text
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

FORMAT = "gwtwins-encoder-1"
SHIPPED = Path(__file__).parent / "shipped"
_MAX_JSON_BYTES = 1 << 20
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
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
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
    try:
        large = path.stat().st_size > _MAX_JSON_BYTES
        node = None if large else json.loads(path.read_text())
    except OSError as error:
        raise InputError(path, "no such file", expected) from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not JSON", expected) from error
    if large:
        raise InputError(path, "is over 1 MiB", expected)
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
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, "is not a whole safetensors file", "an exported encoder") from error
    psds = {}
    for name in node["detectors"]:
        if f"psd.{name}.frequency" in tensors and f"psd.{name}.value" in tensors:
            grid, value = (tensors.pop(f"psd.{name}.{part}") for part in ("frequency", "value"))
            if grid.dtype != torch.float64 or value.dtype != torch.float64:
                raise InputError(f"{path}, psd.{name}", f"is {grid.dtype} and {value.dtype}", "float64")
            psds[name] = PSD(grid.numpy(), value.numpy(), f"{path}, psd.{name}")
    encoder = PairedEncoder(
        node["encoder"]["name"],
        node["encoder"]["args"],
        tuple(node["detectors"]),
        node["shared"],
        psds,
        float(node["f_low"]),
        float(node["f_high"]),
    )
    _check_tensors(path, encoder, tensors)
    encoder.load_state_dict(tensors, strict=not encoder.shared)
    return encoder.eval().requires_grad_(False).to(device)


def _check_tensors(path: Path, encoder: PairedEncoder, tensors: dict[str, Tensor]) -> None:
    wanted = {k: v for k, v in encoder.state_dict().items() if not (encoder.shared and k.startswith("v."))}
    expected = "the two files of one export"
    if set(tensors) != set(wanted):
        unlike = sorted(set(tensors) ^ set(wanted))
        raise InputError(
            path, f"tensors do not match encoder.json ({len(unlike)} differ, such as {unlike[0]})", expected
        )
    for name, value in tensors.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            shapes = f"{tuple(value.shape)} {value.dtype} where encoder.json says {tuple(wanted[name].shape)}"
            raise InputError(path, f"tensor {name} is {shapes}", expected)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(path, f"tensor {name} holds NaN or infinity", "finite weights")
