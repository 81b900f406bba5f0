"""Pictures of a finished pretraining run: how the objective went, what the dimensions share, what the stem learnt."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.stem import LogPowerStem

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#5b6b7a"  # Okabe & Ito's colour-blind-safe palette


def plot_run(out: Path, encoder: PairedEncoder, correlation: Tensor | None) -> None:
    """Write ``out/plots/*.png`` from the run's metrics.jsonl, its last cross-correlation matrix and its encoder."""
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    if lines:
        _write(_training(lines), folder / "training.png")
    if correlation is not None:
        _write(_correlation(correlation), folder / "cross_correlation.png")
    stem = getattr(encoder.hl, "stem", None)
    if isinstance(stem, LogPowerStem):
        _write(_stem(stem.weight.detach().cpu(), encoder.rate), folder / "stem.png")


def _write(figure: Figure, path: Path) -> None:
    partial = path.with_suffix(".tmp")
    figure.savefig(partial, dpi=120, format="png", bbox_inches="tight")
    plt.close(figure)
    os.replace(partial, path)


def _training(lines: list[dict[str, Any]]) -> Figure:
    def series(name: str) -> tuple[list[int], list[float]]:
        held = [(line["step"], line[name]) for line in lines if name in line]
        return [step for step, _ in held], [value for _, value in held]

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, colour in (("invariance", _BLUE), ("redundancy", _ORANGE), ("floor", _GREY)):
        label = "redundancy of independent dimensions" if name == "floor" else name
        axes[0].semilogy(*series(name), color=colour, label=label, ls=":" if name == "floor" else "-")
    axes[0].set(title="Terms of the objective, unweighted", xlabel="step")
    axes[1].plot(*series("effective_rank"), color=_BLUE, label="effective rank")
    axes[1].set(title="Effective rank of the embedding", xlabel="step", ylabel="dimensions")
    for name, colour in (("watch_linear_auc", _BLUE), ("watch_knn_auc", _ORANGE)):
        steps, values = series(name)
        if steps:
            axes[2].plot(steps, values, "o-", ms=4, color=colour, label=name.split("_")[1] + " probe")
    axes[2].set(title="AUC on a few labelled rows (watched only)", xlabel="step", ylabel="AUC")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=9)
    return figure


def _correlation(matrix: Tensor) -> Figure:
    figure, ax = plt.subplots(figsize=(4.8, 4.1), layout="constrained")
    image = ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(title="Cross-correlation of the two views", xlabel="dimension, second view", ylabel="dimension, first view")
    figure.colorbar(image, label="correlation")
    return figure


def _stem(weight: Tensor, rate: float) -> Figure:
    """Each filter's amplitude spectrum, pairs in the order of their bands; weight (2 K, 1, kernel)."""
    n = 4 * weight.shape[-1]
    power = torch.fft.rfft(weight[:, 0], n=n).abs().square()
    pairs = (power[: len(power) // 2] + power[len(power) // 2 :]).sqrt()
    figure, ax = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    image = ax.imshow(
        pairs.numpy(), aspect="auto", origin="lower", cmap="viridis", extent=(0, rate / 2, 0, len(pairs))
    )
    ax.set(title="What the stem listens to", xlabel="frequency, Hz", ylabel="filter pair")
    figure.colorbar(image, label="amplitude response")
    return figure
