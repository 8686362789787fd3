"""Cuboid attention, backward pass of cuboids of up to 64 tokens: one pass over memory that recomputes the weights.

Reads query, key, value and the gradient of the result (4N), writes three gradients (3N), and 2N more for a separate
local-to-global query. Cuboids share no token, so the gradient of every row has one writer. Bias and global vectors are
shared by many cuboids: each program adds over its ``tiles`` tiles in registers and writes a partial sum.
"""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

from .kernel_tile import (
    apply_dropout,
    drop_global,
    finite,
    global_score_tile,
    head_base,
    load_bias_table,
    load_global_vectors,
    load_key_tile,
    load_query_tile,
    load_rows,
    matmul,
    score_tile,
    store_rows,
)


@triton.jit
def _add_global(sum_key, sum_value, d_scores, weights, global_q, do, seed, row, head, sample,
                K_TOKENS: tl.constexpr, DROP_BELOW: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Return the sums of the gradients of global keys and values with those of one tile."""
    sum_key += matmul(tl.trans(d_scores), global_q)
    weights = drop_global(weights, seed, row, head, sample, K_TOKENS, DROP_BELOW, 1.0)
    return sum_key, sum_value + matmul(tl.trans(weights.to(DOT)), do)


@triton.jit(do_not_specialize=["seed", "origin", "stride_t", "stride_h", "tiles"])
def backward_kernel(
    query,
    memory,
    bias,
    global_query,
    global_key,
    global_value,
    grad,
    d_query,
    d_memory,
    d_bias,
    d_global_query,
    d_global_key,
    d_global_value,
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
    """Write all gradients of one head of one sample and ``tiles`` tiles; those of shared inputs are partial sums."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    Q_POSITIONS: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_POSITIONS: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    K_FIRST: tl.constexpr = K_STRIDE - 2 * WIDTH
    # A larger table in registers makes them spill.
    BIAS_IN_REGISTERS: tl.constexpr = bias is not None and BLOCK_M * BLOCK_N < 4096
    # An order of the results that takes fewer registers in wide heads and more in narrow ones
    LATE: tl.constexpr = BLOCK_D > 32
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    own = (sample * (tl.num_programs(0) // HEADS) + program).to(tl.int64)
    q_base = head_base(query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    k_base = head_base(memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + K_FIRST
    dq_base = head_base(d_query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    dk_base = head_base(d_memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + K_FIRST
    grad_base = head_base(grad, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
    if GLOBALS > 0:
        global_k, global_v, vector, exists = load_global_vectors(
            global_key, global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE, BLOCK_G, BLOCK_D, DOT
        )
        sum_key = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        sum_value = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    table = None
    if BIAS_IN_REGISTERS:
        table = load_bias_table(bias, head, Q_TOKENS, K_TOKENS, BLOCK_M, BLOCK_N)
    if bias is not None:
        sum_bias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(tiles, disable_licm=True):
        # 1. Query tile, key tile and gradient of the result
        group = program * tiles + step
        q, token_q, position, inside_q, label_q, row = load_query_tile(
            q_base, group, 0, origin, stride_t, stride_h,
            QUERY_AXES, Q_STRIDE, HEAD_SIZE, PACK, BLOCK_M, BLOCK_D, DOT,
        )  # fmt: skip
        k, v, token_k, position_k, inside_k, attended, label_k = load_key_tile(
            k_base, group, 0, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, PACK, BLOCK_N, BLOCK_D, DOT
        )
        do = load_rows(grad_base, position, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        # 2. Softmax weights of the cuboid and of the global vectors
        scores = score_tile(
            q, k, bias, table, head, token_q, token_k, label_q, label_k, attended, scale,
            Q_TOKENS, K_TOKENS, BIAS_IN_REGISTERS,
        )  # fmt: skip
        maximum = tl.max(scores, 1)
        if GLOBALS > 0:
            global_q, global_scores = global_score_tile(
                q, global_query, global_k, exists, sample, head, position, inside_q, scale,
                Q_POSITIONS, WIDTH, HEAD_SIZE, BLOCK_D, DOT,
            )  # fmt: skip
            maximum = tl.maximum(maximum, tl.max(global_scores, 1))
        weights = tl.exp(scores - finite(maximum)[:, None])
        total = tl.sum(weights, 1)
        if GLOBALS > 0:
            global_weights = tl.exp(global_scores - finite(maximum)[:, None])
            total += tl.sum(global_weights, 1)
        # With KEEP_SCALE, so that neither the weights after dropout nor their gradients have to be scaled
        inverse = KEEP_SCALE / tl.where(total == 0.0, 1.0, total)
        weights = weights * inverse[:, None]
        # 3. Gradient of the scores: weights * (d_weights - delta), delta being the row sum of weights * d_weights
        d_weights = apply_dropout(
            matmul(do, tl.trans(v)), seed, row, token_k, 0, head, sample, PACK == 1, DROP_BELOW, 1.0
        )
        delta = tl.sum(weights * d_weights, 1)
        if GLOBALS > 0:
            global_weights = global_weights * inverse[:, None]
            d_global = drop_global(matmul(do, tl.trans(global_v)), seed, row, head, sample, K_TOKENS, DROP_BELOW, 1.0)
            delta += tl.sum(global_weights * d_global, 1)
        delta = delta * (1.0 / KEEP_SCALE)
        d_scores = weights * (d_weights - delta[:, None])
        if bias is not None:
            sum_bias += d_scores
        d_scores = d_scores.to(DOT)
        # 4. Gradients of queries and global vectors
        dq = matmul(d_scores, k)
        if GLOBALS > 0:
            d_global = (global_weights * (d_global - delta[:, None])).to(DOT)
            if not LATE:
                sum_key, sum_value = _add_global(
                    sum_key, sum_value, d_global, global_weights, global_q, do, seed, row, head, sample,
                    K_TOKENS, DROP_BELOW, DOT,
                )  # fmt: skip
            d_global_q = matmul(d_global, global_k)
            if global_query is None:
                dq += d_global_q
            else:
                base = head_base(d_global_query, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
                store_rows(base, position, inside_q, d_global_q * scale, WIDTH, HEAD_SIZE, BLOCK_D)
        if not LATE:
            store_rows(dq_base, position, inside_q, dq * scale, Q_STRIDE, HEAD_SIZE, BLOCK_D)
        if LATE and GLOBALS > 0:
            sum_key, sum_value = _add_global(
                sum_key, sum_value, d_global, global_weights, global_q, do, seed, row, head, sample,
                K_TOKENS, DROP_BELOW, DOT,
            )  # fmt: skip
        # 5. Gradients of keys and values
        dk = matmul(tl.trans(d_scores), q) * scale
        store_rows(dk_base, position_k, inside_k, dk, K_STRIDE, HEAD_SIZE, BLOCK_D)
        weights = apply_dropout(weights, seed, row, token_k, 0, head, sample, PACK == 1, DROP_BELOW, 1.0)
        dv = matmul(tl.trans(weights.to(DOT)), do)
        store_rows(dk_base + WIDTH, position_k, inside_k, dv, K_STRIDE, HEAD_SIZE, BLOCK_D)
        if LATE:
            store_rows(dq_base, position, inside_q, dq * scale, Q_STRIDE, HEAD_SIZE, BLOCK_D)
    # 6. Partial sums of this program
    if bias is not None:
        token_row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        part_q, part_k = token_row // Q_TOKENS, column // K_TOKENS
        number = (own * PACK + part_q) * HEADS + head
        address = d_bias + (number * Q_TOKENS + token_row % Q_TOKENS)[:, None] * K_TOKENS + (column % K_TOKENS)[None, :]
        same = (part_q[:, None] == part_k[None, :]) & (part_q < PACK)[:, None]
        tl.store(address, sum_bias, mask=same)
    if GLOBALS > 0:
        offset = (own * HEADS + head) * (GLOBALS * HEAD_SIZE)
        store_rows(d_global_key + offset, vector, exists, sum_key * scale, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        store_rows(d_global_value + offset, vector, exists, sum_value, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
