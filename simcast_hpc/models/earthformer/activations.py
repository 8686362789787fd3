"""Activations by name.

They may overwrite their input, which is always the fresh result of a norm or a projection that needs it no more: so
one tensor is kept for the backward where there were two.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.1


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "leaky": _leaky, "relu": _relu, "silu": F.silu}
