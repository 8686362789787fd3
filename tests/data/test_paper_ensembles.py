"""Autoencoder and denoiser on the paper's three datasets: shapes at full size, training steps at a small size."""

import pytest
import torch

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.data.open_windows import target_spec
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from tests.data.test_paper_configs import read

LATENTS = {"sevir": (12, 48), "hko7": (10, 60), "meteonet": (12, 50)}  # frames out; latent elements per axis


@pytest.mark.parametrize("name", LATENTS)
def test_autoencoder_and_denoiser_have_the_right_shapes(name):
    first, second, (frames, side) = read(f"autoencoder/{name}"), read(f"diffusion/{name}"), LATENTS[name]
    grid, model = target_spec(first.data).grid, first.autoencoder.model
    assert (first.stage, second.stage) == ("autoencoder", "diffusion")
    assert second.data.dataset == first.data.dataset and second.sequence == first.sequence
    assert second.diffusion.autoencoder == first.run_dir
    assert second.diffusion.student == read(f"student/{name}").run_dir
    with torch.device("meta"):
        latents = Autoencoder(model).encode(torch.empty(1, 1, grid.height, grid.width)).mean
        assert latents.shape == (1, model.latent_channels, side, side)
        network = CasFormer(second.diffusion.casformer, frames=second.frames_out, channels=model.latent_channels)
        stack = torch.empty(1, frames, *latents.shape[1:])
        assert network(stack, torch.zeros(1, dtype=torch.int64), stack).shape == stack.shape


@pytest.mark.parametrize("name", LATENTS)
def test_autoencoder_and_denoiser_learn_at_a_small_size(name):
    torch.manual_seed(0)
    coder = Autoencoder(
        read(f"autoencoder/{name}").autoencoder.model.model_copy(update={"widths": (8, 16), "groups": 8})
    )
    images = torch.rand(2, 1, 16, 16)
    assert isinstance(coder.config, AutoencoderConfig)
    assert _loss_decreases(coder, lambda: (coder(images)[0] - images).abs().mean())

    small = {"frame_width": 16, "frame_depth": 1, "width": 32, "depth": 1, "heads": 4}
    config = read(f"diffusion/{name}").diffusion.casformer.model_copy(update=small)
    assert isinstance(config, CasFormerConfig) and config.checkpoint
    frames = LATENTS[name][0]
    network = CasFormer(config, frames=frames, channels=4)
    noisy, condition, noise = torch.randn(3, 2, frames, 4, 8, 8)
    assert _loss_decreases(network, lambda: (network(noisy, torch.tensor([3, 700]), condition) - noise).square().mean())


def _loss_decreases(network: torch.nn.Module, loss_of) -> bool:
    """Return whether a loss decreases over a few optimizer steps."""
    optimizer, losses = torch.optim.AdamW(network.parameters(), lr=1e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < losses[0]
