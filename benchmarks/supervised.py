"""The frozen probe's rival: the same encoder and a linear head, trained end to end with labels.

It sees what the probe sees: the embeddings of all detectors and what they show at the same moment
(`PairedEncoder.network`), from the same rows of the same source.

With endless data every row is new and every row is labelled; optimiser, schedule and SNR curriculum are those of
pretraining. With a fixed number of labels everything is chosen inside them: a quarter is held out, each learning rate
is trained until the held-out loss has not fallen for a while, and with the best rate and number of steps the encoder
is trained again on all of them. Rows are augmented by what makes no difference to a signal: the sign of the
strain, and a shift by up to 0.1 s common to the detectors. Each of these trainings may take the whole budget.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gwtwins.benchmarks.detection_sources import NoiseOnly
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.ssl.pretrain import OptimiserConfig, learning_rate_factor
from gwtwins.strain import draws
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.sources import Source

RATES = (3e-4, 1e-3, 3e-3)
BATCH = 64  # labelled rows of a step, at most
_HELD_OUT = 0.25
_PATIENCE = 12  # checks of the held-out loss without a new minimum
_LEAST_STEPS = 150  # before a training is given up: the loss may stay at log 2 for a while
_STEPS_A_CHECK = 5  # at least; an epoch if that is longer
_WARMUP_STEPS = 10
_SHIFT = 0.1  # s
_CLIP = 5.0

MakeRows = Callable[[int], tuple[Tensor, Tensor]]
"""Strain (B, D, T) and label (B,) of a step."""


class Supervised(nn.Module):
    """Whitened windows (B, D, T) of all detectors to the logit (B,) of a signal."""

    def __init__(self, encoder: PairedEncoder) -> None:
        super().__init__()
        if not encoder.shared or not encoder.frames:
            raise ValueError("one encoder for all detectors, with frames in time")
        self.encoder = encoder
        hl: Any = encoder.hl
        seen = len(encoder.detectors) * encoder.embedding_dim + hl.head.in_features + encoder.evidence
        self.head = nn.Linear(seen, 1)
        # Evidence is in units of its own, where all else is of order 1.
        self.norm = nn.BatchNorm1d(encoder.evidence) if encoder.evidence else nn.Identity()

    def forward(self, strain: Tensor) -> Tensor:
        b, d, t = strain.shape
        hl: Any = self.encoder.hl
        which = torch.arange(d, device=strain.device).expand(b, d).reshape(-1)
        rows = self.encoder.decimate(strain.reshape(b * d, t))
        frames = self.encoder.sequence(rows, which)[:, self.encoder.pool_start :]
        embedding = hl.embed(frames).reshape(b, -1)
        together = hl.pooled(frames.reshape(b, d, *frames.shape[1:]).sum(dim=1))
        learnt, evidence = together.split([together.shape[1] - self.encoder.evidence, self.encoder.evidence], 1)
        return self.head(torch.cat([embedding, learnt, self.norm(evidence)], dim=1)).squeeze(1)


@dataclass
class LabelledRows:
    """N labelled rows in memory."""

    strain: Tensor
    """(N, D, T) float16 whitened: rounding to 0.05% is far below the noise."""
    label: Tensor
    """(N,) float32."""
    ids: list[str]

    @classmethod
    def read(cls, source: SimulatedSource, n: int) -> LabelledRows:
        """The first ``n`` labelled rows of a source."""
        strain, label, ids = [], [], []
        for batch in source.batches("labelled", 256):
            assert batch.label is not None
            strain.append(batch.strain.half())
            label.append(batch.label)
            ids += batch.id
            if len(ids) >= n:
                break
        return cls(torch.cat(strain)[:n], torch.cat(label)[:n], ids[:n])

    def __len__(self) -> int:
        return len(self.label)

    def subset(self, rows: NDArray[np.integer]) -> LabelledRows:
        """Some of the rows."""
        index = torch.from_numpy(np.asarray(rows)).to(self.label.device)
        return LabelledRows(self.strain[index], self.label[index], [self.ids[i] for i in rows])

    def step(self, seed: int, step: int, rate: float) -> tuple[Tensor, Tensor]:
        """Augmented rows of a step, epoch after epoch in a new order; ``rate`` in samples per second."""
        size = min(BATCH, len(self))
        each = len(self) // size
        order = draws.row_generator(seed, "labelled order", step // each, 0).permutation(len(self))
        index = torch.from_numpy(order[step % each * size :][:size]).to(self.label.device)
        strain = self.strain[index].float()
        u = draws.hashed_uniform(seed, "labelled augmentation", step, range(size), 2).to(strain.device)
        shift = ((2 * u[:, 1] - 1) * _SHIFT * rate).round().long()
        time = (torch.arange(strain.shape[-1], device=strain.device) - shift[:, None]) % strain.shape[-1]
        moved = strain.gather(2, time[:, None].expand_as(strain))
        return torch.where(u[:, 0] < 0.5, 1.0, -1.0)[:, None, None].float() * moved, self.label[index]


def endless(source: SimulatedSource, seed: int, steps: int, batch: int) -> MakeRows:
    """Fresh rows with labels for every step: the rows of pretraining, whose truth knows which hold a signal."""

    def rows(step: int) -> tuple[Tensor, Tensor]:
        made = source.train_batch(seed, step, range(batch), progress=step / max(steps, 1), batch=batch)
        return made.strain, (made.truth["snr"] > 0).float().to(made.strain.device)

    return rows


def steps_within(model: Supervised, rows: MakeRows, minutes: float, timed: int = 6) -> int:
    """How many steps take ``minutes``, measured on a copy of the model."""
    trial, times = copy.deepcopy(model), []
    optimiser = _optimiser(trial, 1e-6)
    for step in range(timed + 2):
        began = time.perf_counter()
        _step(trial, optimiser, *rows(step))
        times.append(time.perf_counter() - began)
    return max(1, round(60 * minutes / statistics.median(times[2:])))


def train_endless(model: Supervised, rows: MakeRows, steps: int, config: OptimiserConfig) -> None:
    """Train in place, with pretraining's learning rate and schedule."""
    optimiser = _optimiser(model, config.learning_rate)
    with progress_bar(steps, "supervised", "step") as bar:
        for step in range(steps):
            _set_rate(optimiser, config.learning_rate * learning_rate_factor(step, steps, config.warmup))
            _step(model, optimiser, *rows(step))
            bar.update()


