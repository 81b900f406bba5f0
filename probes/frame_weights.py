"""A probe's statistic written on an encoder's frames, so that long strain is pooled once for all its windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gwtwins.encoders.paired import BRANCH, PairedEncoder
from gwtwins.encoders.pooling import MeanMaxPool
from gwtwins.probes.linear import LinearProbe
from gwtwins.strain.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrameWeights:
    """Everything linear between frames and statistic made one: head, standardisation and the probe's coefficients.

    For frames s_d (L, C) of D detectors in a window,

        stat = base + sum_d [own_mean_d . mean_t s_d + own_max_d . max_t s_d]
                    + both_mean . mean_t sum_d s_d + both_max . max_t sum_d s_d + evidence . e(max_t sum_d s_d) .

    The last three are 0 for a probe of `concat` features. C are the channels that are learnt; further ones hold
    evidence, of whose largest values e is `network_evidence`.
    """

    base: float
    own_mean: Array
    """(D, C)."""
    own_max: Array
    """(D, C)."""
    both_mean: Array
    """(C,)."""
    both_max: Array
    """(C,)."""
    evidence: Array
    """(K + 1,), empty for an encoder without."""


def frame_weights(encoder: PairedEncoder, probe: LinearProbe) -> FrameWeights:
    """The weights of ``probe`` on the frames of ``encoder``, float64.

    Raises:
        InputError: the encoder makes no frames, or pools them otherwise than by mean and maximum.
    """
    if not encoder.frames or not isinstance(encoder.hl.pool, MeanMaxPool):
        fault = "embeds whole windows, or pools its frames otherwise than by mean and maximum"
        raise InputError(f"encoder {encoder.name}", fault, "cnn_gru with pooling mean_max")
    state = probe.features.state
    d, e = state["mean"].shape
    on_embedding = probe.coef[: d * e].reshape(d, e) * state["inverse"]
    base = probe.intercept - float(np.sum(on_embedding * state["mean"]))
    own = []
    for name, weight in zip(encoder.detectors, on_embedding, strict=True):
        head = (encoder.v if BRANCH[name] == "v" else encoder.hl).head
        assert isinstance(head, nn.Linear)
        own.append(weight @ head.weight.detach().cpu().double().numpy())  # (2 C,)
        base += float(weight @ head.bias.detach().cpu().double().numpy())
    pooled = np.stack(own)
    c = pooled.shape[1] // 2
    both = np.zeros(2 * c + encoder.evidence)
    if probe.features.kind == "coherent":
        both = probe.coef[d * e :] * state["together_inverse"][0]
        base -= float(both @ state["together_mean"][0])
    return FrameWeights(base, pooled[:, :c], pooled[:, c:], both[:c], both[c : 2 * c], both[2 * c :])
