"""What can be wrong with a step's numbers, named in one line: poisoned rows, dead detectors, overflow, collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from gwtwins.encoders.paired import BRANCH
from gwtwins.ssl import distributed
from gwtwins.ssl.distributed import RunError
from gwtwins.ssl.views import Views
from gwtwins.strain.errors import InputError

LEAST_ROWS = 4
"""Rows of a step: two, standardised over the batch, are -1 and 1 whatever they are, and nothing can be learned."""
_LEAST_SPREAD = 1e-5  # of an embedding over the batch, relative to its size; float32 rounds at 1e-7
_LOOKED_AT = 32  # samples of a row that tell whether it is all zeros
_NAMED = 5  # rows that a message names


def check_rows(views: Views, names: tuple[str, ...], shared: bool, step: int) -> None:
    """Raise for a step that has too few rows, or a detector without any strain.

    Args:
        views: this process's.
        names: of the detectors.
        shared: whether one encoder serves all detectors.
        step: for the message.
    """
    every = distributed.counts_of([len(views)])
    if (total := int(every.sum())) < LEAST_ROWS:
        fault = f"{total} rows of step {step} have the detectors that the views are made of"
        raise RunError("data", fault, f"{LEAST_ROWS} or more that recorded together; or --views augment")
    for x, detector in ((views.first, views.first_detector), (views.second, views.second_detector)):
        silent = (x[:, :: max(1, x.shape[1] // _LOOKED_AT)] == 0).all(dim=1)
        if not bool(silent.any()):
            continue
        for d in detector[silent].unique().tolist():
            rows = detector == d
            if int(rows.sum()) >= LEAST_ROWS and not x[rows].any():
                fault = f"all {int(rows.sum())} windows of step {step} are zeros"
                raise InputError(f"detector {names[d]}", fault, "strain, or the detector marked as absent")
    if not shared and distributed.several():
        _check_branches(views, names, step)


def _check_branches(views: Views, names: tuple[str, ...], step: int) -> None:
    """Two encoders must both have rows in every process or in none: their batch statistics are those of all."""
    of_v = torch.tensor([BRANCH[name] == "v" for name in names])
    v = of_v[torch.cat([views.first_detector, views.second_detector]).cpu()]
    every = distributed.counts_of([int((~v).sum()), int(v.sum())])
    without = ((every == 0) & (every.sum(dim=0) > 0)).nonzero()
    if len(without):
        process, branch = without[0].tolist()
        fault = f"process {process} has no rows of {'V1 or K1' if branch else 'H1 or L1'} in step {step}"
        raise RunError("--shared false", fault, "more rows a process, --views detector, or one encoder for all")


def check_outcome(views: Views, embedding: Tensor, loss: Tensor, step: int, precision: str) -> None:
    """Raise for a loss that is not finite, or embeddings that are all the same.

    Args:
        views: this process's.
        embedding: (N, E), of all processes.
        loss: scalar.
        step, precision: for the message.
    """
    e = embedding.float()
    unit = e / e.abs().amax().clamp_min(torch.finfo(e.dtype).tiny)  # whose squares neither overflow nor vanish
    spread = (unit - unit.mean(dim=0)).square().mean() > _LEAST_SPREAD**2 * unit.square().mean()
    finite, varied = torch.stack([torch.isfinite(loss), spread]).tolist()
    if not finite:
        before = "the last checkpoint is from before it"
        fault = _agreed(_poisoned(views, step))
        if fault:
            raise RunError("data", f"{fault}, {before}", "finite strain")
        if not torch.isfinite(e).all():
            raise RunError("encoder", f"its output overflows at step {step} ({precision}), {before}", _ADVICE)
        raise RunError("objective", f"the loss is {loss.item()} at step {step} ({precision}), {before}", _ADVICE)
    if not varied:
        fault = f"all {len(e)} embeddings of step {step} are the same: it has collapsed, or the data never change"
        raise RunError("encoder", fault, "a lower --learning-rate, or other data")


_ADVICE = "a lower --learning-rate, or --precision 32-true"


def check_gradient(norm: Tensor, step: int, precision: str) -> None:
    """Raise for a gradient, of this norm, that is not finite."""
    if not bool(torch.isfinite(norm)):
        fault = f"is {float(norm)} at step {step} ({precision}), the last checkpoint is from before it"
        raise RunError("gradient", fault, _ADVICE)


def _poisoned(views: Views, step: int) -> str:
    """This process's rows that hold NaN or infinity, in words; empty if there are none."""
    bad = ~(torch.isfinite(views.first).all(dim=1) & torch.isfinite(views.second).all(dim=1))
    rows = views.row.to(bad.device)[bad].tolist()
    if not rows:
        return ""
    named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    return f"{len(rows)} rows of step {step} hold NaN or infinity (row {named})"


def _agreed(fault: str) -> str:
    """The fault of one process that has one, in all of them."""
    rank = torch.distributed.get_rank() if distributed.several() else 0
    by = distributed.maximum(rank + 1 if fault else 0)
    return distributed.told(fault, by - 1) if by else ""
