"""Positions of the rows of a tile: cuboids, padding, shift and dilation as index arithmetic.

An axis is the constant (size, tokens per cuboid, cuboids, shift, is dilated); a grid is three axes, T, H, W.
"""

# Pyright does not understand Triton constexpr arguments and indexed tensors in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def axis_position(block, token, AXES: tl.constexpr, A: tl.constexpr):
    """Return (position, region) of a cuboid's token on axis A; a position at or beyond the size is padding.

    The region numbers the up to three parts of a shifted axis that are not contiguous and must not attend to each
    other.
    """
    rolled = token * AXES[A][2] + block if AXES[A][4] else block * AXES[A][1] + token
    position = rolled
    region = rolled * 0
    if AXES[A][3] > 0:
        LENGTH: tl.constexpr = AXES[A][1] * AXES[A][2]
        position = (rolled + AXES[A][3]) % LENGTH
        region = (rolled >= LENGTH - AXES[A][1]).to(tl.int32) + (rolled >= LENGTH - AXES[A][3]).to(tl.int32)
    return position, region


@triton.jit
def tile_rows(group, first, AXES: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the index arithmetic of the BLOCK rows of a tile.

    A tile holds PACK consecutive cuboids, starting at ``group * PACK``; or, with PACK = 1, BLOCK tokens of one cuboid,
    starting at ``first``.

    Returns:
        token: token number of the row in its cuboid.
        position: position of the token in the grid, ``(t * H + h) * W + w``.
        is_token: whether the row is a token, including padding.
        inside: whether the row is a token of the grid.
        label: rows may attend to each other if their labels are equal.
        t, h, w: position of the token along each axis.
    """
    TOKENS: tl.constexpr = AXES[0][1] * AXES[1][1] * AXES[2][1]
    CUBOIDS: tl.constexpr = AXES[0][2] * AXES[1][2] * AXES[2][2]
    # 1. Cuboid and token of each row
    row = tl.arange(0, BLOCK)
    part = row * 0
    token = first + row
    if PACK > 1:
        part = row // TOKENS
        token = row - part * TOKENS
    cuboid = group * PACK + part
    is_token = (token < TOKENS) & (cuboid < CUBOIDS) & (part < PACK)
    # 2. Position along W, H, T
    w, region_w = axis_position(cuboid % AXES[2][2], token % AXES[2][1], AXES, 2)
    block, rest = cuboid // AXES[2][2], token // AXES[2][1]
    h, region_h = axis_position(block % AXES[1][2], rest % AXES[1][1], AXES, 1)
    t, region_t = axis_position(block // AXES[1][2], rest // AXES[1][1], AXES, 0)
    inside = is_token & (t < AXES[0][0]) & (h < AXES[1][0]) & (w < AXES[2][0])
    position = (t * AXES[1][0] + h) * AXES[2][0] + w
    label = ((part * 3 + region_t) * 3 + region_h) * 3 + region_w
    return token, position, is_token, inside, label, t, h, w
