"""Sums of the errors of a forecast: of all valid pixels, weighted by level, of moments, and where an event occurs."""

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .threshold_levels import missing_level

# The pixels over which conditional errors are averaged, and the rows of the contingency table that count them.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "observed": ("hits", "misses"),
    "forecast": ("hits", "false_alarms"),
    "either": ("hits", "misses", "false_alarms"),
    "both": ("hits",),
}


def error_sums(
    observed: Tensor, predicted: Tensor, levels: tuple[Tensor, Tensor], hidden: Tensor | None, protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return sums over the pixels that are valid in both fields, float64.

    Args:
        observed: floats ``[T, H, W]``.
        predicted: floats ``[T, H, W]``.
        levels: levels of the observation and of the forecast, uint8 ``[T, H, W]``.
        hidden: True where a pixel is missing in either field; None if no pixel is.
        protocol: thresholds, balance and additional scores.

    Returns:
        ``absolute_error`` and ``squared_error`` ``[T]``; ``balanced/absolute``, ``balanced/squared`` and
        ``balanced/frames`` ``[T]`` if the protocol has weights; ``moments`` ``[T, 6]`` and ``conditional`` ``[T, 3, 4,
        thresholds]`` if its additional scores need them (see :func:`_moments`, :func:`_conditional`).
    """
    flat = predicted.to(torch.float64, copy=True).sub_(observed).flatten(1)
    if hidden is not None:
        flat.masked_fill_(hidden.flatten(1), 0.0)
    squared = torch.linalg.vecdot(flat, flat)
    sums: dict[str, Tensor] = {}
    if "moments" in protocol.sums:
        sums["moments"] = _moments(observed, predicted, flat, hidden)
    if "conditional" in protocol.sums:
        sums["conditional"] = _conditional(flat, levels, protocol)
    flat.abs_()
    sums |= {"absolute_error": flat.sum(1), "squared_error": squared}
    if protocol.balance:
        weights = torch.tensor((*protocol.balance, 0.0), dtype=torch.float64, device=flat.device)
        weighted = weights[levels[0].flatten(1).int()]
        sums["balanced/absolute"] = torch.linalg.vecdot(weighted, flat)
        sums["balanced/squared"] = torch.linalg.vecdot(weighted, flat.square())
        sums["balanced/frames"] = torch.ones_like(flat[:, 0], dtype=torch.int64)
    return sums


def _moments(observed: Tensor, predicted: Tensor, error: Tensor, hidden: Tensor | None) -> Tensor:
    """Return sums of error, forecast, observation, their squares and their product, ``[T, 6]``."""
    y, x = (field.to(torch.float64, copy=True).flatten(1) for field in (observed, predicted))
    if hidden is not None:
        for field in (y, x):
            field.masked_fill_(hidden.flatten(1), 0.0)
    dot = torch.linalg.vecdot
    return torch.stack([error.sum(1), x.sum(1), y.sum(1), dot(x, x), dot(y, y), dot(x, y)], dim=1)


def _conditional(error: Tensor, levels: tuple[Tensor, Tensor], protocol: ScoreProtocol) -> Tensor:
    """Return sums of error, absolute and squared error over the pixels of each condition, ``[T, 3, 4, thresholds]``.

    The third axis is that of ``CONDITIONS``: a threshold is reached by the observation, by the forecast, by either or
    by both.
    """
    bins = missing_level(protocol) + 1  # the last is that of missing pixels, where the error is 0
    pair = levels[0].flatten(1).int() * bins + levels[1].flatten(1)
    values = torch.stack([error, error.abs(), error.square()], dim=1)
    by_pair = histogram_sums if pair.device.type == "cpu" else separate_sums
    by_level = by_pair(pair, values, bins * bins).unflatten(-1, (bins, bins))
    rows = range(1, missing_level(protocol))
    observed = torch.stack([by_level[..., k:, :].sum((-2, -1)) for k in rows], dim=-1)
    forecast = torch.stack([by_level[..., k:].sum((-2, -1)) for k in rows], dim=-1)
    both = torch.stack([by_level[..., k:, k:].sum((-2, -1)) for k in rows], dim=-1)
    false = torch.stack([by_level[..., :k, k:].sum((-2, -1)) for k in rows], dim=-1)
    return torch.stack([observed, forecast, observed + false, both], dim=2)


def histogram_sums(pair: Tensor, values: Tensor, count: int) -> Tensor:
    """Return sums of ``values`` ``[T, 3, P]`` by the pair of levels ``[T, P]`` of each pixel, ``[T, 3, count]``."""
    sums = [torch.bincount(row, one, count) for row, part in zip(pair, values, strict=True) for one in part]
    return torch.stack(sums).view(*values.shape[:2], count)


def separate_sums(pair: Tensor, values: Tensor, count: int) -> Tensor:
    """Return what :func:`histogram_sums` does; on a GPU a histogram with weights adds in an undefined order."""
    return torch.stack([values.mul(pair[:, None] == one).sum(-1) for one in range(count)], dim=-1)
