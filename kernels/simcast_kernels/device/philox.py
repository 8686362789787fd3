"""Counted random bits: the same word for the same counters, in any tile, on any device and in the twin."""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def keep_tile(seed, row, column, head, sample, DROP_BELOW: tl.constexpr):
    """Return which weights of a tile stay: bool ``[rows, columns]``, from Philox4x32-10 with the seed as its key.

    The counters are (row, column, head // 4, sample); head modulo 4 picks one of the four words.
    """
    zero = (row[:, None] + column[None, :]) * 0
    a, b, c, d = tl.philox(seed, zero + row[:, None], zero + column[None, :], zero + head // 4, zero + sample)
    word = tl.where(head % 4 == 0, a, tl.where(head % 4 == 1, b, tl.where(head % 4 == 2, c, d)))
    return word >= DROP_BELOW
