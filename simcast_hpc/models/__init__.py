"""What is learned: every model maps ``[B, T, C, H, W]`` to ``[B, T', C, H, W]`` and returns fp32.

``build_model`` is the one way from a configuration to a network; ``public`` brings published weights in.
"""

from collections.abc import Callable

from torch import nn

from simcast_hpc.config import ModelConfig

from .earthformer import Earthformer
from .model_grid import fitted_to, grid_of
from .simvp import SimVP
from .warm_start import Started, start_from

__all__ = ["Earthformer", "SimVP", "Started", "build_model", "fitted_to", "grid_of", "start_from"]

_CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    "earthformer": Earthformer,
    "simvp": SimVP,
}


def build_model(config: ModelConfig, *, frames_in: int, frames_out: int, channels: int = 1) -> nn.Module:
    """Build the network that ``config.kind`` names, with fresh weights from torch's generator.

    Args:
        config: the ``model`` section of a run's configuration.
        frames_in: T, frames of the past that go in.
        frames_out: T', frames that come out.
        channels: C of input and output.

    Returns:
        A module from ``[B, T, C, H, W]`` to ``[B, T', C, H, W]``, fp32 out whatever it was cast to.

    Raises:
        ValueError: the kind is unknown, or the sizes do not fit one another.
    """
    constructor = _CONSTRUCTORS.get(config.kind)
    if constructor is None:
        raise ValueError(f"model.kind={config.kind!r} is unknown; known kinds are {', '.join(sorted(_CONSTRUCTORS))}")
    return constructor(config, frames_in=frames_in, frames_out=frames_out, channels=channels)
