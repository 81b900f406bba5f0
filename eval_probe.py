"""Judge a frozen encoder by a linear probe, or score unlabelled windows with a saved probe.

    python eval_probe.py --frac 0.25                        a quarter of the labelled rows, newest run, simulated data
    python eval_probe.py --frac 60 --weights gwtwins/small  sixty labels, an encoder that comes with the package
    python eval_probe.py --data g2net/ --frac 1             recorded windows with labels
    python eval_probe.py --data g2net/ --probe runs/latest/probe    windows without labels: writes submission.csv

The result's folder holds probe.json (figures), probe.safetensors (with probe.json all that scan_strain.py needs),
predictions.csv, report.html and plots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from gwtwins.strain.command import claim_folder, disk_faults, hold_folder, parse, plain, write_text
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.simulated import SimulationConfig
from gwtwins.strain.versions import versions


@dataclasses.dataclass
class ProbeConfig:
    """The probe."""

    frac: str = "0.25"
    """Labelled rows to learn from: a fraction (0 < F <= 1), or a count (an integer from 10 up)."""
    weights: str = ""
    """Encoder: a run's folder, an encoder.safetensors, or gwtwins/NAME; runs/latest if empty, else the shipped one."""
    data: str = "simulated"
    """simulated, a packed HDF5 file, or a folder in the G2Net layout."""
    out: str = ""
    """Folder of the result; <run>/probe if empty."""
    seed: int = 0
    """Seed of the draw of labels and of the folds. The test rows do not depend on it."""
    features: str = ""
    """concat (the detectors' embeddings side by side) or coherent (what the detectors show at the same moment too);
    coherent if empty, unless the encoder embeds whole windows without frames in time."""
    probe: str = ""
    """Folder of a saved probe: score the data with it instead of fitting one, and write submission.csv."""
    label_counts: list[int] = dataclasses.field(default_factory=lambda: [20, 60, 200, 600])
    """Label counts of the curve of few labels; [] for none."""
    label_draws: int = 20
    """Random draws of each of those counts; the curve shows their mean."""
    templates: int = 250
    """Templates of the matched-filter bank that is shown beside the probe on simulated data; 0 for none."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def probe(argv: list[str] | None = None) -> int:
    """Parse, embed, fit or load, score, report; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    (config, simulation), flat = parse("eval_probe.py", __doc__, [ProbeConfig, SimulationConfig], argv)

    from gwtwins.encoders.weights import describe_weights, find_encoder, load_encoder
    from gwtwins.probes.features import KINDS
    from gwtwins.probes.wording import same_data
    from gwtwins.strain.device import choose_device
    from gwtwins.strain.sources import Window, open_source

    began = time.perf_counter()
    if config.features and config.features not in KINDS:
        raise InputError(f"--features {config.features}", "is not known", " or ".join(KINDS))
    for name, least in (("seed", 0), ("label_draws", 1), ("templates", 0)):
        if getattr(config, name) < least:
            raise InputError(f"--{name.replace('_', '-')}", f"{getattr(config, name)}", f"{least} or more")
    device = choose_device(config.device)
    if config.data == "simulated" and not config.probe:
        from gwtwins.probes.linear import parse_frac

        parse_frac(config.frac, simulation.n_labelled)  # before seconds are spent
    weights = find_encoder(config.weights)
    encoder, card = load_encoder(weights, device), describe_weights(weights)
    print(f"encoder: {weights}")
    window = Window(encoder.rate, encoder.window, encoder.f_low, encoder.f_high)
    source = open_source(config.data, window, device, dataclasses.asdict(simulation))
    if isinstance(card.get("data"), dict) and not same_data(card["data"], source.describe()):
        print("note: the encoder was pretrained on data of other settings (encoder.json) than those it is judged on")
    context = {"weights": weights, "encoder": card, "data": source.describe(), "seed": config.seed}
    context["command"] = shlex.join(["python", "eval_probe.py", *argv])
    with contextlib.ExitStack() as held:
        if config.probe:
            out = predict(config, encoder, source, device, weights, context, held)
        else:
            out = judge(config, encoder, source, device, weights, context, began, held)
        write_text(out / "config.json", json.dumps(plain({**flat, "weights": weights}), indent=2) + "\n")
    return 0


def _claim(out: str, default: Path, held: contextlib.ExitStack) -> Path:
    """The folder of the result, made, and kept to this process until ``held`` ends."""
    folder = Path(out) if out else default
    held.enter_context(hold_folder(folder))
    held.enter_context(disk_faults(folder, "room, and another folder for --out"))
    return claim_folder(str(folder), folder)


