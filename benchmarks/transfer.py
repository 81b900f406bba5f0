"""What does an encoder know of signals that it was never shown? Frozen, judged on populations other than its own.

    python benchmarks/transfer.py --weights runs/x                 six populations in Gaussian noise; about 20 minutes
    python benchmarks/transfer.py --weights runs/x --noise FILES   in recorded noise too
    python benchmarks/transfer.py --weights runs/x gwtwins/small --populations precessing yours.yaml

The encoder stays as it is. A probe is fitted on labelled rows of the standard population in Gaussian noise (the first
columns), and another on labelled rows of the very population and noise that it is judged on (the second); both score
the same test rows. What is lost with the first and won back by the second was in the features; what the second does
not win back is not. Last the efficiency if everything about each signal were known: of long signals only what lies
inside the window can be seen, while their SNR is that of the whole.

Labelled and test rows in recorded noise are from different seconds (``--noise-split`` of train_ssl.py). ``--out`` keeps
the result of each population, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.benchmarks import frozen_probe
from gwtwins.benchmarks.detection_figures import FIGURES, Judge, difference
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.features import Features, embed, fingerprint
from gwtwins.probes.limits import known_signal, snr_in_window
from gwtwins.probes.linear import MIN_LABELS, LinearProbe
from gwtwins.strain.command import write_text
from gwtwins.strain.device import choose_device
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.population import Population
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig

POPULATIONS = ("standard", "low_mass", "high_mass", "neutron_star", "precessing", "power_law")
_KEYS = ("labels", "draws", "test_rows", "noise_rows", "features")  # options that decide a result


class Transfer:
    """One frozen encoder; its probes of the standard population are fitted at their first use."""

    def __init__(self, weights: str, args: argparse.Namespace) -> None:
        self.weights, self.args, self.device = weights, args, choose_device(args.device)
        self.encoder: PairedEncoder = load_encoder(weights, self.device)
        self.kind = args.features or ("coherent" if self.encoder.frames else "concat")
        self._standard: list[LinearProbe] = []

    def source(self, population: str, noise: str) -> SimulatedSource:
        """The labelled and test rows of a population."""
        config = SimulationConfig(
            population=population, noise=noise, n_labelled=frozen_probe.POOL, n_test=self.args.test_rows
        )
        return frozen_probe.open_rows(config, self.encoder, self.device)

    def fitted(self, source: SimulatedSource) -> list[LinearProbe]:
        """Probes on draws of a source's labelled rows."""
        train = embed(self.encoder, source, "labelled", device=self.device)
        return frozen_probe.fit_probes(train, self.args.labels, self.args.draws, 0, self.kind)

    @property
    def standard(self) -> list[LinearProbe]:
        """Probes fitted on the standard population in Gaussian noise."""
        self._standard = self._standard or self.fitted(self.source("standard", ""))
        return self._standard

    def __call__(self, population: str, noise: str) -> dict[str, Any]:
        """Figures of both kinds of probes on a population's test rows."""
        source = self.source(population, noise)
        same = population == "standard" and not noise
        probes = [*self.standard, *([] if same else self.fitted(source))]
        test: Features = embed(self.encoder, source, "test", device=self.device)
        scores = frozen_probe.score_test(probes, test)
        rare = frozen_probe.score_noise(probes, self.encoder, source, self.args.noise_rows, self.device)
        assert test.label is not None
        judge, n = Judge(test.label, self.args.noise_rows), len(self.standard)
        first = judge(scores[:n], rare[:n])
        second = first if same else judge(scores[n:], rare[n:])
        lost = {figure: difference([first], [second], figure) for figure in FIGURES}
        probed = {"standard": first.figures, "own": second.figures, "standard_minus_own": lost}
        return {"population": population, "noise": noise, **probed, "known": known(source)}


