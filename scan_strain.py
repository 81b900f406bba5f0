"""Search strain of any length with a frozen encoder and its probe, and write what looks like a merger.

    python scan_strain.py H-H1_*.hdf5 L-L1_*.hdf5       GWOSC files; newest run and its probe
    python scan_strain.py strain/ --weights runs/real --processes 8
    python scan_strain.py month/ --scheduler tcp://head:8786 --out month-scan

Files (GWOSC HDF5, GWF frames, the MLGWSC-1 layout) and folders of them, of one to four detectors that come and go.
Detectors are looked at together; one that is missing, vetoed or gated at a moment counts there as one that heard noise.
Time slides of the same strain give the background, and each trigger its false-alarm rate.

The result's folder holds triggers.csv (loudest first), events.hdf5 (the layout that the evaluation of the MLGWSC-1
challenge reads), scan.json (what was analysed and what was not, the background), plots, and scan.html, a page of it
all. A scan that was interrupted goes on where it stopped when the same command is given again with --out its folder, to
the same result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtwins.strain.command import parse, plain, write_bytes, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.versions import versions

if TYPE_CHECKING:
    from gwtwins.probes.background import Background
    from gwtwins.probes.scan import Scan
    from gwtwins.probes.triggers import Series
    from gwtwins.strain.coverage import Span

BLOCKS = "blocks"
"""Folder in the result's where a scan keeps its work until it is done."""
YEAR = 365.25 * 86400.0  # s


