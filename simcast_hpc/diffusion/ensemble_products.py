"""Ensemble products: probability of exceedance and probability-matched mean."""

from collections.abc import Sequence

import torch
from torch import Tensor


def exceedance_probability(members: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return the fraction of members at or above each threshold, float32 ``[B, thresholds, T, H, W]``.

    Args:
        members: ``[B, M, T, H, W]``, in the unit of the thresholds; NaN is below every threshold.
        thresholds: thresholds in the unit of the members.
    """
    _check_members(members)
    return torch.stack([(members >= threshold).float().mean(dim=1) for threshold in thresholds], dim=1)


def probability_matched_mean(members: Tensor) -> Tensor:
    """Return the probability-matched mean (Ebert 2001, section 2b), ``[B, T, H, W]``.

    For each frame the M H W values of all members are sorted and the middle one of every M values is kept; the pixel
    with the k-th largest ensemble mean gets the k-th largest of them. Unlike in the ensemble mean, the area of heavy
    rain is that of a member.
    """
    _check_members(members)
    batch, count, frames, height, width = members.shape
    pool = members.permute(0, 2, 1, 3, 4).reshape(batch, frames, -1).sort(dim=-1).values
    values = pool[..., count // 2 :: count]
    mean = members.mean(dim=1).reshape(batch, frames, -1)
    matched = torch.empty_like(mean).scatter_(-1, mean.argsort(dim=-1, stable=True), values)
    return matched.view(batch, frames, height, width)


def _check_members(members: Tensor) -> None:
    if members.ndim != 5 or not members.is_floating_point():
        raise ValueError(f"members must be floats [B, M, T, H, W], got {members.dtype} of shape {tuple(members.shape)}")
