"""Cuboid attention, backward of cuboids up to 64 tokens: one pass over memory, everything recomputed.

Reads query, key, value and the gradient of the result (4N), writes three gradients (3N), and 2N more for a separate
local-to-global query. No two cuboids share a token, so every row's gradient has one writer. The bias and the global
vectors belong to many cuboids: each program adds over its ``tiles`` tiles in registers and writes a partial sum.
"""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from simcast_kernels.device.cuboids import tile_rows

from .kernel_tile import dropped, finite, head_base, load_bias, load_rows, product, store_rows


@triton.jit(do_not_specialize=["seed", "tiles"])
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
    """Write all gradients of one head of one sample and ``tiles`` tiles, those of shared inputs as a partial sum."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    Q_PLACES: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_PLACES: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    K_FIRST: tl.constexpr = K_STRIDE - 2 * WIDTH
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    own = (sample * (tl.num_programs(0) // HEADS) + program).to(tl.int64)
    q_base = head_base(query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    k_base = head_base(memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + K_FIRST
    dq_base = head_base(d_query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    dk_base = head_base(d_memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + K_FIRST
    grad_base = head_base(grad, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
    if GLOBALS > 0:
        vector = tl.arange(0, BLOCK_G)
        there = vector < GLOBALS
        key_base = head_base(global_key, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        value_base = head_base(global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        far_key = load_rows(key_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        far_value = load_rows(value_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        sum_key = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        sum_value = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    HOLD: tl.constexpr = BLOCK_M * BLOCK_N < 4096  # a larger table in registers makes them spill
    if bias is not None and HOLD:
        table = load_bias(bias, head, tl.arange(0, BLOCK_M) % Q_TOKENS, tl.arange(0, BLOCK_N) % K_TOKENS,
                          Q_TOKENS, K_TOKENS)  # fmt: skip
    if bias is not None:
        sum_bias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(tiles, disable_licm=True):
        group = program * tiles + step
        token_q, place, _live_q, inside_q, label_q = tile_rows(group, 0, QUERY_AXES, PACK, BLOCK_M)
        token_k, row_k, live_k, inside_k, label_k = tile_rows(group, 0, KEY_AXES, PACK, BLOCK_N)
        q = load_rows(q_base, place, inside_q, Q_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        do = load_rows(grad_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        scores = product(q, tl.trans(k)) * scale
        if bias is not None:
            if HOLD:
                scores += table
            else:
                scores += load_bias(bias, head, token_q, token_k, Q_TOKENS, K_TOKENS)
        seen = live_k if ZEROS else inside_k
        scores = tl.where((label_q[:, None] == label_k[None, :]) & seen[None, :], scores, float("-inf"))
        maximum = tl.max(scores, 1)
        if GLOBALS > 0:
            far_q = q
            if global_query is not None:
                far_base = head_base(global_query, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
                far_q = load_rows(far_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
            far = product(far_q, tl.trans(far_key)) * scale
            far = tl.where(there[None, :], far, float("-inf"))
            maximum = tl.maximum(maximum, tl.max(far, 1))
        weights = tl.exp(scores - finite(maximum)[:, None])
        total = tl.sum(weights, 1)
        if GLOBALS > 0:
            far_weights = tl.exp(far - finite(maximum)[:, None])
            total += tl.sum(far_weights, 1)
        inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
        weights = weights * inverse[:, None]
        d_weights = dropped(product(do, tl.trans(v)), seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
        delta = tl.sum(weights * d_weights, 1)
        if GLOBALS > 0:
            far_weights = far_weights * inverse[:, None]
            d_far = dropped(product(do, tl.trans(far_value)), seed, place, K_TOKENS + vector, head, sample,
                            DROP_BELOW, KEEP_SCALE)  # fmt: skip
            delta += tl.sum(far_weights * d_far, 1)
        d_scores = weights * (d_weights - delta[:, None])
        if bias is not None:
            sum_bias += d_scores
        d_scores = d_scores.to(DOT)
        dq = product(d_scores, k)
        if GLOBALS > 0:
            d_far = (far_weights * (d_far - delta[:, None])).to(DOT)
            sum_key += product(tl.trans(d_far), far_q)
            far_weights = dropped(far_weights, seed, place, K_TOKENS + vector, head, sample, DROP_BELOW, KEEP_SCALE)
            sum_value += product(tl.trans(far_weights.to(DOT)), do)
            d_far_q = product(d_far, far_key)
            if global_query is None:
                dq += d_far_q
            else:
                d_far_base = head_base(d_global_query, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
                store_rows(d_far_base, place, inside_q, d_far_q * scale, WIDTH, HEAD_SIZE, BLOCK_D)
        store_rows(dq_base, place, inside_q, dq * scale, Q_STRIDE, HEAD_SIZE, BLOCK_D)
        dk = product(tl.trans(d_scores), q) * scale
        store_rows(dk_base, row_k, inside_k, dk, K_STRIDE, HEAD_SIZE, BLOCK_D)
        weights = dropped(weights, seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
        dv = product(tl.trans(weights.to(DOT)), do)
        store_rows(dk_base + WIDTH, row_k, inside_k, dv, K_STRIDE, HEAD_SIZE, BLOCK_D)
    if bias is not None:
        row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        part_q, part_k = row // Q_TOKENS, column // K_TOKENS
        table_of = (own * PACK + part_q) * HEADS + head
        address = d_bias + (table_of * Q_TOKENS + row % Q_TOKENS)[:, None] * K_TOKENS + (column % K_TOKENS)[None, :]
        same = (part_q[:, None] == part_k[None, :]) & (part_q < PACK)[:, None]
        tl.store(address, sum_bias, mask=same)
    if GLOBALS > 0:
        far_at = (own * HEADS + head) * (GLOBALS * HEAD_SIZE)
        store_rows(d_global_key + far_at, vector, there, sum_key * scale, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        store_rows(d_global_value + far_at, vector, there, sum_value, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