@dataclasses.dataclass
class ScanConfig:
    """The scan."""

    weights: str = ""
    """Encoder: a run's folder, an encoder.safetensors, or gwtwins/NAME; runs/latest if empty, else the shipped one."""
    probe: str = ""
    """Saved probe of that encoder: a folder or its probe.safetensors; the folder probe beside the weights if empty."""
    out: str = ""
    """Folder of the result; <run>/scan if empty."""
    required_flags: str = ""
    """Data quality that a second must pass, GWOSC's short names joined by commas; DATA, CBC_CAT1 and CBC_CAT2, as far
    as a file has them, if empty."""
    channel: str = ""
    """Channel of frame files, with or without the detector's prefix; the only channel of strain if empty."""
    stride: float = 0.1
    """Seconds between windows: rounded down to a whole number of the encoder's frames, and up to one. The shipped
    encoders' are 0.125 s long: 0.1 becomes 0.125, and 0.3 becomes 0.25."""
    threshold: float | None = None
    """Lowest statistic of a trigger; if not given, two robust standard deviations above the scan's median, or what
    leaves the 10,000 loudest."""
    apart: float = 2.0
    """Seconds within which the loudest window stands for all: windows closer than their own length share strain."""
    min_detectors: int = 1
    """Detectors a window must be there in. Where one alone was recording, nothing tells a glitch from a merger; 2
    leaves those moments out, and with them mergers like GW200129, during which Livingston was vetoed."""
    slides: int = 200
    """Time slides of each stretch of strain (up to 17 minutes, in which there is place for 340), at most; short ones
    allow fewer. 0: no background."""
    slide: float = 3.0
    """Seconds by which one time slide differs from the next: more than a window, so that no signal meets itself."""
    loudest: int = 5
    """Triggers that get a picture of their strain."""
    processes: int = 0
    """Processes that compute, each on one core; 0 for all cores (1 on a GPU). The result does not depend on it."""
    scheduler: str = "local"
    """Address of a Dask scheduler, such as tcp://head:8786, whose workers see the same files and --out; or local."""
    keep_blocks: bool = False
    """Keep the encoder's frames and the whitened strain, <out>/blocks: about 75 MB an hour of three detectors."""
    batch: int = 16
    """Pieces of 16 s that go through the encoder at a time."""
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
        if not self.slide <= 600:
            raise InputError("--slide", f"{self.slide:g} s", "up to 600 s")
        for name, low in (("min_detectors", 1), ("loudest", 0), ("batch", 1), ("slides", 0), ("processes", 0)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')}", f"{getattr(self, name)}", f"at least {low}")


def scan(argv: list[str] | None = None) -> int:
    """Parse, search, write; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    (config,), flat = parse("scan_strain.py", __doc__, [ScanConfig], argv, positional="files")
    config.check()
    if not flat["files"]:
        raise InputError("scan_strain.py", "no files given", "GWOSC HDF5, GWF or MLGWSC-1 files, or folders of them")
    began = time.perf_counter()

    from gwtwins.encoders.weights import describe_weights, find_encoder, find_weights, load_encoder, result_folder
    from gwtwins.probes.features import fingerprint
    from gwtwins.probes.linear import LinearProbe
    from gwtwins.probes.scan import ScanSettings
    from gwtwins.probes.scan import scan as search
    from gwtwins.probes.scan_blocks import BLOCK_SECONDS
    from gwtwins.probes.scan_folder import describe_data, held_scan_folder, identity
    from gwtwins.probes.scan_page import write_page
    from gwtwins.probes.scan_workers import LOCAL, workers
    from gwtwins.probes.triggers import write_events, write_triggers
    from gwtwins.strain.device import choose_device
    from gwtwins.strain.processes import usable_cores
    from gwtwins.strain.strain_index import index_strain

    device = choose_device(config.device)
    weights = find_encoder(config.weights)
    encoder = load_encoder(weights, device)
    fitted = config.probe or str(find_weights(weights).parent / "probe")
    probe = LinearProbe.load(fitted)
    probe.check_encoder(fingerprint(encoder), encoder.detectors, fitted)
    if config.slide < encoder.window:
        expected = f"at least a window, {encoder.window:g} s: else a signal meets itself in the background"
        raise InputError("--slide", f"{config.slide:g} s", expected)
    print(f"encoder: {weights}, probe: {fitted}")

    if config.scheduler != LOCAL and device != "cpu":
        raise InputError("--device", f"{device} with --scheduler", "cpu: the cluster's workers compute")
    flags = [name for name in config.required_flags.split(",") if name] or None
    index = index_strain(flat["files"], flags, encoder.detectors, config.channel or None)
    for note in index.notes:
        print(note)
    if config.min_detectors > len(index.detectors):
        expected = f"at most the {len(index.detectors)} of the files"
        raise InputError("--min-detectors", f"{config.min_detectors}", expected)
    settings = ScanSettings(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ScanSettings)})
    out = Path(config.out) if config.out else result_folder(weights, "scan")
    belongs = identity(index, encoder, probe, settings)
    # A process takes seconds to start: not for less strain than it works through meanwhile.
    worthwhile = math.ceil(total(index.spans) / BLOCK_SECONDS)
    processes = min(config.processes or usable_cores(), worthwhile) if device == "cpu" else 1
    with held_scan_folder(out, belongs, BLOCKS) as going_on:
        if going_on:
            print(f"going on with the scan in {out}")
        with workers(processes, config.scheduler) as crew:
            found = search(index, encoder, probe, out / BLOCKS, settings, crew)

        write_triggers(out / "triggers.csv", found.triggers, encoder.detectors)
        write_events(out / "events.hdf5", found.triggers)
        draw(out, found, config.loudest, (encoder.f_low, encoder.f_high))
        series = found.series
        report = {
            "command": shlex.join(["python", "scan_strain.py", *argv]),
            "config": {
                **flat,
                "weights": weights,
                "probe": fitted,
                "threshold": found.threshold,
                "stride": series.stride,
            },
            "data": describe_data(index),
            "encoder": describe_weights(weights),
            "probe": {"features": probe.features.kind, "encoder": probe.encoder, **probe.about},
            "statistic_of_noise": series.base,
            "windows": {
                "count": len(series),
                "by_network": series.windows_by_network(),
                "seconds": series.window,
                "stride": series.stride,
                "stride_asked": config.stride,
            },
            "triggers": len(found.triggers),
            "background": background_report(found.background, series),
            "analysed_seconds": {name: total(spans) for name, spans in found.analysed.items()},
            "analysed_seconds_by_network": {
                name: round(count * series.stride, 3) for name, count in series.windows_by_network().items()
            },
            "analysed": {name: listed(spans) for name, spans in found.analysed.items()},
            "not_analysed": {name: listed(spans) for name, spans in found.left_out.items()},
            "notes": list(index.notes),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_by_stage": found.seconds,
            "versions": versions(),
        }
        write_text(out / "scan.json", json.dumps(plain(report), indent=2, allow_nan=False) + "\n")
        if not config.keep_blocks:
            shutil.rmtree(out / BLOCKS)
        print(summary(found, config.stride))
        print(f"triggers: {out / 'triggers.csv'}")
        print(f"page: {write_page(out)}")
    return 0


def background_report(background: Background, series: Series) -> dict[str, Any]:
    """The background for scan.json: live time, floor and histogram of each network of two or more detectors."""
    from gwtwins.probes.false_alarm_rate import YEAR

    spacing = series.stride
    networks: dict[str, dict[str, Any]] = {}
    for network in sorted({int(n) for n in series.network} | set(background.histogram)):
        names = series.names(network)
        seconds = float(background.windows[network]) * spacing
        if len(names) < 2:
            networks[" ".join(names)] = {"why_none": "one detector alone: nothing to slide it against"}
        elif not seconds:
            networks[" ".join(names)] = {"why_none": "too little strain of these detectors to slide"}
        else:
            networks[" ".join(names)] = {
                "slid_seconds": round(seconds, 3),
                "far_floor_per_year": YEAR / seconds,
                "triggers": int(background.triggers[network]),
                "loudest": background.loudest.get(network),
                "histogram": {
                    "low": background.histogram_low,
                    "bin": background.BIN,
                    "count": background.histogram[network].tolist() if network in background.histogram else [],
                },
            }
    return {"slides": background.slides, "stretches": background.rings, "networks": networks}


def draw(out: Path, found: Scan, loudest: int, band: tuple[float, float]) -> None:
    """The statistic along each stretch of time that the files cover, and the strain around the loudest triggers."""
    from gwtwins.probes import scan_plots
    from gwtwins.probes.plots import png

    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for span in found.spans:
        here = {n: s for n, s in found.analysed.items() if any(x.start < span.end and x.end > span.start for x in s)}
        if here:
            figure = scan_plots.statistic(found.series, found.triggers, found.threshold, here, span)
            write_bytes(folder / f"statistic-{span.start:.0f}.png", png(figure))
    for number, trigger in enumerate(found.triggers[:loudest], 1):
        figure = scan_plots.trigger(trigger, number, found.store.strain, list(found.analysed), *band)
        write_bytes(folder / f"trigger-{number}.png", png(figure))


def total(spans: Sequence[Span]) -> float:
    """Seconds in ``spans``."""
    return round(sum(span.end - span.start for span in spans), 3)


def listed(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """``spans`` for JSON."""
    return [{"start": s.start, "end": s.end, **({"why": s.why} if s.why else {})} for s in spans]


def summary(found: Scan, stride: float) -> str:
    """The background and the loudest triggers for the terminal."""
    series, background, triggers = found.series, found.background, found.triggers
    names = series.detectors
    whole = "" if math.isclose(stride, series.stride) else f" (--stride {stride:g} made a whole number of frames)"
    lines = [
        f"{len(series):,} windows, one every {series.stride:g} s{whole}; "
        f"{len(triggers)} triggers of a statistic of {found.threshold:.2f} and more"
    ]
    for network in [i for i in range(256) if background.windows[i]]:
        seconds = background.windows[network] * series.stride
        floor = f"no rate below {_rate(YEAR / seconds)} can be told"
        lines.append(f"background of {' '.join(series.names(network))}: {_time(seconds)} of slid strain; {floor}")
    if not background.windows.any():
        lines.append("no background: it takes two detectors at the same time, and some ten seconds of them")
    if triggers:
        own = " ".join(f"{name:>6s}" for name in names)
        lines.append(f"{'':>3s} {'GPS time (s)':>15s} {'stat':>7s} {own}  false alarms")
    for number, t in enumerate(triggers[:5], 1):
        own = " ".join(f"{t.part[name]:6.2f}" if name in t.part else "     -" for name in names)
        far = "unknown" if t.far is None else ("< " if t.far.is_limit else "") + _rate(t.far.value)
        lines.append(f"{number:>3d} {t.time:15.2f} {t.stat:7.2f} {own}  {far}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, length in (("years", YEAR), ("days", 86400.0), ("hours", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def _rate(per_year: float) -> str:
    """A rate in the unit that suits it."""
    for unit, length in (("year", YEAR), ("day", 86400.0), ("hour", 3600.0)):
        if per_year < 20 * YEAR / length:
            return f"{per_year * length / YEAR:.2g} a {unit}"
    return f"{per_year * 60 / YEAR:.2g} a minute"


def main() -> None:
    """Entry point of gwtwins-scan."""
    sys.exit(run_command(scan))


if __name__ == "__main__":
    main()
