"""Every ready-made run of configs/ runs: a few steps, and an encoder that can be loaded and used comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwosc_writer import coloured_noise as long_noise
from gwosc_writer import write_gwosc
from gwtwins.encoders.weights import describe_weights, load_encoder
from gwtwins.train_ssl import train

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STEPS = 2
FEW = ["--steps", f"{STEPS}", "--batch", "8", "--bank-size", "64", "--n-labelled", "64", "--n-test", "64"]
FEW += ["--watch", "60", "--device", "cpu"]
# Of an encoder or projector that takes seconds a step: the same recipe at a size that does not.
SLIM = {"cnn_gru_2021": ["--encoder-args", "{width: 4, embedding: 64}", "--projector", "64"]}

pytestmark = pytest.mark.usefixtures("cache")


def read(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text())


def run(config: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run a config for a few steps and use what it exports; the encoder's description."""
    assert train(["--config", str(config), "--out", str(out), *FEW, *options]) == 0
    encoder = load_encoder(out)
    white = torch.randn(4, len(encoder.detectors), encoder.samples)
    with torch.inference_mode():
        embedding = encoder(white)
    assert embedding.shape == (4, len(encoder.detectors), encoder.embedding_dim)
    assert torch.isfinite(embedding).all() and embedding.std(dim=0).min() > 0
    # It carries the PSDs of its data: raw strain will do.
    raw = 1e-21 * torch.randn(2, len(encoder.detectors), 2048 * 2, dtype=torch.float64)
    assert torch.isfinite(encoder(raw, whitened=False)).all()
    resolved = read(out / "config.yaml")
    given = {key: value for key, value in read(config).items() if not any(f"--{key}" == o for o in (*FEW, *options))}
    assert {key: resolved[key] for key in given} == given
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == STEPS and np.isfinite(lines[-1]["loss"])
    return describe_weights(out)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of strain files of all three detectors, 80 s each: with noise for each kind of rows."""
    folder = tmp_path_factory.mktemp("strain")
    for seed, detector in enumerate(("H1", "L1", "V1")):
        write_gwosc(folder / f"{detector}.hdf5", long_noise(80, 2048, seed), 2048, detector)
    return folder


def test_there_are_configs_for_the_demo_the_2021_recipe_and_real_noise() -> None:
    assert {"demo", "g2net_2021", "real_noise"} <= {config.stem for config in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs_and_exports_an_encoder(config: Path, recorded: Path, tmp_path: Path) -> None:
    node = read(config)
    options = SLIM.get(node.get("encoder", "cnn_gru"), [])
    if node.get("noise"):
        options = [*options, "--noise", str(recorded)]
    card = run(config, tmp_path / "run", *options)
    assert card["encoder"]["name"] == node.get("encoder", "cnn_gru")
    assert card["views"] == node.get("views", "detector") and card["steps"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("config", [c for c in CONFIGS if read(c).get("encoder") in SLIM], ids=lambda path: path.stem)
def test_a_config_of_a_large_encoder_runs_at_its_full_size(config: Path, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    assert load_encoder(tmp_path / "run").embedding_dim == 2048


@pytest.mark.parametrize("config", [c for c in CONFIGS if read(c).get("noise")], ids=lambda path: path.stem)
def test_a_config_of_real_noise_runs_on_real_strain(config: Path, gwosc: Path, tmp_path: Path) -> None:
    card = run(config, tmp_path / "run", "--noise", str(gwosc))
    assert card["data"]["noise"] == str(gwosc)


def test_the_2021_recipe_runs_on_a_folder_in_the_g2net_layout(tmp_path: Path) -> None:
    ids = names(32)
    folder = write_g2net_folder(tmp_path / "g2net", coloured_noise(32), ids, [k % 2 for k in range(32)])
    options = ["--data", str(folder), *SLIM["cnn_gru_2021"]]
    card = run(ROOT / "configs" / "g2net_2021.yaml", tmp_path / "run", *options)
    assert card["data"]["windows"] == 32 and card["encoder"]["name"] == "cnn_gru_2021"
    assert (card["f_low"], card["f_high"], card["shared"], card["window"]) == (20, 600, False, 2.0)


def test_the_2021_recipe_is_the_published_one() -> None:
    node = read(ROOT / "configs" / "g2net_2021.yaml")
    published = {"projector": 3192, "lambda_param": 0.0051, "batch": 384, "optimiser": "adamw", "learning_rate": 1e-4}
    published |= {"f_low": 20, "f_high": 600, "aug_noise_probability": 0.5, "objective": "barlow", "views": "detector"}
    assert {key: node[key] for key in published} == published
