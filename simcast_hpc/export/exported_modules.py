"""Modules that are exported: from encoded values to forecasts, and between frames and latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import ConfigError
from simcast_hpc.data.encoding import LAST_CODE, MISSING_CODE
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.distill.rollout import roll_out
from simcast_hpc.inference.trained_ensemble import TrainedAutoencoder
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.models import missing_value, noise_shape
from simcast_hpc.models.autoencoder import Autoencoder

from .torch_export import Inputs, arguments

# In fp32 the same operations in another order differ by a few units in the last place; one encoded value is 3.9e-3.
TOLERANCE = 1e-5
_CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Program:
    """One module to export: ``name`` of its file, and a description of its input and output."""

    name: str
    module: nn.Module
    input_text: str
    output_text: str
    make_input: Callable[[int], Inputs]

    def inputs(self) -> list[Inputs]:
        """Return the inputs of the check against the network: batches of 1 and 3 samples."""
        return [self.make_input(batch) for batch in _CHECKED_BATCHES]


class Nowcast(nn.Module):
    """Codes uint8 ``[B, T, H, W]`` to the forecast, fp32 ``[B, T', H, W]`` in [0, 1], as ``TrainedModel.forecast``."""

    def __init__(self, network: nn.Module, *, frames_out: int, missing: float):
        super().__init__()
        self.network, self.frames_out, self.missing = network, frames_out, missing

    def forward(self, codes: Tensor) -> Tensor:
        """Return the forecast; a missing input pixel (code 255) has the value ``missing``, as in training."""
        forecast = roll_out(
            self.network, to_frames(codes), frames_out=self.frames_out, missing=self.missing, masks_forecast=False
        )
        return forecast.values


class Member(nn.Module):
    """Codes uint8 ``[B, T, H, W]`` and noise fp32 ``[B, max(T, T'), N, H, W]`` to one member per row.

    Members are fp32 ``[B, T', H, W]`` in [0, 1], as in :class:`.NoiseEnsemble`; repeat the codes for several members.
    """

    def __init__(self, network: nn.Module, *, missing: float):
        super().__init__()
        self.network, self.missing = network, missing

    def forward(self, codes: Tensor, noise: Tensor) -> Tensor:
        """Return the members; a missing input pixel (code 255) has the value ``missing``, as in training."""
        frames = to_frames(codes).fill(self.missing)[:, :, None]
        return self.network(frames, noise[:, None])[:, 0, :, 0].clamp(0.0, 1.0)


class Encode(nn.Module):
    """Frames fp32 ``[N, 1, H, W]`` in [0, 1] to mean and log-variance of their latents, ``[N, C, h, w]``."""

    def __init__(self, network: Autoencoder):
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, unscaled."""
        posterior = self.network.encode(frames)
        return posterior.mean, posterior.log_variance


class Decode(nn.Module):
    """Latents fp32 ``[N, C, h, w]``, unscaled, to frames ``[N, 1, H, W]`` in [0, 1]."""

    def __init__(self, network: Autoencoder):
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor) -> Tensor:
        """Return the frames, clipped."""
        return self.network.decode(latents).clamp(0.0, 1.0)


def programs_of_model(model: TrainedModel, grid: tuple[int, int]) -> list[Program]:
    """Return the program of a forecasting model on frames of a grid (H, W).

    Raises:
        ConfigError: the network cannot take this grid.
    """
    model.check_grid(grid)
    sequence = model.config.sequence
    frames_in, frames_out = sequence.frames_in, sequence.frames_out
    shape = f"{grid[0]}, {grid[1]}"
    codes_text = (
        f"codes: uint8 [batch, {frames_in}, {shape}], the last {frames_in} frames, oldest first; 255 is missing"
    )
    forecast_text = f"float32 [batch, {frames_out}, {shape}] in [0, 1], encoded values / 255, clipped"
    missing = missing_value(model.config.model)
    nowcast = Program(
        "model",
        Nowcast(model.network, frames_out=frames_out, missing=missing),
        codes_text,
        f"forecast: {forecast_text}",
        lambda batch: _codes((batch, frames_in, *grid)),
    )
    if model.config.model.noise_channels:
        noise = noise_shape(model.config.model, frames_in=frames_in, frames_out=frames_out, grid=grid)
        nowcast = Program(
            "model",
            Member(model.network, missing=missing),
            f"{codes_text}; noise: float32 [batch, {', '.join(map(str, noise))}], independent standard normal numbers",
            f"one ensemble member per row of noise: {forecast_text}",
            lambda batch: (_codes((batch, frames_in, *grid)), _normal((batch, *noise))),
        )
    try:
        nowcast.module(*arguments(nowcast.make_input(1)))
    except ValueError as error:
        raise ConfigError(f"--grid {grid[0]} {grid[1]} does not fit the model: {error}") from error
    return [nowcast]


def programs_of_autoencoder(coder: TrainedAutoencoder, grid: tuple[int, int]) -> list[Program]:
    """Return encoder and decoder on frames of a grid (H, W).

    Raises:
        ConfigError: the grid is not a multiple of the reduction.
    """
    config = coder.config.autoencoder.model
    if grid[0] % config.reduction or grid[1] % config.reduction:
        raise ConfigError(
            f"--grid {grid[0]} {grid[1]} is invalid: latents are {config.reduction} times smaller, so both must be "
            f"multiples of {config.reduction}"
        )
    latent = (config.latent_channels, grid[0] // config.reduction, grid[1] // config.reduction)
    frames, latents = f"[batch, 1, {grid[0]}, {grid[1]}]", f"[batch, {', '.join(map(str, latent))}]"
    return [
        Program(
            "encoder",
            Encode(coder.network),
            f"frames: float32 {frames} in [0, 1], encoded values / 255, 0 where missing",
            f"mean and log_variance: float32 {latents}, unscaled; the diffusion uses scale_factor * mean",
            lambda batch: _codes((batch, 1, *grid)).float() / 255.0,
        ),
        Program(
            "decoder",
            Decode(coder.network),
            f"latents: float32 {latents}, unscaled",
            f"frames: float32 {frames} in [0, 1]",
            lambda batch: _normal((batch, *latent)),
        ),
    ]


def _normal(shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers, equal at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def _codes(shape: tuple[int, ...]) -> Tensor:
    """Return encoded values uint8 ``[B, T, H, W]``, equal at every call: moving echoes with noise, and missing pixels.

    The echoes move by (1, 2) pixels per frame. Optical flow is ill-conditioned where frames have no common motion: two
    programs with equal arithmetic in another order then differ by more than the tolerances.
    """
    generator = torch.Generator().manual_seed(shape[0])
    batch, frames, height, width = shape
    size = (height + frames - 1, width + 2 * (frames - 1))
    coarse = torch.rand(batch, 1, -(-size[0] // 8), -(-size[1] // 8), generator=generator)
    field = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[:, 0]
    last = frames - 1
    moved = [field[:, last - k : last - k + height, 2 * (last - k) : 2 * (last - k) + width] for k in range(frames)]
    noise = torch.rand(shape, generator=generator)
    codes = (255 * (0.97 * torch.stack(moved, dim=1) + 0.03 * noise)).clamp(0, LAST_CODE).to(torch.uint8)
    codes[..., : -(-height // 8), : -(-width // 8)] = MISSING_CODE
    return codes
