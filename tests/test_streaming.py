"""Conditioned strain as a stream of chunks: white, without steps, the same from any start, all time accounted for."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import welch

from gwosc_writer import coloured_noise, write_gwosc
from gwtwins.strain.coverage import merged
from gwtwins.strain.detector_stream import GATED
from gwtwins.strain.errors import InputError
from gwtwins.strain.gwosc import read_gwosc
from gwtwins.strain.recording import condition_recording
from gwtwins.strain.segments import EDGE_REASON, SHORT_REASON
from gwtwins.strain.strain_blocks import NO_DATA, NO_FILE
from gwtwins.strain.strain_file import StrainFile
from gwtwins.strain.strain_index import StrainIndex, index_strain
from gwtwins.strain.streaming import Chunk, stream_conditioned

START = 64 * 16_000_000
BAND = (20.0, 500.0)
OUT = 1024


def memory(strain: np.ndarray, rate: int, detector: str = "H1", start: float = START) -> StrainFile:
    return StrainFile(f"series {detector} {start}", "memory", detector, start, strain.size, rate, values=strain)


def chunks(*files: StrainFile, rate: float = OUT, **options: object) -> list[Chunk]:
    return list(stream_conditioned(StrainIndex(files), rate, *BAND, **options))  # type: ignore[arg-type]


def joined(found: Sequence[Chunk], row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Strain and validity of chunks that follow on each other."""
    assert all(a.gps_end == b.gps_start for a, b in zip(found, found[1:], strict=False))
    return np.concatenate([c.strain[row] for c in found]), np.concatenate([c.valid[row] for c in found])


def left_out(found: Sequence[Chunk], detector: str = "H1") -> list[tuple[float, float, str]]:
    spans = merged([span for chunk in found for name, span in chunk.left_out if name == detector])
    return [(round(s.start - START, 3), round(s.end - START, 3), s.why) for s in spans]


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """320 s at 1024 Hz."""
    return coloured_noise(320, 1024, seed=31)


# ---- whitening


def test_chunks_are_white_and_follow_on_each_other_without_a_step(noise: np.ndarray) -> None:
    found = chunks(memory(noise, 1024))
    assert [chunk.gps_start for chunk in found] == [START + 64.0 * k for k in range(5)]
    strain, valid = joined(found)
    assert strain.dtype == np.float32
    assert np.flatnonzero(~valid).tolist() == [*range(512), *range(320 * OUT - 512, 320 * OUT)]
    assert left_out(found) == [(0.0, 0.5, EDGE_REASON), (319.5, 320.0, EDGE_REASON)]
    assert abs(strain[valid].std() - 1) < 0.01
    assert np.abs(strain).max() < 6
    frequency, power = welch(strain[valid], OUT, nperseg=2048)
    density = power * (BAND[1] - BAND[0])
    inside = (frequency > 22) & (frequency < 498)
    assert density[inside & (np.abs(frequency[:, None] - [60, 120, 300]).min(axis=1) > 2.5)].mean() == pytest.approx(
        1, abs=0.03
    )
    assert density[inside].max() < 5 and density[(frequency < 18) | (frequency > 502)].max() < 0.1
    # A step at a border would be a jump among the second differences there.
    change = np.abs(np.diff(strain, 2))
    borders = np.concatenate([np.arange(k * 64 * OUT - 8, k * 64 * OUT + 8) for k in range(1, 5)])
    assert change[borders].max() < 4.5 * change[valid[2:]].std() + change[valid[2:]].mean()


def test_a_border_costs_nothing_and_leaves_the_strain_as_one_filter_would(noise: np.ndarray) -> None:
    """Another length of chunk has its borders elsewhere, and slightly different PSDs."""
    short, valid = joined(chunks(memory(noise, 1024), chunk=32))
    long, _ = joined(chunks(memory(noise, 1024), chunk=320, start=START))
    n = min(short.size, long.size)
    difference = (short - long)[:n][valid[:n]]
    assert difference.std() < 0.1
    at_borders = [difference[k * 32 * OUT - 512 - 64 : k * 32 * OUT - 512 + 64].std() for k in range(1, 9)]
    assert max(at_borders) < 3 * difference.std()


