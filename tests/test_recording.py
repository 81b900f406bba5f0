"""Which seconds of a recording are used; and that its whitened strain is white, in time, without edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import welch

from gwosc_writer import GPS_START, coloured_noise, detector_asd
from gwtwins.strain.errors import InputError
from gwtwins.strain.events import EVENTS
from gwtwins.strain.gwosc import read_gwosc
from gwtwins.strain.psd import PSD, welch_median
from gwtwins.strain.recording import (
    EDGE,
    Conditioned,
    Recording,
    condition_recording,
    gap_seconds,
    good_segments,
)
from gwtwins.strain.whitening_filter import design_whitening, resample

RATE = 2048
F_LOW, F_HIGH = 20.0, 500.0


def recording_of(strain: np.ndarray, rate: int = RATE, **fields: np.ndarray) -> Recording:
    fields.setdefault("good", np.ones(strain.size // rate, bool))
    return Recording("H1", float(GPS_START), float(rate), strain, **fields)


def relative(segments: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(start - GPS_START, end - GPS_START) for start, end in segments]


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return coloured_noise(48, RATE)


# ---- which seconds


def test_a_clean_recording_is_one_segment(noise: np.ndarray) -> None:
    assert relative(good_segments(recording_of(noise))) == [(0.0, 48.0)]


def test_vetoes_injections_and_nan_cut_it_and_short_rests_are_dropped(noise: np.ndarray) -> None:
    good, clean, strain = np.ones(48, bool), np.ones(48, bool), noise.copy()
    good[10] = False
    clean[20] = False
    strain[30 * RATE + 5] = np.nan
    recording = recording_of(strain, good=good, injection_free=clean)
    assert relative(good_segments(recording)) == [(0, 10), (11, 20), (21, 30), (31, 48)]
    assert relative(good_segments(recording, min_seconds=10)) == [(0, 10), (31, 48)]


@pytest.mark.parametrize("filling", ["zeros", "constant", "tiny noise", "slow ramp"])
def test_filled_gaps_are_noticed_though_marked_good(noise: np.ndarray, filling: str) -> None:
    strain, gap = noise.copy(), slice(20 * RATE, 30 * RATE)
    rng = np.random.default_rng(0)
    strain[gap] = {
        "zeros": 0.0,
        "constant": 3e-20,
        "tiny noise": 1e-27 * rng.standard_normal(10 * RATE),
        "slow ramp": 1e-26 * np.linspace(1, 17, 10 * RATE) + 1e-33 * rng.standard_normal(10 * RATE),
    }[filling]
    assert relative(good_segments(recording_of(strain))) == [(0, 20), (30, 48)]


def test_a_gap_that_is_most_of_the_recording_is_still_a_gap(noise: np.ndarray) -> None:
    strain = noise.copy()
    strain[: 36 * RATE] *= 1e-9
    assert relative(good_segments(recording_of(strain))) == [(36, 48)]


def test_zeros_for_a_part_of_a_second_spoil_that_second_only(noise: np.ndarray) -> None:
    strain = noise.copy()
    strain[round(20.4 * RATE) : round(20.6 * RATE)] = 0.0
    assert np.flatnonzero(gap_seconds(strain, RATE)).tolist() == [20]
    strain[round(29.95 * RATE) : round(30.05 * RATE)] = 0.0  # across a boundary
    assert np.flatnonzero(gap_seconds(strain, RATE)).tolist() == [20, 29, 30]


def test_seconds_that_fade_into_a_gap_belong_to_it(noise: np.ndarray) -> None:
    ramp = np.sin(np.pi / 2 * np.arange(4 * RATE) / (4 * RATE)) ** 2
    strain = noise.copy()
    strain[: 20 * RATE] *= 1e-9
    strain[20 * RATE : 24 * RATE] *= ramp
    strain[44 * RATE :] *= ramp[::-1]
    strain[46 * RATE :] *= 1e-9
    gap = gap_seconds(strain, RATE)
    assert gap[:23].all() and gap[46:].all() and gap[44:46].sum() >= 1
    assert not gap[24:44].any()


def test_noise_that_changes_by_a_factor_of_ten_is_no_gap(noise: np.ndarray) -> None:
    strain = noise.copy()
    strain[24 * RATE :] *= 10.0
    strain[40 * RATE : 41 * RATE] *= 100.0
    assert not gap_seconds(strain, RATE).any()


def test_nothing_but_zeros_gives_no_segment() -> None:
    assert good_segments(recording_of(np.zeros(20 * RATE))) == []
    assert condition_recording(recording_of(np.zeros(20 * RATE))) == []


def test_a_recording_of_contradicting_lengths_is_refused(noise: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected seconds x rate samples"):
        recording_of(noise[:-1], good=np.ones(48, bool))


# ---- whitening


@pytest.mark.parametrize("rate_in", [1024, 2048, 4096])
@pytest.mark.parametrize("rate_out", [1024.0, 2048.0])
def test_whitened_noise_is_white_in_the_band_and_nothing_outside(rate_in: int, rate_out: float) -> None:
    (piece,) = condition_recording(recording_of(coloured_noise(48, rate_in, seed=1), rate_in), rate_out)
    assert piece.strain.dtype == np.float32
    assert piece.gps_start == GPS_START + EDGE
    assert piece.gps_end == GPS_START + 48 - EDGE
    assert piece.strain.size == round((48 - 2 * EDGE) * rate_out)
    assert abs(piece.strain.std() - 1) < 0.02
    assert abs(np.median(np.abs(piece.strain)) / 0.6745 - 1) < 0.01
    by_second = piece.strain[: int(47 * rate_out)].reshape(47, -1).std(axis=1)
    assert 0.85 < by_second.min() and by_second.max() < 1.15

    frequency, power = welch(piece.strain, rate_out, nperseg=int(2 * rate_out))
    density = power * (F_HIGH - F_LOW)  # 1 where white
    inside = (frequency > F_LOW + 2) & (frequency < F_HIGH - 2)
    lines = np.abs(frequency[:, None] - np.array([60.0, 120.0, 300.0])).min(axis=1) < 2.5
    smooth = density[inside & ~lines]
    assert abs(smooth.mean() - 1) < 0.05
    assert 0.4 < smooth.min() and smooth.max() < 2.2  # 46 averages scatter by 15%
    assert density[inside].max() < 5  # lines were 1000 sqrt(2 s) above the floor in amplitude
    outside = (frequency < F_LOW - 2) | (frequency > F_HIGH + 2)
    assert density[outside].max() < 0.1
    assert density[outside].sum() * frequency[1] / (F_HIGH - F_LOW) < 1e-3


def test_the_same_noise_at_three_rates_gives_the_same_window() -> None:
    rate = 4096
    fine = coloured_noise(24, rate, seed=2)
    spectrum = np.fft.rfft(fine)
    pieces = []
    for lower in (1024, 2048, 4096):
        copy = np.fft.irfft(spectrum[: 24 * lower // 2 + 1], 24 * lower) * lower / rate
        pieces.append(condition_recording(recording_of(copy, lower))[0].strain)
    for other in pieces[1:]:
        # Resampling takes its share of the half second, so the notches differ a little.
        assert np.std(other - pieces[0]) < 0.12
        assert np.abs(np.mean(other * pieces[0]) - 1) < 0.01


@pytest.mark.parametrize("rate_in", [1024, 2048, 4096])
def test_a_signal_stays_at_its_time_and_is_whitened_as_by_the_psd(rate_in: int) -> None:
    """The filter's effective PSD is what injections are whitened by: both must do the same to a signal."""
    noise = coloured_noise(32, rate_in, seed=3)
    time = np.arange(noise.size) / rate_in
    at = 17.3217
    signal = 3e-21 * np.exp(-(((time - at) / 0.01) ** 2)) * np.cos(2 * np.pi * 130.0 * (time - at))
    rate = 2048.0
    changed, spoilt = resample(noise, rate_in, rate, F_HIGH)
    changed = changed[spoilt : changed.size - spoilt]
    whitening = design_whitening(welch_median(changed, rate), rate, F_LOW, F_HIGH, 0.4)
    response = whitening(resample(signal, rate_in, rate, F_HIGH)[0])

    spectrum = np.fft.rfft(signal)
    frequency = np.fft.rfftfreq(noise.size, 1 / rate_in)
    band = (frequency >= F_LOW) & (frequency <= F_HIGH)
    gain = np.zeros(frequency.size)
    gain[band] = 1 / np.sqrt(whitening.psd.at(frequency[band]) * (F_HIGH - F_LOW))
    n = round(32 * rate)
    padded = np.zeros(n // 2 + 1, complex)
    keep = min(padded.size, spectrum.size)
    padded[:keep] = (spectrum * gain)[:keep]
    expected = np.fft.irfft(padded, n) * rate / rate_in
    expected = expected[whitening.half : n - whitening.half]
    assert np.abs(expected).max() > 5
    assert np.abs(response - expected).max() < 0.01 * np.abs(expected).max()
    peak = np.abs(response).argmax() + whitening.half
    assert abs(peak / rate - at) < 1 / rate


def test_edges_are_exact_what_lies_beyond_the_cut_does_not_reach_in() -> None:
    """Half a second is enough: strain that starts later, whitened with the same PSD, has the same samples."""
    strain = coloured_noise(32, 1024, seed=4)
    rate = 2048.0
    x, spoilt = resample(strain, 1024, rate, F_HIGH)
    whitening = design_whitening(
        welch_median(x[spoilt : x.size - spoilt], rate), rate, F_LOW, F_HIGH, EDGE - spoilt / rate
    )
    later, same = resample(strain[5 * 1024 :], 1024, rate, F_HIGH)
    assert same == spoilt and spoilt + whitening.half <= EDGE * rate
    whole, part = whitening(x), whitening(later)
    shift = round(5 * rate)
    # The offset that is taken away differs between the two: the filter has no gain there.
    difference = whole[shift + spoilt : whole.size - spoilt] - part[spoilt : part.size - spoilt]
    assert np.abs(difference).max() < 1e-3


def test_the_filter_is_near_the_ideal_for_known_noise() -> None:
    """Against whitening by the true PSD over all time, less than 3% of a merger's SNR is lost."""
    rate, spacing = 2048.0, 0.25
    frequency = np.arange(1, 4097) * spacing
    truth = PSD(frequency, detector_asd(frequency) ** 2)
    gain = 1 / design_whitening(truth, rate, F_LOW, F_HIGH, 0.5).psd.value
    band = (frequency >= F_LOW) & (frequency <= F_HIGH)
    signal, noise = frequency[band] ** (-7 / 3), truth.value[band]  # the inspiral's power
    gain = gain[band]
    kept = np.sum(signal * gain) / np.sqrt(np.sum(signal * gain**2 * noise) * np.sum(signal / noise))
    assert kept > 0.97
    assert np.median(gain * noise) == pytest.approx(1, abs=0.02)


def test_strain_low_passed_inside_the_band_is_not_blown_up() -> None:
    strain = coloured_noise(32, RATE, seed=5)
    spectrum = np.fft.rfft(strain)
    spectrum[int(350 * 32) :] *= 1e-8
    (piece,) = condition_recording(recording_of(np.fft.irfft(spectrum)))
    frequency, power = welch(piece.strain, RATE, nperseg=2 * RATE)
    assert abs(piece.strain.std() - 1) < 0.03
    assert power[frequency > 360].max() < 0.01 * np.median(power[(frequency > 30) & (frequency < 340)])


def test_long_segments_come_in_parts_without_a_break(noise: np.ndarray) -> None:
    strain = noise.copy()
    strain[24 * RATE :] *= 2.0  # the detector became worse
    (whole,) = condition_recording(recording_of(strain))
    parts = condition_recording(recording_of(strain), psd_seconds=23)
    assert [(p.gps_start - GPS_START, p.gps_end - GPS_START) for p in parts] == [(0.5, 24.5), (24.5, 47.5)]
    for part in parts:
        assert abs(part.strain[RATE : -2 * RATE].std() - 1) < 0.03
    half = len(whole.strain) // 2
    assert whole.strain[half:].std() > 1.5 * whole.strain[:half].std()
    with pytest.raises(InputError, match="psd_seconds"):
        condition_recording(recording_of(strain), psd_seconds=4)


def test_every_good_segment_of_the_shortest_length_can_be_whitened() -> None:
    for rate in (1024, 4096):
        (piece,) = condition_recording(recording_of(coloured_noise(9, rate), rate))
        assert piece.gps_end - piece.gps_start == 8.0


def test_a_rate_that_does_not_hold_the_band_is_refused(noise: np.ndarray) -> None:
    with pytest.raises(InputError, match="f_high 500 Hz at 512 Hz"):
        condition_recording(recording_of(noise), rate_out=512.0)
    with pytest.raises(InputError, match="f_high 1100 Hz at 2048 Hz"):
        condition_recording(recording_of(noise), f_high=1100.0)


# ---- real strain


def pieces_of(gwosc: Path, pattern: str) -> list[Conditioned]:
    (path,) = gwosc.glob(pattern)
    return condition_recording(read_gwosc(path))


def test_every_real_file_is_white(gwosc: Path) -> None:
    for path in sorted(gwosc.glob("*.hdf5")):
        pieces = pieces_of(gwosc, path.name)
        assert pieces, path.name
        for piece in pieces:
            at = piece.gps_start + np.arange(piece.strain.size) / piece.rate
            plain = np.abs(at - min((event.gps for event in EVENTS), key=lambda gps: abs(gps - at.mean()))) > 1
            for start, end in piece.gates:
                plain &= (at < start) | (at >= end)
            assert abs(piece.strain[plain].std() - 1) < 0.05, path.name
            frequency, power = welch(piece.strain, piece.rate, nperseg=8192, average="median")
            assert (power * (F_HIGH - F_LOW)).max() < 5, f"{path.name}: a line is left"


def test_gw150914_is_seen_in_both_detectors_at_its_time(gwosc: Path) -> None:
    arrival = {}
    for detector in ("H1", "L1"):
        (piece,) = pieces_of(gwosc, f"{detector[0]}-{detector}_LOSC_4_V2-1126259446-32.hdf5")
        peak = np.abs(piece.strain).argmax()
        assert abs(piece.strain[peak]) > 5
        arrival[detector] = piece.gps_start + peak / piece.rate
        assert abs(arrival[detector] - 1126259462.4) < 0.1
    # 6.9 ms later in Hanford (arXiv:1602.03837); the highest sample may lie half a cycle away.
    assert 0.0 < arrival["H1"] - arrival["L1"] < 0.0101


def test_gw200129_livingston_is_cut_at_the_veto(gwosc: Path) -> None:
    (piece,) = pieces_of(gwosc, "L-L1_GWOSC_4KHZ_R1-1264316101-32.hdf5")
    assert (piece.gps_start, piece.gps_end) == (1264316101.5, 1264316115.5)


def test_gw190720_virgo_is_used_only_after_its_gap(gwosc: Path) -> None:
    (path,) = gwosc.glob("V-V1_GW190720*")
    recording = read_gwosc(path)
    assert recording.good.all()  # the file itself says nothing of it
    gap = gap_seconds(recording.strain, recording.rate)
    assert gap[:27].all() and not gap[28:].any()
    (piece,) = condition_recording(recording)
    by_second = piece.strain[: 20 * RATE].reshape(20, RATE).std(axis=1)
    assert 0.9 < by_second.min() and by_second.max() < 1.1


def test_gw191204_hanford_is_gated_and_the_rest_stays_white(gwosc: Path) -> None:
    (path,) = gwosc.glob("H-H1_GW191204*")
    recording = read_gwosc(path)
    (wrecked,) = condition_recording(recording, gated=False)
    assert np.abs(wrecked.strain).max() > 500
    (piece,) = condition_recording(recording)
    ((start, end),) = piece.gates
    assert start < 1259514944.1 - 9.3 < end and end - start < 1.0
    assert np.abs(piece.strain).max() < 6
    by_second = piece.strain[: 23 * RATE].reshape(23, RATE).std(axis=1)
    assert (np.abs(by_second - 1) < 0.12).sum() >= 21


def test_no_other_real_file_is_gated(gwosc: Path) -> None:
    gated = {
        path.name[:13] for path in gwosc.glob("*.hdf5") if any(p.gates for p in pieces_of(gwosc, path.name))
    }
    assert gated == {"H-H1_GW191204"}


# ---- known events


def test_events_are_in_order_and_named_once() -> None:
    times = [event.gps for event in EVENTS]
    assert times == sorted(times) and len({event.name for event in EVENTS}) == len(EVENTS) == 12


def test_every_real_file_holds_its_event(gwosc: Path) -> None:
    for path in gwosc.glob("*.hdf5"):
        recording = read_gwosc(path)
        inside = [event for event in EVENTS if recording.gps_start < event.gps < recording.gps_end]
        assert len(inside) == 1
        assert recording.detector in inside[0].detectors
