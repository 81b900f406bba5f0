"""Encoders: what the stem measures, how arguments are bounded, and one embedding for each detector."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gwtwins.encoders import bfloat16, registry
from gwtwins.encoders.cnn_gru import CnnGru, CnnGruConfig
from gwtwins.encoders.evidence import network_evidence
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.pooling import POOLINGS
from gwtwins.encoders.stem import LogPowerStem, sine_gaussian_pairs
from gwtwins.strain.conditioning import Conditioner
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

RATE, KERNEL = 1024.0, 128
needs_bfloat16 = pytest.mark.skipif(not bfloat16.fast(), reason="this CPU has no bfloat16")
FREQUENCY = torch.logspace(math.log10(25.0), math.log10(480.0), 24, dtype=torch.float64)
SMALL = {"width": 8, "hidden": 8, "embedding": 16}


def stem(**changed: Any) -> LogPowerStem:
    given: dict[str, Any] = {
        "bands": 24,
        "q": (5.0,),
        "kernel": KERNEL,
        "stride": 32,
        "f_low": 25.0,
        "f_high": 480.0,
        "rate": RATE,
    }
    return LogPowerStem(**(given | changed))


def band_limited(rows: int, rate: float, seconds: float = 2.0, f_low: float = 20.0, f_high: float = 500.0) -> Tensor:
    """One and the same continuous noise, whatever the rate it is sampled at: (rows, T) float32 of variance 1."""
    generator = torch.Generator().manual_seed(3)
    low, high, n = round(f_low * seconds), round(f_high * seconds), round(rate * seconds)
    spectrum = torch.zeros(rows, n // 2 + 1, dtype=torch.complex128)
    bins = torch.randn(rows, high - low, generator=generator, dtype=torch.complex128)
    spectrum[:, low:high] = bins * n / math.sqrt(2 * (high - low))
    return torch.fft.irfft(spectrum, n).float()


def flat_psd(name: str, value: float = 1e-46) -> PSD:
    return PSD(np.array([1.0, 30.0, 4096.0]), np.array([9.0, 1.0, 2.0]) * value, name)


# The stem


def test_pairs_have_unit_energy_and_are_in_quadrature() -> None:
    pairs = sine_gaussian_pairs(FREQUENCY, torch.full_like(FREQUENCY, 5.0), KERNEL, RATE)
    assert pairs.shape == (48, KERNEL)
    assert pairs.norm(dim=1) == pytest.approx(torch.ones(48), abs=1e-6)
    cosine, sine = pairs.chunk(2)
    assert (cosine * sine).sum(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize("q", [4.0, 9.0])
def test_each_pair_peaks_at_its_frequency_with_the_width_its_q_says(q: float) -> None:
    # Longer than the stem's own kernel, so that the slowest pair is not cut short.
    cosine, sine = sine_gaussian_pairs(FREQUENCY, torch.full_like(FREQUENCY, q), 1024, RATE).double().chunk(2)
    n = 1 << 16
    spectrum = torch.fft.fft(cosine + 1j * sine, n).abs()[:, : n // 2]
    # A Gaussian envelope of standard deviation q / (2 pi f) in time is one of f / q in frequency. Bands that
    # reach to the Nyquist frequency with two of them have lost their upper flank.
    inside = FREQUENCY * (1 + 2 / q) < RATE / 2
    assert inside.sum() >= 20
    peak = spectrum.argmax(dim=1) * RATE / n
    assert peak[inside].numpy() == pytest.approx(FREQUENCY[inside].numpy(), rel=0.01)
    aside = torch.round((FREQUENCY - FREQUENCY / q) * n / RATE).long()
    ratio = spectrum.gather(1, aside[:, None])[:, 0] / spectrum.amax(dim=1)
    assert ratio[inside].numpy() == pytest.approx(math.exp(-0.5), abs=0.02)


def test_white_noise_has_power_one_in_every_band() -> None:
    power = stem()(torch.randn(64, 1, 8192)).exp() - stem().floor
    assert power[..., 4:-4].mean(dim=(0, 2)).detach().numpy() == pytest.approx(1.0, abs=0.07)


def test_log_power_forgets_the_sign_exactly() -> None:
    layer, x = stem(), torch.randn(3, 1, 2048)
    assert torch.equal(layer(x), layer(-x))


def test_log_power_nearly_forgets_the_phase_and_keeps_the_frequency() -> None:
    layer, time = stem(), torch.arange(2048) / RATE
    for band in (3, 10, 20):
        frequency = float(FREQUENCY[band])
        phases = torch.linspace(0, 2 * math.pi, 9)[:-1, None]
        wave = 3.0 * torch.cos(2 * math.pi * frequency * time + phases)[:, None]
        power = layer(wave)[:, :, 8:-8].exp().detach() - layer.floor
        assert power.mean(dim=(0, 2)).argmax() == band
        assert power[:, band].std() < 0.03 * power[:, band].mean()


def test_log_power_keeps_the_time() -> None:
    layer, x = stem(), torch.zeros(1, 1, 2048)
    x[..., 1300] = 30.0
    frame = int(layer(x).sum(dim=1).argmax())
    assert abs((frame + 0.5) * 32 - 1300) <= 32


@pytest.mark.parametrize(
    ("samples", "kernel", "stride"), [(2048, 128, 32), (2048, 256, 16), (4096, 97, 48), (1000, 64, 64)]
)
def test_length_of_the_output(samples: int, kernel: int, stride: int) -> None:
    frames = stem(kernel=kernel, stride=stride)(torch.randn(1, 1, samples)).shape[-1]
    assert frames == (samples + (kernel - stride) % 2) // stride


def test_several_q_give_their_bands_one_after_the_other() -> None:
    both = stem(q=(4.0, 9.0), bands=6)
    assert both.channels == 12
    alone = [stem(q=(q,), bands=6) for q in (4.0, 9.0)]
    x = torch.randn(2, 1, 2048)
    assert torch.allclose(both(x), torch.cat([one(x) for one in alone], dim=1), atol=1e-6)


def test_the_random_stem_is_random_with_the_same_energy() -> None:
    random = stem(sine_gaussian=False)
    assert random.weight.shape == stem().weight.shape
    assert random.weight.norm(dim=2).detach().numpy() == pytest.approx(1.0, abs=1e-6)
    # A random filter hears every frequency alike, a sine-Gaussian its own (the lower half of the bands).
    flat, peaked = (torch.fft.rfft(layer.weight.detach()[:12, 0]).abs().square() for layer in (random, stem()))
    contrast = [(power.amax(dim=1) / power.mean(dim=1)).mean() for power in (flat, peaked)]
    assert contrast[1] > 4 * contrast[0]


# In bfloat16, while training


def defined(layer: LogPowerStem, x: Tensor) -> Tensor:
    """The stem's formula in float64, (N, K, frames)."""
    pair = torch.nn.functional.conv1d(x.double(), layer.weight.double(), stride=layer.stride, padding=layer.padding)
    a, b = pair.chunk(2, dim=1)
    return torch.log(layer.floor + (a**2 + b**2) / 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [{}, {"kernel": 97, "stride": 48}, {"q": (4.0, 9.0), "bands": 6, "stride": 16}])
