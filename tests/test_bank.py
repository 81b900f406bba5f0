"""The waveform bank: pycbc's waveforms, whole and unwrapped, one file for each recipe."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pycbc.filter import sigma
from pycbc.psd import from_string

import gwtwins.strain.bank as bank_module
from gwtwins.strain.bank import (
    BEFORE_MERGER,
    BUFFER,
    F_KEEP,
    START_TAPER,
    BankRecipe,
    WaveformBank,
    cache_folder,
    make_bank,
)
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Distribution, Population
from gwtwins.strain.psd import DEFAULT_PSDS, named_psd
from pycbc_reference import FREQUENCY, SPAN, N, merger_offset, reference, series, stored

RATE = 2048
HANFORD = DEFAULT_PSDS["H1"]
STANDARD = Population.load("standard")
# The longest signals of the standard population: 11 s from 20 Hz.
LIGHT = replace(STANDARD, mass1=Distribution(8.0, 8.2), mass2=Distribution(8.0, 8.2))


@pytest.fixture(scope="module")
def standard(cache: Path) -> WaveformBank:
    return WaveformBank.obtain(BankRecipe(STANDARD, 24, 5, (HANFORD, DEFAULT_PSDS["V1"])), progress=False)


@pytest.fixture(scope="module")
def light(cache: Path) -> WaveformBank:
    return WaveformBank.obtain(BankRecipe(LIGHT, 3, 0, (HANFORD,)), progress=False)


def fade_in(frequency: np.ndarray) -> np.ndarray:
    """0 to 1 between 20 and 40 Hz: a waveform that starts at 20 Hz from nothing rings there for seconds."""
    return np.sin(np.pi / 2 * np.clip((frequency - 20.0) / 20.0, 0, 1)) ** 2


def buffer(bank: WaveformBank, row: int) -> np.ndarray:
    """The circular buffer in time, faded in, (8192,) strain at 2048 Hz, merger at sample 0."""
    whole = np.zeros(int(BUFFER * RATE) // 2 + 1, complex)
    whole[bank.k_low : bank.k_low + bank.waveform.shape[1]] = stored(bank, row)
    return np.fft.irfft(whole * fade_in(np.arange(whole.size) / BUFFER)) * RATE


def long_waveform(bank: WaveformBank, row: int) -> tuple[np.ndarray, float]:
    """pycbc's 64 s of the same binary and band in time, at the bank's merger; and its offset in seconds."""
    plus = np.where(FREQUENCY < F_KEEP, reference(bank.parameters[row]).plus, 0.0) * fade_in(FREQUENCY)
    lag = merger_offset(bank, row)
    whole = np.zeros(int(SPAN * RATE) // 2 + 1, complex)
    whole[:N] = plus * np.exp(-2j * np.pi * FREQUENCY * lag)
    return np.fft.irfft(whole) * RATE, lag


@pytest.mark.parametrize("which", ["standard", "light"])
def test_holds_pycbcs_waveform_around_the_merger(which: str, request: pytest.FixtureRequest) -> None:
    """As cut from pycbc's 64 s, stored in half precision: a match above 0.99999 from 2.7 s before to 0.45 s after."""
    bank = request.getfixturevalue(which)
    held = np.arange(-int(2.7 * RATE), int(0.45 * RATE))
    for row in range(len(bank))[:6]:
        whole, lag = long_waveform(bank, row)
        ours, theirs = buffer(bank, row)[held], whole[held]
        assert abs(lag) < 1e-3
        assert ours @ theirs > 0.99999 * np.linalg.norm(ours) * np.linalg.norm(theirs)
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=2e-3)
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_long_signals_are_cut_and_not_wrapped(light: WaveformBank) -> None:
    """Of 11 s the 8 before the buffer are gone: nothing of them lies after the merger, or before the fade-in."""
    for row in range(len(light)):
        whole, _ = long_waveform(light, row)
        loudest = np.abs(whole).max()
        before = int(BEFORE_MERGER * RATE)
        assert np.abs(whole[-8 * RATE : -4 * RATE]).max() > 0.03 * loudest  # there was something to wrap
        cut = buffer(light, row)
        # What there is rings at F_KEEP, where the spectrum of so light a binary has not ended yet.
        assert np.abs(cut[int(0.1 * RATE) : -before]).max() < 6e-3 * loudest
        # Faded in over START_TAPER: there is no step that would ring in the whitened window.
        early = cut[-before : -before + int(0.2 * START_TAPER * RATE)]
        assert np.abs(early).max() < 0.15 * np.abs(whole[-before : -before + early.size]).max()


