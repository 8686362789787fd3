"""Levels: the number of thresholds that a pixel reaches, as uint8, from which all tables are computed.

A maximum over a block commutes with a threshold, so max pools are computed on levels (one byte per pixel instead of a
float). A joint histogram of (observed, forecast) levels contains the 2 x 2 tables of all thresholds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_hpc.data.encoding import code_to_unit

from .protocols import Pool, ScoreProtocol

# A pixel value converted to float32 has an error of up to 255 * 2**-25 = 7.6e-6, and so has an average of them.
_AVERAGE_SLACK = 1e-5
# Relative rounding error of a packed value that is decoded in float32, 2 ulp; offsets of dBZ are about -32.
_ROUNDING = 2 * torch.finfo(torch.float32).eps
_OFFSET_DBZ = 32.0


def missing_level(protocol: ScoreProtocol) -> int:
    """Return the level of a missing pixel: the number of thresholds plus one."""
    return len(protocol.thresholds) + 1


def levels_of(field: Tensor, protocol: ScoreProtocol, *, has_nan: bool = True) -> Tensor:
    """Return the number of thresholds each pixel reaches, uint8 of the field's shape; missing pixels are marked.

    Args:
        field: uint8 pixel values or [0, 1] floats of any shape.
        protocol: thresholds, comparison and missing value.
        has_nan: whether a float field may contain NaN; False saves a pass over the field.
    """
    if field.dtype == torch.uint8:
        table = _levels_of_codes(protocol, field.device)
        return table.index_select(0, field.flatten().int()).view(field.shape)
    levels = _levels_of_floats(field, protocol)
    return levels.masked_fill_(torch.isnan(field), missing_level(protocol)) if has_nan else levels


def _levels_of_codes(protocol: ScoreProtocol, device: torch.device) -> Tensor:
    codes = torch.arange(256, device=device).to(torch.uint8)
    if protocol.comparison == "codes":
        table = _reached(codes.double(), protocol.thresholds, strict=protocol.strict)
    else:
        table = _levels_of_floats(code_to_unit(codes, protocol.scale), protocol)
    if protocol.missing is not None:
        table[protocol.missing] = missing_level(protocol)
    return table


def _levels_of_floats(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    if protocol.comparison == "physical":
        return _reached(field, _physical_thresholds(protocol), strict=protocol.strict)
    field = field.float()
    if protocol.comparison == "codes":
        return _reached(field, _unit_thresholds(protocol), strict=protocol.strict)
    return _reached(
        _released_values(field, protocol), _rounded(protocol.thresholds, torch.float32), strict=protocol.strict
    )


def _released_values(field: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return pixel values as the published evaluators compute them from [0, 1] float32 fields."""
    if protocol.comparison == "released-truncated":
        return (field * protocol.scale).trunc_()
    # A tensor divisor gives a true division on every device; a scalar one may become a multiplication.
    return field / torch.full((), 1.0 / protocol.scale, dtype=torch.float32, device=field.device)


def _unit_thresholds(protocol: ScoreProtocol) -> list[float]:
    return torch.tensor(protocol.thresholds, dtype=torch.float64).div(protocol.scale).float().tolist()


def _physical_thresholds(protocol: ScoreProtocol) -> list[float]:
    """Return thresholds with a tolerance for the rounding of float32, in which packed values are decoded.

    10 * 0.01 mm/h is 1 ulp below 0.1 in float32; without the tolerance it would not reach 0.1.
    """
    error = (-1.0, 1.0)[protocol.strict] * _ROUNDING
    least = _OFFSET_DBZ if protocol.unit == "dBZ" else 0.0
    return [threshold + error * max(abs(threshold), least) for threshold in protocol.thresholds]


