"""Cuboid attention, forward: one pass over memory.

N bytes are one ``[B, T, H, W, D]`` tensor: query, key and value are read in place (3N), the result is written (1N), and
a separate local-to-global query is read (1N). A program computes one head of ``tiles`` tiles of queries. If the keys of
a cuboid fit one block, the bias stays in registers; longer cuboids loop over key blocks with an online softmax.
"""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

from .kernel_tile import (
    apply_dropout,
    finite,
    global_score_tile,
    head_base,
    load_bias_table,
    load_global_vectors,
    load_key_tile,
    load_query_tile,
    matmul,
    score_tile,
    store_rows,
)


@triton.jit
def _accumulate(scores, value, maximum, total, acc, seed, row, column, first, head, sample,
                ADJACENT: tl.constexpr, DROP_BELOW: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Add one block of keys to the online softmax; return its new state (maximum, sum of weights, weighted values).

    The weighted values are those after dropout, without its factor.
    """
    new = tl.maximum(maximum, tl.max(scores, 1))
    weights = tl.exp(scores - finite(new)[:, None])
    shrink = tl.exp(maximum - finite(new))
    total = total * shrink + tl.sum(weights, 1)
    weights = apply_dropout(weights, seed, row, column, first, head, sample, ADJACENT, DROP_BELOW, 1.0)
    return new, total, acc * shrink[:, None] + matmul(weights.to(DOT), value)


@triton.jit(do_not_specialize=["seed", "origin", "stride_t", "stride_h", "tiles"])
def forward_kernel(
    query,
    memory,
    bias,
    global_query,
    global_key,
    global_value,
    out,
    seed: tl.int64,  # one form for all seeds
    origin,
    stride_t,
    stride_h,
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
    Q_POSITIONS: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_POSITIONS: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    G_FIRST: tl.constexpr = (K_TOKENS + 15) // 16 * 16  # a multiple of 16, see keep_tile
    BIAS_IN_REGISTERS: tl.constexpr = KEY_BLOCKS == 1 and ROW_BLOCKS == 1 and bias is not None
    head = tl.program_id(0) % HEADS  # fastest: neighboring programs share the memory lines of a row, 64 bytes per head
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    q_base = head_base(query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    k_base = head_base(memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
    out_base = head_base(out, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
    if GLOBALS > 0:
        global_k, global_v, vector, exists = load_global_vectors(
            global_key, global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE, BLOCK_G, BLOCK_D, DOT
        )
    table = None
    if BIAS_IN_REGISTERS:
        table = load_bias_table(bias, head, Q_TOKENS, K_TOKENS, BLOCK_M, BLOCK_N)
    for step in range(tiles):  # a run-time bound: unrolled, the loop takes twice the registers
        # 1. Query tile
        unit = program * tiles + step
        group, first = unit // ROW_BLOCKS, unit % ROW_BLOCKS * BLOCK_M
        q, token_q, position, inside_q, label_q, row = load_query_tile(
            q_base, group, first, origin, stride_t, stride_h,
            QUERY_AXES, Q_STRIDE, HEAD_SIZE, PACK, BLOCK_M, BLOCK_D, DOT,
        )  # fmt: skip
        maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        # 2. Global vectors
        if GLOBALS > 0:
            _global_q, scores = global_score_tile(
                q, global_query, global_k, exists, sample, head, position, inside_q, scale,
                Q_POSITIONS, WIDTH, HEAD_SIZE, BLOCK_D, DOT,
            )  # fmt: skip
            maximum, total, acc = _accumulate(
                scores, global_v, maximum, total, acc, seed, row, vector, G_FIRST, head, sample,
                True, DROP_BELOW, DOT,
            )  # fmt: skip
        # 3. Key blocks
        for block in range(KEY_BLOCKS):
            k, v, token_k, _position_k, _inside_k, attended, label_k = load_key_tile(
                k_base, group, block * BLOCK_N, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, PACK, BLOCK_N, BLOCK_D, DOT
            )
            scores_k = score_tile(
                q, k, bias, table, head, token_q, token_k, label_q, label_k, attended, scale,
                Q_TOKENS, K_TOKENS, BIAS_IN_REGISTERS,
            )  # fmt: skip
            maximum, total, acc = _accumulate(
                scores_k,
                v,
                maximum,
                total,
                acc,
                seed,
                row,
                token_k,
                block * BLOCK_N,
                head,
                sample,
                PACK == 1,
                DROP_BELOW,
                DOT,
            )
        # 4. Result
        acc = acc * (KEEP_SCALE / tl.where(total == 0.0, 1.0, total))[:, None]
        store_rows(out_base, position, inside_q, acc, WIDTH, HEAD_SIZE, BLOCK_D)