def test_sigma_is_pycbcs_of_the_whole_waveform(standard: WaveformBank, light: WaveformBank) -> None:
    for bank, names in ((standard, (HANFORD, DEFAULT_PSDS["V1"])), (light, (HANFORD,))):
        for name in names:
            psd = from_string(name, N + 1, 1 / SPAN, 10.0)
            ours = bank.sigma(bank.psds[name])
            for row in range(len(bank))[:6]:
                whole = series(reference(bank.parameters[row]).plus)
                expected = sigma(whole, psd=psd, low_frequency_cutoff=20.0)
                assert float(ours[row]) == pytest.approx(expected, rel=5e-3)


def test_carries_the_psds_it_was_asked_for(standard: WaveformBank) -> None:
    assert set(standard.psds) == {HANFORD, DEFAULT_PSDS["V1"]}
    named = named_psd(HANFORD)
    np.testing.assert_array_equal(standard.psds[HANFORD].value, named.value)
    np.testing.assert_array_equal(standard.psds[HANFORD].frequency, named.frequency)


def test_binaries_are_the_populations(standard: WaveformBank) -> None:
    np.testing.assert_array_equal(standard.parameters, STANDARD.intrinsic(5, 24))
    assert len(standard) == 24 and standard.waveform.dtype == torch.float16
    assert torch.isfinite(standard.waveform).all() and (standard.scale > 0).all()


def test_key_changes_with_each_ingredient_and_with_nothing_else() -> None:
    recipe = BankRecipe(STANDARD, 24, 0, (HANFORD,))
    changes: dict[str, Any] = {
        "approximant": "IMRPhenomD",
        "f_lower": 25.0,
        "mass1": Distribution(8.0, 71.0),
        "mass2": Distribution(8.0, 70.0, -1.0),
        "spin1z": Distribution(-0.7, 0.8),
        "spin2z": Distribution(-0.8, 0.7),
    }
    others = [
        replace(recipe, count=25),
        replace(recipe, seed=1),
        replace(recipe, psds=(DEFAULT_PSDS["V1"],)),
        replace(recipe, psds=(HANFORD, DEFAULT_PSDS["V1"])),
        *(replace(recipe, population=replace(STANDARD, **{key: value})) for key, value in changes.items()),
    ]
    keys = {other.key() for other in others}
    assert len(keys) == len(others) and recipe.key() not in keys
    louder = replace(STANDARD, name="x", snr=Distribution(8, 9), merger=Distribution(1.5, 1.6), signal_fraction=0.1)
    assert replace(recipe, population=louder).key() == recipe.key()
    assert replace(recipe, psds=(HANFORD, HANFORD)).key() == recipe.key()


def test_key_changes_with_the_contents_of_an_asd_file(tmp_path: Path) -> None:
    """A bank holds its PSDs: a file that was edited, or one of the same relative name elsewhere, is another PSD."""
    path = tmp_path / "asd.txt"
    recipe = BankRecipe(STANDARD, 4, 0, (str(path),))
    keys = set()
    for text in ("10 1e-22\n2000 1e-23\n", "10 1e-22\n2000 2e-23\n", "10 1e-22\n1999 1e-23\n"):
        path.write_text(text)
        keys |= {recipe.key(), recipe.key()}
    assert len(keys) == 3


