"""Export an encoder for other programs:  python -m gwtwins.encoders.export WEIGHTS --out DIR --onnx

WEIGHTS is a run's folder, its encoder.safetensors, or gwtwins/NAME. What is written is the encoder after
conditioning: windows (B, D, T), whitened and at the encoder's own rate, to embeddings (B, D, E), for any B.
``encoder.pt2`` is read by ``torch.export.load``; ``encoder.onnx`` (with --onnx, which needs the ``export``
extra) by ONNX Runtime and others. Both hold encoder.json, which says what the windows are: detectors, rate,
length, band. An absent detector's embedding is to be set to zero by the caller.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gwtwins.encoders.paired import BRANCH, PairedEncoder
from gwtwins.encoders.weights import describe_weights, find_weights, load_encoder
from gwtwins.strain.command import parse, write_bytes
from gwtwins.strain.errors import InputError, run_command

TOLERANCE = 1e-4  # largest difference between an exported program's embeddings and the encoder's own
DESCRIPTION = "encoder.json"  # the description's name inside encoder.pt2, its property in encoder.onnx
_NEEDED_BY_ONNX = ("onnx", "onnxscript", "onnxruntime")
_TRACED_ROWS, _CHECKED_ROWS = 2, 3  # unlike, so that a batch size written into the program shows


class WhitenedForward(nn.Module):
    """A paired encoder with nothing left to decide at run time: (B, D, T) at its own rate to (B, D, E).

    The detectors of each branch are taken together, as :class:`PairedEncoder` does, by fixed indices.
    """

    def __init__(self, encoder: PairedEncoder) -> None:
        super().__init__()
        branches = ["hl" if encoder.shared else BRANCH[name] for name in encoder.detectors]
        self.places = {b: [i for i, own in enumerate(branches) if own == b] for b in dict.fromkeys(branches)}
        self.branches = nn.ModuleDict({name: getattr(encoder, name) for name in self.places})
        order = [place for places in self.places.values() for place in places]
        self.back = [order.index(i) for i in range(len(order))]

    def forward(self, strain: Tensor) -> Tensor:
        """(B, D, T) to (B, D, E)."""
        if len(self.places) == 1:
            return self._encode(next(iter(self.places)), strain)
        parts = [self._encode(name, strain[:, places]) for name, places in self.places.items()]
        return torch.cat(parts, dim=1)[:, self.back]

    def _encode(self, branch: str, strain: Tensor) -> Tensor:
        b, d, t = strain.shape
        return self.branches[branch](strain.reshape(b * d, 1, t)).reshape(b, d, -1)


def export_encoder(
    encoder: PairedEncoder, folder: Path, description: dict[str, Any], onnx: bool = False
) -> dict[str, float]:
    """Write ``encoder.pt2``, and with ``onnx`` also ``encoder.onnx``; each whole or not at all.

    Args:
        encoder: as :func:`~gwtwins.encoders.weights.load_encoder` gives it; it is not changed.
        folder: made if it is not there.
        description: what :func:`~gwtwins.encoders.weights.describe_weights` gives; it goes into both files.
        onnx: needs the ``export`` extra.

    Returns:
        The files' names, each with the largest difference of its embeddings from the encoder's on noise.

    Raises:
        InputError: the extra is not installed, or ``folder`` cannot be written to.
        RuntimeError: an exported program does not give the encoder's embeddings to 1e-4; nothing is written.
    """
    if onnx:
        _require_onnx()
    _make_folder(folder)
    module = WhitenedForward(copy.deepcopy(encoder).cpu()).eval().requires_grad_(False)
    text = json.dumps(description, indent=2)
    generator = torch.Generator().manual_seed(0)
    shape = (len(encoder.detectors), encoder.samples)
    check = torch.randn(_CHECKED_ROWS, *shape, generator=generator)
    wanted = module(check)
    with _quiet():
        traced = (torch.randn(_TRACED_ROWS, *shape, generator=generator),)
        free = {"strain": {0: torch.export.Dim("batch")}}
        program = torch.export.export(module, traced, dynamic_shapes=free)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine it was exported on
        files = {"encoder.pt2": _pt2(program, text)}
        got = {"encoder.pt2": torch.export.load(io.BytesIO(files["encoder.pt2"])).module()(check)}
        if onnx:
            files["encoder.onnx"] = _onnx(program, text)
            got["encoder.onnx"] = _run_onnx(files["encoder.onnx"], check)
    differences = {name: float((embedding - wanted).abs().max()) for name, embedding in got.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name} would differ from the encoder by {difference:.2g} (> {TOLERANCE:g})")
    for name, data in files.items():
        write_bytes(folder / name, data)
    return differences


def _pt2(program: torch.export.ExportedProgram, text: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: text})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, text: str) -> bytes:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["strain"],
        output_names=["embedding"],
        dynamic_shapes={"strain": {0: "batch"}},
    )
    assert exported is not None
    proto = exported.model_proto
    proto.metadata_props.add(key=DESCRIPTION, value=text)
    return proto.SerializeToString()


def _run_onnx(data: bytes, strain: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["embedding"], {"strain": strain.numpy()})[0])


def _require_onnx() -> None:
    missing = [name for name in _NEEDED_BY_ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError("--onnx", f"{', '.join(missing)} not installed", "pip install 'gwtwins[export]'")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror})", "a folder for --out") from error
    if not os.access(folder, os.W_OK):
        raise InputError(folder, "may not be written to", "a folder for --out")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notices about how it exports a GRU (_flat_weights, _check_is_size, unused symbols)."""
    log = logging.getLogger("torch._export.serde.serialize")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@dataclasses.dataclass
class ExportConfig:
    """The export of the encoder WEIGHTS."""

    out: str = ""
    """Folder to write to; beside the weights if empty (the current one for those that come with gwtwins)."""
    onnx: bool = False
    """Write encoder.onnx too; needs the export extra."""


def export(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    prog = "gwtwins.encoders.export"
    description = f"python -m {prog} WEIGHTS: encoder.pt2 (torch.export) and encoder.onnx for other programs."
    (config,), flat = parse(prog, description, [ExportConfig], argv, positional="weights")
    if len(flat["weights"]) != 1:
        expected = "one: a run's folder, its encoder.safetensors, or gwtwins/NAME"
        raise InputError(prog, f"{len(flat['weights'])} weights named", expected)
    weights = flat["weights"][0]
    if config.onnx:
        _require_onnx()  # before the seconds that loading and tracing take
    beside = find_weights(weights).parent if Path(weights).exists() else Path()
    folder = Path(config.out) if config.out else beside
    encoder = load_encoder(weights)
    for name, difference in export_encoder(encoder, folder, describe_weights(weights), config.onnx).items():
        print(f"{folder / name}: embeddings within {difference:.1g} of the encoder's")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(export))
