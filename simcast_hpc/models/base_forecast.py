"""Networks that correct a base forecast: persistence, or extrapolation along the optical flow of the input frames.

The forecast is the base forecast plus the output of the network, whose output layer is initialized to zero: an
untrained model forecasts exactly its base. The base forecast is also an input of the network, in the time slot of the
output frame that it belongs to.
"""

import torch
from torch import Tensor, nn

from simcast_hpc.config import ModelConfig

from .advection import extrapolate


class Persistence(nn.Module):
    """The last frame at every lead time."""

    def forward(self, frames: Tensor, valid: Tensor, frames_out: int) -> Tensor:
        """Return ``[B, frames_out, H, W]`` from frames ``[B, T, H, W]``, which are 0 where not ``valid``."""
        return frames[:, -1:].expand(-1, frames_out, -1, -1)


class Extrapolation(nn.Module):
    """The last frame advected along the optical flow of the frames."""

    def forward(self, frames: Tensor, valid: Tensor, frames_out: int) -> Tensor:
        """Return ``[B, frames_out, H, W]`` from frames ``[B, T, H, W]``, which are 0 where not ``valid``."""
        return extrapolate(frames, frames_out, valid)


_BASES: dict[str, type[nn.Module]] = {"persistence": Persistence, "extrapolation": Extrapolation}


class BaseForecast(nn.Module):
    """A base forecast and a network that corrects it: ``[B, T, 1, H, W] -> [B, T', 1, H, W]``, fp32 in and out.

    The network has max(T, T') time slots of two channels. Slot i contains input frame i, or the last one for i >= T,
    and the base forecast of lead time i + 1. One pass forecasts all T' frames, for any T and T'. The base forecast is
    computed from the fp32 input, whatever the dtype of the network's weights.

    Args:
        network: maps ``[B, max(T, T'), 2, H, W]`` to ``[B, T', 1, H, W]``, with an output layer ``head``.
        kind: ``persistence`` or ``extrapolation``.
        frames_in: T, at least 2 for ``extrapolation``.
        frames_out: T'.

    Raises:
        ValueError: the kind is unknown, or T is too small.
    """

    def __init__(self, network: nn.Module, kind: str, *, frames_in: int, frames_out: int):
        super().__init__()
        if kind not in _BASES:
            raise ValueError(f"model.base={kind!r} is unknown; choose {' or '.join(_BASES)}")
        if kind == "extrapolation" and frames_in < 2:
            raise ValueError(f"model.base=extrapolation requires frames_in of at least 2, got {frames_in}")
        self.frames_in, self.frames_out, self.slots = frames_in, frames_out, max(frames_in, frames_out)
        self.base = _BASES[kind]()
        self.network = network
        head = network.get_submodule("head")
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, 1, H, W]``, fp32 in [0, 1], NaN where missing.

        Returns:
            ``[B, T', 1, H, W]``, fp32, in the units of the input.

        Raises:
            TypeError: ``frames`` is not floating point.
            ValueError: ``frames`` has the wrong number of axes, frames or channels, or a grid that does not fit the
                network.
        """
        shape = tuple(frames.shape)
        if len(shape) != 5 or shape[1:3] != (self.frames_in, 1):
            raise ValueError(f"frames have shape {shape}; a model with a base needs [B, {self.frames_in}, 1, H, W]")
        if not frames.is_floating_point():
            raise TypeError(f"frames have dtype {frames.dtype}; divide uint8 values by 255")
        valid = ~torch.isnan(frames)
        observed = torch.where(valid, frames, 0.0).float()
        base = self.base(observed[:, :, 0], valid[:, :, 0], self.slots)[:, :, None]
        repeated = observed[:, -1:].expand(-1, self.slots - self.frames_in, -1, -1, -1)
        inputs = torch.cat([torch.cat([observed, repeated], dim=1), base], dim=2)
        return base[:, : self.frames_out] + self.network(inputs)


def network_of(model: nn.Module) -> nn.Module:
    """Return the SimVP or Earthformer of a forecasting model: the model itself, or what corrects its base forecast."""
    return model.network if isinstance(model, BaseForecast) else model


def missing_value(config: ModelConfig) -> float:
    """Return the value of missing pixels in the input of a forecasting model.

    NaN for a model with a base forecast, whose motion ignores missing pixels; 0 (no echo) for all others.
    """
    return 0.0 if config.base == "none" else float("nan")