@pytest.mark.parametrize("samples", [2048, 1792, 1000])
def test_the_stem_is_its_formula(training: bool, shape: dict[str, Any], samples: int) -> None:
    """To a tenth of a value's spread while training, 1% on average; to float32's rounding otherwise."""
    layer, x = stem(**shape).train(training), band_limited(32, RATE)[:, None, :samples]
    x[::2] *= torch.logspace(0, 1, 16)[:, None, None]  # as loud as signals are
    found, wanted = layer(x), defined(layer, x)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    off = (found - wanted).abs()
    if training:
        assert off.max() < 0.1 * wanted.std() and off.square().mean().sqrt() < 0.01 * wanted.std()
    else:
        assert off.max() < 1e-4


@needs_bfloat16
def test_only_training_rounds_and_the_rounding_does_not_depend_on_the_batch() -> None:
    layer, x = stem(), band_limited(8, RATE)[:, None]
    rounded, exact = layer.train()(x), layer.eval()(x)
    assert (rounded - exact).abs().max() > 1e-3
    assert torch.equal(layer.train()(x[3:5]), rounded[3:5])


@pytest.mark.parametrize("samples", [2048, 1792])
def test_the_stems_gradient_is_its_formulas(samples: int) -> None:
    """To 2% of its length while training; it is what the optimiser makes of thousands of such."""
    layer, x = stem().train(), band_limited(32, RATE)[:, None, :samples]
    weigh = torch.randn(32, 24, samples // 32)
    (wanted,) = torch.autograd.grad((defined(layer, x) * weigh).sum(), layer.weight)
    (found,) = torch.autograd.grad((layer(x) * weigh).sum(), layer.weight)
    assert found.dtype == torch.float32 and (found - wanted).norm() < 0.02 * wanted.norm()
    (exact,) = torch.autograd.grad((layer.eval()(x) * weigh).sum(), layer.weight)
    assert (exact - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize(("stride", "kernel", "frames"), [(4, 5, 120), (1, 5, 30), (2, 5, 31), (3, 3, 16), (1, 1, 7)])
def test_frames_are_convolved_as_torch_convolves_them(stride: int, kernel: int, frames: int) -> None:
    """Outputs and both gradients to bfloat16's rounding, 1% of their size, for any stride and number of frames."""
    x, weight = torch.randn(6, frames, 9, requires_grad=True), torch.randn(12, 9, kernel, requires_grad=True)
    found = bfloat16.FrameConvolution.apply(x, weight, stride)
    wanted = torch.nn.functional.conv1d(x.transpose(1, 2), weight, None, stride, kernel // 2).transpose(1, 2)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    weigh = torch.randn(wanted.shape)
    pairs = zip(*(torch.autograd.grad((out * weigh).sum(), (x, weight)) for out in (found, wanted)), strict=True)
    assert all((a - b).norm() < 0.01 * b.norm() and a.dtype == torch.float32 for a, b in pairs)


@needs_bfloat16
def test_training_in_bfloat16_is_training() -> None:
    """The whole encoder: outputs to 3% of their spread, running statistics to 1%, and the gradient's direction."""
    torch.manual_seed(0)
    made = CnnGru(CnnGruConfig()).train()
    x, found = band_limited(64, 1024.0)[:, None, :1920], []
    for fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bfloat16, "fast", lambda fast=fast: fast)
            layer = copy.deepcopy(made)
            out = layer(x)
            (out - out.mean(dim=0)).square().mean().backward()
            gradient = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
            found.append((out.detach(), gradient, torch.cat([b.flatten() for b in layer.buffers()])))
    (a, g, kept), (b, h, expected) = found
    assert 0 < (a - b).square().mean().sqrt() < 0.03 * b.std(dim=0).mean()
    assert torch.cosine_similarity(g, h, dim=0) > 0.98
    assert (kept - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("shape", [{}, {"strides": (2, 3), "conv_kernel": 3}, {"strides": (1, 2)}])
@pytest.mark.parametrize("samples", [2048, 1664])
def test_in_evaluation_frames_are_means_over_where_they_may_begin(shape: dict[str, Any], samples: int) -> None:
    """Of the plain layers on the stem's frames moved by each number of frames that the first convolution moves on by.

    Away from the ends, where the plain ones see zeros.
    """
    torch.manual_seed(0)
    made, x = CnnGru(CnnGruConfig(**shape)), band_limited(70, 1024.0)[:, None, :samples]
    made.train()(x)  # statistics that are not the first ones
    made.eval()
    frames, ways = made.stem(x), made.config.strides[0]
    each = [made.cnn(frames.roll(-move, 2)) for move in range(-(ways // 2), ways - ways // 2)]
    found, wanted = made.local(x, None), torch.stack(each).mean(dim=0).transpose(1, 2)
    assert found.shape == wanted.shape
    assert (found - wanted)[:, 4:-4].abs().max() < 1e-5
    whole = made.local(x, torch.arange(70) % 2 == 0)
    assert whole.shape[2] == wanted.shape[2] + 128 and torch.equal(whole[..., : wanted.shape[2]], found)


def test_strain_that_wants_a_gradient_gets_one() -> None:
    """Also while training: what an attribution or an adversarial window needs."""
    layer, x = stem().train(), torch.randn(2, 1, 2048).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and (x.grad != 0).all()


# Pooling and arguments


def test_poolings_equal_their_formulas() -> None:
    x = torch.randn(3, 5, 11, dtype=torch.float64)
    mean_max = POOLINGS["mean_max"]()(x)
    assert torch.equal(mean_max, torch.cat([x.mean(2), x.max(2).values], dim=1))
    gem = POOLINGS["gem"]()
    positive = np.logaddexp(0.0, x.numpy())
    assert gem(x).detach().numpy() == pytest.approx(np.mean(positive**3, axis=2) ** (1 / 3), rel=1e-5)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"pooling": "gem"},
        {"q": [4, 9.0], "bands": 8},
        {"strides": [8], "stem": "random"},
        {"strides": [1, 2, 2, 1], "pool_from": 0.0},
    ],
)
def test_every_argument_gives_an_encoder_that_trains(args: dict[str, Any]) -> None:
    encoder = registry.build("cnn_gru", SMALL | args)
    out = encoder(torch.randn(4, 1, 2048))
    assert out.shape == (4, 16)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_the_gru_sees_few_steps() -> None:
    encoder, steps = registry.build("cnn_gru"), []
    assert isinstance(encoder, CnnGru)
    encoder.gru.register_forward_pre_hook(lambda gru, given: steps.append(given[0].shape[1]))
    encoder(torch.zeros(1, 1, 2048))
    assert steps == [16] and encoder.hop == 0.125


@pytest.mark.parametrize(
    ("args", "hop", "start", "frames"),
    [
        ({}, 0.125, 9, 16),
        ({"pool_from": 0.0}, 0.125, 0, 16),
        ({"pool_from": 1.875}, 0.125, 15, 16),
        ({"pool_from": 1.5, "pooling": "gem"}, 0.125, 12, 16),
        ({"strides": [2, 2], "stride": 32}, 0.125, 9, 16),
        ({"strides": [1], "merger_frames": 4}, 1 / 64, 72, 128),
        ({"rate": 2048.0, "stride": 32}, 0.125, 9, 16),
        ({"window": 4.0, "pool_from": 2.5}, 0.125, 20, 32),
    ],
)
@torch.no_grad()
def test_a_window_is_embedded_by_its_frames_from_pool_from_on(
    args: dict[str, Any], hop: float, start: int, frames: int
) -> None:
    encoder = registry.build("cnn_gru", SMALL | args).eval()
    assert isinstance(encoder, CnnGru)
    assert encoder.hop == hop and encoder.pool_start == start
    x = torch.randn(3, 1, round(encoder.rate * encoder.window))
    sequence = encoder.sequence(x, torch.tensor([False, True, False]))
    assert sequence.shape == (3, frames, 16 + 16 * encoder.config.merger_frames)
    learnt = encoder.sequence(x)
    assert torch.equal(sequence[..., :16], learnt)
    wanted = encoder.head(encoder.pool(learnt[:, start:].transpose(1, 2)))
    assert torch.equal(encoder(x), wanted)
    assert torch.allclose(encoder.embed(sequence[:, start:]), wanted, atol=1e-6)  # added in another order
    pooled = encoder.pool(sequence[:, start:, :16].transpose(1, 2))
    fine = sequence[:, start:, 16:].reshape(3, -1, 16)  # several frames of evidence in each, sixteen mergers
    assert torch.equal(encoder.pooled(sequence[:, start:]), torch.cat([pooled, network_evidence(fine.amax(1))], 1))
    if start:
        assert not torch.allclose(encoder.embed(sequence), wanted, atol=1e-3)


@torch.no_grad()
def test_frames_before_pool_from_are_context_to_those_after() -> None:
    """A burst there is not pooled itself; the GRU's forward half carries some of it on."""
    encoder, x = registry.build("cnn_gru", SMALL).eval(), torch.randn(4, 1, 2048)
    early, late = x.clone(), x.clone()
    early[..., 300:340] += 20.0
    late[..., 1500:1540] += 20.0
    moved = [(encoder(windows) - encoder(x)).norm() for windows in (early, late)]
    assert 0 < moved[0] < 0.2 * moved[1]


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("cnn_gruu", {}, "cnn_gru or cnn_gru_2021"),
        ("cnn_gru", {"widht": 8}, "'width'"),
        ("cnn_gru", {"width": 3}, "4 to 1024"),
        ("cnn_gru", {"width": 10**9}, "out of bounds"),
        ("cnn_gru", {"width": 8.0}, "a int"),
        ("cnn_gru", {"width": True}, "is a bool"),
        ("cnn_gru", {"rate": math.nan}, "out of bounds"),
        ("cnn_gru", {"q": []}, "a list"),
        ("cnn_gru", {"q": [5.0] * 1000}, "a list"),
        ("cnn_gru", {"q": 5.0}, "a list"),
        ("cnn_gru", {"pooling": "os.system"}, "one of mean_max, gem"),
        ("cnn_gru", {"f_low": 400.0, "f_high": 100.0}, "f_low"),
        ("cnn_gru", {"f_high": 600.0}, "f_high"),
        ("cnn_gru", {"kernel": 16, "stride": 32}, "stride"),
        ("cnn_gru", {"window": 0.5, "rate": 1024.0, "kernel": 1024}, "kernel"),
        ("cnn_gru", {"strides": []}, "a list"),
        ("cnn_gru", {"strides": [4, 0]}, "out of bounds"),
        ("cnn_gru", {"strides": [4.0]}, "a int"),
        ("cnn_gru", {"pool_from": -1.0}, "out of bounds"),
        ("cnn_gru", {"pool_from": 2.0}, "pool_from 2 s, frames of 0.125 s; expected a frame or more within the window"),
        ("cnn_gru", {"layers": 3}, "no argument 'layers'"),
        ("cnn_gru_2021", {"rate": 4096.0}, "no argument 'rate'"),
    ],
)
def test_arguments_out_of_bounds_are_refused(name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        registry.build(name, args)


# Pairs


@pytest.fixture
def paired() -> PairedEncoder:
    """Two branches that differ, in eval mode."""
    psds = {name: flat_psd(name, value) for name, value in (("H1", 1e-46), ("L1", 2e-46), ("V1", 8e-46))}
    return PairedEncoder("cnn_gru", SMALL, shared=False, psds=psds).eval()


def test_each_detector_goes_to_its_own_branch(paired: PairedEncoder) -> None:
    x = torch.randn(6, 2048)
    for detectors in ([0, 0, 1, 1, 0, 1], [2] * 6, [0, 2, 1, 2, 2, 0]):
        index = torch.tensor(detectors)
        one_by_one = [(paired.v if i == 2 else paired.hl)(row[None, None])[0] for i, row in zip(detectors, x)]
        assert torch.allclose(paired.encode(x, index), torch.stack(one_by_one), atol=1e-6)
    assert not torch.allclose(paired.hl(x[:, None]), paired.v(x[:, None]), atol=1e-3)


def test_shared_means_one_set_of_weights() -> None:
    shared = PairedEncoder("cnn_gru", SMALL).eval()
    assert shared.hl is shared.v
    count = [sum(p.numel() for p in PairedEncoder("cnn_gru", SMALL, shared=s).parameters()) for s in (True, False)]
    assert 2 * count[0] == count[1]
    x = torch.randn(2, 1, 2048).expand(2, 3, 2048)
    out = shared(x)
    assert torch.allclose(out[:, 0], out[:, 2], atol=1e-6)


def test_kagra_goes_with_virgo() -> None:
    encoder = PairedEncoder("cnn_gru", SMALL, ("K1", "H1"), shared=False).eval()
    x = torch.randn(3, 2, 2048)
    assert torch.allclose(encoder(x)[:, 0], encoder.v(x[:, :1]), atol=1e-6)
    assert torch.allclose(encoder(x)[:, 1], encoder.hl(x[:, 1:]), atol=1e-6)


def test_absent_detectors_give_zero_and_touch_no_other(paired: PairedEncoder) -> None:
    x = torch.randn(3, 3, 2048)
    present = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    whole = paired(x)
    poisoned = x.masked_fill(~present[..., None], math.nan)
    out = paired(poisoned, present)
    assert out.shape == (3, 3, 16)
    assert torch.allclose(out[present], whole[present], atol=1e-6)
    assert (out[~present] == 0).all()
    assert (paired(x, torch.zeros(3, 3, dtype=torch.bool)) == 0).all()


def test_any_multiple_of_the_rate_gives_the_same_embedding(paired: PairedEncoder) -> None:
    at = {rate: band_limited(6, rate).view(2, 3, -1) for rate in (1024.0, 2048.0, 4096.0)}
    assert [x.shape[-1] for x in at.values()] == [2048, 4096, 8192]
    own = paired(at[1024.0])
    assert own.std() > 1e-3
    for rate in (2048.0, 4096.0):
        assert torch.allclose(paired(at[rate]), own, atol=1e-3)


def test_windows_in_float64_are_taken_too(paired: PairedEncoder) -> None:
    x = torch.randn(2, 3, 2048)
    assert torch.allclose(paired(x.double()), paired(x), atol=1e-6)


@pytest.mark.parametrize("rate", [2048.0, 4096.0])
def test_raw_strain_is_conditioned_with_the_encoders_own_psds(paired: PairedEncoder, rate: float) -> None:
    raw = 1e-21 * torch.randn(2, 3, round(2 * rate), dtype=torch.float64)
    psds = [paired.psds[name] for name in paired.detectors]
    by_hand = Conditioner(psds, rate, rate_out=1024.0)(raw)
    assert torch.allclose(paired(raw, whitened=False), paired(by_hand), atol=1e-6)
    assert not torch.allclose(paired(raw, whitened=False), paired(raw), atol=1e-3)


def test_raw_strain_needs_psds() -> None:
    encoder = PairedEncoder("cnn_gru", SMALL, psds={"H1": flat_psd("H1")})
    with pytest.raises(InputError, match="no PSD of L1 V1"):
        encoder(torch.zeros(1, 3, 4096), whitened=False)


@pytest.mark.parametrize("shape", [(3, 2048), (1, 2, 2048), (1, 3, 2047), (1, 3, 1024), (1, 3, 0), (1, 1, 3, 2048)])
@pytest.mark.parametrize("whitened", [True, False])
def test_wrong_shapes_are_refused(paired: PairedEncoder, shape: tuple[int, ...], whitened: bool) -> None:
    if whitened or shape[-1] not in (1024, 2047):  # raw strain may have any rate that holds the band
        with pytest.raises(InputError, match="strain|source rate"):
            paired(torch.zeros(shape), whitened=whitened)


def test_what_no_encoder_can_be_is_refused() -> None:
    with pytest.raises(InputError, match="G1.*H1 L1 V1 K1"):
        PairedEncoder("cnn_gru", SMALL, ("H1", "G1"))
    with pytest.raises(InputError, match="at least twice f_high = 600 Hz"):
        PairedEncoder("cnn_gru", SMALL, f_high=600.0)
    with pytest.raises(InputError, match="2048 samples a window"):
        PairedEncoder("cnn_gru_2021", {"width": 4, "embedding": 16})(torch.zeros(1, 3, 2048))
