"""Known mergers in the project's test strain: to find them, and to keep them out of what is called noise.

Times, networks and SNRs are those of the catalogues GWTC-1 (arXiv:1811.12907), GWTC-2.1 (arXiv:2108.01045)
and GWTC-3 (arXiv:2111.03606), rounded; where pipelines disagree the SNR is a range.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A compact binary merger that was published."""

    name: str
    gps: float
    """Merger at the geocentre, GPS seconds, good to about 0.1 s."""
    detectors: tuple[str, ...]
    """The detectors whose strain shows it or could have."""
    snr: tuple[float, float]
    """Lowest and highest published network SNR."""


EVENTS = (
    Event("GW150914", 1126259462.4, ("H1", "L1"), (24.0, 24.0)),
    Event("GW151226", 1135136350.6, ("H1", "L1"), (13.0, 13.0)),
    Event("GW170104", 1167559936.6, ("H1", "L1"), (13.0, 13.0)),
    Event("GW170814", 1186741861.5, ("H1", "L1", "V1"), (16.0, 16.0)),
    Event("GW190413_134308", 1239198206.7, ("H1", "L1", "V1"), (10.0, 10.0)),
    Event("GW190503_185404", 1240944862.3, ("H1", "L1", "V1"), (12.0, 12.0)),
    Event("GW190513_205428", 1241816086.8, ("H1", "L1", "V1"), (13.0, 13.0)),
    Event("GW190521_074359", 1242459857.4, ("H1", "L1"), (24.0, 24.0)),
    Event("GW190720_000836", 1247616534.7, ("H1", "L1", "V1"), (9.0, 11.0)),
    Event("GW191204_171526", 1259514944.1, ("H1", "L1"), (15.0, 17.0)),
    Event("GW200112_155838", 1262879936.1, ("L1", "V1"), (18.0, 20.0)),
    Event("GW200129_065458", 1264316116.4, ("H1", "L1"), (26.0, 26.0)),
)
"""In order of time. Not a whole catalogue: only the mergers inside the project's own test files."""