def test_is_made_once_and_reused(cache: Path, standard: WaveformBank, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = BankRecipe(STANDARD, 24, 5, (HANFORD, DEFAULT_PSDS["V1"]))
    path = recipe.path()
    assert path.is_file()

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(bank_module, "make_bank", refuse)
    again = WaveformBank.obtain(recipe)
    assert torch.equal(again.waveform, standard.waveform) and torch.equal(again.power, standard.power)
    with pytest.raises(AssertionError, match="made again"):
        WaveformBank.obtain(replace(recipe, seed=6))


def test_several_processes_make_the_same_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "_CHUNK", 1)
    recipe = BankRecipe(STANDARD, 8, 3, (HANFORD,))
    made = []
    for workers in (1, 2):
        make_bank(recipe, tmp_path / f"{workers}.hdf5", workers, progress=False)
        made.append(WaveformBank.load(tmp_path / f"{workers}.hdf5"))
    for name in ("waveform", "scale", "power"):
        assert torch.equal(getattr(made[0], name), getattr(made[1], name)), name
    np.testing.assert_array_equal(made[0].parameters, made[1].parameters)


def test_an_unknown_approximant_is_refused(tmp_path: Path) -> None:
    recipe = BankRecipe(replace(STANDARD, approximant="IMRPhenomX"), 4, 0, (HANFORD,))
    with pytest.raises(InputError, match="IMRPhenomX.*expected a frequency-domain approximant of pycbc"):
        make_bank(recipe, tmp_path / "bank.hdf5", progress=False)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bank_module, "_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_bank(BankRecipe(STANDARD, 4, 0, (HANFORD,)), tmp_path / "bank.hdf5", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(tmp_path: Path, cache: Path, light: WaveformBank) -> Path:
    """A bank file to be damaged."""
    path = tmp_path / "bank.hdf5"
    path.write_bytes(BankRecipe(LIGHT, 3, 0, (HANFORD,)).path().read_bytes())
    WaveformBank.load(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_bank_is_refused(copy: Path, share: float) -> None:
    os.truncate(copy, int(copy.stat().st_size * share))
    with pytest.raises(InputError, match="(truncated|not a readable).*expected a waveform bank written by gwtwins"):
        WaveformBank.load(copy)


def test_files_that_are_no_bank_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["strain"] = np.zeros(4)
    with h5py.File(copy, "a") as file:
        del file["power"]
    for name in ("text.hdf5", "other.hdf5", "bank.hdf5", "absent.hdf5", "."):
        with pytest.raises(InputError, match="expected a waveform bank"):
            WaveformBank.load(tmp_path / name)


@pytest.mark.parametrize("name", ["waveform", "scale", "power", "parameters"])
def test_a_bank_whose_parts_do_not_fit_together_is_refused(copy: Path, name: str) -> None:
    with h5py.File(copy, "a") as file:
        shorter = file[name][:2]
        del file[name]
        file[name] = shorter
    with pytest.raises(InputError, match="of shape"):
        WaveformBank.load(copy)


def test_a_damaged_bank_in_the_cache_is_named(cache: Path) -> None:
    recipe = BankRecipe(STANDARD, 2, 99, (HANFORD,))
    path = recipe.path()
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    try:
        with pytest.raises(InputError, match="delete it to have it made again") as error:
            WaveformBank.obtain(recipe)
        assert str(path) in str(error.value)
    finally:
        path.unlink()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for given, expected in (
        ({"GWTWINS_CACHE": "/here", "XDG_CACHE_HOME": "/there"}, "/here"),
        ({"XDG_CACHE_HOME": "/there"}, "/there/gwtwins"),
        ({"GWTWINS_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/ada/.cache/gwtwins"),
    ):
        for key in ("GWTWINS_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(key, raising=False)
        for key, value in given.items():
            monkeypatch.setenv(key, value)
        assert cache_folder() == Path(expected)


def test_generation_is_fast_enough_for_twelve_thousand(tmp_path: Path) -> None:
    """About a millisecond each; 20 of them leave room for a busy machine."""
    started = time.process_time()
    make_bank(BankRecipe(STANDARD, 50, 0, (HANFORD,)), tmp_path / "bank.hdf5", workers=1, progress=False)
    assert time.process_time() - started < 1.0