def train_labelled(model: Supervised, rows: LabelledRows, seed: int, most: int) -> dict[str, Any]:
    """Train in place on fixed labelled rows, at most ``most`` steps each time; what was chosen, and what it cost.

    Returns ``learning_rate``, ``steps`` of the last training, ``tried``: the held-out loss of each rate.
    """
    label = rows.label.cpu().numpy()
    order = draws.row_generator(seed, "held out", 0, 0).permutation(len(rows))
    held = np.concatenate([_part(order[label[order] == kind]) for kind in (0, 1)])
    fit, kept = rows.subset(np.setdiff1d(order, held)), rows.subset(held)
    start = copy.deepcopy(model.state_dict())
    tried: list[dict[str, float]] = []
    for rate in RATES:
        model.load_state_dict(start)
        tried.append({"learning_rate": rate, **_until_worse(model, fit, kept, rate, seed, most)})
    best = min(tried, key=lambda one: one["loss"])
    # As many times over all rows as over those that were fitted to.
    epochs = best["steps"] * min(BATCH, len(fit)) / len(fit)
    steps = min(most, max(1, round(epochs * len(rows) / min(BATCH, len(rows)))))
    model.load_state_dict(start)
    _run(model, rows, best["learning_rate"], seed, range(steps))
    return {"learning_rate": best["learning_rate"], "steps": steps, "tried": tried}


def _part(rows: NDArray[np.integer]) -> NDArray[np.integer]:
    """The held-out part of one class: at least one row, and not all."""
    return rows[: min(max(1, round(_HELD_OUT * len(rows))), len(rows) - 1)]


def _until_worse(
    model: Supervised, fit: LabelledRows, kept: LabelledRows, rate: float, seed: int, most: int
) -> dict[str, float]:
    """The lowest held-out loss and after how many steps it was reached."""
    every = max(_STEPS_A_CHECK, len(fit) // BATCH)
    optimiser = _optimiser(model, rate)
    best, at, checks = math.inf, 1, 0
    for first in range(0, most, every):
        steps = range(first, min(first + every, most))
        _run(model, fit, rate, seed, steps, optimiser)
        scores = torch.cat([_logits(model, part.float()) for part in kept.strain.split(256)])
        loss = float(nn.functional.binary_cross_entropy_with_logits(scores, kept.label))
        checks += 1
        if loss < best:
            best, at, checks = loss, steps.stop, 0
        if checks >= _PATIENCE and steps.stop >= _LEAST_STEPS:
            break
    return {"loss": best, "steps": at}


def _run(
    model: Supervised,
    rows: LabelledRows,
    rate: float,
    seed: int,
    steps: range,
    optimiser: torch.optim.Optimizer | None = None,
) -> None:
    optimiser = optimiser or _optimiser(model, rate)
    for step in steps:
        _set_rate(optimiser, rate * min(1.0, (step + 1) / _WARMUP_STEPS))
        _step(model, optimiser, *rows.step(seed, step, model.encoder.rate))


def _optimiser(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """As pretraining's: biases and normalisations do not decay."""
    decayed, free = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": OptimiserConfig().weight_decay}, {"params": free, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=rate)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _step(model: Supervised, optimiser: torch.optim.Optimizer, strain: Tensor, label: Tensor) -> None:
    model.train()
    loss = nn.functional.binary_cross_entropy_with_logits(model(strain), label)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimiser.step()


def _logits(model: Supervised, strain: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        return model(strain)


def score(model: Supervised, source: Source) -> NDArray[np.float32]:
    """(N,) logits of a source's test rows."""
    with progress_bar(source.count("test"), "scoring test", "row") as bar:
        parts = []
        for batch in source.batches("test", 512):
            parts.append(_logits(model, batch.strain).cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(parts)


def score_noise(model: Supervised, source: SimulatedSource, rows: int) -> NDArray[np.float32]:
    """(M,) logits of noise-only rows."""
    return score(model, NoiseOnly(source, range(rows))) if rows else np.empty(0, np.float32)
