"""The training loop: Lightning's, on one process or several, with this project's checkpoints and signals."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, getLogger
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from gwtwins.ssl.distributed import PATIENCE, Place
from gwtwins.ssl.pretrain import Feed, Pretraining
from gwtwins.ssl.resumption import Checkpoint, CheckpointFile, GracefulStop
from gwtwins.strain.errors import EXIT_TERMINATED

# What Lightning says on every fit about its own insides, or about what this project means to do.
_LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.15
    r"GPU available but not used",  # --device cpu
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the feed starts at the step itself
)


def fit(module: Pretraining, feed: Feed, checkpoint: Checkpoint, monitors: list[Any], place: Place, device: str) -> int:
    """Train to ``module.steps`` from the checkpoint, if it is there; 0, or the exit status that a signal asked for.

    Args:
        monitors: Lightning callbacks.
        place: which process of the run this is.
        device: "cpu" or "cuda".
    """
    graceful = GracefulStop(checkpoint)
    config = module.config
    with _quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=place.on_node,
            num_nodes=place.nodes,
            strategy=_strategy(module, place) if place.world > 1 else "auto",
            # Named, for else Lightning takes what it finds in the environment, SLURM's with a requeueing of its own.
            plugins=[CheckpointFile()] if place.world > 1 else [CheckpointFile(), LightningEnvironment()],
            precision=config.precision,  # type: ignore[arg-type]
            max_steps=module.steps,
            max_epochs=-1,
            callbacks=[*monitors, checkpoint, graceful],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        path = str(checkpoint.path) if checkpoint.path.exists() else None
        before = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, feed, ckpt_path=path, weights_only=True)
        except SIGTERMException:  # of one that came before the first step, to Lightning's own handler
            graceful.exit_status = EXIT_TERMINATED
        except SystemExit as ended:  # what Lightning makes of a KeyboardInterrupt, and leaves the next one ignored
            signal.signal(signal.SIGINT, before)
            if not isinstance(ended.__context__, KeyboardInterrupt):
                raise  # of whoever calls from Python, and has a handler that exits
            if graceful.exit_status:
                return graceful.exit_status
            raise KeyboardInterrupt from ended
    if graceful.exit_status and place.first:
        run = checkpoint.path.parent.parent
        print(f"stopped at step {trainer.global_step} of {module.steps}; go on with --resume {run}", file=sys.stderr)
    return graceful.exit_status


def _strategy(module: Pretraining, place: Place) -> DDPStrategy:
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),
        timeout=PATIENCE,
        find_unused_parameters=not module.encoder.shared,  # a step of H1 and L1 leaves Virgo's encoder out
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notices (hardware found, products to try, defaults taken); its warnings stay."""
    logs = [getLogger("pytorch_lightning"), getLogger("lightning.pytorch"), getLogger("lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(WARNING)
    try:
        with warnings.catch_warnings():
            for message in _LIGHTNING_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
