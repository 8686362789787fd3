"""What an ensemble says besides its members: mean, probability of exceedance, probability-matched mean."""

from collections.abc import Sequence

import torch
from torch import Tensor


def exceedance_probability(members: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return the share of members at or above each threshold, float32 ``[B, thresholds, T, H, W]``.

    Args:
        members: ``[B, M, T, H, W]``, in the unit of the thresholds. NaN is below every threshold.
        thresholds: levels.
    """
    _check(members)
    return torch.stack([(members >= level).float().mean(dim=1) for level in thresholds], dim=1)


def probability_matched_mean(members: Tensor) -> Tensor:
    """Return the ensemble mean's pattern with the values of the members (Ebert 2001, section 2b), ``[B, T, H, W]``.

    For each frame all M H W values of the members are sorted and every M-th is kept, the middle of each group; the
    pixel with the k-th largest mean gets the k-th largest of them. So the area of heavy rain is that of a member, which
    a mean blurs away.
    """
    _check(members)
    batch, count, frames, height, width = members.shape
    pool = members.permute(0, 2, 1, 3, 4).reshape(batch, frames, -1).sort(dim=-1).values
    values = pool[..., count // 2 :: count]
    mean = members.mean(dim=1).reshape(batch, frames, -1)
    matched = torch.empty_like(mean).scatter_(-1, mean.argsort(dim=-1, stable=True), values)
    return matched.view(batch, frames, height, width)


def _check(members: Tensor) -> None:
    if members.ndim != 5 or not members.is_floating_point():
        raise ValueError(f"members must be floats [B, M, T, H, W], got {members.dtype} of shape {tuple(members.shape)}")