def known(source: SimulatedSource) -> dict[str, Any]:
    """The figures if everything about each signal of the test rows were known."""
    inside = []
    for batch in source.batches("test", 256, signal=True):
        assert batch.label is not None
        snr = snr_in_window(batch.truth["signal"], source.f_low, source.f_high, source.rate)
        inside.append(snr[batch.label == 1].cpu().numpy())
    seen = np.concatenate(inside)
    found: Any = known_signal(seen, (0.01, 0.001))
    detected = {f"efficiency_{p}": value for p, value in found["efficiency"].items()}
    return {"auc": found["auc"], **detected, "median_snr_in_window": float(np.median(seen))}


def result_path(out: Path, transfer: Transfer, population: str, noise: str) -> Path:
    """Where a result is kept: by encoder, population, noise and all that decides it."""
    signals = dataclasses.asdict(Population.load(population))
    decisive = [fingerprint(transfer.encoder), signals, noise, *(getattr(transfer.args, key) for key in _KEYS)]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    return out / f"{Path(population).stem}-{'recorded' if noise else 'gaussian'}-{key}.json"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each encoder, noise and population."""
    lines = [
        "| encoder | noise | population | AUC | at 1% | at 0.1% | AUC, own probe | at 1% | at 0.1% | lost in AUC "
        "| known: at 1% | SNR in the window |",
        "|---" * 12 + "|",
    ]
    for one in results:
        cells = [one["weights"], "recorded" if one["noise"] else "Gaussian", Path(one["population"]).stem]
        for which in ("standard", "own"):
            values = [one[which][figure] for figure in FIGURES]
            cells += ["" if v is None else f"{v:.{4 if i == 0 else 3}f}" for i, v in enumerate(values)]
        lost = one["standard_minus_own"]["auc"]
        cells.append(f"{lost['value']:+.4f} ± {lost['error']:.4f}")
        cells += [f"{one['known']['efficiency_0.01']:.3f}", f"{one['known']['median_snr_in_window']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace) -> int:
    """Judge what has not been judged yet, and print the table."""
    if args.draws < 1 or args.labels < MIN_LABELS or args.test_rows < 2 or args.noise_rows < 0:
        given = "--draws, --labels, --test-rows, --noise-rows"
        raise InputError(given, "too few", f"1 draw, {MIN_LABELS} labels, 2 test rows or more, and none below 0")
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for weights in args.weights:
        transfer = Transfer(weights, args)
        for noise in ["", args.noise] if args.noise else [""]:
            for population in args.populations:
                path = result_path(args.out, transfer, population, noise)
                if not path.exists():
                    print(f"{weights}: {population}, {'recorded' if noise else 'Gaussian'} noise", flush=True)
                    write_text(path, json.dumps(transfer(population, noise), indent=1) + "\n")
                results.append({**json.loads(path.read_text()), "weights": weights})
    noise_rows = f"{args.noise_rows:,} noise-only rows for 0.1%"
    said = f"{args.test_rows:,} test rows, half of them signals; {noise_rows}; {args.labels:,} labels"
    text = f"{said}. First the probe of the standard population in Gaussian noise.\n\n{table(results)}\n"
    write_text(args.out / "table.md", text)
    write_text(args.out / "table.json", json.dumps(results, indent=1) + "\n")
    print("\n" + text)
    return 0


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["gwtwins/small"], help="runs, files or gwtwins/NAME")
    parser.add_argument("--populations", nargs="+", default=list(POPULATIONS), help="names or YAML files")
    parser.add_argument("--noise", default="", help="GWOSC files or folders, joined by commas")
    parser.add_argument("--labels", type=int, default=600, help="that each probe is fitted on")
    parser.add_argument("--draws", type=int, default=20, help="of these labels, whose mean is shown")
    parser.add_argument("--test-rows", type=int, default=20_000)
    parser.add_argument("--noise-rows", type=int, default=100_000)
    parser.add_argument("--features", default="", help="concat or coherent")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="folder of the results")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_command(lambda: benchmark(arguments())))


if __name__ == "__main__":
    main()
