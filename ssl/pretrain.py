"""Pretraining as a LightningModule: two views, one encoder, one objective, a schedule by the step."""

from __future__ import annotations

import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.utils.lars import LARS
from torch import Tensor, nn

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.ssl.distributed import gathered, several
from gwtwins.ssl.lanes import Lanes
from gwtwins.ssl.numerics import LEAST_ROWS, check_gradient, check_outcome, check_rows
from gwtwins.ssl.objectives import Objective
from gwtwins.ssl.views import ViewMaker, Views
from gwtwins.strain.errors import InputError


@dataclass
class OptimiserConfig:
    """How it is optimised."""

    batch: int = 512
    """Rows of a step."""
    optimiser: str = "adamw"
    """adamw or lars."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Weight decay; biases and normalisations have none."""
    warmup: float = 0.03
    """Fraction of the steps over which the learning rate rises."""
    clip: float = 5.0
    """Largest norm of the gradient; 0 for no clipping."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed or 16-mixed; the loss is always computed in float32."""

    def check(self) -> None:
        """Raise InputError for values no run can have."""
        if self.optimiser not in ("adamw", "lars"):
            raise InputError(f"--optimiser {self.optimiser}", "is not known", "adamw or lars")
        if self.batch < LEAST_ROWS:
            raise InputError("--batch", f"{self.batch}", f"at least {LEAST_ROWS}: the objective compares rows")
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise InputError(f"--precision {self.precision}", "is not known", "32-true, bf16-mixed or 16-mixed")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1 and self.clip >= 0):
            expected = "learning-rate > 0, weight-decay >= 0, 0 <= warmup < 1, clip >= 0"
            raise InputError("optimiser", "a value is out of range", expected)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a half cosine to zero; in [0, 1]."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Pretraining(pl.LightningModule):
    """Encodes both views of a batch in one pass and optimises the objective."""

    def __init__(self, encoder: PairedEncoder, objective: Objective, config: OptimiserConfig, steps: int) -> None:
        super().__init__()
        config.check()
        self.encoder, self.objective, self.config, self.steps = encoder, objective, config, steps
        self.lanes: Lanes | None = None
        """Set while `in_lanes`."""
        self.last: dict[str, Tensor] = {}
        """The latest step's ``loss``, projections ``first`` and ``second`` (N, P) and ``embedding`` (N, E), with the
        rows of all processes, for the monitors."""

    def training_step(self, views: Views, batch_idx: int) -> Tensor:
        check_rows(views, self.encoder.detectors, self.encoder.shared, self.global_step)
        rows = views.first, views.second, views.first_detector, views.second_detector
        first, second = self.lanes(_encode, *rows) if self.lanes else _encode(self.encoder, *rows)  # (N, E) each
        loss, (a, b) = self.objective(first, second)
        (every,) = gathered(first.detach())
        check_outcome(views, every, loss.detach(), self.global_step, self.config.precision)
        self.last = {"loss": loss.detach(), "first": a.detach(), "second": b.detach(), "embedding": every}
        return loss

    @property
    def threads(self) -> int:
        """What a step is computed with: another number adds in another order."""
        return self.lanes.threads if self.lanes else torch.get_num_threads()

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip, and stop at a gradient that is not finite, before it reaches the weights; one norm serves both."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.clip or math.inf)
        if self.config.precision != "16-mixed":  # whose scaler leaves out steps that overflow, and goes on smaller
            check_gradient(norm, self.global_step, self.config.precision)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = self.config.learning_rate * learning_rate_factor(self.global_step, self.steps, self.config.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        free = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": free, "weight_decay": 0.0}]
        if self.config.optimiser == "lars":
            if self.config.weight_decay == 0:
                # lightly's LARS adapts only groups that decay: 0 would silently make it plain SGD.
                raise InputError("--weight-decay", "0 with --optimiser lars", "a positive weight decay, e.g. 1e-6")
            return LARS(groups, lr=self.config.learning_rate, momentum=0.9)
        # One operation for all weights; Lightning clips no gradients that a fused optimiser is to unscale.
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=self.config.precision != "16-mixed")


