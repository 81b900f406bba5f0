"""Pretrain an encoder on unlabelled strain and export it.

    python train_ssl.py --views detector                    simulated data, nothing to download, 4 minutes
    python train_ssl.py --data windows.hdf5 --minutes 60    a packed set of windows
    python train_ssl.py --config configs/real_noise.yaml --noise FILES    a ready-made run; options override it
    python train_ssl.py --resume runs/latest                go on with an interrupted run

The run's folder holds encoder.safetensors and encoder.json (what eval_probe.py and scan_strain.py read), the resolved
config.yaml, metrics.jsonl, TensorBoard logs, checkpoints and plots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gwtwins.ssl.augment import AugmentConfig
from gwtwins.strain.command import (
    claim_folder,
    disk_faults,
    hold_folder,
    new_run_folder,
    parse,
    plain,
    point_latest,
    read_config,
    write_text,
)
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.simulated import SimulationConfig
from gwtwins.strain.small_file import read_json
from gwtwins.strain.versions import versions

if TYPE_CHECKING:
    from gwtwins.ssl.distributed import Place
    from gwtwins.ssl.pretrain import Pretraining
    from gwtwins.ssl.resumption import Checkpoint


@dataclasses.dataclass
class RunConfig:
    """The run."""

    views: str = "detector"
    """What two views are: detector (H1 or L1 against V1), pairs (of detectors), noise (draws) or augment."""
    augment: bool = False
    """Augment the views of any kind (--aug-... options); --views augment always does."""
    crop: float = 1.0
    """Seconds that views are cut to, or up to 0.25 s more; they end in the window's last 0.25 s. 0 for whole windows.
    An encoder that makes no frames in time always takes whole windows."""
    data: str = "simulated"
    """simulated, a packed HDF5 file, a folder in the G2Net layout, or strain files (GWOSC HDF5, GWF)
    or folders of them, joined by commas."""
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
    devices: int | str = 1
    """Processes on a node, each with its own GPU or its share of the cores, that share a batch; auto for every GPU."""
    nodes: int = 1
    """Nodes; more than one are started by torchrun or srun, see docs/distributed.md."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    monitor_every: int = 50
    """Steps between lines of metrics.jsonl."""
    watch: int = 600
    """Labelled rows on which the frozen encoder is watched during the run; 0 for none. Never used to choose."""
    resume: str = ""
    """Folder of an interrupted run to go on with, by its own config.yaml."""

    def check(self) -> None:
        """Raise InputError for values that no run can have."""
        if self.steps < 0 or (self.steps == 0 and self.minutes <= 0):
            raise InputError("budget", f"--steps {self.steps} --minutes {self.minutes:g}", "more than nothing")
        if self.checkpoint_every < 1 or self.monitor_every < 1 or self.watch < 0:
            given = f"--checkpoint-every {self.checkpoint_every} --monitor-every {self.monitor_every}"
            raise InputError("monitors", f"{given} --watch {self.watch}", "at least 1, 1 and 0")
        if not 0 <= self.seed < 2**32:
            raise InputError("--seed", f"{self.seed}", "0 to 4294967295")


# Options that may be given anew beside --resume: none of them makes it another run.
_ANEW = {"resume", "steps", "minutes", "device", "devices", "nodes", "checkpoint_every", "monitor_every", "watch"}
_MAY_CHANGE = {*_ANEW, "out"}


def resumed(folder: str, argv: list[str]) -> list[str]:
    """The command line that goes on with the run in ``folder``: its own config, and what was typed beside --resume."""
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise InputError(folder, "holds no config.yaml", "the folder of an interrupted run")
    for word in argv:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in _ANEW:
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
    typed = argv = list(sys.argv[1:] if argv is None else argv)
    description = __doc__.split("\n")[0]
    folder = next((b for a, b in zip(argv, [*argv[1:], ""], strict=True) if a == "--resume"), "")
    folder = folder or next((a.partition("=")[2] for a in argv if a.startswith("--resume=")), "")
    if folder:
        argv = resumed(folder, argv)
    options, flat = parse("train_ssl.py", description, concerns(), argv)
    run, optimiser = options[:2]
    going_on = None
    if folder:
        going_on = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)  # runs/latest moves on
        if _finished(going_on, run):
            print(f"{going_on} is finished; its encoder is {going_on / 'encoder.safetensors'}")
            return 0
    # Seconds of imports wait until the options are known to be right.
    from gwtwins.ssl import distributed
    from gwtwins.strain.device import choose_device

    run.check()
    optimiser.check()
    device = choose_device(run.device)
    place = distributed.find_place(run.devices, run.nodes, device)
    if isinstance(place, int):
        return distributed.launch(train, typed, place)
    return distributed.together(place, device, lambda: _pretrain(options, flat, going_on, place, device))


