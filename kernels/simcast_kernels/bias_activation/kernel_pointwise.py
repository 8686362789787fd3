"""Kernels of both directions: a program covers a run of rows and a block of columns of ``[R, C]``."""

# Pyright does not understand Triton constexpr arguments and optional tensors in jitted functions.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from simcast_kernels.device.masked_tiles import load_tile, sigmoid, store_tile


@triton.jit
def keep_octets(seed, row, octet, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, DROP_BELOW: tl.constexpr):
    """Return the dropout mask of a tile, True for kept elements: bool ``[BLOCK_R, BLOCK_C]``, by Philox4x32-7.

    The key is the seed, the counters are (octet, row, 0, 0); an octet is eight adjacent columns, which one thread
    holds, with 16 bits each: see ``simcast_kernels.bias_activation.reference.keep_mask``.
    """
    zero = row[:, None] * 0 + octet[None, :] * 0
    w0, w1, w2, w3 = tl.philox(seed, zero + octet[None, :], zero + row[:, None], zero, zero, n_rounds=7)
    # The upper half is compared in place, the lower half is shifted up. The axis joined last is the innermost.
    LEAST: tl.constexpr = DROP_BELOW << 16
    even = tl.join(tl.join(w0 << 16 >= LEAST, w2 << 16 >= LEAST), tl.join(w1 << 16 >= LEAST, w3 << 16 >= LEAST))
    odd = tl.join(tl.join(w0 >= LEAST, w2 >= LEAST), tl.join(w1 >= LEAST, w3 >= LEAST))
    return tl.reshape(tl.join(even, odd), (BLOCK_R, BLOCK_C))


@triton.jit
def normal_tail(a):
    """Return the probability that a standard normal variable exceeds ``a``, at least 0.

    ``log2`` of it is a polynomial of degree 5, fitted to a smallest maximum error for 0 <= a <= 6, where the relative
    error is below 4.3e-4, a fifth of the largest rounding error of bfloat16. ``erf`` takes three times as many
    instructions.
    """
    q = ((a * -2.09464493e-4 + 4.59391731e-3) * a - 4.35746451e-2) * a - 4.70895044e-1
    return tl.exp2((q * a - 1.14633505) * a - 1.0)


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr, NARROW: tl.constexpr):
    """Return the activation of ``z``. NARROW: the result is rounded to bfloat16."""
    if ACTIVATION == "gelu" and NARROW:
        a = tl.abs(z)
        return tl.maximum(z, 0.0) - a * normal_tail(a)
    if ACTIVATION == "gelu":
        return z * (0.5 * tl.erf(z * 0.7071067811865476) + 0.5)
    if ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        return z * sigmoid(z * (1.5957691216057308 + 0.07135481282553024 * z * z))
    if ACTIVATION == "silu":
        return z * sigmoid(z)
    if ACTIVATION == "leaky_relu":
        return tl.where(z > 0.0, z, z * slope)
    return z


@triton.jit
def derivative(z, slope, ACTIVATION: tl.constexpr, NARROW: tl.constexpr):
    """Return the derivative of the activation at ``z``. NARROW: the result is rounded to bfloat16."""
    if ACTIVATION == "gelu":
        density = tl.exp2(z * z * -0.7213475204444817 - 1.3257480647361592)
        if NARROW:
            a = tl.abs(z)
            below = normal_tail(a) - a * density  # the derivative at -a
            return tl.where(z > 0.0, 1.0 - below, below)
        return 0.5 * tl.erf(z * 0.7071067811865476) + 0.5 + z * density
    if ACTIVATION == "gelu_tanh":
        s = sigmoid(z * (1.5957691216057308 + 0.07135481282553024 * z * z))
        return s + z * s * (1.0 - s) * (1.5957691216057308 + 0.2140644384765907 * z * z)
    if ACTIVATION == "silu":
        s = sigmoid(z)
        return s + z * s * (1.0 - s)
    if ACTIVATION == "leaky_relu":
        return tl.where(z > 0.0, 1.0, slope)
    return z * 0.0 + 1.0


@triton.jit
def block_of(rows, PART: tl.constexpr, BLOCK_C: tl.constexpr, COLUMN_BLOCKS: tl.constexpr):
    """Return the part, its first row, the number of its rows, and the first column of this program."""
    program = tl.program_id(0)
    part = program // COLUMN_BLOCKS
    first = part * PART
    return part, first, tl.minimum(rows - first, PART), (program % COLUMN_BLOCKS) * BLOCK_C


