"""What can be watched while pretraining runs: progress, TensorBoard, metrics.jsonl, checkpoints, a graceful stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils.tensorboard import SummaryWriter

from gwtwins.ssl.objectives import correlation_terms, effective_rank
from gwtwins.ssl.pretrain import Feed, Pretraining
from gwtwins.strain.command import write_text
from gwtwins.strain.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, InputError
from gwtwins.strain.progress import progress_bar

# What Lightning says on every fit about its own insides, or about what this project means to do.
_LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.15
    r"GPU available but not used",  # --device cpu
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the feed starts at the step itself
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's notices (hardware found, products to try, defaults taken); its warnings stay."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _LIGHTNING_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(level)


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
            except (ValueError, KeyError):
                continue  # a line cut short by the crash
        write_text(path, "".join(lines))


class Checkpoint(pl.Callback):
    """Keeps ``checkpoints/last.ckpt`` no older than ``every`` steps, replaced in one atomic step."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.saved = folder, every, -1

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint of the step that has just ended."""
        if self.saved == trainer.global_step:
            return
        partial = self.folder / "last.ckpt.tmp"
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.folder / "last.ckpt")
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)


def steps_of_checkpoint(path: Path) -> int:
    """The optimiser steps that a checkpoint has behind it.

    Raises:
        InputError: it cannot be read, or holds more than numbers (nothing in it is run).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it goes on to refuse
            return int(TorchCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"])
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError) as error:
        expected = "one that a run wrote; without it, the run begins anew"
        raise InputError(path, "is not a whole checkpoint", expected) from error


class GracefulStop(pl.Callback):
    """Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once."""

    _EXIT = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.exit_status = 0

    def _handle(self, number: int, frame: Any) -> None:
        if self.exit_status:
            raise KeyboardInterrupt
        self.exit_status = self._EXIT[signal.Signals(number)]
        print("\nstopping after this step, to save a checkpoint ...", file=sys.stderr)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now: Lightning sets its own when fit begins. It puts back all that there were before when fit ends.
        for number in self._EXIT:
            signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.exit_status:
            self.checkpoint.save(trainer)
            trainer.should_stop = True
