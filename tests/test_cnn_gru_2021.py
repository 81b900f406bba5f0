"""The 2021 encoder: its size, its pooling against the formula, and that all of it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gwtwins.encoders import registry
from gwtwins.encoders.cnn_gru_2021 import CnnGru2021, CnnGru2021Config, GeM1d
from gwtwins.strain.errors import InputError

SMALL = CnnGru2021Config(width=8, embedding=32)


def windows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 4096, generator=torch.Generator().manual_seed(seed))


def test_published_size_and_output_shape() -> None:
    encoder = CnnGru2021().eval()
    with torch.inference_mode():
        embedding = encoder(windows(2))
    assert embedding.shape == (2, 2048)
    assert torch.isfinite(embedding).all()
    assert (encoder.rate, encoder.window, encoder.embedding_dim) == (2048.0, 2.0, 2048)
    count = sum(p.numel() for p in encoder.parameters())
    # 8,105,220 as published, less the 768 biases that a BatchNorm cancels.
    assert count == 8_105_220 - 768
    assert abs(count / 8.1e6 - 1) < 0.02


def test_layers_are_the_published_ones() -> None:
    encoder = CnnGru2021()
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv1d)]
    assert [c.kernel_size[0] for c in convolutions] == [64, 32, 32, 32, 32, 16, 16, 16, 1]
    assert [c.out_channels for c in convolutions] == [64, 64, 64, 64, 128, 128, 256, 256, 256]
    assert [m.kernel for m in encoder.modules() if isinstance(m, GeM1d)] == [2, 4, 6, 4]
    assert (encoder.gru.hidden_size, encoder.gru.bidirectional) == (128, True)


@pytest.mark.parametrize("pool_after", ["conv", "silu"])
def test_gradient_reaches_every_parameter(pool_after: str) -> None:
    torch.manual_seed(1)
    encoder = CnnGru2021(CnnGru2021Config(width=8, embedding=32, pool_after=pool_after)).double()
    encoder(windows(8).double()).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-9, name  # a cancelled bias would show 1e-17


def test_eval_is_deterministic_and_rows_are_independent() -> None:
    encoder = CnnGru2021(SMALL).eval()
    x = windows(5)
    with torch.inference_mode():
        together, again = encoder(x), encoder(x)
        alone = torch.cat([encoder(row[None]) for row in x])
    assert torch.equal(together, again)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 2048), (2, 3, 4096), (2, 4096)])
def test_another_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"2 s at 2048 Hz"):
        CnnGru2021(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("power", [1.0, 3.0, 7.5])
def test_gem_is_its_formula(power: float) -> None:
    x = torch.randn(3, 4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    clamped = torch.where(x < 1e-6, torch.full_like(x, 1e-6), x)
    plain = torch.stack(
        [(sum(clamped[..., 7 * i + j] ** power for j in range(7)) / 7) ** (1 / power) for i in range(4)],
        dim=-1,
    )  # the last two samples fill no window
    torch.testing.assert_close(GeM1d(7, power).double()(x), plain, rtol=1e-12, atol=0.0)


def test_gem_runs_from_the_mean_to_the_maximum() -> None:
    x = torch.rand(2, 3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1
    groups = x.unflatten(-1, (6, 4))
    torch.testing.assert_close(GeM1d(4, 1.0).double()(x), groups.mean(-1), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(GeM1d(4, 2000.0).double()(x), groups.amax(-1), rtol=1e-3, atol=0.0)
    assert torch.allclose(GeM1d(4, 3.0)(torch.full((1, 1, 8), -2.0)), torch.tensor(1e-6))  # counted as eps


def test_gem_of_negative_values_has_a_finite_gradient_at_large_powers() -> None:
    # Written with powers, eps^8 = 1e-48 is 0 in float32, where the root's gradient is infinite: NaN weights.
    pool = GeM1d(4, 8.0)
    x = torch.full((1, 1, 8), -1.0)
    x[..., 4:] = 0.5
    x.requires_grad_()
    pool(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(pool.power.grad).all()
    torch.testing.assert_close(x.grad[0, 0], torch.tensor([0.0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]))


def test_gem_keeps_its_input_type() -> None:
    x = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(4))
    half = GeM1d(4)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), GeM1d(4)(x), rtol=2e-2, atol=0.0)


def test_registry_builds_it_and_holds_the_bounds() -> None:
    encoder = registry.build("cnn_gru_2021", {"width": 8, "embedding": 16})
    assert encoder.embedding_dim == 16
    for wrong in ({"width": 100_000}, {"pool_after": "relu"}, {"widht": 8}):
        with pytest.raises(InputError):
            registry.build("cnn_gru_2021", wrong)


@pytest.mark.slow  # torch.export alone takes 6 s
# It warns of every GRU that its list of flat weights is no buffer; they are its parameters.
@pytest.mark.filterwarnings("ignore:The tensor attributes self.gru._flat_weights:UserWarning")
def test_exports_with_equal_outputs() -> None:
    torch.manual_seed(5)
    encoder = CnnGru2021(SMALL).eval()
    x = windows(3)
    program = torch.export.export(encoder, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    other = windows(5, seed=6)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(other), encoder(other), rtol=1e-4, atol=1e-4)
