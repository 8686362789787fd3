"""Networks. A forecasting model maps ``[B, T, C, H, W]`` to ``[B, T', C, H, W]`` and returns fp32.

``build_model`` builds a forecasting model from its configuration; ``published_weights`` loads the weights of public
projects.
"""

from collections.abc import Callable

from torch import nn

from simcast_hpc.config import ModelConfig

from .base_forecast import BaseForecast, has_base, input_channels, missing_value, network_of, noise_shape
from .earthformer import Earthformer
from .model_grid import grid_of, with_grid
from .simvp import SimVP
from .warm_start import WarmStart, warm_start

__all__ = [
    "BaseForecast",
    "Earthformer",
    "SimVP",
    "WarmStart",
    "build_model",
    "grid_of",
    "has_base",
    "missing_value",
    "network_of",
    "noise_shape",
    "warm_start",
    "with_grid",
]

_CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    "earthformer": Earthformer,
    "simvp": SimVP,
}


def build_model(config: ModelConfig, *, frames_in: int, frames_out: int, channels: int = 1) -> nn.Module:
    """Build the network named by ``config.kind``, randomly initialized from torch's global generator.

    With ``config.base`` it corrects a base forecast, and with ``config.noise_channels`` it has a second argument, the
    noise of its members; see :class:`.BaseForecast`.

    Args:
        config: the ``model`` section of a run's configuration.
        frames_in: T, number of input frames.
        frames_out: T', number of forecast frames.
        channels: C of input and output.

    Returns:
        A module from ``[B, T, C, H, W]`` to ``[B, T', C, H, W]``; its output is fp32 whatever dtype it is cast to.

    Raises:
        ValueError: the kind is unknown, the sizes are inconsistent, or a base forecast is set for C > 1.
    """
    constructor = _CONSTRUCTORS.get(config.kind)
    if constructor is None:
        raise ValueError(f"model.kind={config.kind!r} is unknown; choose {' or '.join(sorted(_CONSTRUCTORS))}")
    if config.base == "none" and not config.noise_channels:
        return constructor(
            config, frames_in=frames_in, frames_out=frames_out, channels_in=channels, channels_out=channels
        )
    if channels != 1:
        raise ValueError(
            f"model.base={config.base!r} with model.noise_channels={config.noise_channels} requires frames of 1 "
            f"channel, got {channels}; choose none and 0"
        )
    network = constructor(
        config,
        frames_in=max(frames_in, frames_out),
        frames_out=frames_out,
        channels_in=input_channels(config),
        channels_out=1,
    )
    return BaseForecast(
        network, config.base, frames_in=frames_in, frames_out=frames_out, noise_channels=config.noise_channels
    )
