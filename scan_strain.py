"""Slide a frozen encoder and its probe over real strain, and write what looks like a merger.

    python scan_strain.py H-H1_*.hdf5 L-L1_*.hdf5       GWOSC files; newest run and its probe
    python scan_strain.py strain/ --weights runs/real --probe runs/real/probe --stride 0.05

Files of different detectors at the same time are looked at together; a detector that is missing, vetoed or gated at a
moment counts there as one that heard noise. The result's folder holds triggers.csv (loudest first), events.hdf5 (the
layout that the evaluation of the MLGWSC-1 challenge reads), scan.json (what was analysed and what was not) and plots.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtwins.strain.command import claim_folder, parse, plain, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.versions import versions

if TYPE_CHECKING:
    from gwtwins.encoders.paired import PairedEncoder
    from gwtwins.probes.scan import Series
    from gwtwins.probes.triggers import Trigger
    from gwtwins.strain.coverage import Span
    from gwtwins.strain.recording import Conditioned


@dataclasses.dataclass
class ScanConfig:
    """The scan."""

    weights: str = ""
    """Encoder: a run's folder, an encoder.safetensors, or gwtwins/NAME; runs/latest if empty, else the shipped one."""
    probe: str = ""
    """Saved probe of that encoder: a folder or its probe.safetensors; the folder probe beside the weights if empty."""
    out: str = ""
    """Folder of the result; <run>/scan if empty."""
    stride: float = 0.1
    """Seconds between windows."""
    threshold: float | None = None
    """Lowest statistic of a trigger; two robust standard deviations above the scan's median if not given."""
    apart: float = 2.0
    """Seconds between triggers, at least: windows closer than their own length share strain."""
    min_detectors: int = 1
    """Detectors a window must be there in. Where one alone was recording, nothing tells a glitch from a merger; 2
    leaves those moments out, and with them mergers like GW200129, during which Livingston was vetoed."""
    loudest: int = 5
    """Triggers that get a picture of their strain."""
    batch: int = 256
    """Windows embedded at a time."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def check(self) -> None:
        """Raise InputError for values no scan can have."""
        if not 1e-3 <= self.stride <= 60:
            raise InputError("--stride", f"{self.stride:g} s", "0.001 to 60 s")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError("--threshold", f"{self.threshold}", "a finite statistic")
        if not 0 < self.apart <= 3600:
            raise InputError("--apart", f"{self.apart:g} s", "more than 0, up to 3600 s")
        for name, low in (("min_detectors", 1), ("loudest", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')}", f"{getattr(self, name)}", f"at least {low}")


@dataclasses.dataclass
class Strain:
    """What was read: whitened pieces of all detectors, and which seconds they cover."""

    pieces: list[Conditioned]
    spans: list[Span]
    """GPS time of the files, those that overlap made one."""
    analysed: dict[str, list[Span]]
    left_out: dict[str, list[Span]]


def scan(argv: list[str] | None = None) -> int:
    """Parse, condition, slide, cluster, write; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    (config,), flat = parse("scan_strain.py", __doc__, [ScanConfig], argv, positional="files")
    config.check()
    if not flat["files"]:
        raise InputError("scan_strain.py", "no files given", "GWOSC HDF5 files, or folders of them")
    began = time.perf_counter()

    from gwtwins.encoders.weights import describe_weights, find_encoder, find_weights, load_encoder, result_folder
    from gwtwins.probes.features import fingerprint
    from gwtwins.probes.linear import LinearProbe
    from gwtwins.probes.scan import scan as slide
    from gwtwins.probes.triggers import find_triggers, usual_threshold, write_events, write_triggers
    from gwtwins.strain.device import choose_device

    device = choose_device(config.device)
    weights = find_encoder(config.weights)
    encoder = load_encoder(weights, device)
    fitted = config.probe or str(find_weights(weights).parent / "probe")
    probe = LinearProbe.load(fitted)
    probe.check_encoder(fingerprint(encoder), encoder.detectors, fitted)
    print(f"encoder: {weights}, probe: {fitted}")

    strain = read_strain(flat["files"], encoder)
    held = {piece.detector for piece in strain.pieces}
    if config.min_detectors > len(held):
        raise InputError("--min-detectors", f"{config.min_detectors}", f"at most the {len(held)} of these files")
    out = claim_folder(config.out, result_folder(weights, "scan"))
    series = slide(encoder, probe, strain.pieces, config.stride, config.min_detectors, config.batch, device)
    threshold = usual_threshold(series) if config.threshold is None else config.threshold
    band = encoder.f_low, encoder.f_high
    triggers = find_triggers(series, strain.pieces, threshold, config.apart, *band)

    write_triggers(out / "triggers.csv", triggers, encoder.detectors)
    write_events(out / "events.hdf5", triggers)
    draw(out, series, strain, triggers, threshold, config.loudest, band)
    report = {
        "command": shlex.join(["python", "scan_strain.py", *argv]),
        "config": {**flat, "weights": weights, "probe": fitted, "threshold": threshold},
        "encoder": describe_weights(weights),
        "probe": {"features": probe.features.kind, "encoder": probe.encoder, **probe.about},
        "statistic_of_noise": series.base,
        "windows": {"count": len(series), "by_network": series.windows_by_network()},
        "triggers": len(triggers),
        "far_per_year": None,
        "analysed_seconds": {name: total(spans) for name, spans in strain.analysed.items()},
        "analysed": {name: listed(spans) for name, spans in strain.analysed.items()},
        "not_analysed": {name: listed(spans) for name, spans in strain.left_out.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
    write_text(out / "scan.json", json.dumps(plain(report), indent=2, allow_nan=False) + "\n")
    print(summary(series, triggers, threshold))
    print(f"triggers: {out / 'triggers.csv'}")
    return 0


def read_strain(names: Sequence[str], encoder: PairedEncoder) -> Strain:
    """Read and condition the files, each whole, at the encoder's own rate."""
    from gwtwins.probes.scan import join_pieces
    from gwtwins.strain.coverage import Span, analysed, left_out, merged
    from gwtwins.strain.gwosc import read_gwosc
    from gwtwins.strain.progress import progress_bar
    from gwtwins.strain.real_noise import strain_files
    from gwtwins.strain.recording import condition_recording

    files = list(dict.fromkeys(path.resolve() for name in names for path in strain_files(name)))
    pieces: list[Conditioned] = []
    spans: list[Span] = []
    missing: dict[str, list[Span]] = {}
    with progress_bar(len(files), "conditioning", "file") as bar:
        for path in files:
            recording = read_gwosc(path)
            if recording.detector not in encoder.detectors:
                expected = f"strain of the encoder's detectors: {' '.join(encoder.detectors)}"
                raise InputError(path, f"is of {recording.detector}", expected)
            found = condition_recording(recording, encoder.rate, encoder.f_low, encoder.f_high)
            pieces += found
            spans.append(Span(recording.gps_start, recording.gps_end))
            missing.setdefault(recording.detector, []).extend(left_out(recording, found))
            bar.update()
    if not pieces:
        raise InputError(names[0], "no stretch of strain is long and good enough", "9 s or more that pass the vetoes")
    held = [name for name in encoder.detectors if name in missing]
    covered = {name: analysed([piece for piece in pieces if piece.detector == name]) for name in held}
    return Strain(join_pieces(pieces), merged(spans), covered, {name: merged(missing[name]) for name in held})


def draw(
    out: Path,
    series: Series,
    strain: Strain,
    triggers: Sequence[Trigger],
    threshold: float,
    loudest: int,
    band: tuple[float, float],
) -> None:
    """The statistic along each stretch of time that the files cover, and the strain around the loudest triggers."""
    from gwtwins.probes import scan_plots
    from gwtwins.probes.plots import png

    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for span in strain.spans:
        here = {n: s for n, s in strain.analysed.items() if any(x.start < span.end and x.end > span.start for x in s)}
        figure = scan_plots.statistic(series, triggers, threshold, here, span)
        write_bytes(folder / f"statistic-{span.start:.0f}.png", png(figure))
    for number, trigger in enumerate(triggers[:loudest], 1):
        figure = scan_plots.trigger(trigger, number, strain.pieces, list(strain.analysed), *band)
        write_bytes(folder / f"trigger-{number}.png", png(figure))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_bytes(data)
    os.replace(partial, path)


def total(spans: Sequence[Span]) -> float:
    """Seconds in ``spans``."""
    return round(sum(span.end - span.start for span in spans), 3)


def listed(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """``spans`` for JSON."""
    return [{"start": s.start, "end": s.end, **({"why": s.why} if s.why else {})} for s in spans]


def summary(series: Series, triggers: Sequence[Trigger], threshold: float) -> str:
    """The loudest triggers as a small table for the terminal."""
    names = series.detectors
    lines = [f"{len(series):,} windows, {len(triggers)} triggers of a statistic of {threshold:.2f} and more"]
    if triggers:
        lines.append(f"{'':>3s} {'GPS time (s)':>15s} {'stat':>7s} " + " ".join(f"{name:>6s}" for name in names))
    for number, t in enumerate(triggers[:5], 1):
        own = " ".join(f"{t.part[name]:6.2f}" if name in t.part else "     -" for name in names)
        lines.append(f"{number:>3d} {t.time:15.2f} {t.stat:7.2f} {own}")
    return "\n".join(lines)


def main() -> None:
    """Entry point of gwtwins-scan."""
    sys.exit(run_command(scan))


if __name__ == "__main__":
    main()
