"""Blend the forecast of a network with extrapolation near the border of the observed area.

A network pads its input at the border, where it has seen little of what moves in or out. Within some kilometers of the
border, the weight of the network increases linearly from 0 to 1. Blending is in units linear in rain rate or Z.
"""

import numpy as np
import torch
import torch.nn.functional as F

from simcast_hpc.baselines import Extrapolation
from simcast_hpc.radar.frame_encoding import ModelEncoding


def weight_of_model(missing: np.ndarray, pixels: int) -> np.ndarray:
    """Return the weight of the network, float32 ``[H, W]``: 0 at the border, 1 from ``pixels`` away from it.

    The border is that of the domain and of the ``missing`` pixels ``[H, W]``; distances are along rows, columns and
    diagonals.
    """
    inside = torch.from_numpy(~missing)[None].float()
    weight = torch.zeros_like(inside)
    for _ in range(pixels):
        inside = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), kernel_size=3, stride=1)  # the pixels outside are 0
        weight += inside
    return (weight[0] / max(pixels, 1)).numpy()


def extrapolate_linear(codes: np.ndarray, frames_out: int, code: ModelEncoding) -> np.ndarray:
    """Return the extrapolation of codes ``[T, H, W]`` in linear units, float32 ``[frames_out, H, W]``."""
    units = Extrapolation().forecast(torch.from_numpy(codes)[None], frames_out)[0].numpy()
    linear = np.empty(units.shape, np.float32)
    for k, field in enumerate(units):  # one field at a time: the conversion takes float64
        linear[k] = code.linear_of_forecast(field)
    return linear


def blend(member: np.ndarray, weight: np.ndarray, extrapolated: np.ndarray) -> None:
    """Blend a member ``[T', H, W]`` with the extrapolation in place, by the weight of the network ``[H, W]``."""
    member *= weight
    member += (1 - weight) * extrapolated
