"""Sound files of what has been learnt, of settings and of results for a fuzz run, and how each is read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gwtwins.benchmarks.fuzz_data import DETECTORS, START

# ---- what has been learnt


@cache
def small_encoder() -> Any:
    import torch

    from gwtwins.encoders.paired import PairedEncoder
    from gwtwins.strain.psd import PSD

    torch.manual_seed(0)
    psd = PSD(np.linspace(10, 1024, 64), np.full(64, 1e-46), "flat")
    args = {"width": 8, "hidden": 8, "embedding": 16}
    return PairedEncoder("cnn_gru", args, psds=dict.fromkeys(DETECTORS, psd)).eval()


def make_weights(folder: Path) -> None:
    from gwtwins.encoders.weights import save_encoder

    save_encoder(small_encoder(), folder, {"steps": 1, "data": {"source": "simulated"}, "figures": {"loss": 0.1}})


def read_weights(folder: Path) -> Any:
    import torch

    from gwtwins.encoders.weights import describe_weights, load_encoder

    encoder, card = load_encoder(folder), describe_weights(folder)
    assert encoder.detectors and not any(p.requires_grad for p in encoder.parameters())
    assert all(torch.isfinite(v).all() for v in encoder.state_dict().values() if v.is_floating_point())
    assert 0 < encoder.samples <= 1 << 24
    state = {name: value.numpy() for name, value in encoder.state_dict().items()}
    return state, [(p.frequency, p.value) for p in encoder.psds.values()], card["detectors"]


def make_probe(folder: Path) -> None:
    from gwtwins.probes.linear import LinearProbe

    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    embedding = (rng.normal(size=(40, 3, 8)) + label[:, None, None]).astype(np.float32)
    here = np.ones((40, 3), bool)
    LinearProbe.fit(embedding, here, label, np.arange(40), "concat", 0, DETECTORS, "f" * 64).save(
        folder / "probe.safetensors"
    )


def read_probe(folder: Path) -> Any:
    from gwtwins.probes.linear import LinearProbe

    probe = LinearProbe.load(folder)
    e = probe.features.state["mean"].shape[1]
    j = probe.features.state["together_mean"].shape[1] if "together_mean" in probe.features.state else 0
    d = len(probe.detectors)
    there = np.ones((2, j)) if j else None
    decision = probe.decision(np.ones((2, d, e), np.float32), np.ones((2, d), bool), there)
    assert decision.shape == (2,)
    return decision, probe.detectors, probe.encoder


def make_embeddings(folder: Path) -> None:
    from gwtwins.probes.embedding_file import EmbeddingWriter

    rng = np.random.default_rng(0)
    about = {
        "encoder": "f" * 64,
        "weights": "runs/x",
        "window": 2.0,
        "split": "all",
        "seed": 0,
        "data": {},
        "versions": {},
    }
    with EmbeddingWriter(folder / "x.hdf5", DETECTORS, 16, 40, about) as out:
        out.add(
            [f"{k:04d}" for k in range(40)],
            np.arange(40) * 2.0,
            rng.random((40, 3)) < 0.9,
            rng.normal(size=(40, 3, 16)),
        )


def read_embeddings(folder: Path) -> Any:
    from gwtwins.probes.embedding_file import EmbeddingFile
    from gwtwins.probes.neighbours import Standardiser, nearest, table

    with EmbeddingFile(folder / "x.hdf5") as file:
        n, d, e = file.shape
        total = 0
        for rows, embedding, present in file.blocks():
            assert embedding.shape[1:] == (d, e) and np.isfinite(embedding).all() and present.dtype == bool
            total += rows.stop - rows.start
        assert total == n
        query, found = nearest(file, 0, 3, Standardiser(file, False), False)
        assert all(-1.001 <= match.similarity <= 1.001 for match in found)
        text = table(query, found)
        assert all(line.isprintable() for line in text.splitlines())
        return file.ids(range(n)), file.gps, file.label, file.snr, file.detectors, file.encoder, text


def make_bank(folder: Path) -> None:
    from gwtwins.strain import bank

    rng, n = np.random.default_rng(0), 6
    with h5py.File(folder / "x.hdf5", "w") as file:
        file.attrs.update(format=np.bytes_(bank.FORMAT), k_low=80, recipe=np.bytes_("{}"))
        file["parameters"] = rng.uniform(10, 50, (n, 4))
        file["waveform"] = rng.normal(size=(n, int(bank.F_KEEP * bank.BUFFER) - 80, 2)).astype("f2")
        file["scale"], file["power"] = np.full(n, 1e-23), rng.random((n, len(bank.POWER_EDGES) - 1))
        group = file.create_group("psds/0")
        group.attrs["name"], group["frequency"], group["value"] = (
            np.bytes_("flat"),
            np.arange(10.0, 1024),
            np.full(1014, 1e-46),
        )


def read_bank(folder: Path) -> Any:
    from gwtwins.strain.bank import WaveformBank

    bank = WaveformBank.load(folder / "x.hdf5")
    sigma = [bank.sigma(psd).numpy() for psd in bank.psds.values()]
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in sigma), "SNRs that are not finite"
    assert bank.waveform.dtype.itemsize == 2 and bank.waveform.isfinite().all() and bank.k_low >= 0
    return bank.parameters, bank.waveform.numpy(), sigma, bank.k_low, bank.scale.numpy()


def make_templates(folder: Path) -> None:
    import torch

    from gwtwins.strain.template_bank import TemplateBank

    where = torch.tensor([0, 0, 1, 1, 2])
    TemplateBank(torch.tensor([0, 2, 4]), where, torch.full((5,), 0.98), torch.zeros(5)).save(folder / "x.hdf5")


def read_templates(folder: Path) -> Any:
    from gwtwins.strain.template_bank import TemplateBank

    bank = TemplateBank.load(folder / "x.hdf5")
    c, n = len(bank), len(bank.nearest)
    assert bank.chosen.ndim == bank.nearest.ndim == 1 and c and bank.match.shape == bank.lag.shape == (n,)
    assert 0 <= int(bank.chosen.min()) and int(bank.chosen.max()) < n and 0 <= int(bank.nearest.min())
    assert int(bank.nearest.max()) < c and bank.match.isfinite().all() and bank.lag.isfinite().all()
    return bank.chosen.numpy(), bank.nearest.numpy(), bank.match.numpy(), bank.lag.numpy()


# ---- settings


def train_concerns() -> list[type]:
    from gwtwins.train_ssl import concerns

    return concerns()


def make_config(folder: Path) -> None:
    (folder / "x.yaml").write_text(
        "views: detector\ndata: simulated\nseed: 3\nsteps: 20\nbatch: 16\nencoder: cnn_gru\n"
        "encoder_args: {width: 8, strides: [2, 2]}\nf_low: 20.0\npsds: a,b,c\n"
    )


def read_config(folder: Path) -> Any:
    from gwtwins.strain.command import parse

    made, flat = parse("train_ssl.py", "x", train_concerns(), ["--config", str(folder / "x.yaml")])
    assert type(flat["seed"]) is int and type(flat["views"]) is str
    return json.dumps(flat, sort_keys=True, default=str)


def make_population(folder: Path) -> None:
    from gwtwins.strain.population import POPULATIONS

    (folder / "x.yaml").write_text((POPULATIONS / "standard.yaml").read_text())


def read_population(folder: Path) -> Any:
    from gwtwins.strain.population import Population

    population = Population.load(str(folder / "x.yaml"))
    drawn = population.intrinsic(0, 16)
    assert np.isfinite(drawn).all() and (drawn[:, 0] >= drawn[:, 1]).all() and (drawn[:, 1] > 0).all()
    assert type(population.name) is str
    return drawn, population


def make_asd(folder: Path) -> None:
    f = np.linspace(10, 1024, 60)
    (folder / "x.txt").write_text("# Hz, 1/sqrt(Hz)\n" + "".join(f"{a:.3f} {1e-23 * (1 + a / 100):.4e}\n" for a in f))


def read_asd(folder: Path) -> Any:
    from gwtwins.strain.psd import load_psd

    psd = load_psd(str(folder / "x.txt"))
    assert np.isfinite(psd.at(np.array([1.0, 20.0, 500.0]))).all() and (psd.value > 0).all()
    return psd.frequency, psd.value


def make_times(folder: Path) -> None:
    (folder / "x.txt").write_text("1126259462.4\n1187008882.4\n1000000000\n")


def read_times(folder: Path) -> Any:
    from gwtwins.strain.real_noise import gps_times

    times = gps_times("--noise-avoid", str(folder / "x.txt"))
    assert all(np.isfinite(times))
    return times


# ---- folders of results


@cache
def small_module() -> Any:
    from gwtwins.ssl.objectives import Objective, ObjectiveConfig
    from gwtwins.ssl.pretrain import OptimiserConfig, Pretraining

    encoder = small_encoder()
    return Pretraining(encoder, Objective(ObjectiveConfig(projector=16), encoder.embedding_dim), OptimiserConfig(), 10)


def make_checkpoint(folder: Path) -> None:
    import torch

    from gwtwins.ssl import resumption

    module = small_module()
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    sizes = [p.numel() for group in module.configure_optimizers().param_groups for p in group["params"]]
    state = {
        i: {k: v.expand(size).clone() if v.ndim else v for k, v in moments.items()} for i, size in enumerate(sizes)
    }
    torch.save(
        {
            "global_step": 3,
            resumption._KEY: {"options": {"seed": 0}, "threads": 1},
            "state_dict": module.state_dict(),
            "optimizer_states": [{"state": state, "param_groups": []}],
        },
        folder / "last.ckpt",
    )


def read_checkpoint(folder: Path) -> Any:
    from gwtwins.ssl.resumption import check_checkpoint

    steps, threads = check_checkpoint(folder / "last.ckpt", small_module(), {"seed": 0})
    assert steps >= 0 and threads >= 1
    return steps, threads


def make_scan(folder: Path) -> None:
    span = {"start": float(START), "end": START + 16.0, "why": ""}
    slid = {"slid_seconds": 1e4, "triggers": 3, "loudest": 2.5, "histogram": {"low": 0.0, "bin": 0.5, "count": [2, 1]}}
    report = {
        "analysed": {"H1": [span], "L1": [span]},
        "not_analysed": {"H1": [], "L1": [{**span, "why": "a gap"}]},
        "windows": {"seconds": 2.0},
        "config": {"threshold": 0.5},
        "analysed_seconds_by_network": {"H1 L1": 16.0, "H1": 0.0},
        "background": {"networks": {"H1 L1": slid, "H1": {"why_none": "one detector"}}},
    }
    (folder / "scan.json").write_text(json.dumps(report))
    (folder / "scan-config.json").write_text(json.dumps({"strain files": [{"path": "/x/H-H1_A-1-16.hdf5"}]}))
    head = "time,stat,p,far_per_year,stat_H1,stat_L1,window_start,var,network,far_per_year_inclusive,"
    head += "far_low,far_high,far_is_limit,far_inclusive_low,far_inclusive_high,far_inclusive_is_limit\n"
    row = f"{START + 5}.125,3.5,0.97,12.5,1.5,2.0,{START + 4}.0,0.1,H1 L1,13,5,20,0,6,21,1\n"
    (folder / "triggers.csv").write_text(head + row + row.replace("3.5,", "2.5,"))


def read_scan(folder: Path) -> Any:
    from gwtwins.probes.scan_result import read_scan

    result = read_scan(folder)
    numbers = [x for c in result.candidates for x in (c.time, c.stat, c.start, *c.part.values())]
    assert all(np.isfinite(numbers)) and np.isfinite([result.window, result.threshold]).all()
    stretches = result.stretches
    return (
        result.candidates,
        [(n.names, n.searched, n.slid, n.triggers) for n in result.networks],
        stretches,
        result.files,
    )
