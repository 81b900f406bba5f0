"""A search of strain of any length: frames once, the statistic of every window, triggers, and their false-alarm rates.

The strain goes through the encoder's convolutions in blocks of GPS time (`gwtwins.probes.scan_blocks`). Everything
after that reads their frames again: the windows (`gwtwins.probes.scan_windows`), their statistic
(`gwtwins.probes.frame_statistic`), its peaks (`gwtwins.probes.triggers`) and the background by time slides
(`gwtwins.probes.background`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.background import (
    Background,
    SlideSettings,
    own_statistics,
    read_slid,
    rings_of,
    slide_ring,
)
from gwtwins.probes.frame_statistic import FrameStatistic
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan_blocks import BlockStore, Grid, compute_blocks
from gwtwins.probes.scan_coverage import coverage
from gwtwins.probes.scan_windows import Windows
from gwtwins.probes.scan_workers import Workers
from gwtwins.probes.triggers import (
    MOST_TRIGGERS,
    TIME_TOLERANCE,
    Series,
    Trigger,
    merger_time,
    peaks,
    reach_of,
    usual_threshold,
)
from gwtwins.strain.coverage import Span
from gwtwins.strain.errors import InputError
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.strain_index import StrainIndex

# That one process computes in a row. It reads the strain around them too, for their noise: a tenth more for 8 blocks.
_TASK_BLOCKS = 8
_TASK_TRIGGERS = 128  # that one process times in a row


@dataclass(frozen=True)
class ScanSettings:
    """What a scan's result depends on, beside strain, encoder and probe."""

    stride: float = 0.1
    """Seconds between windows, rounded down to a whole number of frames, and up to one."""
    threshold: float | None = None
    """Lowest statistic of a trigger; None for two robust standard deviations above the scan's median, or what leaves
    MOST_TRIGGERS."""
    apart: float = 2.0
    """Seconds within which the loudest window stands for all."""
    min_detectors: int = 1
    """Detectors a window must be there in."""
    slides: int = 200
    """Time slides, at most; 0 for no background."""
    slide: float = 3.0
    """Seconds by which one slide differs from the next."""
    batch: int = 16
    """Rows of 16 s that go through the encoder at a time."""


class NothingToSearch(InputError):
    """No window fits into the strain: there is no result, and nothing worth keeping of it."""


@dataclass
class Scan:
    """The result of a scan."""

    series: Series
    triggers: list[Trigger]
    """The loudest first."""
    threshold: float
    background: Background
    analysed: dict[str, list[Span]]
    """GPS time, for each detector there is strain of."""
    left_out: dict[str, list[Span]]
    """The rest of the files' time, with the reason."""
    spans: list[Span]
    """GPS time of the files of all detectors, those that touch made one."""
    store: BlockStore
    """Frames and whitened strain, as long as its folder is there."""
    seconds: dict[str, float]
    """That each stage took."""


def scan(
    index: StrainIndex,
    encoder: PairedEncoder,
    probe: LinearProbe,
    folder: Path,
    settings: ScanSettings | None = None,
    workers: Workers | None = None,
    progress: bool = True,
) -> Scan:
    """Search the strain; what is in ``folder`` already is not computed again.

    Args:
        index: the strain, of `index_strain`, or of `from_series` for pycbc's and gwpy's TimeSeries.
        encoder: frozen, in eval mode, on the device to compute on.
        probe: fitted to this encoder.
        folder: where the parts of the work are kept; it must belong to this strain, encoder, probe and settings alone.
        settings: of the scan.
        workers: that compute, see `gwtwins.probes.scan_workers.workers`; this process alone if not given.
        progress: bars with the time left on stderr.

    Raises:
        InputError: no window fits, strain of a detector the encoder does not know, an encoder without frames, or a file
            at fault.
    """
    chosen, crew = settings or ScanSettings(), workers or Workers()
    for name in index.detectors:
        if name not in encoder.detectors:
            expected = f"strain of the encoder's detectors: {' '.join(encoder.detectors)}"
            raise InputError(index.of(name)[0].path, f"is of {name}", expected)
    grid = Grid.of(encoder)
    statistic = FrameStatistic.of(encoder, probe)
    store = BlockStore(folder, grid, index.detectors)
    windows = Windows(store, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = grid.blocks_of(index.spans)
    clock = _Clock()
    _compute(index, encoder, store, numbers, chosen.batch, crew, progress)
    clock.lap("frames")
    series = search(windows, numbers, statistic, chosen.min_detectors, step_of(chosen.stride, grid.hop), crew)
    clock.lap("statistic")
    analysed, left_out = coverage(store, numbers, index)
    if not len(series):
        raise NothingToSearch(index.files[0].path, *_nothing(analysed, chosen.min_detectors, series.window))
    threshold = usual_threshold(series) if chosen.threshold is None else chosen.threshold
    at = peaks(series, threshold, chosen.apart)
    if chosen.threshold is None and at.size > MOST_TRIGGERS:
        at = at[:MOST_TRIGGERS]
        threshold = float(series.stat[at[-1]])
    triggers = _triggers(series, at, windows, statistic, crew)
    clock.lap("triggers")
    slides = SlideSettings(
        chosen.slides, chosen.slide, threshold, reach_of(chosen.apart, series.step, series.hop), series.step
    )
    background = slid_background(series, triggers, at, windows, numbers, statistic, slides, crew, progress)
    rated = []
    for i, trigger in enumerate(triggers):
        far, inclusive = background.rates(i)
        rated.append(replace(trigger, far=far, far_inclusive=inclusive))
    clock.lap("background")
    return Scan(series, rated, threshold, background, analysed, left_out, index.spans, store, clock.seconds)


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 3), now