@triton.jit
def forward_part(
    x, residual, out, base, offset, row, octet, first, left, is_column, shift, seed, slope,
    CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr, DROP_BELOW: tl.constexpr, FACTOR: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the results of all tiles of a part."""
    for step in range(STEPS):
        here = base + step * (BLOCK_R * CHANNELS)
        valid = (row + step * BLOCK_R < left)[:, None] & is_column
        z = load_tile(x + here, offset, valid, MASKED)
        if shift is not None:
            z += shift
        result = activate(z, slope, ACTIVATION, x.dtype.element_ty == tl.bfloat16)
        if DROP_BELOW:
            keep = keep_octets(seed, first + step * BLOCK_R + row, octet, BLOCK_R, BLOCK_C, DROP_BELOW)
            result *= tl.where(keep, FACTOR, 0.0)  # a select of results would unpack their bfloat16 pairs
        if residual is not None:
            result += load_tile(residual + here, offset, valid, MASKED)
        store_tile(out + here, offset, result, valid, MASKED)


@triton.jit(do_not_specialize=["seed"])
def forward_kernel(
    x,
    bias,
    residual,
    out,
    rows,
    seed,
    slope,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    FACTOR: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write ``residual + dropout(activation(x + bias))`` of one part."""
    _, first, left, start = block_of(rows, BLOCK_R * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    column, row = start + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    octet = start // 8 + tl.arange(0, BLOCK_C // 8)
    is_column = (column < CHANNELS)[None, :]
    shift = None
    if bias is not None:
        shift = tl.load(bias + column, mask=column < CHANNELS, other=0.0).to(tl.float32)[None, :]
    base, offset = first.to(tl.int64) * CHANNELS, row[:, None] * CHANNELS + column[None, :]
    if left == BLOCK_R * STEPS:
        forward_part(
            x, residual, out, base, offset, row, octet, first, left, is_column, shift, seed, slope, CHANNELS,
            ACTIVATION, DROP_BELOW, FACTOR, STEPS, BLOCK_R, BLOCK_C, CHANNELS % BLOCK_C != 0,
        )  # fmt: skip
    else:
        forward_part(
            x, residual, out, base, offset, row, octet, first, left, is_column, shift, seed, slope, CHANNELS,
            ACTIVATION, DROP_BELOW, FACTOR, STEPS, BLOCK_R, BLOCK_C, True,
        )  # fmt: skip


@triton.jit
def backward_part(
    grad, x, grad_x, base, offset, row, octet, first, left, is_column, shift, seed, slope,
    CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr, DROP_BELOW: tl.constexpr, FACTOR: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all tiles of a part, and return their sums over every BLOCK_R-th row."""
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for step in range(STEPS):
        here = base + step * (BLOCK_R * CHANNELS)
        valid = (row + step * BLOCK_R < left)[:, None] & is_column
        inner = load_tile(grad + here, offset, valid, MASKED)
        if ACTIVATION != "none":
            z = load_tile(x + here, offset, valid, MASKED)
            if shift is not None:
                z += shift
            inner *= derivative(z, slope, ACTIVATION, x.dtype.element_ty == tl.bfloat16)
        if DROP_BELOW:
            keep = keep_octets(seed, first + step * BLOCK_R + row, octet, BLOCK_R, BLOCK_C, DROP_BELOW)
            inner *= tl.where(keep, FACTOR, 0.0)
        store_tile(grad_x + here, offset, inner, valid, MASKED)
        total += tl.where(valid, inner, 0.0) if MASKED else inner
    return total


@triton.jit(do_not_specialize=["seed"])
def backward_kernel(
    grad,
    x,
    bias,
    grad_x,
    bias_partials,
    rows,
    seed,
    slope,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    FACTOR: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of x, and its sum over the rows of a part for the gradient of the bias."""
    part, first, left, start = block_of(rows, BLOCK_R * STEPS, BLOCK_C, COLUMN_BLOCKS)  # pyright: ignore
    column, row = start + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    octet = start // 8 + tl.arange(0, BLOCK_C // 8)
    is_column = (column < CHANNELS)[None, :]
    shift = None
    if bias is not None:
        shift = tl.load(bias + column, mask=column < CHANNELS, other=0.0).to(tl.float32)[None, :]
    base, offset = first.to(tl.int64) * CHANNELS, row[:, None] * CHANNELS + column[None, :]
    if left == BLOCK_R * STEPS:
        total = backward_part(
            grad, x, grad_x, base, offset, row, octet, first, left, is_column, shift, seed, slope, CHANNELS,
            ACTIVATION, DROP_BELOW, FACTOR, STEPS, BLOCK_R, BLOCK_C, CHANNELS % BLOCK_C != 0,
        )  # fmt: skip
    else:
        total = backward_part(
            grad, x, grad_x, base, offset, row, octet, first, left, is_column, shift, seed, slope, CHANNELS,
            ACTIVATION, DROP_BELOW, FACTOR, STEPS, BLOCK_R, BLOCK_C, True,
        )  # fmt: skip
    tl.store(bias_partials + part.to(tl.int64) * CHANNELS + column, tl.sum(total, axis=0), mask=column < CHANNELS)