def _encode(encoder: PairedEncoder, first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Views (N, T) and their detectors (N,) to embeddings (2, N, E), in one pass."""
    embedding = encoder.encode_stretch(torch.cat([first, second]), torch.cat([one, other]))
    return torch.stack(embedding.chunk(2))


class Feed:
    """The views of every step from ``start()`` on.

    With ``background`` a thread makes them while the last step runs: right where the step runs on a GPU or in lanes.
    Elsewhere on a CPU the thread's own threads and the step's would wait for each other at every barrier.

    Args:
        maker: gives a step's views.
        seed, steps, batch: of the run; ``batch`` rows a step over all processes.
        start: the first step wanted (after resuming, not 0).
        rank, world: this process's place; each makes its own rows.
        background: whether to make them ahead.
    """

    def __init__(
        self,
        maker: ViewMaker,
        seed: int,
        steps: int,
        batch: int,
        start: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        background: bool = True,
    ) -> None:
        if batch % world:
            raise InputError("--batch", f"{batch} rows for {world} processes", "a multiple of the processes")
        share = batch // world
        self.rows = range(rank * share, (rank + 1) * share)
        self.maker, self.seed, self.steps, self.batch, self.start = maker, seed, steps, batch, start
        self.background = background
        self.waited = 0.0
        """Seconds that training has waited for data."""

    def make(self, step: int) -> Views:
        """The views of one step."""
        return self.maker(self.seed, step, self.rows, step / max(self.steps, 1), self.batch)

    def __iter__(self) -> Iterator[Views]:
        return self._ahead() if self.background else self._as_asked()

    def _as_asked(self) -> Iterator[Views]:
        for step in range(self.start(), self.steps):
            began = time.perf_counter()
            views = self.make(step)
            self.waited += time.perf_counter() - began
            yield views

    def _ahead(self) -> Iterator[Views]:
        ready: queue.Queue[Views | BaseException] = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def put(item: Views | BaseException) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(self.start(), self.steps):
                    if stopped.is_set():
                        return
                    put(self.make(step))
                put(StopIteration())
            except BaseException as error:  # handed over: a thread's own traceback would be lost
                put(error)

        thread = threading.Thread(target=produce, daemon=True, name="views")
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - began
                if isinstance(item, StopIteration):
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join(timeout=10)


_MEASURED = 20.0  # s


def measure_step_seconds(module: Pretraining, feed: Feed, steps: int = 24) -> float:
    """Seconds of one optimiser step, data included: the median of ``steps`` real ones, then all is put back.

    Of fewer where they take over 20 s: a step of a large encoder can take half a minute.

    A budget in minutes becomes a number of steps with it, before the run, so that the schedule knows its end.
    """
    state = {name: value.clone() for name, value in module.state_dict().items()}
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.0)
    device = next(module.parameters()).device
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(module.config.precision)
    times = []
    module.train()
    probe = Feed(feed.maker, feed.seed, steps + 4, feed.batch, lambda: 0, background=feed.background)
    probe.rows = feed.rows
    iterator = iter(probe)
    began = time.perf_counter()
    for views in iterator:
        views = Views(*(getattr(views, f).to(device) for f in Views.__dataclass_fields__))
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            loss = module.training_step(views, 0)
        optimiser.zero_grad()
        loss.backward()
        if several():
            for p in module.parameters():
                if p.grad is not None:
                    torch.distributed.all_reduce(p.grad)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        if len(times) > 2 and sum(times) > _MEASURED and not several():  # several must take as many steps as each other
            break
        began = time.perf_counter()
    module.load_state_dict(state)
    optimiser.zero_grad(set_to_none=True)
    return statistics.median(times[min(4, len(times) // 2) :])
