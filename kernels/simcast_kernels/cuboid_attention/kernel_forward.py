"""Cuboid attention, forward: one pass over memory.

N bytes are one ``[B, T, H, W, D]`` tensor: query, key and value are read in place (3N), the result is written (1N), and
a separate local-to-global query is read (1N). A program takes one head of ``tiles`` tiles of queries and, where a
cuboid's keys fit one block, holds the bias in registers; longer cuboids loop over key blocks, the softmax running.
"""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false
import triton
import triton.language as tl

from simcast_kernels.device.cuboids import tile_rows

from .kernel_tile import dropped, finite, head_base, load_bias, load_rows, product, store_rows


@triton.jit
def _absorb(scores, value, maximum, total, acc, seed, place, column, head, sample,
            DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Take one block of keys into the running softmax and return its new state."""
    new = tl.maximum(maximum, tl.max(scores, 1))
    weights = tl.exp(scores - finite(new)[:, None])
    shrink = tl.exp(maximum - finite(new))
    total = total * shrink + tl.sum(weights, 1)
    weights = dropped(weights, seed, place, column, head, sample, DROP_BELOW, KEEP_SCALE)
    return new, total, acc * shrink[:, None] + product(weights.to(DOT), value)


@triton.jit(do_not_specialize=["seed", "tiles"])
def forward_kernel(
    query,
    memory,
    bias,
    global_query,
    global_key,
    global_value,
    out,
    seed,
    scale,
    tiles,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    QUERY_AXES: tl.constexpr,
    KEY_AXES: tl.constexpr,
    SELF: tl.constexpr,
    GLOBALS: tl.constexpr,
    ZEROS: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write ``out`` for one head of one sample and ``tiles`` tiles of queries."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    ROW_BLOCKS: tl.constexpr = 1 if PACK > 1 else (Q_TOKENS + BLOCK_M - 1) // BLOCK_M
    KEY_BLOCKS: tl.constexpr = 1 if PACK > 1 else (K_TOKENS + BLOCK_N - 1) // BLOCK_N
    Q_PLACES: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_PLACES: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS  # fastest: neighbours share the memory lines of a row, 64 bytes a head
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    q_base = head_base(query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    k_base = head_base(memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
    out_base = head_base(out, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
    if GLOBALS > 0:
        vector = tl.arange(0, BLOCK_G)
        there = vector < GLOBALS
        key_base = head_base(global_key, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        value_base = head_base(global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        far_key = load_rows(key_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        far_value = load_rows(value_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    if KEY_BLOCKS == 1 and ROW_BLOCKS == 1 and bias is not None:
        table = load_bias(bias, head, tl.arange(0, BLOCK_M) % Q_TOKENS, tl.arange(0, BLOCK_N) % K_TOKENS,
                          Q_TOKENS, K_TOKENS)  # fmt: skip
    for step in range(tiles):  # not a constant: unrolled, it takes twice the registers
        unit = program * tiles + step
        group, first = unit // ROW_BLOCKS, unit % ROW_BLOCKS * BLOCK_M
        token_q, place, _live_q, inside_q, label_q = tile_rows(group, first, QUERY_AXES, PACK, BLOCK_M)
        q = load_rows(q_base, place, inside_q, Q_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if GLOBALS > 0:
            far_q = q
            if global_query is not None:
                far_base = head_base(global_query, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
                far_q = load_rows(far_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
            far = product(far_q, tl.trans(far_key)) * scale
            far = tl.where(there[None, :], far, float("-inf"))
            maximum, total, acc = _absorb(far, far_value, maximum, total, acc, seed, place, K_TOKENS + vector, head,
                                          sample, DROP_BELOW, KEEP_SCALE, DOT)  # fmt: skip
        for block in range(KEY_BLOCKS):
            token_k, row_k, live_k, inside_k, label_k = tile_rows(group, block * BLOCK_N, KEY_AXES, PACK, BLOCK_N)
            k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
            v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
            scores = product(q, tl.trans(k)) * scale
            if bias is not None:
                if KEY_BLOCKS == 1 and ROW_BLOCKS == 1:
                    scores += table
                else:
                    scores += load_bias(bias, head, token_q, token_k, Q_TOKENS, K_TOKENS)
            seen = live_k if ZEROS else inside_k
            scores = tl.where((label_q[:, None] == label_k[None, :]) & seen[None, :], scores, float("-inf"))
            maximum, total, acc = _absorb(scores, v, maximum, total, acc, seed, place, token_k, head, sample,
                                          DROP_BELOW, KEEP_SCALE, DOT)  # fmt: skip
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        store_rows(out_base, place, inside_q, acc, WIDTH, HEAD_SIZE, BLOCK_D)
