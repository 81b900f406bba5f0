"""Frozen features: embeddings computed once, and the linear map that makes a probe's features of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gwtwins.encoders.evidence import RULES
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.sources import Source

Array = NDArray[np.floating]

KINDS = ("concat", "coherent")
PRIOR_ROWS = 5.0
"""Rows' worth of belief that a feature varies as its detector's median feature does. A variance from ten rows
is off by half; and a unit that is nearly always off must not be blown up by a tiny spread. Nothing at a
thousand rows."""
EVIDENCE_SCALES = (1.0, 0.03, 1 / 60)
"""Standard deviations of features beside evidence: of what all mergers say together, of what each says, of all others.
A penalised fit leans on large features first: few labels settle a few weights, and many the rest."""


@dataclass
class Features:
    """What a frozen encoder makes of N rows in D detectors: everything a probe and a report need."""

    embeddings: Array
    """(N, D, E) float32; an absent detector has the mean embedding of noise."""
    present: NDArray[np.bool_]
    """(N, D) bool."""
    detectors: tuple[str, ...]
    """Names along axis D: the encoder's."""
    ids: list[str]
    gps: Array
    """(N,) float64, GPS seconds of the first sample."""
    label: NDArray[np.int8] | None
    """(N,) 1 signal, 0 noise; None where the source does not know."""
    snr: Array | None
    """(N,) float64 network SNR, 0 for noise; None for a recording."""
    merger: Array | None
    """(N,) float64 seconds from the window's start to the merger at the geocentre; None for a recording."""
    encoder: str
    """Fingerprint of the encoder that made them."""
    together: Array | None = None
    """(N, J) float32, what the detectors show at the same moment (`PairedEncoder.network`); None where the encoder
    makes no frames."""
    evidence: int = 0
    """How many of the J, the last ones, are evidence (`PairedEncoder.evidence`)."""

    def __len__(self) -> int:
        return self.embeddings.shape[0]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer, on whichever device, and over all else
    that an encoder's features depend on: its description, and the rules of evidence."""
    digest = hashlib.sha256()
    if isinstance(module, PairedEncoder):
        about = [module.name, module.args, module.shared, module.detectors, module.f_low, module.f_high]
        digest.update(json.dumps([*about, RULES if module.evidence else ()]).encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def embed(
    encoder: PairedEncoder,
    source: Source,
    split: str,
    batch_size: int = 512,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Features:
    """The embeddings of all rows of a split, computed once with the encoder frozen.

    The encoder runs in eval mode and without gradients, and is handed back in the modes it came in. Detectors
    that it knows and the data lack count as absent.

    Args:
        encoder: gives ``network(strain (B, D, T), present (B, D))``: embeddings (B, D, E) and (B, J) or None.
        source, split: where the rows come from.
        batch_size: rows at a time.
        device: where to compute.
        progress: a bar with rows/s and the time left on stderr.

    Raises:
        InputError: no rows, a detector that the encoder does not know, or an embedding that is not finite
        (the row is named). RuntimeError: a parameter or buffer of the encoder changed meanwhile.
    """
    detectors = encoder.detectors
    check_detectors(source, detectors)
    total = source.count(split)
    if total < 1:
        raise InputError(source.spec, f"no rows in split {split}", "at least one")
    source.prepare(split)
    encoder = encoder.to(device)
    before, modes = fingerprint(encoder), {module: module.training for module in encoder.modules()}
    collected = _Collector(total, detectors)
    try:
        encoder.eval()
        bar = progress_bar(total, f"embedding {split}", "row", progress)
        with torch.inference_mode(), bar:
            for batch in source.batches(split, batch_size):
                strain, present = arrange(batch.to(device), source.detectors, detectors)
                embedding, together = encoder.network(strain, present)
                collected.add(batch, embedding, present, together)
                bar.update(len(batch))
    finally:
        for module, training in modes.items():
            module.training = training
    if fingerprint(encoder) != before:
        raise RuntimeError("the encoder's tensors changed while it was embedding: it is not frozen")
    return replace(collected.finish(before), evidence=encoder.evidence)


def check_detectors(source: Source, detectors: tuple[str, ...]) -> None:
    """Raise InputError where the data have a detector that is none of an encoder's."""
    unknown = [name for name in source.detectors if name not in detectors]
    if unknown:
        raise InputError(source.spec, f"has detector {unknown[0]}", f"detectors of the encoder: {' '.join(detectors)}")


def check_finite(embedding: Tensor, batch: Batch) -> None:
    """Raise InputError, with the row's name, for an embedding that is not finite."""
    finite = torch.isfinite(embedding).flatten(1).all(dim=1)
    if not bool(finite.all()):
        name = batch.id[int((~finite).nonzero()[0, 0])]
        raise InputError(name, "its embedding is not finite", "finite strain and finite weights")


def arrange(batch: Batch, have: tuple[str, ...], want: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Strain (B, D, T) and presence (B, D) in the encoder's order; detectors not in the data are absent."""
    if have == want:
        return batch.strain, batch.present
    index = [want.index(name) for name in have]
    strain = batch.strain.new_zeros(len(batch), len(want), batch.strain.shape[-1])
    present = batch.present.new_zeros(len(batch), len(want))
    strain[:, index], present[:, index] = batch.strain, batch.present
    return strain, present


class _Collector:
    """Fills arrays of known length batch by batch, so that no second copy of the embeddings ever exists."""

    def __init__(self, total: int, detectors: tuple[str, ...]):
        self.total, self.detectors, self.filled = total, detectors, 0
        self.embeddings: Array | None = None
        self.together: Array | None = None
        self.present = np.zeros((total, len(detectors)), dtype=bool)
        self.gps = np.full(total, np.nan)
        self.ids: list[str] = []
        self.known: dict[str, Array] = {key: np.full(total, np.nan) for key in ("label", "snr", "merger")}

    def add(self, batch: Batch, embedding: Tensor, present: Tensor, together: Tensor | None) -> None:
        rows = slice(self.filled, self.filled + len(batch))
        if rows.stop > self.total:
            raise RuntimeError(f"the source announced {self.total} rows and gives more")
        check_finite(embedding, batch)
        if self.embeddings is None:
            self.embeddings = np.zeros((self.total, *embedding.shape[1:]), dtype=np.float32)
        self.embeddings[rows] = embedding.float().cpu().numpy()
        if together is not None:
            if self.together is None:
                self.together = np.zeros((self.total, together.shape[1]), dtype=np.float32)
            self.together[rows] = together.float().cpu().numpy()
        self.present[rows] = present.cpu().numpy()
        self.gps[rows] = batch.gps.cpu().numpy()
        self.ids.extend(batch.id)
        for key in list(self.known):
            value = batch.label if key == "label" else batch.truth.get(key)
            if value is None:
                del self.known[key]
            else:
                self.known[key][rows] = value.cpu().numpy()
        self.filled = rows.stop

    def finish(self, encoder: str) -> Features:
        if self.embeddings is None or self.filled != self.total:
            raise RuntimeError(f"the source announced {self.total} rows and gave {self.filled}")
        label = self.known.get("label")
        if label is not None and not np.all((label == 0) | (label == 1)):
            label = None
        return Features(
            self.embeddings,
            self.present,
            self.detectors,
            self.ids,
            self.gps,
            None if label is None else label.astype(np.int8),
            self.known.get("snr"),
            self.known.get("merger"),
            encoder,
            self.together,
        )


class FeatureMap:
    """Embeddings (N, D, E) to a probe's standardised features (N, F) float32.

    ``concat``: the embeddings of the detectors one after the other, F = D E, each brought to mean 0 and variance 1
    over the rows it was fitted to. ``coherent``: these, and what the detectors show at the same moment (N, J), F = D E
    + J. A sum over detectors' embeddings cannot say "both at once"; the maximum over time of the sum of their frames
    can. Where the last of the J are evidence, features have the variances of `EVIDENCE_SCALES` instead of 1.

    An absent detector's own features are at their means, 0. So are features that never vary.
    """

    def __init__(self, kind: str = "concat"):
        if kind not in KINDS:
            raise InputError("features", f"{kind!r}", " or ".join(KINDS))
        self.kind = kind
        self.state: dict[str, Array] = {}
        """``mean``, ``inverse`` (D, E); if coherent, ``together_mean``, ``together_inverse`` (1, J). float64."""

    @property
    def n_features(self) -> int:
        """F."""
        return sum(self.state[key].size for key in ("mean", "together_mean") if key in self.state)

    def fit(
        self,
        embeddings: Array,
        present: NDArray[np.bool_] | None = None,
        rows: NDArray[np.integer] | None = None,
        together: Array | None = None,
        evidence: int = 0,
    ) -> FeatureMap:
        """Learn means and scales from ``rows`` (indices, all by default) of ``embeddings`` (N, D, E).

        ``present`` (N, D) bool, all by default; ``together`` (N, J), wanted for coherent features, the last
        ``evidence`` of which are evidence. Memory does not grow with the number of rows.
        """
        self.state = {}
        x, here = _checked(embeddings, present)
        index = np.arange(len(x)) if rows is None else np.asarray(rows)
        if not index.size:
            raise InputError("features", "no rows to learn means and scales from", "at least one")
        self.state["mean"], self.state["inverse"] = _standard((x[part], here[part]) for part in _blocks(x, index))
        if self.kind == "coherent":
            y = _together(together, len(x))
            always = np.ones((len(x), 1), dtype=bool)
            parts = ((y[part, None], always[part]) for part in _blocks(y, index))
            self.state["together_mean"], self.state["together_inverse"] = _standard(parts)
            if evidence:
                every, each, others = EVIDENCE_SCALES
                self.state["inverse"] *= others
                self.state["together_inverse"][:, :-evidence] *= others
                self.state["together_inverse"][:, -evidence:-1] *= each
                self.state["together_inverse"][:, -1:] *= every
        return self

    def transform(
        self, embeddings: Array, present: NDArray[np.bool_] | None = None, together: Array | None = None
    ) -> Array:
        """Features (N, F) float32 of ``embeddings`` (N, D, E) with ``present`` (N, D), all by default."""
        x, here = _checked(embeddings, present)
        if not self.state or x.shape[1:] != self.state["mean"].shape:
            expected = f"(N, {', '.join(map(str, self.state['mean'].shape))})" if self.state else "a fitted map"
            raise InputError("embeddings", f"shape {x.shape}", expected)
        z = x - self.state["mean"].astype(np.float32)
        z *= self.state["inverse"].astype(np.float32)
        if not here.all():
            z[~here] = 0.0
        if self.kind == "concat":
            return z.reshape(len(x), -1)
        y = _together(together, len(x))
        if y.shape[1] != self.state["together_mean"].shape[1]:
            fault = f"{y.shape[1]} numbers of the detectors together"
            raise InputError("coherent features", fault, f"{self.state['together_mean'].shape[1]}")
        y = (y - self.state["together_mean"].astype(np.float32)) * self.state["together_inverse"].astype(np.float32)
        return np.concatenate([z.reshape(len(x), -1), y], axis=1)


def _together(together: Array | None, n: int) -> Array:
    if together is None:
        fault = "the encoder embeds whole windows, without frames in time to compare"
        raise InputError("coherent features", fault, "--features concat")
    y = np.asarray(together, dtype=np.float32)
    if y.ndim != 2 or len(y) != n:
        raise InputError("coherent features", f"shape {y.shape} for {n} rows", "(N, J)")
    return y


def _checked(embeddings: Array, present: NDArray[np.bool_] | None) -> tuple[Array, NDArray[np.bool_]]:
    x = np.asarray(embeddings, dtype=np.float32)
    here = np.ones(x.shape[:2], dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if x.ndim != 3 or here.shape != x.shape[:2]:
        raise InputError("embeddings", f"shape {x.shape} with presence {here.shape}", "(N, D, E) with (N, D)")
    return x, here


def _blocks(x: Array, index: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    """``index`` in pieces of about 8 MiB of rows of ``x``."""
    step = max(64, (1 << 21) // max(1, x[0].size))
    return (index[start : start + step] for start in range(0, index.size, step))


def _standard(parts: Iterator[tuple[Array, NDArray[np.bool_]]]) -> tuple[Array, Array]:
    """Mean and inverse scale, both (G, E), over blocks of values (N, G, E) where (N, G) is true.

    The variance is drawn towards the group's median by `PRIOR_ROWS`; the inverse scale of a feature that
    never varies is 0. One pass, about the first row of each group, so that a large mean costs no digits.
    """
    x, here = first = next(parts)
    groups, shape = x.shape[1], x.shape[1:]
    origin, seen = np.zeros(shape, dtype=np.float32), np.zeros(groups, dtype=bool)
    count, total, square = np.zeros(groups), np.zeros(shape), np.zeros(shape)
    for x, here in chain([first], parts):
        for g in np.flatnonzero(~seen & here.any(axis=0)):
            origin[g], seen[g] = x[np.flatnonzero(here[:, g])[0], g], True
        shifted = np.where(here[..., None], x - origin, np.float32(0.0))
        count += here.sum(axis=0)
        total += shifted.sum(axis=0, dtype=np.float64)
        square += np.square(shifted).sum(axis=0, dtype=np.float64)
    rows = np.maximum(count, 1.0)[:, None]
    mean = total / rows
    variance = np.maximum(square / rows - mean**2, 0.0)
    mean = mean + origin
    varies = variance > (1e-6 * np.abs(mean)) ** 2  # float32 rounding of a constant is not a spread
    variance = np.where(varies, variance, np.nan)
    typical = np.array([np.nanmedian(v) if np.any(k) else np.nan for v, k in zip(variance, varies, strict=True)])
    variance = (rows * variance + PRIOR_ROWS * typical[:, None]) / (rows + PRIOR_ROWS)
    return mean, np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
