"""Optimized operations do not change training: losses of 200 steps equal those of the plain operations."""

import pytest
import torch
import torch.nn.functional as F

from simcast_hpc.config import CasFormerConfig, SimVPConfig
from simcast_hpc.models import build_model, casformer, simvp
from simcast_hpc.models.casformer import CasFormer
from simcast_kernels.adaln_norm.reference import adaln_norm_reference


def simvp_losses(steps: int, *, frames_out: int = 4, fused: bool = True) -> list[float]:
    torch.manual_seed(0)
    model = build_model(SimVPConfig(hidden_spatial=16, hidden_temporal=32), frames_in=4, frames_out=frames_out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        past, future = torch.rand(1, 4 + frames_out, 1, 24, 24, generator=generator).split([4, frames_out], dim=1)
        loss = (model(past) - future).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def casformer_losses(steps: int) -> list[float]:
    torch.manual_seed(0)
    config = CasFormerConfig(frame_width=32, frame_depth=2, width=64, depth=2, heads=4)
    model = CasFormer(config, frames=4, channels=4)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        noisy, condition, noise = torch.randn(3, 2, 4, 4, 8, 8, generator=generator)
        timesteps = torch.randint(0, 1000, (2,), generator=generator)
        loss = (model(noisy, timesteps, condition) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


LENGTHS = [5, pytest.param(200, marks=pytest.mark.slow)]


@pytest.mark.parametrize("steps", LENGTHS)
def test_fused_group_norm_and_silu(steps, monkeypatch):
    optimized = simvp_losses(steps)
    monkeypatch.setattr(simvp, "group_norm_silu", lambda x, norm: F.silu(norm(x)))
    assert optimized == simvp_losses(steps), "bitwise"
    assert optimized[-1] < 0.9 * optimized[0], "training must change the loss"


@pytest.mark.parametrize("steps", LENGTHS)
def test_in_place_sums_and_frames_to_channels(steps, monkeypatch):
    optimized = simvp_losses(steps, frames_out=3)

    def added(block: simvp.InceptionBlock, x: torch.Tensor) -> torch.Tensor:
        reduced = block.reduce(simvp._with_layout(x, block.channels_last))
        first, *rest = block.branches
        total = first(reduced)
        for branch in rest:
            total = total + branch(reduced)
        return total

    def decoded(decoder: simvp.SpatialDecoder, latent: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        *front, last = decoder.blocks
        for block in front:
            latent = block(latent)
        return last(latent + skip)

    monkeypatch.setattr(simvp.InceptionBlock, "forward", added)
    monkeypatch.setattr(simvp.SpatialDecoder, "forward", decoded)
    monkeypatch.setattr(
        simvp, "_frames_to_channels", lambda latent, batch, _layout: latent.unflatten(0, (batch, -1)).flatten(1, 2)
    )
    assert optimized == simvp_losses(steps, frames_out=3), "bitwise"
    assert optimized[-1] < 0.9 * optimized[0], "training must change the loss"


@pytest.mark.parametrize("steps", LENGTHS)
def test_fused_adam(steps):
    """The rounding of updates differs, and training amplifies the difference."""
    fused = simvp_losses(steps)
    assert fused == pytest.approx(simvp_losses(steps, fused=False), rel=1e-3)
    assert fused[-1] < 0.9 * fused[0], "training must change the loss"


@pytest.mark.parametrize("steps", LENGTHS)
def test_adaln_norm_operator(steps, monkeypatch):
    """The order of additions differs, so losses differ in their last bits."""
    operator = casformer_losses(steps)
    monkeypatch.setattr(casformer, "adaln_norm", adaln_norm_reference)
    reference = casformer_losses(steps)
    assert operator == pytest.approx(reference, rel=1e-5)
    assert len(set(operator)) == steps, "training must change the loss"
