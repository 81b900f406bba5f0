"""From data to embeddings.hdf5, to the windows most like a given one, and to TensorBoard's projector.

    python -m gwtwins.probes.embed --data g2net/ --out embeddings.hdf5          embed every window with the newest run
    python -m gwtwins.probes.embed --data strain/ --weights gwtwins/small --out kept/ --projector
    python -m gwtwins.probes.embed embeddings.hdf5 --neighbours 0a1b2c3d4e      look into a file that was written
    python -m gwtwins.probes.embed embeddings.hdf5 --neighbours 1126259462.4 --count 20 --csv near.csv

With no file named, the data are embedded; with one, nothing is computed but what is asked about it. The file holds
id, gps, present, embedding, label and snr of each window (gwtwins.probes.embedding_file); it is written as the
embeddings are made, in constant memory, and appears when it is whole. tb-projector lies beside it.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtwins.strain.command import parse, plain
from gwtwins.strain.errors import EXIT_TERMINATED, InputError, run_command, shown
from gwtwins.strain.simulated import SimulationConfig
from gwtwins.strain.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from gwtwins.encoders.paired import PairedEncoder
    from gwtwins.probes.embedding_file import EmbeddingFile
    from gwtwins.probes.neighbours import Standardiser
    from gwtwins.strain.batch import Batch
    from gwtwins.strain.sources import Source

SPLITS = ("labelled", "test", "unlabelled", "all")


@dataclasses.dataclass
class EmbedConfig:
    """Embedding, and looking at embeddings."""

    data: str = "simulated"
    """simulated, a packed HDF5 file, a folder in the G2Net layout, or strain files (GWOSC HDF5, GWF)
    or folders of them, joined by commas."""
    weights: str = ""
    """Encoder: a run's folder, an encoder.safetensors, or gwtwins/NAME; runs/latest if empty, else the shipped one."""
    out: str = ""
    """A file that ends in .hdf5 or .h5, or a folder for embeddings.hdf5; <run>/embeddings if empty."""
    split: str = "all"
    """labelled, test, unlabelled (what pretraining may see), or all."""
    neighbours: str = ""
    """Id of a window, or a GPS time in it: print the windows most like it."""
    count: int = 10
    """Neighbours to print."""
    csv: str = ""
    """File to write the neighbours to as CSV."""
    json: str = ""
    """File to write the neighbours to as JSON."""
    projector: bool = False
    """Write the folder tb-projector for tensorboard --logdir; 10,000 windows at most."""
    seed: int = 0
    """Seed of the draw of those windows. The embeddings depend on no seed."""
    batch: int = 512
    """Windows embedded at a time."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def check(self, files: list[str]) -> None:
        """Raise InputError for values that cannot be, before anything is computed."""
        from gwtwins.probes.neighbours import MAX_COUNT

        if len(files) > 1:
            raise InputError(files[1], "a second file", "one file of embeddings")
        if files and (self.data != "simulated" or self.weights or self.out):
            raise InputError(files[0], "is looked into, not written", "it, or --data, --weights and --out")
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}", "is not known", ", ".join(SPLITS))
        for name, low, high in (("count", 1, MAX_COUNT), ("seed", 0, 2**63 - 1), ("batch", 1, 1 << 16)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"--{name}", f"{getattr(self, name)}", f"{low} to {high}")
        if (self.csv or self.json) and not self.neighbours:
            raise InputError("--csv" if self.csv else "--json", "without --neighbours", "an id or a GPS time there")


def embed_command(argv: list[str] | None = None) -> int:
    """Parse, embed or open, look, write; the exit status."""
    (config, simulation), flat = parse(
        "gwtwins-embed", __doc__, [EmbedConfig, SimulationConfig], argv, positional="files"
    )
    config.check(flat["files"])

    from gwtwins.probes.embedding_file import EmbeddingFile
    from gwtwins.probes.neighbours import Standardiser, find_window
    from gwtwins.probes.projector import projector_folder, write_projector

    path = Path(flat["files"][0]) if flat["files"] else embed_data(config, simulation)
    with EmbeddingFile(path) as file:
        n, d, e = file.shape
        of = f"each of {' '.join(file.detectors)}, encoder {shown(file.weights)}"
        print(f"{path}: {n:,} windows, {e} numbers for {of}")
        folder = projector_folder(path) if config.projector else None
        row = find_window(file, config.neighbours) if config.neighbours else None
        standard = Standardiser(file) if folder or row is not None else None
        if row is not None:
            look_around(config, file, row, standard)
        if folder:
            rows = write_projector(folder, file, config.seed, standard)
            print(f"{rows:,} windows: tensorboard --logdir {folder}")
    return 0


def embed_data(config: EmbedConfig, simulation: SimulationConfig) -> Path:
    """Embed the split with the frozen encoder and write embeddings.hdf5; its path.

    Raises:
        InputError: the file or, with --projector, its folder is there; no rows; a detector that the encoder does
        not know; an embedding that is not finite (the row is named).
    """
    from gwtwins.encoders.weights import find_encoder, load_encoder
    from gwtwins.probes.embedding_file import EmbeddingWriter, refuse_existing
    from gwtwins.probes.features import fingerprint
    from gwtwins.probes.projector import projector_folder
    from gwtwins.strain.device import choose_device
    from gwtwins.strain.progress import progress_bar
    from gwtwins.strain.sources import Window, open_source

    device = choose_device(config.device)
    weights = find_encoder(config.weights)
    path = _result_file(config.out, weights)
    refuse_existing(path)
    if config.projector:
        projector_folder(path)
    encoder = load_encoder(weights, device)
    window = Window(encoder.rate, encoder.window, encoder.f_low, encoder.f_high)
    source = open_source(config.data, window, device, dataclasses.asdict(simulation))
    splits = parts(source, config.split)
    for split in splits:
        source.prepare(split)
    total = sum(source.count(split) for split in splits)
    about = {
        "encoder": fingerprint(encoder),
        "weights": weights,
        "window": encoder.window,
        "split": config.split,
        "seed": config.seed,
        "data": plain(source.describe()),
        "versions": versions(),
    }
    with EmbeddingWriter(path, encoder.detectors, encoder.embedding_dim, total, about) as out:
        with progress_bar(total, f"embedding {config.split}", "row") as bar:
            for batch, embedding, present in embedded(encoder, source, splits, config.batch):
                known = {"label": batch.label, "snr": batch.truth.get("snr")}
                values = {key: None if value is None else value.cpu().numpy() for key, value in known.items()}
                out.add(batch.id, batch.gps.cpu().numpy(), present.cpu().numpy(), embedding.cpu().numpy(), **values)
                bar.update(len(batch))
        if out.rows != total:
            raise RuntimeError(f"the source announced {total} rows and gave {out.rows}")
    return path


def parts(source: Source, split: str) -> list[str]:
    """The splits of ``source`` that make up ``split``.

    "all" goes through the parts that have labels first: a recorded set gives labels only with splits that have
    nothing but labelled rows. Strain without labels has one part only.
    """
    held = [name for name in ("labelled", "test", "submission") if split == "all" and source.count(name)]
    held = held or [split]
    if not sum(source.count(name) for name in held):
        named = " or ".join(name for name in SPLITS[:3] if source.count(name))
        raise InputError(source.spec, f"no rows in split {split}", f"--split {named}" if named else "windows")
    return held


def embedded(
    encoder: PairedEncoder, source: Source, splits: list[str], batch_size: int
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Each batch of the splits, its embedding (B, D, E) float32 and present (B, D), D the encoder's detectors.

    Detectors that the encoder knows and the data lack count as absent.
    """
    import torch

    from gwtwins.probes.features import arrange, check_detectors, check_finite

    check_detectors(source, encoder.detectors)
    for split in splits:
        for batch in source.batches(split, batch_size):
            strain, present = arrange(batch, source.detectors, encoder.detectors)
            with torch.inference_mode():
                embedding = encoder(strain, present).float()
            check_finite(embedding, batch)
            yield batch, embedding, present


def look_around(config: EmbedConfig, file: EmbeddingFile, row: int, standard: Standardiser | None) -> None:
    """Print the neighbours of a row, and write them where that was asked."""
    from gwtwins.probes.neighbours import nearest, table, write_csv, write_json

    query, found = nearest(file, row, config.count, standard)
    print(table(query, found))
    if config.csv:
        write_csv(Path(config.csv), found)
    if config.json:
        about: dict[str, Any] = {"file": file.where, "encoder": file.encoder, "weights": file.weights}
        write_json(Path(config.json), query, found, about)


def _result_file(out: str, weights: str) -> Path:
    from gwtwins.encoders.weights import result_folder

    path = Path(out) if out else result_folder(weights, "embeddings")
    return path if path.suffix in (".hdf5", ".h5") and not path.is_dir() else path / "embeddings.hdf5"


def main() -> None:
    """Entry point of gwtwins-embed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(run_command(embed_command))


if __name__ == "__main__":
    main()
