"""Sums of the CRPS, of its threshold-weighted form and of its decomposition, additive over pixels.

CRPS: Gneiting and Raftery 2007, eq. 21; fair CRPS: Ferro 2014. Threshold-weighted CRPS with weight 1 at and above a
threshold t: the CRPS after the chaining function max(x, t) (Allen, Ginsbourger and Ziegel 2023, eq. 11).
Decomposition: Hersbach 2000.
"""

import torch
from torch import Tensor


def crps_sums(y: Tensor, ordered: Tensor) -> dict[str, Tensor]:
    """Return the sums over pixels of the standard and of the fair CRPS, float64.

    The standard CRPS is mean |x - y| - sum |x_i - x_j| / (2 M^2); the fair one has M (M - 1) in place of M^2. Both are
    |x - y| for one member.

    Args:
        y: observation, float64 ``[P]``.
        ordered: members in ascending order, float64 ``[M, P]``.
    """
    members = ordered.shape[0]
    error = (ordered - y).abs().sum() / members
    pairs = (_pair_weights(ordered) * ordered.sum(1)).sum()
    return {"crps/standard": error - pairs / members**2, "crps/fair": error - pairs / max(members * (members - 1), 1)}


def threshold_weighted_sums(y: Tensor, ordered: Tensor, thresholds: list[float]) -> dict[str, Tensor]:
    """Return the sums over pixels of the threshold-weighted CRPS, ``twcrps/standard`` and ``twcrps/fair`` ``[K]``.

    Args:
        y: observation, float64 ``[P]``.
        ordered: members in ascending order, float64 ``[M, P]``.
        thresholds: ascending, in the unit of the fields.
    """
    sums = y.new_zeros(2, len(thresholds))
    for row, threshold in enumerate(thresholds):
        y, ordered = _above(torch.maximum(ordered[-1], y) > threshold, y, ordered)
        chained = crps_sums(y.clamp(min=threshold), ordered.clamp(min=threshold))
        sums[0, row], sums[1, row] = chained["crps/standard"], chained["crps/fair"]
    return {"twcrps/standard": sums[0], "twcrps/fair": sums[1]}


def threshold_weighted_errors(y: Tensor, x: Tensor, thresholds: list[float]) -> Tensor:
    """Return the sums of |max(x, t) - max(y, t)| of a single forecast, the threshold-weighted CRPS, float64 ``[K]``.

    Args:
        y: observation ``[P]``; NaN adds 0.
        x: forecast ``[P]``; NaN adds 0.
        thresholds: ascending, in the unit of the fields.
    """
    sums = []
    # False where either is NaN; lowered, because float32 fields are compared with a threshold rounded to float32.
    keep = torch.maximum(y, x) > thresholds[0] - 1e-6 * abs(thresholds[0])
    y, x = y[keep].double(), x[keep].double()
    for threshold in thresholds:
        y, x = _above(torch.maximum(y, x) > threshold, y, x)
        sums.append(x.clamp(min=threshold).sub_(y.clamp(min=threshold)).abs_().sum())
    return torch.stack(sums)


def bin_sums(y: Tensor, ordered: Tensor) -> dict[str, Tensor]:
    """Return the sums from which the CRPS is decomposed (Hersbach 2000, eqs. 25 to 29).

    Bin i is between the members of rank i and i + 1, where the distribution function of the ensemble is i / M; bins 0
    and M are below and above all members. An observation that equals a member ends the bins on both sides of it, so
    that each of them is counted completely.

    Args:
        y: observation, float64 ``[P]``.
        ordered: members in ascending order, float64 ``[M, P]``.

    Returns:
        ``crps_bins/widths``, float64 ``[2, M + 1]``: sums of the parts of each bin below the observation (alpha) and
        above it (beta); ``crps_bins/pixels``, int64 ``[3]``: pixels with the observation below all members, above all
        members, and all pixels.
    """
    lower, upper = ordered[:-1], ordered[1:]
    split = y.clamp(lower, upper)
    above = y - ordered[-1]
    below = ordered[0] - y
    alpha = torch.cat([y.new_zeros(1), (split - lower).sum(1), above.clamp(min=0).sum()[None]])
    beta = torch.cat([below.clamp(min=0).sum()[None], (upper - split).sum(1), y.new_zeros(1)])
    pixels = [(below > 0).sum(), (above > 0).sum(), torch.tensor(y.numel(), device=y.device)]
    return {"crps_bins/widths": torch.stack([alpha, beta]), "crps_bins/pixels": torch.stack(pixels)}