def test_a_signal_that_crosses_a_border_is_whole(noise: np.ndarray) -> None:
    time = np.arange(noise.size) / 1024
    signal = 4e-21 * np.exp(-(((time - 64.0) / 0.02) ** 2)) * np.cos(2 * np.pi * 150 * (time - 64.0))
    with_it, _ = joined(chunks(memory(noise + signal, 1024)))
    without, _ = joined(chunks(memory(noise, 1024)))
    seen = with_it - without
    assert abs(np.abs(seen).argmax() / OUT - 64.0) < 1 / OUT
    # The same signal in the middle of a chunk looks the same.
    shifted, _ = joined(chunks(memory(noise + np.roll(signal, 32 * 1024), 1024)))
    other = np.roll(shifted - without, -32 * OUT)
    around = slice(64 * OUT - 200, 64 * OUT + 200)
    assert np.abs(seen[around]).max() > 10
    assert np.abs(seen[around] - other[around]).max() < 0.05 * np.abs(seen[around]).max()


@pytest.mark.parametrize("rate", [2048, 4096, 16384])
def test_every_rate_gives_the_same_whitened_strain(rate: int) -> None:
    """One analog noise without power above 490 Hz, sampled at two rates."""
    seconds = 48
    fine = coloured_noise(seconds, 16384, seed=32)
    spectrum = np.fft.rfft(fine)
    spectrum[490 * seconds :] = 0.0
    copies = [np.fft.irfft(spectrum[: seconds * r // 2 + 1], seconds * r) * r / 16384 for r in (1024, rate)]
    (slow,), (fast,) = (chunks(memory(copy, r)) for copy, r in zip(copies, (1024, rate), strict=True))
    assert np.array_equal(slow.valid, fast.valid)
    assert np.abs(slow.strain - fast.strain).max() < 1e-3


def test_the_result_can_have_another_rate(noise: np.ndarray) -> None:
    (slow, *_), (fast, *_) = chunks(memory(noise, 1024)), chunks(memory(noise, 1024), rate=2048.0)
    assert fast.strain.shape == (1, 64 * 2048)
    clear = slice(2048, -2048)
    assert np.abs(fast.strain[0, ::2][clear] - slow.strain[0][clear]).max() < 1e-3


def test_an_offset_is_no_noise(noise: np.ndarray) -> None:
    """Livingston's strain of O1 is -1.8e-18 on average."""
    plain, _ = joined(chunks(memory(noise, 1024)))
    offset, _ = joined(chunks(memory(noise - 2e-18, 1024)))
    assert np.abs(plain - offset).max() < 0.02


def test_real_strain_is_whitened_as_by_the_whole_file(gwosc: Path) -> None:
    path = next(gwosc.glob("L-L1_LOSC_4_V2-1126259446-32.hdf5"))
    strain, valid = joined(list(stream_conditioned(index_strain([path]), OUT, *BAND)))
    (piece,) = condition_recording(read_gwosc(path), OUT)
    assert np.count_nonzero(valid) == piece.strain.size
    assert np.corrcoef(strain[valid], piece.strain)[0, 1] > 0.995
    assert abs(strain[valid].std() - 1) < 0.02


# ---- a chunk is a function of the files and of its number


def test_a_stream_from_the_middle_gives_the_same_bits(noise: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    strain = noise.copy()
    strain[100 * 1024 : 103 * 1024] = np.nan
    strain[128 * 1024 - 20 : 128 * 1024 + 20] += 1e-18 * rng.standard_normal(40)
    files = memory(strain, 1024), memory(noise[1024:], 1024, "L1", START + 1)
    whole = chunks(*files)
    for k in range(5):
        first = chunks(*files, start=START + 64 * k + 10)[0]
        again = whole[k]
        assert first.gps_start == again.gps_start
        assert first.strain.tobytes() == again.strain.tobytes()
        assert first.valid.tobytes() == again.valid.tobytes()
        assert first.left_out == again.left_out
        assert all(np.array_equal(a.value, b.value) for a, b in zip(first.psd, again.psd, strict=True) if a and b)


def test_start_and_stop_choose_chunks(noise: np.ndarray) -> None:
    found = chunks(memory(noise, 1024), start=START + 64, stop=START + 192)
    assert [chunk.gps_start - START for chunk in found] == [64, 128]


def test_files_that_follow_on_each_other_are_one(tmp_path: Path, noise: np.ndarray) -> None:
    for start, stop in ((0, 50), (50, 64), (64, 131), (131, 200)):
        part = noise[start * 1024 : stop * 1024]
        write_gwosc(tmp_path / f"H-H1-{start}.hdf5", part, 1024, gps=START + start)
    parts = list(stream_conditioned(index_strain([tmp_path]), OUT, *BAND))
    whole = chunks(memory(noise[: 200 * 1024], 1024))
    for a, b in zip(parts, whole, strict=True):
        assert np.array_equal(a.strain, b.strain) and np.array_equal(a.valid, b.valid)


def test_where_the_rate_changes_a_stretch_ends(noise: np.ndarray) -> None:
    fast = coloured_noise(64, 4096, seed=33)
    found = chunks(memory(noise[: 64 * 1024], 1024), memory(fast, 4096, start=START + 64))
    assert left_out(found) == [(0, 0.5, EDGE_REASON), (63.5, 64.5, EDGE_REASON), (127.5, 128, EDGE_REASON)]
    strain, valid = joined(found)
    assert np.abs(strain).max() < 6


def test_a_file_that_starts_inside_a_second_is_put_on_the_grid() -> None:
    rate = 2048
    fine = coloured_noise(64, 8 * rate, seed=34)
    spectrum = np.fft.rfft(fine)
    spectrum[490 * 64 :] = 0.0
    fine = np.fft.irfft(spectrum)
    late = 8 * rate // 2 + 3  # half a second and 3/8 of a sample
    (whole,) = chunks(memory(fine[::8], rate))
    (part,) = chunks(memory(fine[late::8][:-rate], rate, start=START + late / (8 * rate)))
    assert np.flatnonzero(part.valid)[0] == 1.5 * OUT
    both = whole.valid & part.valid
    assert np.corrcoef(whole.strain[both], part.strain[both])[0, 1] > 0.9995


# ---- gaps, detectors that come and go


def test_gaps_of_every_kind_are_skipped_and_listed(tmp_path: Path, noise: np.ndarray) -> None:
    strain = noise[: 192 * 1024].copy()
    strain[20 * 1024 + 5] = np.nan
    strain[40 * 1024 : 44 * 1024] = 0.0
    strain[70 * 1024 : 72 * 1024] = 3e-20
    strain[100 * 1024 : 110 * 1024] *= 1e-7
    path = write_gwosc(
        tmp_path / "a.hdf5", strain, 1024, gps=START, vetoed={"CBC_CAT2": [150]}, injected={"NO_CBC_HW_INJ": [160]}
    )
    found = list(stream_conditioned(index_strain([path]), OUT, *BAND))
    spans = left_out(found)
    gaps = [(a, b, why) for a, b, why in spans if why != EDGE_REASON]
    assert gaps == [
        (20, 21, NO_DATA),
        (40, 44, NO_DATA),
        (70, 72, NO_DATA),
        (100, 110, NO_DATA),
        (150, 151, "fails CBC_CAT2"),
        (160, 161, "hardware injection"),
    ]
    strain, valid = joined(found)
    assert not strain[~valid].any()
    listed = np.zeros(valid.size, bool)
    for a, b, _ in spans:
        listed[round(a * OUT) : round(b * OUT)] = True
    assert np.array_equal(listed, ~valid)
    assert abs(strain[valid].std() - 1) < 0.02 and np.abs(strain).max() < 6


def test_flags_are_chosen_by_name(tmp_path: Path, noise: np.ndarray) -> None:
    vetoed = {"CBC_CAT2": [20], "BURST_CAT3": [40]}
    path = write_gwosc(tmp_path / "a.hdf5", noise[: 64 * 1024], 1024, gps=START, vetoed=vetoed)

    def fails(*flags: str) -> list[str]:
        index = index_strain([path], required_flags=flags)
        return [why for *_, why in left_out(list(stream_conditioned(index, OUT, *BAND))) if why.startswith("fails")]

    assert fails("DATA") == []
    assert fails("CBC_CAT2", "BURST_CAT3") == ["fails CBC_CAT2", "fails BURST_CAT3"]


def test_short_stretches_are_listed(noise: np.ndarray) -> None:
    strain = noise[: 64 * 1024].copy()
    strain[10 * 1024], strain[18 * 1024] = np.nan, np.nan
    assert (11, 18, SHORT_REASON) in left_out(chunks(memory(strain, 1024)))
    assert left_out(chunks(memory(noise[: 9 * 1024], 1024))) == [
        (0, 0.5, EDGE_REASON),
        (8.5, 9, EDGE_REASON),
        (9, 64, NO_FILE),
    ]


def test_detectors_of_unequal_starts_one_absent_for_half_of_the_time(noise: np.ndarray) -> None:
    other = coloured_noise(320, 1024, seed=35)
    h1 = memory(noise, 1024)
    l1 = memory(other[37 * 1024 : 170 * 1024], 1024, "L1", START + 37)
    found = chunks(h1, l1, detectors=("V1", "H1", "L1"))
    assert found[0].detectors == ("V1", "H1", "L1")
    seconds = np.array([chunk.valid.sum(axis=1) / OUT for chunk in found])
    assert seconds.sum(axis=0).tolist() == [0, 319, 132]
    assert left_out(found, "L1") == [
        (0, 37, NO_FILE),
        (37, 37.5, EDGE_REASON),
        (169.5, 170, EDGE_REASON),
        (170, 320, NO_FILE),
    ]
    assert [[psd is not None for psd in chunk.psd] for chunk in found] == [
        [False, True, True],
        [False, True, True],
        [False, True, True],
        [False, True, False],
        [False, True, False],
    ]
    alone, _ = joined(chunks(h1))
    assert np.array_equal(joined(found, 1)[0], alone)  # no detector changes another


def test_time_without_any_file_is_jumped_over(noise: np.ndarray) -> None:
    month = 30 * 86400 // 64 * 64
    found = chunks(memory(noise[: 32 * 1024], 1024), memory(noise[: 32 * 1024], 1024, start=START + month))
    assert [chunk.gps_start - START for chunk in found] == [0, month]


def test_nothing_but_zeros_is_no_data() -> None:
    (chunk,) = chunks(memory(np.zeros(64 * 1024), 1024))
    assert not chunk.valid.any() and chunk.psd == (None,)
    assert [(d, s.why) for d, s in chunk.left_out] == [("H1", NO_DATA)]


def test_strain_that_is_too_faint_for_any_detector_is_no_data() -> None:
    (chunk,) = chunks(memory(1e-28 * np.random.default_rng(0).standard_normal(64 * 1024), 1024))
    assert [(d, s.why) for d, s in chunk.left_out] == [("H1", NO_DATA)]


# ---- outliers


def outlier(strain: np.ndarray, at: float, height: float, rate: int = 1024) -> np.ndarray:
    time = np.arange(strain.size) / rate
    return strain + height * np.exp(-(((time - at) / 0.01) ** 2)) * np.cos(2 * np.pi * 80 * (time - at))


def test_an_outlier_across_a_border_is_gated_in_both_chunks(noise: np.ndarray) -> None:
    found = chunks(memory(outlier(noise, 64.0, 1e-18), 1024))
    ((start, end, why),) = [span for span in left_out(found) if span[2] != EDGE_REASON]
    assert why == GATED and 63.3 < start < 63.75 and 64.25 < end < 64.7
    strain, valid = joined(found)
    assert np.abs(strain).max() < 6
    clean, _ = joined(chunks(memory(noise, 1024)))
    away = valid.copy()
    away[62 * OUT : 66 * OUT] = False
    assert np.std((strain - clean)[away]) < 0.06  # the PSD lost a few of its periodograms


@pytest.mark.parametrize("at", [59.9, 60.1, 63.8, 67.9, 68.1])
def test_an_outlier_near_a_border_is_gated_the_same_by_every_grid(noise: np.ndarray, at: float) -> None:
    strain = outlier(noise, at, 1e-18)
    gates = []
    for chunk in (32, 64):
        gates.append([span for span in left_out(chunks(memory(strain, 1024), chunk=chunk)) if span[2] == GATED])
    (one,), (other,) = gates
    assert one[:2] == pytest.approx(other[:2], abs=0.05)
    assert one[0] < at < one[1]


@pytest.mark.parametrize("height", [1e-14, 9e-4])
def test_an_outlier_of_any_height_costs_seconds_only(noise: np.ndarray, height: float) -> None:
    found = chunks(memory(outlier(noise, 100.0, height), 1024))
    strain, valid = joined(found)
    assert np.abs(strain).max() < 6
    assert np.count_nonzero(~valid) < 12 * OUT
    assert abs(strain[valid].std() - 1) < 0.02


def test_the_outlier_before_gw191204_is_gated_and_the_merger_is_not(gwosc: Path) -> None:
    path = next(gwosc.glob("H-H1_GW191204*.hdf5"))
    found = list(stream_conditioned(index_strain([path]), OUT, *BAND))
    (gate,) = [span for chunk in found for _, span in chunk.left_out if span.why == GATED]
    merger = 1259514944.1
    assert gate.start < merger - 9.3 < gate.end and gate.end - gate.start < 1.0
    strain, valid = joined(found)
    assert np.abs(strain).max() < 6


def test_an_outlier_at_the_end_of_a_stretch_is_gated(noise: np.ndarray) -> None:
    found = chunks(memory(outlier(noise[: 64 * 1024], 0.3, 1e-17), 1024))
    strain, _ = joined(found)
    assert np.abs(strain).max() < 6
    assert left_out(found)[1][2] == GATED


def test_without_gating_an_outlier_stays(noise: np.ndarray) -> None:
    strain, _ = joined(chunks(memory(outlier(noise, 64.0, 1e-18), 1024), gated=False))
    assert np.abs(strain).max() > 1000


def test_minutes_of_saturation_are_cut_out_quickly(noise: np.ndarray) -> None:
    strain = noise.copy()
    strain[100 * 1024 : 170 * 1024] *= 300.0
    found = chunks(memory(strain, 1024))
    gates = [span for span in left_out(found) if span[2] == GATED]
    assert gates[0][0] == pytest.approx(99.0, abs=0.3) and gates[-1][1] == pytest.approx(171.0, abs=0.3)
    joined_strain, valid = joined(found)
    assert np.abs(joined_strain).max() < 8
    assert valid.sum() / OUT > 240


# ---- limits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 10}, "chunk: 10 s; expected a multiple of 4 s"),
        ({"chunk": 30.5}, "chunk: 30.5 s"),
        ({"rate": 512.0}, "rate of the chunks"),
    ],
)
def test_lengths_and_rates_that_cannot_be_are_refused(noise: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chunks(memory(noise, 1024), **options)


def test_strain_too_slow_for_the_band_is_refused() -> None:
    with pytest.raises(InputError, match="512 samples a second; expected an even number of them, at least 1024"):
        chunks(memory(coloured_noise(64, 512), 512))


def test_a_file_that_breaks_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write_gwosc(tmp_path / "a.hdf5", coloured_noise(64, 4096, seed=36), 4096, gps=START)
    index = index_strain([path])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)  # of the compressed strain
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.hdf5: not a readable HDF5 file"):
        list(stream_conditioned(index, OUT, *BAND))


def test_memory_does_not_grow_with_the_length_of_the_data(tmp_path: Path) -> None:
    """Ten minutes and two hours of the same: within 5 MB."""
    part = coloured_noise(600, 1024, seed=37)
    for k in range(12):
        write_gwosc(tmp_path / f"H-H1-{k}.hdf5", part, 1024, gps=START + 600 * k)
    index = index_strain([tmp_path])
    peaks = []
    for stop in (START + 600, None):
        tracemalloc.start()
        for chunk in stream_conditioned(index, OUT, *BAND, stop=stop):
            assert chunk.valid.any()
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5
    assert peaks[1] < 60
