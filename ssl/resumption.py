"""How a run is stopped and gone on with: whole checkpoints, what is asked of one, and signals that end a run."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from gwtwins.ssl import distributed
from gwtwins.ssl.pretrain import Pretraining
from gwtwins.strain.command import write_bytes
from gwtwins.strain.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, InputError

_KEY = "gwtwins"
_SHOWN = 60  # characters of a value that a message quotes


class CheckpointFile(TorchCheckpointIO):
    """Checkpoints on disk: each is there whole or not at all, and numbers are all that is read from one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one; the one before it by that name is there until this one is."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), content.getvalue())


class Checkpoint(pl.Callback):
    """Keeps ``path`` no older than ``every`` steps.

    Args:
        path: of the checkpoint.
        every: steps.
        options: those that make the run what it is; a checkpoint says which run's it is by them.
    """

    def __init__(self, path: Path, every: int, options: dict[str, Any]) -> None:
        self.path, self.every, self.options, self.saved = path, every, options, -1

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint of the step that has just ended; all processes leave here when it is there."""
        if self.saved != trainer.global_step:
            trainer.save_checkpoint(self.path)
            self.saved = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint[_KEY] = {"options": self.options, "threads": pl_module.threads}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)


# What torch's loader, and a look at what it gave, raise where a file is not whole.
_UNREADABLE = (
    *(UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(TypeError, LookupError, AttributeError, AssertionError, RecursionError),
)


def check_checkpoint(path: Path, module: Pretraining, options: dict[str, Any]) -> tuple[int, int]:
    """The optimiser steps that a checkpoint has behind it, and the threads that each process computed with.

    Raises:
        InputError: it cannot be read, holds more than numbers (nothing in it is run), was written by another run, or
            does not fit.
    """
    expected = "one that this run wrote; without it, the run begins anew"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it goes on to refuse
            held = TorchCheckpointIO().load_checkpoint(path, weights_only=True)
        steps, threads, theirs = int(held["global_step"]), int(held[_KEY]["threads"]), dict(held[_KEY]["options"])
        weights, state = dict(held["state_dict"]), held["optimizer_states"][0]["state"]
        moments = [value for moment in state.values() for value in moment.values() if torch.is_tensor(value)]
        shapes = {name: value.shape for name, value in weights.items()}
        sizes = {number: {v.numel() for v in moment.values() if v.ndim} for number, moment in state.items()}
    except _UNREADABLE as e:
        raise InputError(path, "is not a whole checkpoint", expected) from e
    for name in options.keys() & theirs.keys():  # a later version may have more options
        if theirs[name] != options[name]:
            fault = f"was written with {name} {str(theirs[name])[:_SHOWN]}, config.yaml has {options[name]}"
            raise InputError(path, fault, expected)
    if steps < 0 or threads < 1:
        raise InputError(path, f"{steps} steps with {threads} threads", expected)
    if shapes != {name: value.shape for name, value in module.state_dict().items()}:
        raise InputError(path, "its tensors are not those of this run's encoder and objective", expected)
    wanted = [{p.numel()} for group in module.configure_optimizers().param_groups for p in group["params"]]
    if any(not 0 <= number < len(wanted) or size - wanted[number] for number, size in sizes.items()):
        raise InputError(path, "its optimiser is not that of this run", expected)
    if not all(torch.isfinite(value).all() for value in [*weights.values(), *moments]):
        raise InputError(path, "holds NaN or infinity", expected)
    return steps, threads


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for what is computed within: sums are made in another order by more or by fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class GracefulStop(pl.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 end the run after the step at hand, with a checkpoint; a second one ends it at once.

    A scheduler that takes the machine away sends SIGTERM, or what it is told to; whichever process it reaches, all stop
    after the same step.
    """

    _EXIT = {
        signal.SIGINT: EXIT_INTERRUPTED,
        signal.SIGTERM: EXIT_TERMINATED,
        signal.SIGUSR1: EXIT_TERMINATED,
    }

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.asked = 0
        """Exit status that a signal to this process asks for."""
        self.exit_status = 0
        """Exit status of the run, in every process; 0 while nobody has asked for its end."""

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            print("\nstopping after this step, to save a checkpoint ...", file=sys.stderr)
        self.asked = self._EXIT[signal.Signals(number)]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now: Lightning sets its own when fit begins. It puts back all that there were before when fit ends.
        for number in self._EXIT:
            signal.signal(number, self._handle)
        if trainer.received_sigterm:  # by Lightning's, until now
            self.asked = EXIT_TERMINATED

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.exit_status = distributed.maximum(self.asked)
        if self.exit_status:
            self.checkpoint.save(trainer)
            trainer.should_stop = True