def decompose_crps(widths: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reliability and the potential CRPS, whose sum is the standard CRPS (Hersbach 2000, eqs. 30 to 37).

    Reli = sum g_i (o_i - p_i)^2 and CRPS_pot = sum g_i o_i (1 - o_i), with p_i = i / M. For the inner bins
    g_i = alpha_i + beta_i and o_i = beta_i / g_i are taken from the means of alpha and beta over pixels. In bin 0, o_0
    is the fraction of observations below all members and g_0 = beta_0 / o_0; in bin M, 1 - o_M is the fraction above
    all members and g_M = alpha_M / (1 - o_M). A bin of width 0 adds 0.

    Args:
        widths: ``[..., 2, M + 1]``, see :func:`bin_sums`.
        pixels: ``[..., 3]``.

    Returns:
        Two float64 tensors ``[...]``, NaN without a pixel.
    """
    count = pixels[..., 2:].double()
    alpha, beta = (widths / count[..., None]).unbind(-2)
    outside = pixels[..., :2].double() / count
    width = alpha + beta
    frequency = torch.where(width > 0, beta / width, 0.0)
    frequency[..., 0], frequency[..., -1] = outside[..., 0], 1 - outside[..., 1]
    width[..., 0] = torch.where(outside[..., 0] > 0, beta[..., 0] / outside[..., 0], 0.0)
    width[..., -1] = torch.where(outside[..., 1] > 0, alpha[..., -1] / outside[..., 1], 0.0)
    probability = torch.linspace(0, 1, widths.shape[-1], dtype=torch.float64, device=widths.device)
    reliability = (width * (frequency - probability).square()).sum(-1)
    potential = (width * frequency * (1 - frequency)).sum(-1)
    undefined = count[..., 0] == 0
    return reliability.masked_fill(undefined, torch.nan), potential.masked_fill(undefined, torch.nan)


def value_counts(y: Tensor, scale: float, *, bins: int = 256) -> Tensor:
    """Return the number of observations with each whole encoded value, int64 ``[bins]``; floats are rounded to it."""
    codes = (y.double() * scale).round_().clamp_(0, bins - 1).long()
    return torch.bincount(codes, minlength=bins)


def climatological_crps(counts: Tensor, scale: float) -> Tensor:
    """Return the CRPS of the observed climatology as the forecast, the uncertainty of Hersbach 2000, eq. 38, ``[...]``.

    It is the integral of F (1 - F), where F is the distribution of all observations; equal to half their mean absolute
    difference. NaN without an observation.

    Args:
        counts: number of observations by encoded value, ``[..., bins]``.
        scale: divisor from encoded values to the field.
    """
    values = (torch.arange(counts.shape[-1], dtype=torch.float32, device=counts.device) / scale).double()
    total = counts.double().cumsum(-1)
    below = total / total[..., -1:]
    return (below * (1 - below))[..., :-1] @ values.diff()


def _above(keep: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels ``[..., P]`` above a threshold, or all pixels if these are the majority.

    Where no value is above the threshold, all are equal after chaining and add 0, also at higher thresholds; removing
    such pixels is faster than counting them only if they are many.
    """
    return (y[keep], x[..., keep]) if 2 * int(keep.sum()) < keep.numel() else (y, x)


def _pair_weights(ordered: Tensor) -> Tensor:
    """Return weights of the ordered members, whose weighted sum is half the sum of |x_i - x_j| over all i and j."""
    members = ordered.shape[0]
    return 2.0 * torch.arange(1, members + 1, dtype=torch.float64, device=ordered.device) - members - 1
