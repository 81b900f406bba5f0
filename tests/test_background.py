"""Time slides: what they move, what they count, and the rates that come of it. The frames are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from gwtwins.probes.background import (
    REMOVED_SECONDS,
    RING_SECONDS,
    Background,
    Ring,
    SlideSettings,
    SlidRing,
    own_statistics,
    read_slid,
    rings_of,
    slide_ring,
    slide_shifts,
)
from gwtwins.probes.false_alarm_rate import YEAR, rate
from gwtwins.probes.frame_statistic import FrameStatistic
from gwtwins.probes.scan import search
from gwtwins.probes.scan_blocks import Block, BlockStore, Grid
from gwtwins.probes.scan_windows import FRAME_UNIT, Frames, Windows
from gwtwins.probes.sliding import loudest_within, sliding_max
from gwtwins.probes.triggers import Series, peaks, reach_of
from gwtwins.strain.errors import InputError

DETECTORS = ("H1", "L1", "V1")
HOP = 1 / 16  # s
N = 32  # frames of a window
GRID = Grid(HOP, 64.0, 256, 1024, 0)  # blocks of 64 s
WINDOW = N * HOP
FIRST = 16 * 1_000_000 // 1024 * 1024  # a frame at which a block starts


SCALE = 10.0  # made-up frames, which lie around 1, are kept as a tenth: those of encoders are less than 1


class Bare(torch.nn.Module):
    """Stands for an encoder that makes no more of its local frames."""

    name, detectors, hop, window, pool_start = "bare", DETECTORS, HOP, WINDOW, 0
    rate, f_low, f_high = 64.0, 5.0, 30.0

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(channels))
        self.evidence_channels = channels - 3  # what is beyond three is taken for evidence

    def local(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2 * N, self.weight.numel())

    def recur(self, local: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return local


def made_up(channels: int = 3, together: float = 1.0, seed: int = 0, mergers: int = 0) -> FrameStatistic:
    """A statistic that asks for loud frames at the same moment, and a little for each detector's own."""
    rng = np.random.default_rng(seed)
    own = 0.1 * SCALE * rng.standard_normal((2, 3, channels))
    both = np.full(channels, SCALE * together, np.float32)
    constant = rng.standard_normal(8)
    evidence = 0.1 * rng.standard_normal(mergers + 1 if mergers else 0).astype(np.float32)
    return FrameStatistic(DETECTORS, N, HOP, own[0], own[1], both, evidence, constant)


