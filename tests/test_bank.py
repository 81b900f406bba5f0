"""The waveform bank: pycbc's waveforms, whole and unwrapped, one file for each recipe."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

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
from pycbc_reference import FREQUENCY, SPAN, N, reference, series

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


def stored(bank: WaveformBank, row: int) -> np.ndarray:
    """(F,) complex128 strain seconds."""
    held = bank.waveform[row].to(torch.float64).numpy() @ [1, 1j]
    return held * float(bank.scale[row])


def fade_in(frequency: np.ndarray) -> np.ndarray:
    """0 to 1 between 20 and 40 Hz: a waveform that starts at 20 Hz from nothing rings there for seconds."""
    return np.sin(np.pi / 2 * np.clip((frequency - 20.0) / 20.0, 0, 1)) ** 2


def buffer(bank: WaveformBank, row: int) -> np.ndarray:
    """The circular buffer in time, faded in, (8192,) strain at 2048 Hz, merger at sample 0."""
    whole = np.zeros(int(BUFFER * RATE) // 2 + 1, complex)
    whole[bank.k_low : bank.k_low + bank.waveform.shape[1]] = stored(bank, row)
    return np.fft.irfft(whole * fade_in(np.arange(whole.size) / BUFFER)) * RATE


def long_waveform(bank: WaveformBank, row: int) -> tuple[np.ndarray, float]:
    """pycbc's 64 s of the same binary and band in time; and by how many seconds the bank's merger comes later."""
    plus = np.where(FREQUENCY < F_KEEP, reference(bank.parameters[row]).plus, 0.0) * fade_in(FREQUENCY)
    common = plus[:: int(SPAN / BUFFER)]  # k / BUFFER Hz
    product = np.zeros(int(BUFFER * F_KEEP), complex)
    product[bank.k_low :] = stored(bank, row) * np.conj(common[bank.k_low : product.size])
    points = 1 << 19
    lag = int(np.argmax(np.abs(np.fft.ifft(product, points)))) * BUFFER / points
    lag = (lag + BUFFER / 2) % BUFFER - BUFFER / 2
    whole = np.zeros(int(SPAN * RATE) // 2 + 1, complex)
    whole[:N] = plus * np.exp(-2j * np.pi * FREQUENCY * lag)
    return np.fft.irfft(whole) * RATE, lag