def judge(
    config: ProbeConfig,
    encoder: Any,
    source: Any,
    device: str,
    weights: str,
    context: dict[str, Any],
    began: float,
    held: contextlib.ExitStack,
) -> Path:
    """Fit a probe on some of the labels, score the test rows, and write figures, plots and the report."""
    from gwtwins.encoders.weights import result_folder
    from gwtwins.probes.evaluate import evaluate, label_curve, limits
    from gwtwins.probes.features import embed
    from gwtwins.probes.linear import parse_frac
    from gwtwins.probes.predictions import write_scores
    from gwtwins.probes.report import write_report
    from gwtwins.probes.results import ProbeResults, choose_examples, gather_examples

    n_labelled = source.count("labelled")
    if n_labelled == 0:
        raise InputError(config.data, "holds no labelled rows", "labels, or --probe FILE to score windows without")
    if source.count("test") == 0:
        raise InputError(config.data, "holds no test rows", "labelled windows of the test share, or --n-test above 0")
    n_labels = parse_frac(config.frac, n_labelled)
    kind = config.features or ("coherent" if encoder.frames else "concat")
    if kind == "coherent" and not encoder.frames:  # before anything is embedded
        fault = f"encoder {encoder.name} embeds whole windows, without frames in time to compare"
        raise InputError("--features coherent", fault, "--features concat")
    out = _claim(config.out, result_folder(weights, "probe"), held)
    train = embed(encoder, source, "labelled", device=device)
    test = embed(encoder, source, "test", device=device)
    result = evaluate(train, test, n_labels, config.seed, kind)
    figures = result.figures
    counts = [n for n in config.label_counts if 10 <= n <= n_labelled]
    if left := [f"{n}" for n in config.label_counts if n not in counts]:
        print(f"note: no probe with {', '.join(left)} labels: 10 to the {n_labelled:,} that there are")
    figures["by_labels"] = label_curve(train, test, counts, config.label_draws, config.seed, kind)
    found = limits(source, config.templates) if hasattr(source, "bank") and not source.background else {}
    rows = ("score", "snr")  # of each test row: for the report, not for probe.json
    shown = {name: {k: v for k, v in limit.items() if k not in rows} for name, limit in found.items()}
    figures["limit"] = shown or None
    figures["frac"] = config.frac
    figures["features"] = kind
    figures["context"] = context
    figures["versions"] = versions()
    figures["seconds"]["total"] = round(time.perf_counter() - began, 1)
    result.probe.save(out / "probe.safetensors", plain(figures))
    figures["linear_probe"] = {**result.probe.about, "features": kind}
    write_scores(out / "predictions.csv", test.ids, result.probability, test.label, result.score)
    chosen = choose_examples(result.score, test.label, test.snr)
    examples = gather_examples(source, "test", chosen, result.score)
    write_report(
        out,
        ProbeResults(
            figures=figures,
            ids=test.ids,
            label=test.label,
            score=result.score,
            p=result.probability,
            snr=test.snr,
            embeddings=test.embeddings.reshape(len(test), -1),
            limits=found,
            examples=examples,
            detectors=source.detectors,
            run=context["encoder"],
            title=f"{Path(weights).name}: frozen probe with {n_labels:,} labels",
            command=context["command"],
        ),
    )
    print(summary(figures))
    print(f"report: {out / 'report.html'}")
    return out


def summary(figures: dict[str, Any]) -> str:
    """The figures as a small table for the terminal."""

    def row(name: str, area: float, found: Any) -> str:
        value = "   -  " if found is None else f"{found:6.3f}"
        return f"{name:<44s} {area:6.4f} {value}"

    low, high = figures["auc_ci95"]
    lines = [f"{'':<44s} {'AUC':>6s} {'eff 1%':>6s}"]
    lines.append(
        row(f"frozen probe, {figures['n_labels']:,} labels", figures["auc"], figures["efficiency"]["0.01"]["value"])
    )
    for entry in figures["by_labels"]:
        name = f"frozen probe, {entry['n_labels']:,} labels (mean of {entry['draws']})"
        lines.append(row(name, entry["auc"], entry.get("efficiency")))
    if "evidence" in figures:
        alone = figures["evidence"]
        lines.append(row("evidence alone, no labels", alone["auc"], alone["efficiency"]["0.01"]["value"]))
    named = {"bank": "limit: matched-filter bank, marginalised", "bank_maximum": "limit: matched-filter bank, maximum"}
    for name, limit in (figures["limit"] or {}).items():
        lines.append(row(named.get(name, "limit: signal known"), limit["auc"], limit["efficiency"]["0.01"]))
    lines.append(f"95% interval of the first AUC {low:.4f} to {high:.4f}; {figures['n_test']:,} test rows")
    return "\n".join(lines)


def predict(
    config: ProbeConfig,
    encoder: Any,
    source: Any,
    device: str,
    weights: str,
    context: dict[str, Any],
    held: contextlib.ExitStack,
) -> Path:
    """Score windows with a saved probe and write submission.csv, and submission.json about it.

    Those without a label are scored, and all where each has one.
    """
    from gwtwins.encoders.weights import result_folder
    from gwtwins.probes.features import embed, fingerprint
    from gwtwins.probes.linear import LinearProbe
    from gwtwins.probes.predictions import write_scores

    fitted = LinearProbe.load(config.probe)
    fitted.check_encoder(fingerprint(encoder), encoder.detectors, config.probe)
    out = _claim(config.out, result_folder(weights, "submission"), held)
    split = "submission" if source.count("submission") else "all"
    features = embed(encoder, source, split, device=device)
    write_scores(out / "submission.csv", features.ids, fitted.probability(features.embeddings, None, features.together))
    about = {"windows": len(features), "probe": fitted.about, "context": context, "versions": versions()}
    write_text(out / "submission.json", json.dumps(plain(about), indent=2) + "\n")
    print(f"{len(features):,} windows scored: {out / 'submission.csv'}")
    return out


def main() -> None:
    """Entry point of gwtwins-probe."""
    sys.exit(run_command(probe))


if __name__ == "__main__":
    main()
