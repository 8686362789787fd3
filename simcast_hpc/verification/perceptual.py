"""LPIPS: perceptual distance in the features of a network trained on photographs (Zhang et al. 2018). Optional extra.

LPIPS measures whether a forecast looks like radar, not whether it is correct. Its values depend on downloaded weights,
so no protocol contains it.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.data.encoding import code_to_unit

_INSTALL = "pip install -c constraints.txt -e '.[perceptual]'"
_WEIGHTS = "alexnet-owt-7be5be79.pth"


def lpips(observation: Tensor, forecast: Tensor, *, device: torch.device | str = "cpu") -> Tensor:
    """Return LPIPS (AlexNet, version 0.1) of each frame, float64 ``[N, T]``; 0 for identical frames.

    Fields in [0, 1] are converted to gray images in [-1, 1], as in published evaluations of nowcasts.

    Args:
        observation: ``[N, T, H, W]``, uint8 pixel values or floats in [0, 1], without missing pixels, at least 64
            pixels per side.
        forecast: of the same shape.
        device: device of the network.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: the AlexNet weights, which torchvision downloads, are not on this machine.
        ValueError: shapes differ, or a pixel is missing.
    """
    if observation.shape != forecast.shape or observation.dim() != 4:
        raise ValueError(
            f"observation {tuple(observation.shape)} and forecast {tuple(forecast.shape)} must be [N, T, H, W]"
        )
    fields = [code_to_unit(field) if field.dtype == torch.uint8 else field.float() for field in (observation, forecast)]
    if any(bool(torch.isnan(field).any()) for field in fields) or bool((observation == 255).any()):
        raise ValueError("LPIPS is undefined for frames with missing pixels; exclude such frames")
    network = _network().to(device).eval()
    images = [field.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) * 2 - 1 for field in fields]
    with torch.no_grad():
        distances = [network(x[None].to(device), y[None].to(device)) for x, y in zip(*images, strict=True)]
    return torch.stack(distances).double().cpu().view(observation.shape[:2])


def _network() -> Any:
    try:
        package = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError(f"LPIPS requires the packages lpips and torchvision ({error}); {_INSTALL}") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(
            f"LPIPS requires the AlexNet weights, and {weights} does not exist; on a machine with network access run "
            "python -c \"import torchvision; torchvision.models.alexnet(weights='IMAGENET1K_V1')\" and copy the file"
        )
    return package.LPIPS(net="alex", verbose=False)