def step_of(stride: float, hop: float) -> int:
    """Frames between windows: ``stride`` seconds rounded down to a whole number of frames, and up to one."""
    return max(1, math.floor(stride / hop + 1e-9))


def _compute(
    index: StrainIndex,
    encoder: PairedEncoder,
    store: BlockStore,
    numbers: Sequence[int],
    batch: int,
    crew: Workers,
    progress: bool,
) -> None:
    """The blocks that are not there yet."""
    missing = [number for number in numbers if not store.has(number)]
    size = max(1, min(_TASK_BLOCKS, math.ceil(len(missing) / crew.count)))
    tasks: list[list[int]] = []
    for number in missing:
        if tasks and number == tasks[-1][-1] + 1 and len(tasks[-1]) < size:
            tasks[-1].append(number)
        else:
            tasks.append([number])
    done = len(numbers) - len(missing)
    with progress_bar(len(numbers), "frames", "block", progress, done=done) as bar:
        if crew.count == 1:  # so that the bar moves within a task
            for task in tasks:
                for _ in compute_blocks(index, encoder, store, task, batch):
                    bar.update()
        else:
            for count in crew.run(_compute_task, [(index, encoder, store, task, batch) for task in tasks]):
                bar.update(count)


def _compute_task(
    index: StrainIndex, encoder: PairedEncoder, store: BlockStore, numbers: Sequence[int], batch: int
) -> int:
    return sum(1 for _ in compute_blocks(index, encoder, store, numbers, batch))


def search(
    windows: Windows,
    numbers: Sequence[int],
    statistic: FrameStatistic,
    at_least: int,
    step: int,
    crew: Workers | None = None,
) -> Series:
    """The statistic of every window of the blocks.

    Windows start at whole multiples of ``step`` frames in GPS time, whatever the files: the same strain gives the same
    windows in any company. A window counts in a detector where all that is pooled of it was recorded well; detectors
    that it does not count in are taken to have heard noise.

    Args:
        windows: of the blocks.
        numbers: of the blocks, ascending.
        statistic: of the windows.
        at_least: detectors a window must be there in.
        step: frames between windows.
        crew: that compute; this process alone if not given.
    """
    wanted = [number for number in numbers if windows.store.good(number).any()]
    tasks = [(windows, number, statistic, at_least, step) for number in wanted]
    found = sorted((crew or Workers()).run(_search_block, tasks), key=lambda block: block[0])
    empty = (np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.uint8))
    return Series(
        np.concatenate([empty[0], *(tick for _, tick, _, _ in found)]),
        np.concatenate([empty[1], *(stat for _, _, stat, _ in found)]),
        np.concatenate([empty[2], *(network for _, _, _, network in found)]),
        statistic.of_noise,
        statistic.detectors,
        statistic.frames,
        statistic.hop,
        step,
    )


