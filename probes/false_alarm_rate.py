"""A false-alarm rate and its interval, from a count in so much time."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import chi2

YEAR = 365.25 * 86400.0
"""Seconds (Julian)."""
_ONE_SIGMA = 0.8413447460685429  # of a Gaussian's probability lies below one standard deviation


@dataclass(frozen=True)
class Rate:
    """A false-alarm rate per year."""

    value: float
    """Louder or equally loud slid triggers over live time; 1 / live time where there is none."""
    low: float
    """Ends of the 68% interval for the count's Poisson mean (Gehrels 1986, ApJ 303, 336), per year."""
    high: float
    is_limit: bool
    """No slid trigger is as loud: the rate is at most about `value`."""
    count: int
    seconds: float
    """Slid live time."""


def rate(count: int, seconds: float) -> Rate | None:
    """The rate of ``count`` slid triggers in ``seconds`` of slid live time; None where there is no live time."""
    if seconds <= 0:
        return None
    years = seconds / YEAR
    low = float(chi2.ppf(1 - _ONE_SIGMA, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(_ONE_SIGMA, 2 * count + 2)) / 2
    return Rate(max(count, 1) / years, low / years, high / years, count == 0, count, seconds)
