"""Populations: their distributions, and every way in which a YAML of one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import kstest

from gwtwins.strain.errors import InputError
from gwtwins.strain.population import POPULATIONS, Distribution, Population

STANDARD: dict[str, Any] = yaml.safe_load((POPULATIONS / "standard.yaml").read_text())


def write(path: Path, **changes: Any) -> str:
    """The standard population's YAML with other values; None takes a key away."""
    node = {key: value for key, value in (STANDARD | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(node))
    return str(path)


def test_the_standard_population() -> None:
    population = Population.load("standard")
    assert (population.name, population.approximant, population.f_lower) == ("standard", "IMRPhenomXAS", 20.0)
    assert population.mass1 == population.mass2 == Distribution(8.0, 70.0)
    assert population.spin1z == population.spin2z == Distribution(-0.8, 0.8)
    assert population.merger == Distribution(1.2, 1.9) and population.snr == Distribution(4.0, 16.0)
    assert population.signal_fraction == 0.5


def test_binaries_are_drawn_from_it() -> None:
    drawn = Population.load("standard").intrinsic(0, 4000)
    assert drawn.shape == (4000, 4) and drawn.dtype == np.float64
    assert (drawn[:, 0] >= drawn[:, 1]).all()
    masses = np.sort(drawn[:, :2].flatten())
    assert kstest(masses, "uniform", args=(8, 62)).pvalue > 1e-3
    # The larger of two uniform numbers is below x with probability x^2.
    assert kstest(((drawn[:, 0] - 8) / 62) ** 2, "uniform").pvalue > 1e-3
    for spin in (drawn[:, 2], drawn[:, 3]):
        assert kstest(spin, "uniform", args=(-0.8, 1.6)).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 2:].T)[0, 1]) < 0.06  # standard error 0.016


def test_binaries_are_a_function_of_the_seed_and_begin_alike() -> None:
    population = Population.load("standard")
    many = population.intrinsic(3, 100)
    np.testing.assert_array_equal(population.intrinsic(3, 10), many[:10])
    assert not np.isin(population.intrinsic(4, 100), many).any()


@pytest.mark.parametrize("exponent", [0.0, 1.0, -1.0, -2.0, -4.0])
def test_quantiles_follow_the_power_law(exponent: float) -> None:
    law = Distribution(4.0, 16.0, exponent)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    x = law.quantile(u).numpy()
    assert x[0] == pytest.approx(4) and x[-1] == pytest.approx(16)
    # The share below x by numerical integration of x^exponent.
    grid = np.linspace(4, 16, 100_001)
    density = grid**exponent
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    np.testing.assert_allclose(np.interp(x, grid, share / share[-1]), u, atol=1e-6)


def test_the_upper_end_can_be_replaced() -> None:
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for exponent in (0.0, -1.0, -4.0):
        law = Distribution(4.0, 16.0, exponent)
        raised = Distribution(4.0, 50.0, exponent).quantile(u)
        torch.testing.assert_close(law.quantile(u, 50.0), raised, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            law.quantile(u, torch.full((3,), 50.0, dtype=torch.float64)), raised, rtol=1e-12, atol=0
        )


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "loud.yaml", name="loud", snr={"power_law": [8, 100, -4]}, signal_fraction=1)
    population = Population.load(path)
    assert population.name == "loud" and population.snr == Distribution(8.0, 100.0, -4.0)
    assert population.signal_fraction == 1.0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"snr": None}, "missing or unknown: .'snr'.; expected exactly"),
        ({"distance": 3}, "missing or unknown: .'distance'."),
        ({"snr": 8}, "snr: 8; expected {uniform"),
        ({"snr": {"normal": [8, 2]}}, "snr: .*normal.*; expected {uniform"),
        ({"snr": {"uniform": [4]}}, "expected {uniform"),
        ({"snr": {"uniform": [4, 16, 2]}}, "expected {uniform"),
        ({"snr": {"uniform": 4}}, "expected {uniform"),
        ({"snr": {"uniform": ["4", 16]}}, "expected {uniform"),
        ({"snr": {"uniform": [True, 16]}}, "expected {uniform"),
        ({"snr": {"uniform": [4, float("nan")]}}, "expected {uniform"),
        ({"snr": {"uniform": [4, float("inf")]}}, "expected {uniform"),
        ({"snr": {"uniform": [16, 4]}}, "low < high"),
        ({"snr": {"uniform": [4, 4]}}, "low < high"),
        ({"snr": {"uniform": [4, 16], "power_law": [4, 16, -4]}}, "expected {uniform"),
        ({"snr": {"power_law": [0, 16, -4]}}, "above 0"),
        ({"snr": {"power_law": [-1, 16, -4]}}, "above 0"),
        ({"snr": {"uniform": [-4, 16]}}, "snr"),
        ({"mass1": {"uniform": [0.1, 70]}}, "0.5 to 1000 solar masses"),
        ({"mass2": {"uniform": [8, 2000]}}, "0.5 to 1000 solar masses"),
        ({"spin1z": {"uniform": [-1, 0.8]}}, "above -1 and below 1"),
        ({"spin2z": {"uniform": [0, 1]}}, "above -1 and below 1"),
        ({"signal_fraction": 0}, "above 0 and at most 1"),
        ({"signal_fraction": 1.5}, "above 0 and at most 1"),
        ({"signal_fraction": True}, "above 0 and at most 1"),
        ({"signal_fraction": "half"}, "above 0 and at most 1"),
        ({"f_lower": 4}, "5 to 100 Hz"),
        ({"f_lower": "low"}, "5 to 100 Hz"),
        ({"f_lower": float("nan")}, "5 to 100 Hz"),
    ],
)
def test_bad_populations_are_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = write(tmp_path / "bad.yaml", **changes)
    with pytest.raises(InputError, match=fault) as error:
        Population.load(path)
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "name: [unclosed", "42", "a: !!python/name:os.x"])
def test_files_that_are_no_population_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        Population.load(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        Population.load(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("name", ["standart", "nowhere/at-all.yaml", "/"])
def test_an_unknown_population_is_told_which_there_are(name: str) -> None:
    with pytest.raises(InputError, match="no such file; expected a YAML file, or one of: .*standard"):
        Population.load(name)
