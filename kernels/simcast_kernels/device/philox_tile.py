"""Counter-based random numbers: the same word for the same counters in every tile, device and implementation."""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def keep_tile(seed, row, column, first, head, sample, ADJACENT: tl.constexpr, BLOCK_N: tl.constexpr,
              DROP_BELOW: tl.constexpr):  # fmt: skip
    """Return the dropout mask of a tile, True for kept weights: bool ``[rows, BLOCK_N]``, by Philox4x32-10.

    The key is the seed, the counters are (row, quad, head, sample). A quad is four columns that one thread holds in the
    result of a matmul: 2c, 2c + 1, 2c + 8 and 2c + 9 of 16 columns, for c below 4; its four words are in this order.
    ADJACENT: the columns are ``first`` (a multiple of 16) to ``first + BLOCK_N - 1``, so a call gives four weights;
    otherwise the columns are ``column`` and each weight takes a call.
    """
    if ADJACENT:
        ROWS: tl.constexpr = row.shape[0]
        quad = first // 4 + tl.arange(0, BLOCK_N // 4)
        zero = (row[:, None] + quad[None, :]) * 0
        a, b, c, d = tl.philox(seed, zero + row[:, None], zero + quad[None, :], zero + head, zero + sample)
        # The axis joined last is the innermost: (16 columns, c, first or second, first or last 8).
        keep = tl.join(tl.join(a >= DROP_BELOW, b >= DROP_BELOW), tl.join(c >= DROP_BELOW, d >= DROP_BELOW))
        keep = tl.trans(tl.reshape(keep, (ROWS, BLOCK_N // 16, 4, 2, 2)), 0, 1, 4, 2, 3)
        return tl.reshape(keep, (ROWS, BLOCK_N))
    zero = (row[:, None] + column[None, :]) * 0
    quad = column // 16 * 4 + column % 8 // 2
    a, b, c, d = tl.philox(seed, zero + row[:, None], zero + quad[None, :], zero + head, zero + sample)
    odd, last = (column % 2 == 1)[None, :], (column % 16 >= 8)[None, :]
    return tl.where(last, tl.where(odd, d, c), tl.where(odd, b, a)) >= DROP_BELOW


@triton.jit
def uniform(word):
    """Return ``(word + 1/2) / 2^32`` of 32-bit words, in float32, in (0, 1]."""
    return word.to(tl.uint32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def normal_pair(first, second):
    """Return two independent standard normal tensors from two tensors of words (Box-Muller)."""
    radius = tl.sqrt(-2.0 * tl.log(uniform(first)))
    angle = 6.283185307179586 * uniform(second)
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def normal_block(key, first, sample, member, step, BLOCK: tl.constexpr):
    """Return standard normal noise for BLOCK elements starting at ``first``, float32; both are multiples of 4.

    The counters are (element // 4, sample, member, step), as in ``simcast_kernels.philox.normals``.
    """
    quad = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = quad * 0
    a, b, c, d = tl.philox(
        key, quad, zero + sample.to(tl.uint32), zero + member.to(tl.uint32), zero + step.to(tl.uint32)
    )
    n0, n1 = normal_pair(a, b)
    n2, n3 = normal_pair(c, d)
    # The axis joined last is the innermost, so the four elements are in order and a thread holds what it stores.
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK,))
