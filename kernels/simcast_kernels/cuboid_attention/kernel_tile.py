"""Pieces of a tile that forward and backward share: rows, bias, scores, dropout."""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from simcast_kernels.device.philox import keep_tile


@triton.jit
def head_base(tensor, sample, head, POSITIONS: tl.constexpr, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr):
    """Return the address of one sample's and head's first feature in ``[B, positions, STRIDE]``."""
    return tensor + tl.cast(sample, tl.int64) * (POSITIONS * STRIDE) + head * HEAD_SIZE


@triton.jit
def row_addresses(base, row, mask, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the addresses of a tile's features, and which of them exist."""
    column = tl.arange(0, BLOCK_D)
    valid = mask[:, None]
    if HEAD_SIZE != BLOCK_D:
        valid = valid & (column < HEAD_SIZE)[None, :]
    return base + row[:, None] * STRIDE + column[None, :], valid


@triton.jit
def load_rows(base, row, mask, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):
    """Return the features of rows, 0 where masked, in DOT: bfloat16 products are wrong in Triton's interpreter."""
    address, valid = row_addresses(base, row, mask, STRIDE, HEAD_SIZE, BLOCK_D)
    return tl.load(address, mask=valid, other=0.0).to(tl.float32).to(DOT)


@triton.jit
def store_rows(base, row, mask, value, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the features of rows in the dtype of ``base``."""
    address, valid = row_addresses(base, row, mask, STRIDE, HEAD_SIZE, BLOCK_D)
    tl.store(address, value.to(base.dtype.element_ty), mask=valid)


@triton.jit
def load_bias(bias, head, token_q, token_k, QUERY_TOKENS: tl.constexpr, KEY_TOKENS: tl.constexpr):
    """Return the bias of a tile, 0 outside the table."""
    address = bias + (head * QUERY_TOKENS + token_q[:, None]) * KEY_TOKENS + token_k[None, :]
    valid = (token_q < QUERY_TOKENS)[:, None] & (token_k < KEY_TOKENS)[None, :]
    return tl.load(address, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def product(a, b):
    """Return ``a @ b`` in float32, without the rounding to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def dropped(value, seed, place, column, head, sample, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr):
    """Return a tile of weights, or of their gradient, after dropout."""
    if DROP_BELOW > 0:
        value = tl.where(keep_tile(seed, place, column, head, sample, DROP_BELOW), value * KEEP_SCALE, 0.0)
    return value


@triton.jit
def finite(maximum):
    """Return the row maximum to subtract: 0 for a row without a key, whose weights then are exp(-inf) = 0."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)
