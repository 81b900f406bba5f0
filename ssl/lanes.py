"""A step's rows in lanes: on a CPU, threads that take a share of them each through the encoder, side by side.

Torch divides every operation among its threads, and those of a small encoder are too short for it. A lane runs all
operations on its own rows, forward and backward, and while one of them waits a further thread makes the next step's
data. Two cores make 1.2 times as many steps that way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gwtwins.ssl.distributed import several

if TYPE_CHECKING:
    from gwtwins.ssl.pretrain import Feed, Pretraining

LEAST_ROWS = 64
"""Rows of a lane, at least: BatchNorm's statistics are those of the lane's rows."""


class Lanes:
    """Threads that each run their rows through a copy of a module; the copies have its parameters in common.

    What BatchNorm normalises with are the moments of a lane's rows, and the running statistics are the lanes' mean.

    Args:
        module: what is run.
        count: lanes.
        threads: of all lanes together; each has an equal share for its operations.
    """

    def __init__(self, module: nn.Module, count: int, threads: int) -> None:
        self.module, self.count, self.threads = module, count, threads
        self.trained = [p for p in module.parameters() if p.requires_grad]
        shared = {id(p): p for p in module.parameters()}
        self.copies = [copy.deepcopy(module, dict(shared)) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (max(1, threads // count),))

    def __call__(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """``function(module, *rows)``, (V, N, ...), with the N rows of each argument divided among the lanes."""
        for one in self.copies:
            one.train(self.module.training)
            for theirs, ours in zip(one.buffers(), self.module.buffers(), strict=True):
                theirs.copy_(ours)
        out = _InLanes.apply(self, function, rows, *self.trained)
        self._collect()
        return out

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
        """A call in each lane, with the members of every column in order."""
        return list(self._pool.map(function, *columns))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _collect(self) -> None:
        for ours, *theirs in zip(self.module.buffers(), *(one.buffers() for one in self.copies), strict=True):
            ours.copy_(torch.stack(theirs).mean(dim=0) if ours.is_floating_point() else theirs[0])


class _InLanes(torch.autograd.Function):
    """The forward pass in lanes, each with a graph of its own, and their backward passes likewise."""

    @staticmethod
    def forward(ctx: Any, lanes: Lanes, function: Callable[..., Tensor], rows: Any, *trained: Tensor) -> Tensor:
        def run(module: nn.Module, part: tuple[Tensor, ...]) -> Tensor:
            with torch.enable_grad():
                return function(module, *part)

        parts = list(zip(*(x.tensor_split(lanes.count) for x in rows), strict=True))
        ctx.lanes, ctx.out = lanes, lanes.map(run, lanes.copies, parts)
        return torch.cat([out.detach() for out in ctx.out], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        def run(out: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(out, ctx.lanes.trained, g, allow_unused=True)

        every = ctx.lanes.map(run, ctx.out, gradient[0].split([out.shape[1] for out in ctx.out], dim=1))
        ctx.out = None
        return None, None, None, *(_total(each) for each in zip(*every, strict=True))


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The sum, always in the same order; None of a parameter that no lane used."""
    used = [part for part in parts if part is not None]
    return sum(used[1:], start=used[0]) if used else None


@contextmanager
def in_lanes(module: Pretraining, feed: Feed, device: str) -> Iterator[None]:
    """Steps in as many lanes as torch has threads, as long as each has rows enough; data made ahead beside them.

    In several processes, with mixed precision and on a GPU there are none.
    """
    threads = torch.get_num_threads()
    count = min(threads, module.config.batch // LEAST_ROWS)
    if device != "cpu" or several() or count < 2 or module.config.precision != "32-true":
        yield
        return
    module.lanes, ahead = Lanes(module.encoder, count, threads), feed.background
    feed.background = True
    torch.set_num_threads(1)  # more would wait for work between the lanes' operations, by spinning
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        feed.background = ahead
        module.lanes.close()
        module.lanes = None
