"""Cuboid attention, backward of cuboids beyond 64 tokens: the scores of a cuboid do not fit a program's registers.

Three kernels, each recomputing scores in blocks: by query rows (gradient of the queries; the softmax's maximum,
normaliser and ``delta`` of every row, float32, are written for the other two), by key rows (keys and values), and by
block of the bias (a partial sum over a chunk of cuboids). Every output has one writer.
"""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from simcast_kernels.device.cuboids import tile_rows

from .kernel_tile import dropped, finite, head_base, load_bias, load_rows, product, store_rows


@triton.jit
def _scores(q, k, bias, head, token_q, token_k, label_q, label_k, seen, scale,
            Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr):  # fmt: skip
    scores = product(q, tl.trans(k)) * scale
    if bias is not None:
        scores += load_bias(bias, head, token_q, token_k, Q_TOKENS, K_TOKENS)
    return tl.where((label_q[:, None] == label_k[None, :]) & seen[None, :], scores, float("-inf"))


@triton.jit
def _absorb(scores, d_weights, maximum, total, delta):
    """Take one block of keys into a row's maximum, normaliser and (unnormalised) delta."""
    new = tl.maximum(maximum, tl.max(scores, 1))
    weights = tl.exp(scores - finite(new)[:, None])
    shrink = tl.exp(maximum - finite(new))
    return new, total * shrink + tl.sum(weights, 1), delta * shrink + tl.sum(weights * d_weights, 1)


