"""Training and embedding throughput of the encoders, in one run, on the same batch.

    python benchmarks/throughput.py                 a table; about 5 minutes on 2 cores
    python benchmarks/throughput.py --json OUT      the same figures as JSON

A training sample is one row: two views through the encoder and the projector, loss, gradient, clipping and AdamW; an
embedding window is one detector's 2 s, and so is one of a network, from three of which comes all that a probe looks at:
embeddings, what detectors show together, evidence. For these three data are made beforehand, whole windows, and the
networks alone are timed, in torch's own threads; the encoders take turns, repeat by repeat, so that a machine that
slows down slows both. Pretraining is train_ssl.py itself with each encoder's configuration (configs/demo.yaml,
configs/g2net_2021.yaml with --batch rows): rows made, views cut, lanes, checks, metrics; the median over the lines of
its metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gwtwins.benchmarks.scaling import command_rates
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.ssl.objectives import Objective, ObjectiveConfig
from gwtwins.ssl.pretrain import OptimiserConfig, Pretraining
from gwtwins.ssl.views import Views

ROOT = Path(__file__).resolve().parents[1]

# Each encoder with the projector, the sharing and the band of its own configuration in configs/.
SUBJECTS = {
    "cnn_gru": {"projector": 256, "shared": True, "f_high": 500.0},
    "cnn_gru_2021": {"projector": 3192, "shared": False, "f_high": 600.0},
}


def make(name: str, device: str) -> Pretraining:
    """A pretraining module with fresh weights."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    encoder = PairedEncoder(name, shared=subject["shared"], f_high=subject["f_high"])
    objective = Objective(ObjectiveConfig(projector=subject["projector"]), encoder.embedding_dim)
    return Pretraining(encoder, objective, OptimiserConfig(), 1000).to(device)


def train_step(module: Pretraining, optimiser: torch.optim.Optimizer, views: Views) -> None:
    """One optimiser step."""
    loss = module.training_step(views, 0)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
    optimiser.step()


def pretraining(name: str, steps: int, device: str, out: Path, options: Sequence[str] = ()) -> list[float]:
    """Samples a second, line by line, of a short run of train_ssl.py with an encoder's configuration."""
    config = ROOT / "configs" / ("demo.yaml" if name == "cnn_gru" else "g2net_2021.yaml")
    budget = ["--steps", str(steps), "--monitor-every", str(max(1, steps // 10))]
    return command_rates(["--config", str(config), *budget, "--watch", "0", "--device", device, *options], out)


def timed(action: object, device: str) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    action()  # type: ignore[operator]
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="rows of a training step, windows of an embedding batch")
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats, after one that is not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    what = "train", "embed", "network", "pretrain"
    rates: dict[str, dict[str, list[float]]] = {name: {key: [] for key in what} for name in SUBJECTS}
    modules = {name: make(name, args.device) for name in SUBJECTS}
    parameters = {name: sum(p.numel() for p in module.encoder.parameters()) for name, module in modules.items()}
    for repeat in range(args.repeats + 1):
        for name, module in modules.items():
            encoder, n, rows = module.encoder, module.encoder.samples, args.batch
            x = torch.randn(2, rows, n, generator=generator).to(args.device)
            detector = torch.arange(rows, device=args.device) % 2  # H1 and L1 by turns, against V1
            views = Views(x[0], x[1], detector, torch.full_like(detector, 2), torch.arange(rows))
            optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6)
            module.train()
            trained = timed(lambda m=module, o=optimiser, v=views: train_step(m, o, v), args.device)
            module.eval()
            with torch.inference_mode():
                embedded = timed(lambda e=encoder, v=x[0], d=detector: e.encode(v, d), args.device)
                encoder.noise_reference()  # once for as long as the weights stay what they are
                three = x[0].expand(3, -1, -1).transpose(0, 1).contiguous()  # (rows, 3, T)
                looked_at = timed(lambda e=encoder, v=three: e.network(v), args.device)
            if repeat:
                rates[name]["train"].append(rows / trained)
                rates[name]["embed"].append(rows / embedded)
                rates[name]["network"].append(3 * rows / looked_at)
    with tempfile.TemporaryDirectory() as folder:
        for name, steps, options in ("cnn_gru", 400, []), ("cnn_gru_2021", 4, ["--batch", str(args.batch)]):
            rates[name]["pretrain"] = pretraining(name, steps, args.device, Path(folder) / name, options)
    print(
        f"batch {args.batch}, {args.repeats} repeats, {torch.get_num_threads()} threads, {args.device}; "
        "median (min-max)\n"
    )
    titles = "training, samples/s | embedding, windows/s | of networks, windows/s | pretraining, samples/s"
    print(f"| encoder | parameters | {titles} |")
    print("|---|---|---|---|---|---|")
    for name, measured in rates.items():
        cells = [f"{statistics.median(r):,.1f} ({min(r):,.1f}-{max(r):,.1f})" for r in measured.values()]
        print(f"| `{name}` | {parameters[name] / 1e6:.2f} M | {' | '.join(cells)} |")
    ratio = {
        k: [a / b for a, b in zip(rates["cnn_gru"][k], rates["cnn_gru_2021"][k], strict=True)]
        for k in ("train", "embed", "network")
    }
    cells = [f"{statistics.median(r):.0f} ({min(r):.0f}-{max(r):.0f})" for r in ratio.values()]
    pretrained = statistics.median(rates["cnn_gru"]["pretrain"]) / statistics.median(rates["cnn_gru_2021"]["pretrain"])
    print(f"| ratio | | {' | '.join(cells)} | {pretrained:.0f} |")
    if args.json:
        args.json.write_text(json.dumps({"batch": args.batch, "device": args.device, "rates": rates, "ratio": ratio}))


if __name__ == "__main__":
    main()
