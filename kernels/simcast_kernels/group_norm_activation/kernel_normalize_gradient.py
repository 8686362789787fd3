"""Kernels of the backward pass: sums over a part of the grid, sums over channels and groups, gradient of the input.

With h = (x - mean) rstd, z = h weight + bias and g = grad activation'(z), the gradient of bias is the sum of g, that of
weight the sum of g h, and that of x is ``rstd (weight g - (sum(weight g) + h sum(weight g h)) / M)`` with sums over the
M elements of a group.
"""

# Pyright does not understand Triton constexpr arguments and optional tensors in jitted functions.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
import triton
import triton.language as tl

from simcast_kernels.device.masked_tiles import load_tile, sigmoid, store_tile

from .kernel_normalize import block_of


@triton.jit
def through_activation(grad, z, slope, IS_SILU: tl.constexpr):
    """Return ``grad`` times the derivative of the activation at ``z``."""
    if IS_SILU:
        slope = sigmoid(z)
        value = z * slope
        return grad * (value + slope - value * slope)
    return tl.where(z > 0.0, grad, grad * slope)


@triton.jit
def sums_of_part(
    grad, x, base, offset, row, left, is_channel, centre, deviation, factor, shift, slope,
    IS_SILU: tl.constexpr, STRIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return the sums of g and of g h over the tiles of a part."""
    grads = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in range(STEPS):
        valid = (row + step * BLOCK_P < left)[:, None] & is_channel
        here = base + step * STRIDE
        normed = (load_tile(x + here, offset, valid, MASKED) - centre) * deviation
        upstream = load_tile(grad + here, offset, valid, MASKED)  # 0 where not valid, which adds nothing
        inner = through_activation(upstream, normed * factor + shift, slope, IS_SILU)
        grads += inner
        products += inner * normed
    return grads, products


@triton.jit
def gradient_of_part(
    grad, x, grad_x, base, offset, row, left, is_channel, centre, deviation, factor, shift, scale, across, along, slope,
    IS_SILU: tl.constexpr, STRIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x of all tiles of a part."""
    for step in range(STEPS):
        valid = (row + step * BLOCK_P < left)[:, None] & is_channel
        here = base + step * STRIDE
        normed = (load_tile(x + here, offset, valid, MASKED) - centre) * deviation
        upstream = load_tile(grad + here, offset, valid, MASKED)
        inner = through_activation(upstream, normed * factor + shift, slope, IS_SILU)
        store_tile(grad_x + here, offset, inner * scale - across - normed * along, valid, MASKED)


@triton.jit
def gradient_sums_kernel(
    grad,
    x,
    weight,
    bias,
    mean,
    rstd,
    part_grads,
    part_products,
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
    """Write the sums of g and of g h of every channel of a part."""
    sample, first, left, column = block_of(pixels, parts, BLOCK_P * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    is_channel = column < CHANNELS
    row = tl.arange(0, BLOCK_P)
    group = sample * GROUPS + column // (CHANNELS // GROUPS)
    centre = tl.load(mean + group, mask=is_channel, other=0.0)[None, :]
    deviation = tl.load(rstd + group, mask=is_channel, other=0.0)[None, :]
    factor = tl.load(weight + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    base = (sample * pixels + first) * CHANNELS
    offset = row[:, None] * CHANNELS + column[None, :]
    if left == BLOCK_P * STEPS:
        grads, products = sums_of_part(
            grad, x, base, offset, row, left, is_channel[None, :], centre, deviation, factor, shift, slope,
            IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, BLOCK_C, CHANNELS % BLOCK_C != 0,
        )  # fmt: skip
    else:
        grads, products = sums_of_part(
            grad, x, base, offset, row, left, is_channel[None, :], centre, deviation, factor, shift, slope,
            IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, BLOCK_C, True,
        )  # fmt: skip
    out = (tl.program_id(0) // COLUMN_BLOCKS).to(tl.int64) * CHANNELS + column
    tl.store(part_grads + out, tl.sum(grads, axis=0), mask=is_channel)
    tl.store(part_products + out, tl.sum(products, axis=0), mask=is_channel)


@triton.jit
def group_gradients_kernel(
    part_grads,
    part_products,
    weight,
    channel_grads,
    channel_products,
    group_grads,
    group_products,
    pixels,
    parts,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the sums of one group of one sample: of each channel, and their weighted means over the group."""
    program = tl.program_id(0)
    WIDTH: tl.constexpr = CHANNELS // GROUPS
    member, row = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_R)[:, None]
    sample, channel = (program // GROUPS).to(tl.int64), (program % GROUPS) * WIDTH + member
    grads = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    products = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, parts, BLOCK_R):
        part = start + row
        valid = (part < parts) & (member < WIDTH)[None, :]
        offset = (sample * parts + part) * CHANNELS + channel[None, :]
        grads += tl.load(part_grads + offset, valid, other=0.0)
        products += tl.load(part_products + offset, valid, other=0.0)
    channel_grad, channel_product = tl.sum(grads, axis=0), tl.sum(products, axis=0)
    tl.store(channel_grads + sample * CHANNELS + channel, channel_grad, mask=member < WIDTH)
    tl.store(channel_products + sample * CHANNELS + channel, channel_product, mask=member < WIDTH)
    factor = tl.load(weight + channel, mask=member < WIDTH, other=0.0).to(tl.float32)
    elements = pixels.to(tl.float32) * WIDTH
    tl.store(group_grads + program, tl.sum(factor * channel_grad, axis=0) / elements)
    tl.store(group_products + program, tl.sum(factor * channel_product, axis=0) / elements)


@triton.jit
def input_gradient_kernel(
    grad,
    x,
    weight,
    bias,
    mean,
    rstd,
    group_grads,
    group_products,
    grad_x,
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
    """Write the gradient of x of one part."""
    sample, first, left, column = block_of(pixels, parts, BLOCK_P * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    is_channel = column < CHANNELS
    row = tl.arange(0, BLOCK_P)
    group = sample * GROUPS + column // (CHANNELS // GROUPS)
    centre = tl.load(mean + group, mask=is_channel, other=0.0)[None, :]
    deviation = tl.load(rstd + group, mask=is_channel, other=0.0)[None, :]
    across = tl.load(group_grads + group, mask=is_channel, other=0.0)[None, :] * deviation
    along = tl.load(group_products + group, mask=is_channel, other=0.0)[None, :] * deviation
    factor = tl.load(weight + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    scale = factor * deviation
    base = (sample * pixels + first) * CHANNELS
    offset = row[:, None] * CHANNELS + column[None, :]
    if left == BLOCK_P * STEPS:
        gradient_of_part(
            grad, x, grad_x, base, offset, row, left, is_channel[None, :], centre, deviation, factor, shift, scale,
            across, along, slope, IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, CHANNELS % BLOCK_C != 0,
        )  # fmt: skip
    else:
        gradient_of_part(
            grad, x, grad_x, base, offset, row, left, is_channel[None, :], centre, deviation, factor, shift, scale,
            across, along, slope, IS_SILU, BLOCK_P * CHANNELS, STEPS, BLOCK_P, True,
        )  # fmt: skip
