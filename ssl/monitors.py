"""What can be watched while pretraining runs: progress, TensorBoard, metrics.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.tensorboard import SummaryWriter

from gwtwins.ssl.objectives import correlation_terms, effective_rank
from gwtwins.ssl.pretrain import Feed, Pretraining
from gwtwins.strain.command import write_text
from gwtwins.strain.progress import progress_bar


class Progress(pl.Callback):
    """One bar: step, loss, samples a second, time left. Where there is no terminal, a line now and then."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shown = trainer.is_global_zero
        self.bar = progress_bar(trainer.max_steps, "pretraining", "step", shown, trainer.global_step)
        self.began, self.first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Pretraining)
        done = trainer.global_step - self.first
        if done % 10 == 0 or trainer.global_step == trainer.max_steps:
            rate = done * self.batch / (time.perf_counter() - self.began)
            loss = float(pl_module.last["loss"])
            self.bar.set_postfix_str(f"loss {loss:.3g}, {rate:,.0f} samples/s", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


class Monitor(pl.Callback):
    """Writes what the objective sees to metrics.jsonl and TensorBoard.

    Args:
        out: the run's folder.
        feed: where samples and waiting time are counted.
        batch: rows a step.
        every: steps between lines.
        watch: gives figures of the frozen encoder on a small labelled set (watched only: nothing is chosen by it).
        watch_every: steps between those.
    """

    def __init__(
        self,
        out: Path,
        feed: Feed,
        batch: int,
        every: int = 50,
        watch: Callable[[Any], dict[str, float]] | None = None,
        watch_every: int = 0,
    ) -> None:
        self.out, self.feed, self.batch, self.every = out, feed, batch, every
        self.watch, self.watch_every = watch, watch_every
        self.matrix: Any = None
        """The latest cross-correlation matrix (P, P)."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        _drop_lines_after(self.out / "metrics.jsonl", trainer.global_step)
        self.lines = (self.out / "metrics.jsonl").open("a")
        self.board = SummaryWriter(str(self.out / "tb"), purge_step=trainer.global_step or None)
        self.mark = (time.perf_counter(), trainer.global_step, self.feed.waited)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.every and step != trainer.max_steps):
            return
        assert isinstance(pl_module, Pretraining)
        terms = correlation_terms(pl_module.last["first"], pl_module.last["second"])
        self.matrix = terms.pop("matrix")
        now, then = (time.perf_counter(), step, self.feed.waited), self.mark
        seconds = max(now[0] - then[0], 1e-9)
        line: dict[str, Any] = {
            "step": step,
            "loss": float(pl_module.last["loss"]),
            **terms,
            "effective_rank": effective_rank(pl_module.last["embedding"]),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_second": (now[1] - then[1]) * self.batch / seconds,
            "waited_for_data": (now[2] - then[2]) / seconds,
        }
        if self.watch and self.watch_every and (step % self.watch_every == 0 or step == trainer.max_steps):
            line |= {f"watch_{name}": value for name, value in self.watch(pl_module.encoder).items()}
        for name, value in line.items():
            if name != "step":
                self.board.add_scalar(name, value, step)
        if step % (10 * self.every) == 0 or step == trainer.max_steps:
            self.board.add_image("cross_correlation", (self.matrix.clamp(-1, 1) * 0.5 + 0.5)[None], step)
            self.board.flush()
        self.lines.write(json.dumps({k: _rounded(v) for k, v in line.items()}) + "\n")
        self.lines.flush()
        self.mark = (time.perf_counter(), step, self.feed.waited)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "lines"):
            self.lines.close()
            self.board.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def seconds_of(metrics: Path, batch: int) -> float:
    """Seconds of training behind the lines of metrics.jsonl, of all sessions, for steps of ``batch`` rows."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [0, *(line["step"] for line in lines)]
    rates = [line.get("samples_per_second") for line in lines]
    return sum((b - a) * batch / rate for a, b, rate in zip(steps, steps[1:], rates) if rate)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _drop_lines_after(path: Path, step: int) -> None:
    """After a resume from ``step``, later lines would stand twice."""
    if path.exists():
        lines = []
        for text in path.read_text().splitlines():
            try:
                if json.loads(text)["step"] <= step:
                    lines.append(text + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a line cut short by the crash
        write_text(path, "".join(lines))
