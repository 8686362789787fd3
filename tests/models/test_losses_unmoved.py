"""What was made faster or smaller did not move training: 200 steps as before each change, by the plain form."""

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
def test_group_norm_and_silu_as_one(steps, monkeypatch):
    one = simvp_losses(steps)
    monkeypatch.setattr(simvp, "normed_silu", lambda x, norm: F.silu(norm(x)))
    assert one == simvp_losses(steps), "to the bit"
    assert one[-1] < 0.9 * one[0], "the steps must change something"


@pytest.mark.parametrize("steps", LENGTHS)
def test_sums_of_branches_in_place_features_shared_and_time_in_channels(steps, monkeypatch):
    one = simvp_losses(steps, frames_out=3)

    def added(block: simvp.InceptionBlock, x: torch.Tensor) -> torch.Tensor:
        reduced = block.reduce(simvp._laid_out(x, block.channels_last))
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
        simvp, "_time_in_channels", lambda latent, batch, _layout: latent.unflatten(0, (batch, -1)).flatten(1, 2)
    )
    monkeypatch.setattr(
        simvp,
        "shared_with_first",
        lambda features, batch, keep: (features, features.unflatten(0, (batch, -1))[:, :keep].flatten(0, 1)),
    )
    assert one == simvp_losses(steps, frames_out=3), "to the bit"
    assert one[-1] < 0.9 * one[0], "the steps must change something"


@pytest.mark.parametrize("steps", LENGTHS)
def test_adam_in_one_pass(steps):
    """Another rounding of each update: losses part by what training makes of it."""
    fused = simvp_losses(steps)
    assert fused == pytest.approx(simvp_losses(steps, fused=False), rel=1e-3)
    assert fused[-1] < 0.9 * fused[0], "the steps must change something"


@pytest.mark.parametrize("steps", LENGTHS)
def test_adaln_norm_in_few_passes(steps, monkeypatch):
    """Another order of additions: losses near 1 part by some of their last bits and no more."""
    operator = casformer_losses(steps)
    monkeypatch.setattr(casformer, "adaln_norm", adaln_norm_reference)
    plain = casformer_losses(steps)
    assert operator == pytest.approx(plain, rel=1e-5)
    assert len(set(operator)) == steps, "the steps must change something"