def _average_thresholds(protocol: ScoreProtocol) -> list[float]:
    """Return thresholds for averages of values, with a tolerance for their rounding errors."""
    if protocol.comparison == "physical":
        return _physical_thresholds(protocol)
    slack = _AVERAGE_SLACK if protocol.strict else -_AVERAGE_SLACK
    return [(threshold + slack) / protocol.scale for threshold in protocol.thresholds]


def _rounded(thresholds: tuple[float, ...], dtype: torch.dtype) -> list[float]:
    return torch.tensor(thresholds, dtype=dtype).tolist()


def _reached(field: Tensor, thresholds: list[float] | tuple[float, ...], *, strict: bool) -> Tensor:
    # One comparison per threshold into the same buffer is several times faster on a CPU than torch.bucketize.
    compare = torch.gt if strict else torch.ge
    reached = compare(field, thresholds[0]).view(torch.uint8)
    event = torch.empty_like(reached, dtype=torch.bool)
    for threshold in thresholds[1:]:
        compare(field, threshold, out=event)
        reached += event.view(torch.uint8)
    return reached


def joint_histogram(observed: Tensor, predicted: Tensor, *, bins: int) -> Tensor:
    """Return the number of pixels with each (observed, forecast) pair of levels, int64 ``[T, bins, bins]``."""
    frames = observed.shape[0]
    if observed.device.type == "cpu" and bins * bins <= 256:
        pair = observed * bins
        pair += predicted
        counts = [torch.bincount(frame.flatten(), minlength=bins * bins) for frame in pair]
        return torch.stack(counts).view(frames, bins, bins)
    offset = torch.arange(frames, device=observed.device, dtype=torch.int32) * (bins * bins)
    pair = observed.int().mul_(bins).add_(predicted).add_(offset.view(-1, *[1] * (observed.dim() - 1)))
    return torch.bincount(pair.flatten(), minlength=frames * bins * bins).view(frames, bins, bins)


def tables(histogram: Tensor, protocol: ScoreProtocol) -> Tensor:
    """Return the 2 x 2 tables from a joint histogram ``[T, L + 1, L + 1]``, int64 ``[4, thresholds, T]``.

    The first axis is hits, misses, false alarms, correct negatives.
    """
    levels = histogram.shape[-1] - 1
    valid = histogram[:, :levels, :levels]
    at_least = valid.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)
    hits = at_least.diagonal(dim1=1, dim2=2)[:, 1:]
    observed_events, forecast_events = at_least[:, 1:, 0], at_least[:, 0, 1:]
    counted = (histogram if protocol.missing_rule == "non-event" else valid).sum((1, 2))
    misses, false_alarms = observed_events - hits, forecast_events - hits
    correct_negatives = counted[:, None] - observed_events - false_alarms
    return torch.stack([hits, misses, false_alarms, correct_negatives]).transpose(1, 2).contiguous()


def pooled_levels(
    observed: Tensor, predicted: Tensor, hidden: Tensor | None, pool: Pool, protocol: ScoreProtocol
) -> tuple[Tensor, Tensor]:
    """Return the levels of block maxima of both fields, ``[T, h, w]``.

    With ``missing_rule="excluded"`` a block counts if any of its pixels is valid in both fields, and its maximum is
    over those; with ``"non-event"`` one missing pixel makes the block missing, as NaN does in a maximum.

    Args:
        observed: levels of the observation ``[T, H, W]``.
        predicted: levels of the forecast ``[T, H, W]``.
        hidden: True where a pixel is missing in either; None if no pixel is.
        pool: a max pool.
        protocol: thresholds and mask rule.
    """
    if hidden is None or protocol.missing_rule == "non-event":
        first, second = (_block_maximum(field, pool, protocol) for field in (observed, predicted))
        return first, second
    # Levels are shifted by one, so that 0 is a missing pixel and never a maximum of valid ones.
    blocks = [_block_maximum((field + 1).masked_fill_(hidden, 0), pool, protocol) for field in (observed, predicted)]
    empty = blocks[0] == 0
    first, second = ((block - 1).masked_fill_(empty, missing_level(protocol)) for block in blocks)
    return first, second