def _search_block(
    windows: Windows, number: int, statistic: FrameStatistic, at_least: int, step: int
) -> tuple[int, NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
    """The block's number, and tick, statistic and network of its windows."""
    store = windows.store
    which = [statistic.detectors.index(name) for name in store.detectors]
    first = number * store.grid.block
    frames, ok = windows.of(first, first + store.grid.block)
    own = own_statistics(statistic, frames, ok, which)
    stat, network = statistic.combined(frames, own, ok, which, at_least=at_least)
    tick = np.arange(first, first + store.grid.block)
    kept = np.isfinite(stat) & (tick % step == 0)
    return number, tick[kept], stat[kept], network[kept]


def _triggers(
    series: Series, at: NDArray[np.int64], windows: Windows, statistic: FrameStatistic, crew: Workers
) -> list[Trigger]:
    """`trigger_at` of the windows ``at``, in their order."""
    tasks = []
    for a in range(0, at.size, _TASK_TRIGGERS):
        part = at[a : a + _TASK_TRIGGERS]
        few = replace(series, tick=series.tick[part], stat=series.stat[part], network=series.network[part])
        tasks.append((a, few, windows, statistic))
    found = sorted(crew.run(_triggers_of, tasks), key=lambda task: task[0])
    return [trigger for _, triggers in found for trigger in triggers]


def _triggers_of(
    first: int, series: Series, windows: Windows, statistic: FrameStatistic
) -> tuple[int, list[Trigger]]:
    return first, [trigger_at(series, i, windows, statistic) for i in range(len(series))]


def trigger_at(series: Series, i: int, windows: Windows, statistic: FrameStatistic) -> Trigger:
    """The trigger that window ``i`` of the series is, without a false-alarm rate.

    What a detector adds is how far the window's statistic is above that with noise in its place.
    """
    tick, network = int(series.tick[i]), int(series.network[i])
    store, encoder = windows.store, windows.encoder
    frames, _ = windows.of(tick, tick + 1)
    held = {statistic.detectors.index(name): row for name, row in zip(store.detectors, frames, strict=True)}
    on = {d: held[d] for d in sorted(held) if network >> d & 1}
    whole = statistic.of_window(on)
    part = {
        statistic.detectors[d]: whole - statistic.of_window({e: rows for e, rows in on.items() if e != d}) for d in on
    }
    start = tick * series.hop
    rough = _telling_time(tick, series.hop, whole, statistic.of_versions(windows.occluded(tick, on)), windows.context)
    time = merger_time(rough, tuple(part), store.strain, encoder.f_low, encoder.f_high)
    return Trigger(time, float(series.stat[i]), part, start, TIME_TOLERANCE)


def _telling_time(tick: int, hop: float, whole: float, without: NDArray[np.float64], context: int) -> float:
    """GPS time of what lights a window up: the middle of the stretches without which its statistic falls most.

    A GRU remembers: its frames are loud long after a merger. What they owe to it shows when the merger is taken out.
    """
    fall = np.maximum(whole - without, 0.0)  # (L,)
    peak = int(np.argmax(fall))
    near = slice(max(peak - 1, 0), peak + 2)
    weight = fall[near] + 1e-9
    # A local frame is centred on its own number of hops: half of the filters' length lies on either side of it.
    middle = np.arange(fall.size)[near]
    return (tick - context + float(weight @ middle / weight.sum())) * hop


def slid_background(
    series: Series,
    triggers: Sequence[Trigger],
    at: NDArray[np.int64],
    windows: Windows,
    numbers: Sequence[int],
    statistic: FrameStatistic,
    settings: SlideSettings,
    crew: Workers,
    progress: bool,
) -> Background:
    """The background of the triggers, which are the windows ``at`` of the series."""
    time = np.array([trigger.time for trigger in triggers])
    stat = series.stat[at].astype(np.float64)
    context, low = windows.context * series.hop, settings.threshold
    background = Background(
        series.hop, series.step, series.window, context, time, stat, series.network[at], histogram_low=low
    )
    if settings.slides < 1:
        return background
    store, size = windows.store, windows.store.grid.block
    good = ((number * size, store.good(number)) for number in numbers)
    rings = rings_of(list(good), statistic.frames, statistic.hop, settings)
    paths = [store.folder / f"slides-{ring.first}-{ring.stop}.hdf5" for ring in rings]
    missing = [(windows, statistic, ring, settings, path) for ring, path in zip(rings, paths) if not path.exists()]
    with progress_bar(len(rings), "time slides", "stretch", progress, done=len(rings) - len(missing)) as bar:
        for _ in crew.run(slide_ring, missing):
            bar.update()
    which = [statistic.detectors.index(name) for name in store.detectors]
    for ring, path in zip(rings, paths, strict=True):
        background.add(read_slid(path, ring), which)
    return background


def _nothing(analysed: dict[str, list[Span]], at_least: int, window: float) -> tuple[str, str]:
    """What is wrong with strain in which no window fits, and what is expected."""
    if not any(analysed.values()):
        return "no stretch of strain is long and good enough", "9 s or more that pass the vetoes"
    fault = f"no {window:g} s in which {at_least} detector{'s' * (at_least > 1)} recorded well"
    return fault, "longer or better stretches, or fewer detectors asked for"
