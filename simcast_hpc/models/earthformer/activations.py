"""Activations by name, and those that overwrite their input.

An overwriting one is for the fresh result of a norm, which its backward does not need: one tensor is kept where there
were two.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.1


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)


def _overwriting_leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)


def _overwriting_relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "leaky": _leaky, "relu": F.relu, "silu": F.silu}
OVERWRITING = ACTIVATIONS | {"leaky": _overwriting_leaky, "relu": _overwriting_relu}
