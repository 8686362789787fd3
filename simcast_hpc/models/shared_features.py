"""Features that one part of a network reads whole and another in part, without a padded gradient.

Autograd gives a part's gradient back as a tensor of the whole's size, zeros but for that part, and adds it to the other
gradient: at radar size a gigabyte written three times. Here the two are added into one tensor.
"""

from typing import Any

import torch
from torch import Tensor


def shared_with_first(features: Tensor, batch: int, keep: int) -> tuple[Tensor, Tensor]:
    """Return ``features`` and those of each sample's first ``keep`` frames.

    Args:
        features: ``[B * T, C, H, W]``.
        batch: B.
        keep: K of the T frames.

    Returns:
        ``[B * T, C, H, W]`` and ``[B * K, C, H, W]``, to the bit what a slice gives, gradients too.
    """
    return _SharedWithFirst.apply(features, batch, keep)  # pyright: ignore[reportReturnType]


class _SharedWithFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, batch: int, keep: int) -> tuple[Tensor, Tensor]:
        ctx.batch, ctx.keep = batch, keep
        return features.view_as(features), features.unflatten(0, (batch, -1))[:, :keep].flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        whole, first = grads
        total = whole.clone()
        total.unflatten(0, (ctx.batch, -1))[:, : ctx.keep] += first.unflatten(0, (ctx.batch, ctx.keep))
        return total, None, None
