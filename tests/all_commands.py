"""Every command once, small, in the current folder: what tests/test_reproducible.py runs in two processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from gwtwins.eval_probe import probe
from gwtwins.probes.embed import embed_command
from gwtwins.scan_strain import scan
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.train_ssl import train
from scan_scene import write_strain

SMALL = ["--bank-size", "64", "--n-labelled", "64", "--n-test", "64", "--device", "cpu"]
SEED = 7


def simulated() -> str:
    """Digest of a training batch and of the test rows, with a waveform bank made anew."""
    source = SimulatedSource(SimulationConfig(bank_size=64, n_labelled=64, n_test=64), Window(), progress=False)
    digest = hashlib.sha256()
    for batch in (source.train_batch(SEED, 3, range(16)), *source.batches("test", 32)):
        digest.update(batch.strain.numpy().tobytes())
    return digest.hexdigest()


def everything() -> None:
    """Simulate, pretrain, embed, probe and scan, into files and folders of these names."""
    Path("simulate.json").write_text(json.dumps(simulated()))
    # Rows enough for two lanes, the threads of a step on a CPU.
    tiny = ["--encoder_args", "{width: 8, hidden: 8, embedding: 16}", "--projector", "32", "--batch", "128"]
    often = ["--steps", "4", "--watch", "0", "--monitor-every", "2", "--checkpoint-every", "2"]
    seed = ["--seed", str(SEED)]
    train([*tiny, *SMALL, *often, *seed, "--out", "pretrain"])
    embed_command(["--weights", "pretrain", "--split", "test", "--out", "embed", *seed, *SMALL])
    few = ["--frac", "40", "--label-counts", "[20]", "--label-draws", "2", "--templates", "20"]
    probe(["--weights", "pretrain", "--out", "probe", *few, *seed, *SMALL])
    Path("strain").mkdir()
    for name in ("H1", "L1"):
        write_strain(Path("strain"), name, 24, None)
    where = ["--weights", "pretrain", "--probe", "probe", "--out", "scan"]
    scan(["strain", *where, "--slides", "5", "--loudest", "1", "--threshold", "-4", "--device", "cpu"])


if __name__ == "__main__":
    torch.set_num_threads(2)  # as conftest.py: sums over another number of threads round differently
    everything()