def _block_maximum(levels: Tensor, pool: Pool, protocol: ScoreProtocol) -> Tensor:
    size = pool.size
    if pool.overlapping:
        before, after = size // 2, size - 1 - size // 2
        padded = torch.nn.functional.pad(levels, (before, after, before, after))
        return _running_maximum(_running_maximum(padded, size, dim=1), size, dim=2)
    height, width = levels.shape[1:]
    if protocol.partial_blocks:
        levels = torch.nn.functional.pad(levels, (0, -width % size, 0, -height % size))
        height, width = levels.shape[1:]
    levels = levels[:, : height - height % size, : width - width % size]
    rows = levels[:, ::size]
    for shift in range(1, size):
        rows = torch.maximum(rows, levels[:, shift::size])
    blocks = rows[:, :, ::size]
    for shift in range(1, size):
        blocks = torch.maximum(blocks, rows[:, :, shift::size])
    return blocks


def _running_maximum(levels: Tensor, size: int, *, dim: int) -> Tensor:
    length = levels.shape[dim] - size + 1
    best = levels.narrow(dim, 0, length)
    for shift in range(1, size):
        best = torch.maximum(best, levels.narrow(dim, shift, length))
    return best


def released_levels(
    field: Tensor, pools: Sequence[Pool], protocol: ScoreProtocol, *, has_nan: bool = True
) -> dict[str, Tensor]:
    """Return levels of pixels (empty key) and of float32 block averages by pool, as the published evaluators do.

    A missing pixel makes its block missing.

    Args:
        field: [0, 1] floats ``[T, H, W]``, NaN where missing.
        pools: average pools.
        protocol: thresholds and a ``released`` comparison.
        has_nan: whether the field may contain NaN; False saves a pass over the field.
    """
    values = _released_values(field.float(), protocol)
    blocks = {"": values} | {
        pool.key: torch.nn.functional.avg_pool2d(values[:, None], pool.size)[:, 0] for pool in pools
    }
    thresholds = _rounded(protocol.thresholds, torch.float32)
    levels = {name: _reached(block, thresholds, strict=protocol.strict) for name, block in blocks.items()}
    if has_nan:
        for name, block in blocks.items():
            levels[name].masked_fill_(torch.isnan(block), missing_level(protocol))
    return levels


def averaged_levels(
    field: Tensor, hidden: Tensor | None, pools: Sequence[Pool], protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return the levels of block averages of a [0, 1] float field ``[T, H, W]``, uint8 ``[T, h, w]`` by pool key.

    Args:
        field: float32, NaN where missing.
        hidden: True where a pixel is missing in either field and excluded from the average; None if no pixel is.
        pools: average pools.
        protocol: thresholds.
    """
    by_pool: dict[str, Tensor] = {}
    for pool in pools:
        height, width = (length - length % pool.size for length in field.shape[1:])
        cropped = field[:, :height, :width]
        if hidden is None:
            values, empty = _block_sum(cropped, pool.size) / pool.size**2, None
        else:
            mask = hidden[:, :height, :width]
            pixels = _block_sum((~mask).float(), pool.size)
            values, empty = _block_sum(cropped.masked_fill(mask, 0.0), pool.size) / pixels, pixels == 0
        levels = _reached(values, _average_thresholds(protocol), strict=protocol.strict)
        by_pool[pool.key] = levels if empty is None else levels.masked_fill_(empty, missing_level(protocol))
    return by_pool


def _block_sum(field: Tensor, size: int) -> Tensor:
    """Return sums of adjacent blocks in float64, exact for 16 x 16 float32 values of similar magnitude."""
    frames, height, width = field.shape
    rows = field.reshape(frames, height // size, size, width).sum(2, dtype=torch.float64)
    return rows.view(frames, height // size, width // size, size).sum(-1)
