"""How cuboids lie in a grid of tokens: plain numbers, shared by twin, kernels and cases."""

from dataclasses import dataclass
from math import prod

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One grid of tokens ``[T, H, W]`` cut into cuboids.

    Attributes:
        size: tokens along T, H, W.
        cuboid: tokens of a cuboid along T, H, W, at most ``size``.
        dilated: for each axis, whether a cuboid's tokens are strided over the axis (``d``) or contiguous (``l``).
        shift: for each axis, by how many tokens the padded axis is rolled towards its beginning before it is cut.
    """

    size: Triple
    cuboid: Triple
    dilated: tuple[bool, bool, bool]
    shift: Triple

    @property
    def blocks(self) -> Triple:
        """Cuboids along T, H, W; the last of an axis may hang over its end."""
        t, h, w = (-(-n // b) for n, b in zip(self.size, self.cuboid, strict=True))
        return t, h, w

    @property
    def padding(self) -> Triple:
        """Tokens that the cuboids of an axis have too many, along T, H, W."""
        t, h, w = (n * b - x for n, b, x in zip(self.blocks, self.cuboid, self.size, strict=True))
        return t, h, w

    @property
    def padded(self) -> Triple:
        """Tokens along T, H, W with padding."""
        t, h, w = (n * b for n, b in zip(self.blocks, self.cuboid, strict=True))
        return t, h, w

    @property
    def positions(self) -> int:
        """Tokens of the grid."""
        return prod(self.size)

    @property
    def cuboids(self) -> int:
        """Cuboids of the grid."""
        return prod(self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens of a cuboid, padded ones counted."""
        return prod(self.cuboid)


def make_grid(size: Triple, *, cuboid: Triple, strategy: tuple[str, str, str], shift: Triple) -> Grid:
    """Return the grid with each axis's cuboid clipped as Earthformer does.

    A cuboid as long as its axis or longer becomes the whole axis, without a shift; a dilated axis has no shift.
    """
    clipped, dilated, moved = [], [], []
    for axis, length, letter, by in zip(size, cuboid, strategy, shift, strict=True):
        whole = axis <= length
        clipped.append(axis if whole else length)
        dilated.append(letter == "d")
        moved.append(0 if whole or letter == "d" else by)
    return Grid(
        size=size,
        cuboid=(clipped[0], clipped[1], clipped[2]),
        dilated=(dilated[0], dilated[1], dilated[2]),
        shift=(moved[0], moved[1], moved[2]),
    )
