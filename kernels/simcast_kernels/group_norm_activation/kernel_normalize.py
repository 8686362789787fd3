"""Kernels of the forward pass: statistics of a part of the grid, statistics of groups, normalization.

A part is a run of pixels of one sample. A thread adds up differences from the first value that it reads of a channel,
which is one of the values of its sum: the rounding error of its variance is bounded, whatever the mean. Parts are
combined by their means and squared deviations (Chan, Golub and LeVeque 1979), in a fixed order.
"""

# Pyright does not understand Triton constexpr arguments and optional tensors in jitted functions.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
import triton
import triton.language as tl

from simcast_kernels.device.masked_tiles import load_tile, sigmoid, store_tile


@triton.jit
def activate(z, slope, IS_SILU: tl.constexpr):
    """Return the activation of ``z``."""
    return z * sigmoid(z) if IS_SILU else tl.where(z > 0.0, z, z * slope)


@triton.jit
def block_of(pixels, parts, PART: tl.constexpr, BLOCK_C: tl.constexpr, COLUMN_BLOCKS: tl.constexpr):
    """Return sample, first pixel, pixels of this part, and channels of this program."""
    program = tl.program_id(0)
    part = program // COLUMN_BLOCKS
    first = (part % parts) * PART
    column = (program % COLUMN_BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (part // parts).to(tl.int64), first, tl.minimum(pixels - first, PART), column


@triton.jit
def sums_of_differences(
    x,
    offset,
    row,
    left,
    is_channel,
    STRIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return the first tile, and sums of the differences of all tiles from it and of their squares."""
    origin = load_tile(x, offset, (row < left)[:, None] & is_channel, MASKED)
    linear = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in range(1, STEPS):
        valid = (row + step * BLOCK_P < left)[:, None] & is_channel
        difference = load_tile(x + step * STRIDE, offset, valid, MASKED) - origin
        if MASKED:
            difference = tl.where(valid, difference, 0.0)
        linear += difference
        square += difference * difference
    return origin, linear, square


@triton.jit
def statistics_kernel(
    x,
    part_means,
    part_squares,
    pixels,
    parts,
    CHANNELS: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write mean and sum of squared deviations of every channel of a part."""
    sample, first, left, column = block_of(pixels, parts, BLOCK_P * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    is_channel = (column < CHANNELS)[None, :]
    row = tl.arange(0, BLOCK_P)
    x += (sample * pixels + first) * CHANNELS
    offset = row[:, None] * CHANNELS + column[None, :]
    STRIDE: tl.constexpr = BLOCK_P * CHANNELS
    if left == BLOCK_P * STEPS:
        RAGGED: tl.constexpr = CHANNELS % BLOCK_C != 0
        origin, linear, square = sums_of_differences(
            x, offset, row, left, is_channel, STRIDE, STEPS, BLOCK_P, BLOCK_C, RAGGED
        )
    else:
        origin, linear, square = sums_of_differences(
            x, offset, row, left, is_channel, STRIDE, STEPS, BLOCK_P, BLOCK_C, True
        )
    # 1. Of the values of one thread: at `row`, and every BLOCK_P pixels from there
    count = ((left - row + BLOCK_P - 1) // BLOCK_P).to(tl.float32)
    count = tl.where(row < left, count, 0.0)[:, None]
    shift = linear / tl.maximum(count, 1.0)
    square -= linear * shift
    # 2. Of the part
    own = origin + shift
    mean = tl.sum(tl.where(count > 0.0, own, 0.0) * count, axis=0) / left
    away = own - mean[None, :]
    deviations = tl.sum(square + count * away * away, axis=0)
    out = (tl.program_id(0) // COLUMN_BLOCKS).to(tl.int64) * CHANNELS + column
    tl.store(part_means + out, mean, mask=column < CHANNELS)
    tl.store(part_squares + out, deviations, mask=column < CHANNELS)


@triton.jit
def group_statistics_kernel(
    part_means,
    part_squares,
    mean,
    rstd,
    pixels,
    parts,
    eps,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write mean and reciprocal standard deviation of one group of one sample."""
    program = tl.program_id(0)
    WIDTH: tl.constexpr = CHANNELS // GROUPS
    member, row = tl.arange(0, BLOCK_K)[None, :], tl.arange(0, BLOCK_R)[:, None]
    base = (program // GROUPS).to(tl.int64) * parts * CHANNELS + (program % GROUPS) * WIDTH
    elements = pixels.to(tl.float32) * WIDTH
    # Relative to the first values that a thread reads, as in the statistics of a part: one pass suffices.
    in_first = (row < parts) & (member < WIDTH)
    origin = tl.load(part_means + base + row * CHANNELS + member, in_first, other=0.0)
    counts = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    linear = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, parts, BLOCK_R):
        part = start + row
        valid = (part < parts) & (member < WIDTH)
        count = tl.where(valid, tl.minimum(pixels - part * PART, PART).to(tl.float32), 0.0)
        found = tl.load(part_means + base + part * CHANNELS + member, valid, other=0.0)
        within = tl.load(part_squares + base + part * CHANNELS + member, valid, other=0.0)
        difference = tl.where(valid, found - origin, 0.0)
        counts += count
        linear += count * difference
        square += within + count * difference * difference
    shift = linear / tl.maximum(counts, 1.0)
    own = origin + shift
    group_mean = tl.sum(tl.sum(counts * own, axis=1), axis=0) / elements
    away = own - group_mean
    deviations = square - linear * shift + counts * away * away
    variance = tl.sum(tl.sum(deviations, axis=1), axis=0) / elements
    tl.store(mean + program, group_mean)
    tl.store(rstd + program, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def normalize_part(
    x, total, out, base, offset, row, left, is_channel, centre, scale, shift, slope,
    IS_SILU: tl.constexpr, STRIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the results of all tiles of a part."""
    for step in range(STEPS):
        valid = (row + step * BLOCK_P < left)[:, None] & is_channel
        here = base + step * STRIDE
        value = load_tile(x + here, offset, valid, MASKED)
        result = activate((value - centre) * scale + shift, slope, IS_SILU)
        if total is not None:
            result += load_tile(total + here, offset, valid, MASKED)
        store_tile(out + here, offset, result, valid, MASKED)


@triton.jit
def normalize_kernel(
    x,
    weight,
    bias,
    total,
    mean,
    rstd,
    out,
    pixels,
    parts,
    slope,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    IS_SILU: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write ``total + activation(normalized x)`` of one part."""
    sample, first, left, column = block_of(pixels, parts, BLOCK_P * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    is_channel = column < CHANNELS
    row = tl.arange(0, BLOCK_P)
    group = sample * GROUPS + column // (CHANNELS // GROUPS)
    centre = tl.load(mean + group, mask=is_channel, other=0.0)[None, :]
    scale = tl.load(rstd + group, mask=is_channel, other=0.0)
    scale = (scale * tl.load(weight + column, mask=is_channel, other=0.0).to(tl.float32))[None, :]
    shift = tl.load(bias + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    base = (sample * pixels + first) * CHANNELS
    offset = row[:, None] * CHANNELS + column[None, :]
    if left == BLOCK_P * STEPS:
        normalize_part(
            x, total, out, base, offset, row, left, is_channel[None, :], centre, scale, shift, slope,
            IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, CHANNELS % BLOCK_C != 0,
        )  # fmt: skip
    else:
        normalize_part(
            x, total, out, base, offset, row, left, is_channel[None, :], centre, scale, shift, slope,
            IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, True,
        )  # fmt: skip
