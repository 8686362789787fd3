"""Activations by name."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.1


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "leaky": _leaky, "relu": F.relu, "silu": F.silu}
