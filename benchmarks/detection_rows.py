"""The rows of the detection benchmark: what is trained, on what, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gwtwins.strain.errors import InputError

STANDARD = "standard population"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    title: str
    kind: str = "frozen"
    """frozen (pretrained, then probed), evidence (what mergers say without any label), supervised (a training for each
    label count), endless (supervised on labelled rows that never end) or limit (a statistic that learns nothing)."""
    options: tuple[str, ...] = ()
    """Of train_ssl.py, beside the benchmark's own config."""
    config: str = ""
    """A file of configs/ instead of the benchmark's own."""
    features: str = ""
    """Of the probe; as eval_probe.py's."""
    trained_as: str = ""
    """The row whose encoders this one uses, where it trains none."""
    budget: float = 1.0
    """Budgets that its training may take."""
    fixed_rows: int = 0
    """Unlabelled rows that training goes over again and again; 0 for endless ones."""
    data: dict[str, Any] = field(default_factory=dict)
    """What differs from the standard data, in training and in judging."""
    group: str = STANDARD
    """Rows of a group are judged on the same test rows."""


_UNTRAINED = ("--steps", "1", "--learning-rate", "1e-12")  # the encoder leaves as it came, through the same export
_POWER_LAW = {"population": "power_law"}
_DISTURBED = {"glitch_fraction": 0.05, "test_disturbed": True}
_GLITCHES = "a glitch in 5% of each detector's windows"
_REAL = "standard population in real noise"
_STEEP = "SNR^-4 from 4 on"

_ROWS = [
    Row("detector", "frozen probe, views detector"),
    Row("pairs", "frozen probe, views pairs", options=("--views", "pairs")),
    Row("noise", "frozen probe, views noise", options=("--views", "noise")),
    Row("augment", "frozen probe, views augment", options=("--views", "augment")),
    Row("vicreg", "frozen probe, VICReg", options=("--objective", "vicreg")),
    Row("ntxent", "frozen probe, NT-Xent", options=("--objective", "ntxent")),
    Row("concat", "frozen probe, features concat", features="concat", trained_as="detector"),
    Row("naive", "frozen probe, evidence that knows no glitches", options=("--encoder-args.glitch_bursts", "0")),
    Row("quiet", "frozen probe, pretrained without glitches", options=("--glitch-fraction", "0")),
    Row("signals_0.1", "frozen probe, a tenth of the unlabelled rows signals", options=("--signal-fraction", "0.1")),
    Row("signals_0.01", "frozen probe, a hundredth of them signals", options=("--signal-fraction", "0.01")),
    Row("fixed", "frozen probe, 24,000 recorded rows, no fresh ones", fixed_rows=24_000),
    Row("cnn_gru_2021", "the 2021 recipe", config="g2net_2021.yaml"),
    Row("cnn_gru_2021_10x", "the 2021 recipe, ten times the budget", config="g2net_2021.yaml", budget=10.0),
    Row("untrained", "untrained encoder", options=_UNTRAINED),
    Row("concat_untrained", "untrained encoder, features concat", features="concat", trained_as="untrained"),
    Row("evidence", "evidence alone", kind="evidence", trained_as="untrained"),
    Row("supervised", "the same encoder, supervised", kind="supervised"),
    Row("supervised_endless", "the same encoder, supervised, endless labels", kind="endless"),
    Row("bank", "250 random templates, log-mean-exp", kind="limit"),
    Row("dense", "bank of minimal match 0.97, log-mean-exp", kind="limit"),
    Row("optimum", "optimum: likelihood ratio", kind="limit"),
    Row("known", "everything about the signal known", kind="limit"),
    Row("power_law", "frozen probe", data=_POWER_LAW, group=_STEEP),
    Row("power_law_untrained", "untrained encoder", options=_UNTRAINED, data=_POWER_LAW, group=_STEEP),
    Row("power_law_bank", "250 random templates", kind="limit", data=_POWER_LAW, group=_STEEP),
    Row("power_law_optimum", "optimum: likelihood ratio", kind="limit", data=_POWER_LAW, group=_STEEP),
    Row("disturbed", "frozen probe, views detector", trained_as="detector", data=_DISTURBED, group=_GLITCHES),
    Row(
        "disturbed_naive",
        "frozen probe, evidence that knows no glitches",
        trained_as="naive",
        data=_DISTURBED,
        group=_GLITCHES,
    ),
    Row(
        "disturbed_quiet",
        "frozen probe, pretrained without glitches",
        trained_as="quiet",
        data=_DISTURBED,
        group=_GLITCHES,
    ),
    Row(
        "disturbed_signals_0.1",
        "frozen probe, a tenth of the unlabelled rows signals",
        trained_as="signals_0.1",
        data=_DISTURBED,
        group=_GLITCHES,
    ),
    Row(
        "disturbed_signals_0.01",
        "frozen probe, a hundredth of them signals",
        trained_as="signals_0.01",
        data=_DISTURBED,
        group=_GLITCHES,
    ),
    Row("disturbed_untrained", "untrained encoder", trained_as="untrained", data=_DISTURBED, group=_GLITCHES),
    Row(
        "disturbed_evidence",
        "evidence alone",
        kind="evidence",
        trained_as="untrained",
        data=_DISTURBED,
        group=_GLITCHES,
    ),
    Row("disturbed_supervised", "the same encoder, supervised", kind="supervised", data=_DISTURBED, group=_GLITCHES),
    Row("disturbed_bank", "250 random templates", kind="limit", data=_DISTURBED, group=_GLITCHES),
    Row("real_noise", "frozen probe, pretrained in real noise", group=_REAL),
    Row("real_noise_transfer", "frozen probe, pretrained in Gaussian noise", trained_as="detector", group=_REAL),
    Row("real_noise_untrained", "untrained encoder", options=_UNTRAINED, group=_REAL),
]
ROWS = {row.name: row for row in _ROWS}
QUICK = ("detector", "pairs", "untrained", "supervised_endless", "bank", "known")


def chosen_rows(names: list[str], quick: bool, noise: str) -> list[Row]:
    """The rows that are asked for, in the table's order; by default all that the data at hand allow.

    Raises:
        InputError: an unknown row, or one in real noise where there is none.
    """
    for name in names:
        if name not in ROWS:
            raise InputError(f"--rows {name}", "is not a row of the benchmark", ", ".join(ROWS))
        if ROWS[name].group == _REAL and not noise:
            raise InputError(f"--rows {name}", "there is no real noise", "--noise FILES, as in train_ssl.py")
    wanted = names or (QUICK if quick else [name for name, row in ROWS.items() if noise or row.group != _REAL])
    return [row for name, row in ROWS.items() if name in wanted]


def data_of(row: Row, noise: str) -> dict[str, Any]:
    """The options of the simulated source by which a row's data differ from the standard."""
    return {**row.data, **({"noise": noise} if row.group == _REAL else {})}


def limit_of(row: Row) -> str:
    """Which statistic a row of kind limit is."""
    return row.name.rpartition("_")[2]