@triton.jit(do_not_specialize=["seed"])
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
    seed,
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
    """Write the gradients of BLOCK_M queries, their normaliser and delta, and a partial sum for the global vectors."""
    WIDTH: tl.constexpr = HEADS * HEAD_SIZE
    Q_STRIDE: tl.constexpr = 3 * WIDTH if SELF else WIDTH
    K_STRIDE: tl.constexpr = 3 * WIDTH if SELF else 2 * WIDTH
    Q_TOKENS: tl.constexpr = QUERY_AXES[0][1] * QUERY_AXES[1][1] * QUERY_AXES[2][1]
    K_TOKENS: tl.constexpr = KEY_AXES[0][1] * KEY_AXES[1][1] * KEY_AXES[2][1]
    ROW_BLOCKS: tl.constexpr = (Q_TOKENS + BLOCK_M - 1) // BLOCK_M
    KEY_BLOCKS: tl.constexpr = (K_TOKENS + BLOCK_N - 1) // BLOCK_N
    Q_PLACES: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_PLACES: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    group = program // ROW_BLOCKS
    k_base = head_base(memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
    token_q, place, _live_q, inside_q, label_q = tile_rows(
        group, program % ROW_BLOCKS * BLOCK_M, QUERY_AXES, 1, BLOCK_M
    )
    q_base = head_base(query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    grad_base = head_base(grad, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
    q = load_rows(q_base, place, inside_q, Q_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
    do = load_rows(grad_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    change = tl.zeros((BLOCK_M,), tl.float32)
    if GLOBALS > 0:
        vector = tl.arange(0, BLOCK_G)
        there = vector < GLOBALS
        key_base = head_base(global_key, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        value_base = head_base(global_value, sample, head, GLOBALS, WIDTH, HEAD_SIZE)
        far_key = load_rows(key_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        far_value = load_rows(value_base, vector, there, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        far_q = q
        if global_query is not None:
            far_base = head_base(global_query, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
            far_q = load_rows(far_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        far = tl.where(there[None, :], product(far_q, tl.trans(far_key)) * scale, float("-inf"))
        d_far = dropped(product(do, tl.trans(far_value)), seed, place, K_TOKENS + vector, head, sample,
                        DROP_BELOW, KEEP_SCALE)  # fmt: skip
        maximum, total, change = _absorb(far, d_far, maximum, total, change)
    for block in range(KEY_BLOCKS):
        token_k, row_k, live_k, inside_k, label_k = tile_rows(group, block * BLOCK_N, KEY_AXES, 1, BLOCK_N)
        k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        scores = _scores(q, k, bias, head, token_q, token_k, label_q, label_k, live_k if ZEROS else inside_k, scale,
                         Q_TOKENS, K_TOKENS)  # fmt: skip
        d_weights = dropped(product(do, tl.trans(v)), seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
        maximum, total, change = _absorb(scores, d_weights, maximum, total, change)
    total = tl.where(total == 0.0, 1.0, total)
    level, inverse = finite(maximum), 1.0 / total
    change = change * inverse
    scratch = tl.cast(sample, tl.int64) * (HEADS * Q_PLACES) + head * Q_PLACES
    tl.store(maxima + scratch + place, level, mask=inside_q)
    tl.store(inverses + scratch + place, inverse, mask=inside_q)
    tl.store(delta + scratch + place, change, mask=inside_q)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for block in range(KEY_BLOCKS):
        token_k, row_k, live_k, inside_k, label_k = tile_rows(group, block * BLOCK_N, KEY_AXES, 1, BLOCK_N)
        k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        scores = _scores(q, k, bias, head, token_q, token_k, label_q, label_k, live_k if ZEROS else inside_k, scale,
                         Q_TOKENS, K_TOKENS)  # fmt: skip
        d_weights = dropped(product(do, tl.trans(v)), seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
        d_scores = tl.exp(scores - level[:, None]) * inverse[:, None] * (d_weights - change[:, None])
        dq += product(d_scores.to(DOT), k)
    if GLOBALS > 0:
        far_weights = tl.exp(far - level[:, None]) * inverse[:, None]
        d_far = (far_weights * (d_far - change[:, None])).to(DOT)
        far_weights = dropped(far_weights, seed, place, K_TOKENS + vector, head, sample, DROP_BELOW, KEEP_SCALE)
        programs = tl.num_programs(0) // HEADS
        far_at = ((sample * programs + program).to(tl.int64) * HEADS + head) * (GLOBALS * HEAD_SIZE)
        d_key, d_value = product(tl.trans(d_far), far_q) * scale, product(tl.trans(far_weights.to(DOT)), do)
        store_rows(d_global_key + far_at, vector, there, d_key, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        store_rows(d_global_value + far_at, vector, there, d_value, HEAD_SIZE, HEAD_SIZE, BLOCK_D)
        d_far_q = product(d_far, far_key)
        if global_query is None:
            dq += d_far_q
        else:
            d_far_base = head_base(d_global_query, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
            store_rows(d_far_base, place, inside_q, d_far_q * scale, WIDTH, HEAD_SIZE, BLOCK_D)
    dq_base = head_base(d_query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    store_rows(dq_base, place, inside_q, dq * scale, Q_STRIDE, HEAD_SIZE, BLOCK_D)


@triton.jit
def _block_weights(
    q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
    token_q, place, inside_q, label_q, token_k, label_k, seen,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, DROP_BELOW: tl.constexpr, KEEP_SCALE: tl.constexpr,
):  # fmt: skip
    """Return (weights, gradient of the scores) of a block from the rows' maxima, normalisers and delta."""
    scores = _scores(q, k, bias, head, token_q, token_k, label_q, label_k, seen, scale, Q_TOKENS, K_TOKENS)
    level = tl.load(maxima + scratch + place, mask=inside_q, other=0.0)
    inverse = tl.load(inverses + scratch + place, mask=inside_q, other=0.0)
    change = tl.load(delta + scratch + place, mask=inside_q, other=0.0)
    # A padded query has no maximum, and exp of its scores need not be finite.
    weights = tl.where(inside_q[:, None], tl.exp(scores - level[:, None]) * inverse[:, None], 0.0)
    d_weights = dropped(product(do, tl.trans(v)), seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
    return weights, weights * (d_weights - change[:, None])


@triton.jit(do_not_specialize=["seed"])
def columns_kernel(
    query,
    memory,
    bias,
    grad,
    d_memory,
    maxima,
    inverses,
    delta,
    seed,
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
    Q_PLACES: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_PLACES: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    program = tl.program_id(0) // HEADS
    sample = tl.program_id(1)
    group = program // KEY_BLOCKS
    scratch = tl.cast(sample, tl.int64) * (HEADS * Q_PLACES) + head * Q_PLACES
    first = program % KEY_BLOCKS * BLOCK_N
    token_k, row_k, live_k, inside_k, label_k = tile_rows(group, first, KEY_AXES, 1, BLOCK_N)
    k_base = head_base(memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + K_FIRST
    k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
    v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
    q_base = head_base(query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
    grad_base = head_base(grad, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for block in range(ROW_BLOCKS):
        token_q, place, _live_q, inside_q, label_q = tile_rows(group, block * BLOCK_M, QUERY_AXES, 1, BLOCK_M)
        q = load_rows(q_base, place, inside_q, Q_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        do = load_rows(grad_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        weights, d_scores = _block_weights(
            q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
            token_q, place, inside_q, label_q, token_k, label_k, live_k if ZEROS else inside_k,
            Q_TOKENS, K_TOKENS, DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        weights = dropped(weights, seed, place, token_k, head, sample, DROP_BELOW, KEEP_SCALE)
        dv += product(tl.trans(weights.to(DOT)), do)
        dk += product(tl.trans(d_scores.to(DOT)), q)
    dk_base = head_base(d_memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + K_FIRST
    store_rows(dk_base, row_k, inside_k, dk * scale, K_STRIDE, HEAD_SIZE, BLOCK_D)
    store_rows(dk_base + WIDTH, row_k, inside_k, dv, K_STRIDE, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize=["seed", "units", "chunk"])
def bias_kernel(
    query,
    memory,
    bias,
    grad,
    d_bias,
    maxima,
    inverses,
    delta,
    seed,
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
    Q_PLACES: tl.constexpr = QUERY_AXES[0][0] * QUERY_AXES[1][0] * QUERY_AXES[2][0]
    K_PLACES: tl.constexpr = KEY_AXES[0][0] * KEY_AXES[1][0] * KEY_AXES[2][0]
    head = tl.program_id(0) % HEADS
    block = tl.program_id(0) // HEADS
    own = tl.program_id(1)
    first_q, first_k = block // KEY_BLOCKS * BLOCK_M, block % KEY_BLOCKS * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for unit in range(own * chunk, tl.minimum((own + 1) * chunk, units)):
        sample, group = unit // CUBOIDS, unit % CUBOIDS
        scratch = tl.cast(sample, tl.int64) * (HEADS * Q_PLACES) + head * Q_PLACES
        token_q, place, _live_q, inside_q, label_q = tile_rows(group, first_q, QUERY_AXES, 1, BLOCK_M)
        token_k, row_k, live_k, inside_k, label_k = tile_rows(group, first_k, KEY_AXES, 1, BLOCK_N)
        q_base = head_base(query, sample, head, Q_PLACES, Q_STRIDE, HEAD_SIZE)
        k_base = head_base(memory, sample, head, K_PLACES, K_STRIDE, HEAD_SIZE) + (K_STRIDE - 2 * WIDTH)
        grad_base = head_base(grad, sample, head, Q_PLACES, WIDTH, HEAD_SIZE)
        q = load_rows(q_base, place, inside_q, Q_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        k = load_rows(k_base, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        v = load_rows(k_base + WIDTH, row_k, inside_k, K_STRIDE, HEAD_SIZE, BLOCK_D, DOT)
        do = load_rows(grad_base, place, inside_q, WIDTH, HEAD_SIZE, BLOCK_D, DOT)
        _, d_scores = _block_weights(
            q, k, v, do, bias, maxima, inverses, delta, seed, scale, head, sample, scratch,
            token_q, place, inside_q, label_q, token_k, label_k, live_k if ZEROS else inside_k,
            Q_TOKENS, K_TOKENS, DROP_BELOW, KEEP_SCALE,
        )  # fmt: skip
        total += d_scores
    row, column = first_q + tl.arange(0, BLOCK_M), first_k + tl.arange(0, BLOCK_N)
    table = (own * HEADS + head).to(tl.int64)
    address = d_bias + (table * Q_TOKENS + row)[:, None] * K_TOKENS + column[None, :]
    tl.store(address, total, mask=(row < Q_TOKENS)[:, None] & (column < K_TOKENS)[None, :])