def _pretrain(options: list[Any], flat: dict[str, Any], going_on: Path | None, place: Place, device: str) -> int:
    """The run, in the process of it that ``place`` says; the exit status."""
    import pytorch_lightning as pl

    from gwtwins.encoders.paired import PairedEncoder
    from gwtwins.encoders.weights import save_encoder
    from gwtwins.ssl import distributed, monitors
    from gwtwins.ssl.fit import fit
    from gwtwins.ssl.lanes import in_lanes
    from gwtwins.ssl.objectives import Objective
    from gwtwins.ssl.pretrain import Feed, Pretraining, measure_step_seconds
    from gwtwins.ssl.resumption import Checkpoint, threads
    from gwtwins.ssl.run_plots import plot_run
    from gwtwins.ssl.sync_batchnorm import synchronise_batchnorm
    from gwtwins.ssl.views import make_views
    from gwtwins.strain.mergers import mergers_of
    from gwtwins.strain.sources import Window, open_source

    run, optimiser, objective_config, simulation, augment = options
    with distributed.first_on_node(place):
        pl.seed_everything(run.seed, verbose=False)
        encoder = PairedEncoder(run.encoder, run.encoder_args, shared=run.shared, f_low=run.f_low, f_high=run.f_high)
        window = Window(encoder.rate, encoder.window, run.f_low, run.f_high)
        source = open_source(run.data, window, device, dataclasses.asdict(simulation))
        pl.seed_everything(run.seed, verbose=False)
        encoder = PairedEncoder(
            run.encoder, run.encoder_args, source.detectors, run.shared, source.psds, run.f_low, run.f_high
        )
        if encoder.evidence and source.psds:
            encoder.start_from_mergers(mergers_of(source, simulation.population))
        objective = Objective(objective_config, encoder.embedding_dim)
        cut = (run.crop, encoder.hop) if encoder.frames else ()
        maker = make_views(run.views, source, augment, run.augment, *cut)
        module = Pretraining(encoder, objective, optimiser, run.steps)
        start, share, ahead = (lambda: module.global_step), (place.rank, place.world), device == "cuda"
        feed = Feed(maker, run.seed, run.steps, optimiser.batch, start, *share, ahead)
        # The first batch once ahead: what is wrong with the data or the population shows before a folder is claimed.
        feed.make(0)
    if place.world > 1:
        synchronise_batchnorm(encoder)
        synchronise_batchnorm(objective.projector)

    out = going_on or Path(run.out or new_run_folder())
    with contextlib.ExitStack() as held:
        if place.first:  # it alone writes, and tells the others where
            held.enter_context(hold_folder(out, out / "checkpoints"))
            held.enter_context(disk_faults(out, f"room; then --resume {out} goes on"))
            if not going_on:
                claim_folder(str(out), out)
        out = Path(distributed.told(str(out)))
        if run.steps == 0:
            with in_lanes(module, feed, device):
                seconds = measure_step_seconds(module.to(device), feed)
            run.steps = int(distributed.told(f"{max(10, round(60 * run.minutes / seconds))}"))
            if place.first:
                budget = f"{run.minutes:g} minutes are {run.steps} steps of {optimiser.batch} rows"
                print(f"{seconds * 1e3:.0f} ms a step: {budget}")
            module.steps = feed.steps = run.steps
        own = {name: value for name, value in plain(flat).items() if name not in _MAY_CHANGE}
        checkpoint = Checkpoint(out / "checkpoints" / "last.ckpt", run.checkpoint_every, own)
        if computed_with := _going_on_with(checkpoint, module, place):
            held.enter_context(threads(computed_with) if device == "cpu" else contextlib.nullcontext())
        watching: list[Any] = []
        if place.first:
            flat["steps"], flat["out"], flat["resume"] = run.steps, "", ""  # a repetition goes to a folder of its own
            write_text(out / "config.yaml", yaml.safe_dump(plain(flat), sort_keys=False))
            if out.resolve().parent == Path("runs").resolve():
                point_latest(out)
            print(f"run: {out}")
            watch = _watcher(source, run.watch) if run.watch else None
            watch_every = max(run.monitor_every, run.steps // 8 // run.monitor_every * run.monitor_every)
            monitor = monitors.Monitor(out, feed, optimiser.batch, run.monitor_every, watch, watch_every)
            watching = [monitors.Progress(optimiser.batch), monitor]
        began = time.perf_counter()
        with in_lanes(module, feed, device):
            status = fit(module, feed, checkpoint, watching, place, device)
        if status or not place.first:
            return status
        seconds = time.perf_counter() - began
        if going_on:  # what earlier sessions took is in the lines that they left
            seconds = max(seconds, monitors.seconds_of(out / "metrics.jsonl", optimiser.batch))
        card = {
            "objective": objective_config.objective,
            "views": run.views,
            "data": source.describe(),
            "steps": run.steps,
            "batch": optimiser.batch,
            "seed": run.seed,
            "seconds": round(seconds, 1),
            "figures": _last_line(out / "metrics.jsonl"),
            "versions": versions(),
            "licence": "GPL-3.0-or-later",
        }
        save_encoder(encoder.cpu(), out, plain(card))
        plot_run(out, encoder, monitor.matrix)
        print(f"encoder: {out / 'encoder.safetensors'} ({card['seconds'] / 60:.1f} minutes)")
    return 0


def _going_on_with(checkpoint: Checkpoint, module: Pretraining, place: Place) -> int:
    """The threads that the checkpoint's run computed with; 0 where there is no checkpoint yet. One process looks."""
    from gwtwins.ssl import distributed
    from gwtwins.ssl.resumption import check_checkpoint

    path, made, threads = checkpoint.path, 0, 0
    if place.first and path.exists():
        made, threads = check_checkpoint(path, module, checkpoint.options)
        if made > module.steps:
            raise InputError(f"--steps {module.steps}", f"{path} has {made} behind it", f"{made} or more")
    threads = distributed.maximum(threads)
    if threads and not path.exists():
        raise InputError(path, f"process {place.rank} does not see it", "a folder that all nodes share")
    return threads


def _finished(out: Path, run: RunConfig) -> bool:
    """Whether a run's encoder is there (its JSON is written last), and no larger budget is asked for."""
    if not (out / "encoder.json").exists():
        return False
    card = read_json(out / "encoder.json", 1 << 20, "what is written beside an encoder")
    made = card.get("steps") if isinstance(card, dict) else None
    return isinstance(made, int) and 0 < run.steps <= made


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
