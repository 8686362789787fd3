"""Networks with further inputs: a base forecast that they correct, and noise that makes them ensembles.

With a base forecast (persistence, or extrapolation along the optical flow of the input frames) the forecast is the base
forecast plus the output of the network, whose output layer is initialized to zero: an untrained model forecasts exactly
its base. The base forecast is also an input of the network, in the time slot of the output frame that it belongs to.

With noise channels each forward pass is one ensemble member; members differ only in their noise.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from simcast_hpc.config import ModelConfig

from .advection import extrapolate


class Persistence(nn.Module):
    """The last frame at every lead time."""

    def forward(self, frames: Tensor, valid: Tensor, frames_out: int, *, side: int | None = None) -> Tensor:
        """Return ``[B, frames_out, H, W]`` from frames ``[B, T, H, W]``, which are 0 where not ``valid``."""
        return frames[:, -1:].expand(-1, frames_out, -1, -1)


class Extrapolation(nn.Module):
    """The last frame advected along the optical flow of the frames."""

    def forward(self, frames: Tensor, valid: Tensor, frames_out: int, *, side: int | None = None) -> Tensor:
        """Return ``[B, frames_out, H, W]`` from frames ``[B, T, H, W]``, which are 0 where not ``valid``."""
        return extrapolate(frames, frames_out, valid, side=side)


_BASES: dict[str, type[nn.Module]] = {"persistence": Persistence, "extrapolation": Extrapolation}


class BaseForecast(nn.Module):
    """A base forecast and a network that corrects it: ``[B, T, 1, H, W] -> [B, T', 1, H, W]``, fp32 in and out.

    The network has max(T, T') time slots. Slot i contains input frame i, or the last one for i >= T, the base forecast
    of lead time i + 1, and N channels of noise. One pass forecasts all T' frames, for any T and T'. The base forecast
    is computed from the fp32 input, whatever the dtype of the network's weights.

    Args:
        network: maps ``[B, max(T, T'), C, H, W]`` to ``[B, T', 1, H, W]``, with an output layer ``head``; C is the
            number of :func:`input_channels`.
        kind: ``persistence`` or ``extrapolation``; also ``none`` if there are noise channels.
        frames_in: T, at least 2 for ``extrapolation``.
        frames_out: T'.
        noise_channels: N.

    Raises:
        ValueError: the kind is unknown, or T is too small.
    """

    def __init__(self, network: nn.Module, kind: str, *, frames_in: int, frames_out: int, noise_channels: int = 0):
        super().__init__()
        if kind not in _BASES and not (kind == "none" and noise_channels):
            raise ValueError(f"model.base={kind!r} is unknown; choose {' or '.join(_BASES)}")
        if kind == "extrapolation" and frames_in < 2:
            raise ValueError(f"model.base=extrapolation requires frames_in of at least 2, got {frames_in}")
        self.frames_in, self.frames_out, self.slots = frames_in, frames_out, max(frames_in, frames_out)
        self.base = None if kind == "none" else _BASES[kind]()
        self.network, self.noise_channels = network, noise_channels
        if self.base is None:
            return
        head = network.get_submodule("head")
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, noise: Tensor | None = None, base: Tensor | None = None) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, 1, H, W]``, fp32 in [0, 1], NaN where missing.
            noise: standard normal numbers of M members ``[B, M, max(T, T'), N, H, W]``, fp32; None without noise
                channels.
            base: the base forecast, if it is known: part of that of a larger domain, see :meth:`base_forecast`.

        Returns:
            ``[B, T', 1, H, W]``, fp32, in the units of the input; with noise ``[B, M, T', 1, H, W]``.

        Raises:
            TypeError: ``frames`` is not floating point.
            ValueError: ``frames`` or ``noise`` has the wrong number of axes, frames or channels, or a grid that does
                not fit the network.
        """
        self._check_frames(frames)
        self._check_noise(frames, noise)
        # 1. Observed frames and base forecast, once for all members
        observed = torch.where(torch.isnan(frames), 0.0, frames).float()
        repeated = observed[:, -1:].expand(-1, self.slots - self.frames_in, -1, -1, -1)
        inputs = torch.cat([observed, repeated], dim=1)
        if base is None:
            base = self.base_forecast(frames)
        if base is not None:
            inputs = torch.cat([inputs, base], dim=2)
        # 2. Members are rows of the batch
        if noise is None:
            correction = self.network(inputs)
        else:
            members = noise.shape[1]
            rows = torch.cat([inputs.repeat_interleave(members, dim=0), noise.flatten(0, 1)], dim=2)
            correction = self.network(rows).unflatten(0, (-1, members))
        # 3. Sum
        if base is None:
            return correction
        forecast = base[:, : self.frames_out]
        return (forecast if noise is None else forecast[:, None]) + correction

    def base_forecast(self, frames: Tensor, *, side: int | None = None) -> Tensor | None:
        """Return the base forecast, fp32 ``[B, max(T, T'), 1, H, W]``; None for kind ``none``.

        Args:
            frames: as in :meth:`forward`; the grid may be larger than that of the network.
            side: shorter side of the tiles of a domain, which determines the windows of the motion as in one tile.
        """
        if self.base is None:
            return None
        self._check_frames(frames)
        valid = ~torch.isnan(frames)
        observed = torch.where(valid, frames, 0.0).float()
        return self.base(observed[:, :, 0], valid[:, :, 0], self.slots, side=side)[:, :, None]

    def _check_frames(self, frames: Tensor) -> None:
        shape = tuple(frames.shape)
        if len(shape) != 5 or shape[1:3] != (self.frames_in, 1):
            raise ValueError(f"frames have shape {shape}; a model with a base needs [B, {self.frames_in}, 1, H, W]")
        if not frames.is_floating_point():
            raise TypeError(f"frames have dtype {frames.dtype}; divide uint8 values by 255")

    def _check_noise(self, frames: Tensor, noise: Tensor | None) -> None:
        if noise is None:
            if self.noise_channels:
                raise ValueError(f"a model with model.noise_channels={self.noise_channels} needs noise for each member")
            return
        own = (self.slots, self.noise_channels, *frames.shape[3:])
        if noise.dim() != 6 or (noise.shape[0], *noise.shape[2:]) != (frames.shape[0], *own):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; [{frames.shape[0]}, M, {', '.join(map(str, own))}] is needed"
            )


def network_of(model: nn.Module) -> nn.Module:
    """Return the SimVP or Earthformer of a forecasting model: the model itself, or what corrects its base forecast."""
    return model.network if isinstance(model, BaseForecast) else model


def has_base(model: nn.Module) -> TypeGuard[BaseForecast]:
    """Return whether a forecasting model corrects a base forecast."""
    return isinstance(model, BaseForecast) and model.base is not None


def input_channels(config: ModelConfig) -> int:
    """Return the channels per time slot of the network in a :class:`BaseForecast`: frame, base forecast, noise."""
    return 1 + (config.base != "none") + config.noise_channels


def noise_shape(
    config: ModelConfig, *, frames_in: int, frames_out: int, grid: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the shape of the noise of one member, (max(T, T'), N, H, W), for frames of ``grid`` (H, W)."""
    return max(frames_in, frames_out), config.noise_channels, *grid


def missing_value(config: ModelConfig) -> float:
    """Return the value of missing pixels in the input of a forecasting model.

    NaN for a model with a base forecast, whose motion ignores missing pixels; 0 (no echo) for all others.
    """
    return 0.0 if config.base == "none" else float("nan")