def stored(folder: Path, frames: np.ndarray, good: np.ndarray | None = None) -> Windows:
    """Frames (K, L, C) from frame FIRST on, as a scan keeps them; blocks beyond the end are filled up with nothing."""
    store = BlockStore(folder, GRID, DETECTORS)
    k, length, c = frames.shape
    blocks = -(-length // GRID.block)
    whole = np.zeros((k, blocks * GRID.block, c), np.float16)
    whole[:, :length] = frames / SCALE
    fine = np.zeros(whole.shape[:2], bool)
    fine[:, :length] = True if good is None else good
    strain = np.zeros((k, GRID.block * GRID.samples), np.float16)
    for i in range(blocks):
        part = slice(i * GRID.block, (i + 1) * GRID.block)
        store.write(Block(FIRST // GRID.block + i, whole[:, part], fine[:, part], strain, []))
    return Windows(store, Bare(c))  # type: ignore[arg-type]


def windows_of(frames: np.ndarray, good: np.ndarray) -> tuple[list[Frames], np.ndarray]:
    """Frames (K, L, C) as the L windows of K detectors, and (K, L) which are ok: none that reach beyond the end.

    What is beyond three channels is evidence.
    """
    k, length, c = frames.shape
    row = np.concatenate([frames / SCALE, np.zeros((k, N - 1, c))], axis=1)
    ok = np.stack([[good[d, w : w + N].all() and w + N <= length for w in range(length)] for d in range(k)])
    row = np.rint(row / FRAME_UNIT).astype(np.int16)
    learnt = [np.stack([row[d, t : t + length, :3] for t in range(N)]) for d in range(k)]
    return [Frames(x, row[d, :, 3:]) for d, x in enumerate(learnt)], ok


def numbers(windows: Windows) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in windows.store.folder.glob("block-*.hdf5"))


def noise(length: int, seed: int, k: int = 3, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((k, length, channels)).astype(np.float16).astype(np.float32)


def by_hand(statistic: FrameStatistic, frames: np.ndarray, good: np.ndarray, start: list[int]) -> tuple[float, int]:
    """The statistic of one window that takes detector d's frames from start[d] on, and its set of detectors."""
    frames, c, k = frames / SCALE, statistic.together.size, statistic.evidence.size - 1
    stat, present, added = 0.0, 0, np.zeros((N, frames.shape[2]))
    for d, s in enumerate(start):
        if s + N <= frames.shape[1] and good[d, s : s + N].all():
            window = frames[d, s : s + N].astype(np.float64)
            present |= 1 << d
            stat += float(statistic.mean[d] @ window.mean(0)[:c] + statistic.maximum[d] @ window.max(0)[:c])
            added += window
    if present:
        stat += float(statistic.together @ added.max(0)[:c])
    if present and k > 0:
        natural = 15.0 * added[:, c:].reshape(-1, k).max(0)  # evidence, in natural units
        stat += float(statistic.evidence @ np.append(natural, logsumexp(natural)))
    return stat + statistic.constant[present], present


# Sliding


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 31, 32, 33])
def test_sliding_maxima_are_those_of_each_window(n: int) -> None:
    x = np.random.default_rng(n).standard_normal(90).astype(np.float32)
    windows = np.stack([x[i : i + n] for i in range(90 - n + 1)])
    np.testing.assert_array_equal(sliding_max(x, n), windows.max(1))


@pytest.mark.parametrize("reach", [0, 1, 4, 31, 200])
def test_the_loudest_within_a_reach_is_alone_in_it(reach: int) -> None:
    rng = np.random.default_rng(reach)
    x = np.round(rng.standard_normal(150), 1).astype(np.float32)  # with ties
    x[rng.random(150) < 0.2] = -np.inf
    found = loudest_within(x, reach)
    for i in range(150):
        before, after = x[max(i - reach, 0) : i], x[i + 1 : i + 1 + reach]
        assert found[i] == (np.isfinite(x[i]) and (x[i] > before).all() and (x[i] >= after).all())


# Moving detectors against each other


@pytest.mark.parametrize("detectors", [2, 3, 4])
@pytest.mark.parametrize("frames", [96, 352, 500, 5000])
def test_no_two_detectors_are_ever_near_their_true_places_or_twice_in_the_same(frames: int, detectors: int) -> None:
    slide = 48
    shifts = slide_shifts(frames, slide, 1000, detectors)
    for a in range(detectors):
        for b in range(a):
            between = (shifts[:, a] - shifts[:, b]) % frames
            assert (np.minimum(between, frames - between) >= slide).all()
            assert len(set(between.tolist())) == len(between)
    usable = frames // slide - 1
    assert usable - 4 <= len(shifts) <= usable
    assert len(slide_shifts(frames, slide, 5, detectors)) == min(5, len(shifts))


@pytest.mark.parametrize("mergers", [0, 2])
def test_slid_windows_are_those_of_frames_moved_by_hand(mergers: int) -> None:
    """With and without evidence, of each merger at four moments a frame."""
    statistic, length = made_up(mergers=mergers), 300
    frames, good = noise(length, 1, channels=3 + 4 * mergers), np.ones((3, length), bool)
    good[0, 100:104], good[1, 250:], good[2, :90] = False, False, False
    windows, ok = windows_of(frames, good)
    own = own_statistics(statistic, windows, ok, [0, 1, 2])
    shift = [0, 48, 96]
    stat, network = statistic.combined(windows, own, ok, [0, 1, 2], shift, at_least=2)
    seen = set()
    for w in range(length):
        start = [(w + s) % length for s in shift]
        expected, present = by_hand(statistic, frames, good, start)
        assert network[w] == present
        seen.add(present)
        if present in (3, 5, 6, 7):
            assert stat[w] == pytest.approx(expected, abs=5e-3)
        else:
            assert stat[w] == -np.inf
    assert {3, 5, 6, 7} <= seen


@pytest.mark.parametrize("mergers", [0, 2])
def test_true_windows_are_those_of_each_block_by_hand(tmp_path: Path, mergers: int) -> None:
    statistic, length = made_up(mergers=mergers), 2500  # three blocks, windows across their borders
    frames, good = noise(length, 2, channels=3 + 4 * mergers), np.ones((3, length), bool)
    good[2, 1000:1100] = False
    windows = stored(tmp_path, frames, good)
    series = search(windows, numbers(windows), statistic, 1, 3)
    assert (np.diff(series.tick) == 3).all() and (series.tick % 3 == 0).all()
    for i in [*range(300, 360), len(series) - 1]:
        w = int(series.tick[i]) - FIRST
        expected, present = by_hand(statistic, frames, good, [w, w, w])
        assert series.network[i] == present and series.stat[i] == pytest.approx(expected, abs=5e-3)
    assert series.tick[-1] > FIRST + length - N - 3


def test_frames_that_16_bits_cannot_add_up_are_refused(tmp_path: Path) -> None:
    frames = noise(64, 9)
    frames[1, 40] = 1.01 * SCALE
    with pytest.raises(InputError, match="between -1 and 1"):
        stored(tmp_path, frames).of(FIRST, FIRST + 20)


def test_without_weights_on_the_sum_only_the_detectors_own_count() -> None:
    statistic, frames = made_up(together=0.0), noise(100, 3)
    windows, ok = windows_of(frames, np.ones((3, 100), bool))
    stat, _ = statistic.combined(windows, own_statistics(statistic, windows, ok, [0, 1, 2]), ok, [0, 1, 2])
    expected, _ = by_hand(statistic, frames, np.ones((3, 100), bool), [5, 5, 5])
    assert stat[5] == pytest.approx(expected, abs=5e-3)


# Stretches


def test_rings_go_over_short_gaps_and_stop_at_long_ones() -> None:
    good = np.ones((3, 4096), bool)
    good[1:, 500:600] = False  # one detector alone for 6 s
    good[:, 1500:3000] = False  # nothing for 94 s
    good[0, 3500:3600] = False  # two are left
    settings = SlideSettings(1000, 3.0, 0.0, 31, 1)
    rings = rings_of([(0, good)], N, HOP, settings)
    assert [(ring.first, ring.stop) for ring in rings] == [(0, 1500), (3000, 4096)]
    blocks = [(0, good[:, :1024]), (1024, good[:, 1024:2048]), (2048, good[:, 2048:])]
    again = rings_of(blocks, N, HOP, settings)
    assert [(ring.first, ring.stop) for ring in again] == [(0, 1500), (3000, 4096)]


def test_long_stretches_are_cut_into_pieces_and_short_ones_left_out() -> None:
    settings = SlideSettings(100, 3.0, 0.0, 31, 1)
    rings = rings_of([(0, np.ones((2, 200_000), bool))], N, HOP, settings)
    assert [ring.first for ring in rings[1:]] == [ring.stop for ring in rings[:-1]]
    assert rings[0].first == 0 and rings[-1].stop == 200_000
    assert max(ring.frames for ring in rings) <= RING_SECONDS / HOP
    assert rings_of([(0, np.ones((2, 80), bool))], N, HOP, settings) == []
    assert rings_of([(0, np.eye(3, dtype=bool).repeat(500, 1))], N, HOP, settings) == []  # never two at once


# Rates


def slid(windows: Windows, statistic: FrameStatistic, ring: Ring, threshold: float, slide: float = 3.0) -> SlidRing:
    settings = SlideSettings(len(ring.shifts), slide, threshold, reach_of(2.0, 1, HOP), 1)
    path = windows.store.folder / "slides.hdf5"
    return read_slid(slide_ring(windows, statistic, ring, settings, path), ring)


def whole_ring(length: int, most: int = 1000) -> Ring:
    return Ring(FIRST, FIRST + length, slide_shifts(length, 48, most, 3))


def background_of(series: Series, at: np.ndarray, low: float = 0.0) -> Background:
    time = series.start[at] + 1.0  # of the candidates: the middle of their windows
    return Background(HOP, 1, WINDOW, 0.0, time, series.stat[at].astype(float), series.network[at], histogram_low=low)


def test_a_coincident_pulse_is_a_trigger_and_not_in_the_slides(tmp_path: Path) -> None:
    statistic = made_up()
    frames = 0.3 * noise(2000, 4)
    frames[0, 1000] += 5.0
    frames[1, 1000] += 5.0
    windows = stored(tmp_path, frames)
    series = search(windows, numbers(windows), statistic, 1, 1)
    at = peaks(series, 15.0, 2.0)
    assert at.size == 1 and 1000 - N < series.tick[at[0]] - FIRST <= 1000
    ring = whole_ring(2000)
    found = slid(windows, statistic, ring, threshold=15.0)
    assert found.stat.size and found.stat.max() < series.stat[at[0]] - 8
    background = background_of(series, at, 15.0)
    background.add(found, [0, 1, 2])
    clean, inclusive = background.rates(0)
    assert clean is not None and clean.is_limit and inclusive is not None and inclusive.is_limit
    assert clean.seconds < inclusive.seconds
    assert inclusive.value == pytest.approx(YEAR / inclusive.seconds)


def test_slid_live_time_is_that_of_windows_counted_by_hand(tmp_path: Path) -> None:
    statistic, length = made_up(), 700
    frames, good = noise(length, 5), np.ones((3, length), bool)
    good[0, 200:230], good[1, :77], good[2, 400:] = False, False, False
    windows = stored(tmp_path, frames, good)
    ring = whole_ring(length)
    found = slid(windows, statistic, ring, threshold=0.0)
    _, ok = windows_of(frames, good)
    expected = np.zeros(256, int)
    for shift in ring.shifts:
        for w in range(length):
            present = sum((1 << d) for d in range(3) if ok[d, (w + shift[d]) % length])
            expected[present] += bin(present).count("1") >= 2
    np.testing.assert_array_equal(found.windows, expected)
    assert expected[7] > 0 and expected[3] > 0


def test_a_candidates_own_seconds_are_taken_out_and_no_others(tmp_path: Path) -> None:
    statistic, length = made_up(), 3000
    frames = 0.3 * noise(length, 6)
    for d in range(3):
        frames[d, 1500] += 6.0
    frames[1, 600] += 7.0  # a glitch elsewhere: it stays in the background
    windows = stored(tmp_path, frames)
    series = search(windows, numbers(windows), statistic, 1, 1)
    at = peaks(series, 15.0, 2.0)
    ring = whole_ring(length)
    found = slid(windows, statistic, ring, threshold=15.0)
    background = background_of(series, at[:1], 15.0)
    background.stat[:] = 18.0  # as if the candidate were as loud as its parts
    background.add(found, [0, 1, 2])
    clean, inclusive = background.rates(0)
    assert clean is not None and inclusive is not None and inclusive.count > clean.count > 0
    low, high = background.time[0] - REMOVED_SECONDS, background.time[0] + REMOVED_SECONDS
    touched_windows = touched_triggers = 0
    for i, shift in enumerate(ring.shifts):
        at_slide = {int(w): s for w, s in zip(found.window[found.slide == i], found.stat[found.slide == i])}
        for w in range(length):
            place = (w + shift) % length
            start = (FIRST + place) * HOP
            if (place + N <= length).all() and ((start < high) & (start + WINDOW > low)).any():
                touched_windows += 1
                touched_triggers += at_slide.get(w, -np.inf) >= 18.0
    assert inclusive.count - clean.count == touched_triggers
    assert round((inclusive.seconds - clean.seconds) / HOP) == touched_windows


def test_in_noise_rates_come_true(tmp_path: Path) -> None:
    """As many triggers of a false-alarm rate below x are found as x times the time promises."""
    statistic, length, blocks = made_up(), 1024 * 32, 32
    windows = stored(tmp_path, noise(length, 7, channels=3))
    series = search(windows, numbers(windows), statistic, 1, 1)
    assert len(numbers(windows)) == blocks
    threshold = float(np.quantile(series.stat, 0.9))
    at = peaks(series, threshold, 2.0)
    background = background_of(series, at, threshold)
    background.add(slid(windows, statistic, whole_ring(length, 40), threshold), [0, 1, 2])
    far = np.array([background.rates(i)[1].value for i in range(at.size)])  # type: ignore[union-attr]
    years = len(series) * HOP / YEAR
    for expected in (5, 20, 80):
        found = np.count_nonzero(far < expected / years)
        assert abs(found - expected) < 3 * np.sqrt(expected), (expected, found)
    clean = np.array([background.rates(i)[0].value for i in range(at.size)])  # type: ignore[union-attr]
    np.testing.assert_allclose(clean, far, rtol=0.35)
    assert background.triggers[7] == sum(background.histogram[7])


def test_one_detector_alone_has_no_background(tmp_path: Path) -> None:
    statistic, length = made_up(), 1000
    good = np.ones((3, length), bool)
    good[1:, 500:] = False
    windows = stored(tmp_path, noise(length, 8), good)
    series = search(windows, numbers(windows), statistic, 1, 1)
    alone = int(np.flatnonzero(series.network == 1)[50])
    background = background_of(series, np.array([alone, 10]))
    background.add(slid(windows, statistic, whole_ring(500), 0.0), [0, 1, 2])
    assert background.rates(0) == (None, None)
    assert background.rates(1)[0] is not None


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 1.841), (1, 0.1727, 3.300), (10, 6.891, 14.267)])
def test_the_interval_of_a_rate_is_that_of_gehrels(count: int, low: float, high: float) -> None:
    found = rate(count, YEAR)
    assert found is not None
    assert found.low == pytest.approx(low, abs=1e-3) and found.high == pytest.approx(high, rel=1e-3)
    assert found.value == max(count, 1) and found.is_limit == (count == 0)
    half = rate(count, YEAR / 2)
    assert half is not None and half.value == 2 * found.value
    assert rate(count, 0.0) is None
