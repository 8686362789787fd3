"""Jitted steps that the forward and backward kernels share: tiles of queries, keys, global vectors; scores, dropout."""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from simcast_kernels.device.cuboids import tile_rows
from simcast_kernels.device.philox_tile import keep_tile


@triton.jit
def head_base(tensor, sample, head, POSITIONS: tl.constexpr, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr):
    """Return the address of the first feature of one sample and head in ``[B, positions, STRIDE]``."""
    return tensor + tl.cast(sample, tl.int64) * (POSITIONS * STRIDE) + head * HEAD_SIZE


@triton.jit
def row_addresses(base, row, mask, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the addresses of the features of rows, and the mask of those that exist."""
    column = tl.arange(0, BLOCK_D)
    valid = mask[:, None]
    if HEAD_SIZE != BLOCK_D:
        valid = valid & (column < HEAD_SIZE)[None, :]
    return base + row[:, None] * STRIDE + column[None, :], valid


@triton.jit
def load_rows(base, row, mask, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):
    """Return the features of rows in the dtype DOT, 0 where masked; Triton's interpreter has no bfloat16 matmul."""
    address, valid = row_addresses(base, row, mask, STRIDE, HEAD_SIZE, BLOCK_D)
    return tl.load(address, mask=valid, other=0.0).to(tl.float32).to(DOT)


@triton.jit
def store_rows(base, row, mask, value, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the features of rows in the dtype of ``base``."""
    address, valid = row_addresses(base, row, mask, STRIDE, HEAD_SIZE, BLOCK_D)
    tl.store(address, value.to(base.dtype.element_ty), mask=valid)


@triton.jit
def load_query_tile(
    base, group, first, origin, stride_t, stride_h,
    AXES: tl.constexpr, STRIDE: tl.constexpr, HEAD_SIZE: tl.constexpr, PACK: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return (queries, token numbers, positions, inside, labels, dropout rows) of a tile; see :func:`tile_rows`.

    The dropout row is the position in the domain of which the grid is a part.
    """
    token, position, _is_token, inside, label, t, h, w = tile_rows(group, first, AXES, PACK, BLOCK)
    row = origin + t * stride_t + h * stride_h + w
    return load_rows(base, position, inside, STRIDE, HEAD_SIZE, BLOCK_D, DOT), token, position, inside, label, row


@triton.jit
def load_key_tile(
    base, group, first, AXES: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, HEAD_SIZE: tl.constexpr,
    ZEROS: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return (keys, values, token numbers, positions, inside, attended, labels) of a tile.

    With ZEROS padded tokens are attended as keys of zeros, otherwise they are masked.
    """
    token, position, is_token, inside, label, _t, _h, _w = tile_rows(group, first, AXES, PACK, BLOCK)
    key = load_rows(base, position, inside, STRIDE, HEAD_SIZE, BLOCK_D, DOT)
    value = load_rows(base + WIDTH, position, inside, STRIDE, HEAD_SIZE, BLOCK_D, DOT)
    attended = is_token if ZEROS else inside
    return key, value, token, position, inside, attended, label


@triton.jit
def load_global_vectors(
    global_key, global_value, sample, head, GLOBALS: tl.constexpr, WIDTH: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return (keys, values, numbers, mask of those that exist) of the global vectors of one sample and head."""
    vector = tl.arange(0, BLOCK_G)
    exists = vector < GLOBALS
    key_base = head_base(global_key, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
    value_base = head_base(global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
    key = load_rows(key_base, vector, exists, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    value = load_rows(value_base, vector, exists, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    return key, value, vector, exists


@triton.jit
def global_score_tile(
    q, global_query, key, exists, sample, head, position, inside, scale, POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return (queries, scores) of a tile of queries with the global vectors; without ``global_query``, ``q`` is it."""
    if global_query is not None:
        base = head_base(global_query, sample, head, POSITIONS, WIDTH, HEAD_SIZE)
        q = load_rows(base, position, inside, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    scores = matmul(q, tl.trans(key)) * scale
    return q, tl.where(exists[None, :], scores, float("-inf"))


@triton.jit
def load_bias(bias, head, token_q, token_k, Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr):
    """Return the bias of a tile, 0 outside the table."""
    address = bias + (head * Q_TOKENS + token_q[:, None]) * K_TOKENS + token_k[None, :]
    valid = (token_q < Q_TOKENS)[:, None] & (token_k < K_TOKENS)[None, :]
    return tl.load(address, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def load_bias_table(
    bias, head, Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return the bias of a tile of complete cuboids, the same for every tile."""
    token_q, token_k = tl.arange(0, BLOCK_M) % Q_TOKENS, tl.arange(0, BLOCK_N) % K_TOKENS
    return load_bias(bias, head, token_q, token_k, Q_TOKENS, K_TOKENS)


@triton.jit
def score_tile(
    q, k, bias, table, head, token_q, token_k, label_q, label_k, attended, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Return the scaled scores plus bias, -inf where masked; IN_REGISTERS: the bias is ``table``, already loaded."""
    scores = matmul(q, tl.trans(k)) * scale
    if IN_REGISTERS:
        scores += table
    elif bias is not None:
        scores += load_bias(bias, head, token_q, token_k, Q_TOKENS, K_TOKENS)
    return tl.where((label_q[:, None] == label_k[None, :]) & attended[None, :], scores, float("-inf"))


@triton.jit
def matmul(a, b):
    """Return ``a @ b`` in float32, without rounding to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def apply_dropout(value, seed, row, column, first, head, sample, ADJACENT: tl.constexpr,
                  DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr):  # fmt: skip
    """Return a tile of weights, or of their gradient, after dropout; see :func:`keep_tile`."""
    if DROP_BELOW > 0:
        keep = keep_tile(seed, row, column, first, head, sample, ADJACENT, value.shape[1], DROP_BELOW)
        value = tl.where(keep, value * KEEP_SCALE, 0.0)
    return value


@triton.jit
def drop_global(value, seed, row, head, sample, K_TOKENS: tl.constexpr, DROP_BELOW: tl.constexpr,
                KEEP_SCALE: tl.constexpr):  # fmt: skip
    """Return a tile of weights of the global vectors, or of their gradient, after dropout.

    Their columns follow those of the tokens, from the next multiple of 16.
    """
    FIRST: tl.constexpr = (K_TOKENS + 15) // 16 * 16
    column = tl.arange(0, value.shape[1])
    return apply_dropout(value, seed, row, column, FIRST, head, sample, True, DROP_BELOW, KEEP_SCALE)


@triton.jit
def finite(maximum):
    """Return the row maximum to subtract: 0 for a row without keys, whose weights are then exp(-inf) = 0."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)
