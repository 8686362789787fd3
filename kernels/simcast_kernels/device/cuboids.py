"""Where the rows of a tile lie: cuboids, padding, shift and dilation as arithmetic on indices.

An axis is the constant (size, tokens of a cuboid, cuboids, shift, whether dilated); a grid is three, T, H, W.
"""

# Pyright misreads Triton constexpr arguments, and tensors that a jitted function indexes.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def axis_place(block, token, AXES: tl.constexpr, A: tl.constexpr):
    """Return (position, stretch) of a cuboid's token on axis A; a position at or past the size is padding."""
    rolled = token * AXES[A][2] + block if AXES[A][4] else block * AXES[A][1] + token
    position = rolled
    stretch = rolled * 0
    if AXES[A][3] > 0:
        LENGTH: tl.constexpr = AXES[A][1] * AXES[A][2]
        position = (rolled + AXES[A][3]) % LENGTH
        stretch = (rolled >= LENGTH - AXES[A][1]).to(tl.int32) + (rolled >= LENGTH - AXES[A][3]).to(tl.int32)
    return position, stretch


@triton.jit
def tile_rows(group, first, AXES: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr):
    """Return what the BLOCK rows of a tile are.

    A tile holds PACK whole cuboids, those from ``group * PACK``, one after the other; or, where PACK is 1, BLOCK
    tokens of one cuboid from ``first`` on.

    Returns:
        token: the row's token number in its cuboid.
        place: the token's position in the grid, ``(t * H + h) * W + w``.
        live: whether the row is a token, padding included; inside: whether it is one of the grid.
        label: rows that may see each other have the same.
    """
    TOKENS: tl.constexpr = AXES[0][1] * AXES[1][1] * AXES[2][1]
    CUBOIDS: tl.constexpr = AXES[0][2] * AXES[1][2] * AXES[2][2]
    row = tl.arange(0, BLOCK)
    part = row * 0
    token = first + row
    if PACK > 1:
        part = row // TOKENS
        token = row - part * TOKENS
    cuboid = group * PACK + part
    live = (token < TOKENS) & (cuboid < CUBOIDS) & (part < PACK)
    w, stretch_w = axis_place(cuboid % AXES[2][2], token % AXES[2][1], AXES, 2)
    block, rest = cuboid // AXES[2][2], token // AXES[2][1]
    h, stretch_h = axis_place(block % AXES[1][2], rest % AXES[1][1], AXES, 1)
    t, stretch_t = axis_place(block // AXES[1][2], rest // AXES[1][1], AXES, 0)
    inside = live & (t < AXES[0][0]) & (h < AXES[1][0]) & (w < AXES[2][0])
    place = (t * AXES[1][0] + h) * AXES[2][0] + w
    label = ((part * 3 + stretch_t) * 3 + stretch_h) * 3 + stretch_w
    return token, place, live, inside, label
