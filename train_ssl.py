"""Pretrain an encoder on unlabelled strain and export it.

    python train_ssl.py --views detector                    simulated data, nothing to download, 4 minutes
    python train_ssl.py --data windows.hdf5 --minutes 60    a packed set of windows
    python train_ssl.py --config configs/real_noise.yaml --noise FILES    a ready-made run; options override it
    python train_ssl.py --resume runs/latest                go on with an interrupted run

The run's folder holds encoder.safetensors and encoder.json (what eval_probe.py and scan_strain.py read), the resolved
config.yaml, metrics.jsonl, TensorBoard logs, checkpoints and plots.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from gwtwins.ssl.augment import AugmentConfig
from gwtwins.strain.command import claim_folder, new_run_folder, parse, plain, point_latest, read_config, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.simulated import SimulationConfig
from gwtwins.strain.versions import versions


@dataclasses.dataclass
class RunConfig:
    """The run."""

    views: str = "detector"
    """What two views are: detector (H1 or L1 against V1), pairs (of detectors), noise (draws) or augment."""
    augment: bool = False
    """Augment the views of any kind (--aug-... options); --views augment always does."""
    crop: float = 1.75
    """Shortest length, in seconds, that views are cut to, at a random place; 0 for whole windows. An encoder that makes
    no frames in time always takes whole windows."""
    data: str = "simulated"
    """simulated, a packed HDF5 file, a folder in the G2Net layout, or GWOSC files joined by commas."""
    out: str = ""
    """Folder of the run; runs/<date-time> if empty. The newest run inside runs/ is runs/latest."""
    seed: int = 0
    """Seed of every draw and of the initial weights."""
    steps: int = 0
    """Budget in optimiser steps; 0 to take --minutes."""
    minutes: float = 4.0
    """Budget in minutes: the speed is measured once and turned into a number of steps."""
    encoder: str = "cnn_gru"
    """Encoder by name: cnn_gru or cnn_gru_2021."""
    encoder_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the encoder, e.g. --encoder_args.width 64."""
    shared: bool = True
    """One encoder for all detectors; false for one for H1 and L1 and another for V1 and K1."""
    f_low: float = 20.0
    """Lower end of the whitened band, Hz."""
    f_high: float = 500.0
    """Upper end of the whitened band, Hz."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    monitor_every: int = 50
    """Steps between lines of metrics.jsonl."""
    watch: int = 600
    """Labelled rows on which the frozen encoder is watched during the run; 0 for none. Never used to choose."""
    resume: str = ""
    """Folder of an interrupted run to go on with, by its own config.yaml."""


def resumed(folder: str, argv: list[str]) -> list[str]:
    """The command line that goes on with the run in ``folder``: its own config, and what was typed beside --resume."""
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise InputError(folder, "holds no config.yaml", "the folder of an interrupted run")
    allowed = {"resume", "steps", "minutes", "device", "checkpoint_every", "monitor_every", "watch"}
    for word in argv:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in allowed:
            raise InputError("--resume", f"{word} would make it another run", "budget and device options only")
    read_config(config, [f.name for concern in concerns() for f in dataclasses.fields(concern)])
    given = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    anew = ["--steps=0"] if "minutes" in given and "steps" not in given else []  # else the saved steps would win
    return ["--config", str(config), *argv, *anew]


def concerns() -> list[type]:
    """The dataclasses whose fields are the options."""
    from gwtwins.ssl.objectives import ObjectiveConfig
    from gwtwins.ssl.pretrain import OptimiserConfig

    return [RunConfig, OptimiserConfig, ObjectiveConfig, SimulationConfig, AugmentConfig]


def train(argv: list[str] | None = None) -> int:
    """Parse, pretrain, export; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    description = __doc__.split("\n")[0]
    folder = next((b for a, b in zip(argv, [*argv[1:], ""], strict=True) if a == "--resume"), "")
    folder = folder or next((a.partition("=")[2] for a in argv if a.startswith("--resume=")), "")
    if folder:
        argv = resumed(folder, argv)
    (run, optimiser, objective_config, simulation, augment), flat = parse("train_ssl.py", description, concerns(), argv)
    resumed_run = None
    if folder:
        resumed_run = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)  # runs/latest moves on
        if _finished(resumed_run, run):
            print(f"{resumed_run} is finished; its encoder is {resumed_run / 'encoder.safetensors'}")
            return 0
    # Seconds of imports wait until the options are known to be right.
    import pytorch_lightning as pl

    from gwtwins.encoders.paired import PairedEncoder
    from gwtwins.encoders.weights import save_encoder
    from gwtwins.ssl import monitors
    from gwtwins.ssl.objectives import Objective
    from gwtwins.ssl.pretrain import Feed, Pretraining, measure_step_seconds
    from gwtwins.ssl.run_plots import plot_run
    from gwtwins.ssl.views import make_views
    from gwtwins.strain.device import choose_device
    from gwtwins.strain.sources import Window, open_source

    optimiser.check()
    if run.steps < 0 or (run.steps == 0 and run.minutes <= 0):
        raise InputError("budget", f"--steps {run.steps} --minutes {run.minutes:g}", "more than nothing")
    if run.checkpoint_every < 1 or run.monitor_every < 1 or run.watch < 0:
        given = f"--checkpoint-every {run.checkpoint_every} --monitor-every {run.monitor_every} --watch {run.watch}"
        raise InputError("monitors", given, "at least 1, 1 and 0")
    if not 0 <= run.seed < 2**32:
        raise InputError("--seed", f"{run.seed}", "0 to 4294967295")
    device = choose_device(run.device)
    pl.seed_everything(run.seed, verbose=False)
    encoder = PairedEncoder(run.encoder, run.encoder_args, shared=run.shared, f_low=run.f_low, f_high=run.f_high)
    window = Window(encoder.rate, encoder.window, run.f_low, run.f_high)
    source = open_source(run.data, window, device, dataclasses.asdict(simulation))
    pl.seed_everything(run.seed, verbose=False)
    encoder = PairedEncoder(
        run.encoder, run.encoder_args, source.detectors, run.shared, source.psds, run.f_low, run.f_high
    )
    objective = Objective(objective_config, encoder.embedding_dim)
    cut = (run.crop, encoder.hop) if encoder.frames else ()
    maker = make_views(run.views, source, augment, run.augment, *cut)
    # The first batch once ahead: what is wrong with the data or the population shows before a folder is claimed.
    maker(run.seed, 0, range(optimiser.batch), 0.0, optimiser.batch)

    out = resumed_run or claim_folder(run.out, new_run_folder())
    module = Pretraining(encoder, objective, optimiser, run.steps)
    feed = Feed(maker, run.seed, run.steps, optimiser.batch, lambda: module.global_step, background=device == "cuda")
    if run.steps == 0:
        seconds = measure_step_seconds(module.to(device), feed)
        run.steps = max(10, round(60 * run.minutes / seconds))
        print(f"{seconds * 1e3:.0f} ms a step: {run.minutes:g} minutes are {run.steps} steps of {optimiser.batch} rows")
        module.steps = feed.steps = run.steps
    last = out / "checkpoints" / "last.ckpt"
    if last.exists() and (made := monitors.steps_of_checkpoint(last)) > run.steps:
        raise InputError(f"--steps {run.steps}", f"{last} has {made} behind it", f"{made} or more")
    flat["steps"], flat["out"], flat["resume"] = run.steps, "", ""  # a repetition goes to a folder of its own
    write_text(out / "config.yaml", yaml.safe_dump(plain(flat), sort_keys=False))
    if out.resolve().parent == Path("runs").resolve():
        point_latest(out)
    print(f"run: {out}")

    checkpoint = monitors.Checkpoint(out / "checkpoints", run.checkpoint_every)
    graceful = monitors.GracefulStop(checkpoint)
    watch = _watcher(source, run.watch) if run.watch else None
    watch_every = max(run.monitor_every, run.steps // 8 // run.monitor_every * run.monitor_every)
    monitor = monitors.Monitor(out, feed, optimiser.batch, run.monitor_every, watch, watch_every)
    began = time.perf_counter()
    with monitors.quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=optimiser.precision,
            max_steps=run.steps,
            max_epochs=-1,
            gradient_clip_val=optimiser.clip or None,
            callbacks=[monitors.Progress(optimiser.batch), monitor, checkpoint, graceful],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, feed, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except SystemExit as ended:  # what Lightning makes of a KeyboardInterrupt
            if graceful.exit_status:
                return graceful.exit_status
            raise KeyboardInterrupt from ended
    if graceful.exit_status:
        print(f"stopped at step {trainer.global_step} of {run.steps}; go on with --resume {out}", file=sys.stderr)
        return graceful.exit_status
    card = {
        "objective": objective_config.objective,
        "views": run.views,
        "data": source.describe(),
        "steps": run.steps,
        "batch": optimiser.batch,
        "seed": run.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "figures": _last_line(out / "metrics.jsonl"),
        "versions": versions(),
        "licence": "GPL-3.0-or-later",
    }
    save_encoder(encoder.cpu(), out, plain(card))
    plot_run(out, encoder, monitor.matrix)
    print(f"encoder: {out / 'encoder.safetensors'} ({card['seconds'] / 60:.1f} minutes)")
    return 0


def _finished(out: Path, run: RunConfig) -> bool:
    """Whether a run's encoder is there (its JSON is written last), and no larger budget is asked for."""
    if not (out / "encoder.json").exists():
        return False
    made = json.loads((out / "encoder.json").read_text()).get("steps", 0)
    return 0 < run.steps <= made


def _last_line(path: Path) -> dict[str, Any]:
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _watcher(source: Any, rows: int) -> Any:
    """A function that scores the frozen encoder on a few labelled rows, or None where they are too few."""
    from gwtwins.probes.watch import LabelledWatch

    if not source.count("labelled"):
        return None
    watch = LabelledWatch(source, rows)
    if not watch.possible:
        print("not watched: too few labelled rows of one class among the first", len(watch.label))
        return None
    return watch


def main() -> None:
    """Entry point of gwtwins-train."""
    sys.exit(run_command(train))


if __name__ == "__main__":
    main()
