"""Cuboid attention, backward pass of cuboids of more than 64 tokens, whose scores do not fit in registers.

Three kernels, each of which recomputes the scores in blocks: ``rows_kernel`` per block of queries (gradient of the
queries; it also writes the softmax's maximum, normalizer and ``delta`` of every row in float32 for the other two),
``columns_kernel`` per block of keys (gradients of keys and values), ``bias_kernel`` per block of the bias (partial sums
over a chunk of cuboids). Every output has one writer.
"""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
import triton
import triton.language as tl

from .kernel_tile import (
    apply_dropout,
    drop_global,
    finite,
    global_score_tile,
    head_base,
    load_global_vectors,
    load_key_tile,
    load_query_tile,
    load_rows,
    matmul,
    score_tile,
    store_rows,
)


@triton.jit
def _accumulate(scores, d_weights, maximum, total, delta):
    """Add one block of keys to the maximum, normalizer and (unnormalized) delta of each row."""
    new = tl.maximum(maximum, tl.max(scores, 1))
    weights = tl.exp(scores - finite(new)[:, None])
    shrink = tl.exp(maximum - finite(new))
    return new, total * shrink + tl.sum(weights, 1), delta * shrink + tl.sum(weights * d_weights, 1)


@triton.jit(do_not_specialize=["seed", "origin", "stride_t", "stride_h"])
def rows_kernel(
    query,
    memory,
    bias,
    global_query,
    global_key,
    global_value,
    grad,
    d_query,
    d_global_query,
    d_global_key,
    d_global_value,
    maxima,
    inverses,
    delta,
    seed: tl.int64,  # one form for all seeds
    origin,
    stride_t,
    stride_h,
    scale,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    QUERY_AXES: tl.constexpr,
    KEY_AXES: tl.constexpr,
    SELF: tl.constexpr,
    GLOBALS: tl.constexpr,
    ZEROS: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write gradients, normalizer and delta of BLOCK_M queries, and partial sums for the global vectors."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    ROW_BLOCKS: tl.constexpr = (Q_TOKENS + BLOCK_M - 1) // BLOCK_M
    KEY_BLOCKS: tl.constexpr = (K_TOKENS + BLOCK_N - 1) // BLOCK_N
    Q_POSITIONS: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_POSITIONS: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    # 1. Query tile
    group = program // ROW_BLOCKS
    k_base = head_base(memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
    q_base = head_base(query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    grad_base = head_base(grad, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
    q, token_q, position, inside_q, label_q, row = load_query_tile(
        q_base, group, program % ROW_BLOCKS * BLOCK_M, origin, stride_t, stride_h,
        QUERY_AXES, Q_STRIDE, HEAD_SIZE, 1, BLOCK_M, BLOCK_D, DOT,
    )  # fmt: skip
    do = load_rows(grad_base, position, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    row_delta = tl.zeros((BLOCK_M,), tl.float32)
    # 2. Softmax statistics and delta of each row: global vectors, then key blocks
    if GLOBALS > 0:
        global_k, global_v, vector, exists = load_global_vectors(
            global_key, global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE, BLOCK_G, BLOCK_D, DOT
        )
        global_q, global_scores = global_score_tile(
            q, global_query, global_k, exists, sample, head, position, inside_q, scale,
            Q_POSITIONS, WIDTH, HEAD_SIZE, BLOCK_D, DOT,
        )  # fmt: skip
        d_global = drop_global(
            matmul(do, tl.trans(global_v)), seed, row, head, sample, K_TOKENS, DROP_BELOW, KEEP_SCALE
        )
        maximum, total, row_delta = _accumulate(global_scores, d_global, maximum, total, row_delta)
    for block in range(KEY_BLOCKS):
        k, v, token_k, _position_k, _inside_k, attended, label_k = load_key_tile(
            k_base, group, block * BLOCK_N, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, 1, BLOCK_N, BLOCK_D, DOT
        )
        scores = score_tile(q, k, bias, None, head, token_q, token_k, label_q, label_k, attended, scale,
                            Q_TOKENS, K_TOKENS, False)  # fmt: skip
        d_weights = apply_dropout(
            matmul(do, tl.trans(v)), seed, row, token_k, block * BLOCK_N, head, sample, True,
            DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        maximum, total, row_delta = _accumulate(scores, d_weights, maximum, total, row_delta)
    total = tl.where(total == 0.0, 1.0, total)
    row_maximum, inverse = finite(maximum), 1.0 / total
    row_delta = row_delta * inverse
    scratch = tl.cast(sample, tl.int64) * (HEADS * Q_POSITIONS) + head * Q_POSITIONS
    tl.store(maxima + scratch + position, row_maximum, mask=inside_q)
    tl.store(inverses + scratch + position, inverse, mask=inside_q)
    tl.store(delta + scratch + position, row_delta, mask=inside_q)
    # 3. Gradient of the queries: key blocks
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for block in range(KEY_BLOCKS):
        k, v, token_k, _position_k, _inside_k, attended, label_k = load_key_tile(
            k_base, group, block * BLOCK_N, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, 1, BLOCK_N, BLOCK_D, DOT
        )
        scores = score_tile(q, k, bias, None, head, token_q, token_k, label_q, label_k, attended, scale,
                            Q_TOKENS, K_TOKENS, False)  # fmt: skip
        d_weights = apply_dropout(
            matmul(do, tl.trans(v)), seed, row, token_k, block * BLOCK_N, head, sample, True,
            DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        d_scores = tl.exp(scores - row_maximum[:, None]) * inverse[:, None] * (d_weights - row_delta[:, None])
        dq += matmul(d_scores.to(DOT), k)
    # 4. Gradients of queries and global vectors through the scores of the global vectors
    if GLOBALS > 0:
        global_weights = tl.exp(global_scores - row_maximum[:, None]) * inverse[:, None]
        d_global = (global_weights * (d_global - row_delta[:, None])).to(DOT)
        global_weights = drop_global(global_weights, seed, row, head, sample, K_TOKENS, DROP_BELOW, KEEP_SCALE)
        programs = tl.num_programs(0) // HEADS
        offset = ((sample * programs + program).to(tl.int64) * HEADS + head) * (GLOBALS * HEAD_SIZE)
        d_key, d_value = matmul(tl.trans(d_global), global_q) * scale, matmul(tl.trans(global_weights.to(DOT)), do)
        store_rows(d_global_key + offset, vector, exists, d_key, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        store_rows(d_global_value + offset, vector, exists, d_value, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        d_global_q = matmul(d_global, global_k)
        if global_query is None:
            dq += d_global_q
        else:
            base = head_base(d_global_query, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
            store_rows(base, position, inside_q, d_global_q * scale, WIDTH, HEAD_SIZE, BLOCK_D)
    dq_base = head_base(d_query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    store_rows(dq_base, position, inside_q, dq * scale, Q_STRIDE, HEAD_SIZE, BLOCK_D)


@triton.jit
def _block_weights(
    q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
    token_q, position, row, inside_q, label_q, token_k, first_k, label_k, attended,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
):  # fmt: skip
    """Return (weights, gradient of the scores) of a block from maximum, normalizer and delta of its rows."""
    scores = score_tile(q, k, bias, None, head, token_q, token_k, label_q, label_k, attended, scale,
                        Q_TOKENS, K_TOKENS, False)  # fmt: skip
    row_maximum = tl.load(maxima + scratch + position, mask=inside_q, other=0.0)
    inverse = tl.load(inverses + scratch + position, mask=inside_q, other=0.0)
    row_delta = tl.load(delta + scratch + position, mask=inside_q, other=0.0)
    # A padded query has no maximum, so the exponential of its scores can overflow.
    weights = tl.where(inside_q[:, None], tl.exp(scores - row_maximum[:, None]) * inverse[:, None], 0.0)
    d_weights = apply_dropout(
        matmul(do, tl.trans(v)), seed, row, token_k, first_k, head, sample, True, DROP_BELOW, KEEP_SCALE
    )
    return weights, weights * (d_weights - row_delta[:, None])


@triton.jit(do_not_specialize=["seed", "origin", "stride_t", "stride_h"])
def columns_kernel(
    query,
    memory,
    bias,
    grad,
    d_memory,
    maxima,
    inverses,
    delta,
    seed: tl.int64,  # one form for all seeds
    origin,
    stride_t,
    stride_h,
    scale,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    QUERY_AXES: tl.constexpr,
    KEY_AXES: tl.constexpr,
    SELF: tl.constexpr,
    ZEROS: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write the gradients of BLOCK_N keys and values."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    K_FIRST: tl.constexpr = K_STRIDE - 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    ROW_BLOCKS: tl.constexpr = (Q_TOKENS + BLOCK_M - 1) // BLOCK_M
    KEY_BLOCKS: tl.constexpr = (K_TOKENS + BLOCK_N - 1) // BLOCK_N
    Q_POSITIONS: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_POSITIONS: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    # 1. Key tile
    group = program // KEY_BLOCKS
    scratch = tl.cast(sample, tl.int64) * (HEADS * Q_POSITIONS) + head * Q_POSITIONS
    k_base = head_base(memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + K_FIRST
    first_k = program % KEY_BLOCKS * BLOCK_N
    k, v, token_k, position_k, inside_k, attended, label_k = load_key_tile(
        k_base, group, first_k, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, 1,
        BLOCK_N, BLOCK_D, DOT,
    )  # fmt: skip
    q_base = head_base(query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
    grad_base = head_base(grad, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # 2. Query blocks
    for block in range(ROW_BLOCKS):
        q, token_q, position, inside_q, label_q, row = load_query_tile(
            q_base, group, block * BLOCK_M, origin, stride_t, stride_h,
            QUERY_AXES, Q_STRIDE, HEAD_SIZE, 1, BLOCK_M, BLOCK_D, DOT,
        )  # fmt: skip
        do = load_rows(grad_base, position, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        weights, d_scores = _block_weights(
            q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
            token_q, position, row, inside_q, label_q, token_k, first_k, label_k, attended,
            Q_TOKENS, K_TOKENS, DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        weights = apply_dropout(weights, seed, row, token_k, first_k, head, sample, True, DROP_BELOW, KEEP_SCALE)
        dv += matmul(tl.trans(weights.to(DOT)), do)
        dk += matmul(tl.trans(d_scores.to(DOT)), q)
    # 3. Result
    dk_base = head_base(d_memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + K_FIRST
    store_rows(dk_base, position_k, inside_k, dk * scale, K_STRIDE, HEAD_SIZE, BLOCK_D)
    store_rows(dk_base + WIDTH, position_k, inside_k, dv, K_STRIDE, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize=["seed", "origin", "stride_t", "stride_h", "units", "chunk"])
def bias_kernel(
    query,
    memory,
    bias,
    grad,
    d_bias,
    maxima,
    inverses,
    delta,
    seed: tl.int64,  # one form for all seeds
    origin,
    stride_t,
    stride_h,
    scale,
    units,
    chunk,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    QUERY_AXES: tl.constexpr,
    KEY_AXES: tl.constexpr,
    SELF: tl.constexpr,
    ZEROS: tl.constexpr,
    DROP_BELOW: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write one block of the bias gradient of one head, summed over ``chunk`` of the ``units`` cuboids of a batch."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    CUBOIDS: tl.constexpr = QUERY_AXES[0][2] * QUERY_AXES[1][2] * QUERY_AXES[2][2]
    KEY_BLOCKS: tl.constexpr = (K_TOKENS + BLOCK_N - 1) // BLOCK_N
    Q_POSITIONS: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_POSITIONS: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    block = tl.program_id(0) // HEADS
    own = tl.program_id(1)
    first_q, first_k = block // KEY_BLOCKS * BLOCK_M, block % KEY_BLOCKS * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for unit in range(own * chunk, tl.minimum((own + 1) * chunk, units)):
        # 1. Query tile and key tile of one cuboid
        sample, group = unit // CUBOIDS, unit % CUBOIDS
        scratch = tl.cast(sample, tl.int64) * (HEADS * Q_POSITIONS) + head * Q_POSITIONS
        q_base = head_base(query, sample, head, Q_POSITIONS, Q_STRIDE, HEAD_SIZE)
        k_base = head_base(memory, sample, head, K_POSITIONS, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
        grad_base = head_base(grad, sample, head, Q_POSITIONS, WIDTH, HEAD_SIZE)
        q, token_q, position, inside_q, label_q, row = load_query_tile(
            q_base, group, first_q, origin, stride_t, stride_h,
            QUERY_AXES, Q_STRIDE, HEAD_SIZE, 1, BLOCK_M, BLOCK_D, DOT,
        )  # fmt: skip
        k, v, token_k, _position_k, _inside_k, attended, label_k = load_key_tile(
            k_base, group, first_k, KEY_AXES, K_STRIDE, WIDTH, HEAD_SIZE, ZEROS, 1, BLOCK_N, BLOCK_D, DOT
        )
        do = load_rows(grad_base, position, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        # 2. Gradient of its scores
        _, d_scores = _block_weights(
            q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
            token_q, position, row, inside_q, label_q, token_k, first_k, label_k, attended,
            Q_TOKENS, K_TOKENS, DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        total += d_scores
    # 3. Partial sum of this chunk
    token_q, token_k = first_q + tl.arange(0, BLOCK_M), first_k + tl.arange(0, BLOCK_N)
    number = (own * HEADS + head).to(tl.int64)
    address = d_bias + (number * Q_TOKENS + token_q)[:, None] * K_TOKENS + token_k[None, :]
    tl.store(address, total, mask=(token_q < Q_TOKENS)[:, None] & (token_k < K_TOKENS)[None, :])
