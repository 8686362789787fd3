"""The geometry and the arguments of one attention, shared by the reference implementation and the kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Triple = tuple[int, int, int]
PADDINGS = ("ignore", "zeros", "nearest")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of tokens ``[T, H, W]`` split into cuboids.

    Attributes:
        size: tokens along T, H, W.
        cuboid: tokens of a cuboid along T, H, W, at most ``size``.
        dilated: for each axis, whether the tokens of a cuboid are strided over the axis (``d``) or contiguous (``l``).
        shift: for each axis, number of tokens by which the padded axis is rolled toward its start.
    """

    size: Triple
    cuboid: Triple
    dilated: tuple[bool, bool, bool]
    shift: Triple

    @property
    def blocks(self) -> Triple:
        """Cuboids along T, H, W; the last of an axis may extend beyond its end."""
        t, h, w = (-(-n // b) for n, b in zip(self.size, self.cuboid, strict=True))
        return t, h, w

    @property
    def padding(self) -> Triple:
        """Tokens of padding along T, H, W."""
        t, h, w = (n * b - x for n, b, x in zip(self.blocks, self.cuboid, self.size, strict=True))
        return t, h, w

    @property
    def padded(self) -> Triple:
        """Tokens along T, H, W, including padding."""
        t, h, w = (n * b for n, b in zip(self.blocks, self.cuboid, strict=True))
        return t, h, w

    @property
    def positions(self) -> int:
        """Tokens of the grid, without padding."""
        return prod(self.size)

    @property
    def cuboids(self) -> int:
        """Cuboids of the grid."""
        return prod(self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens of a cuboid, including padding."""
        return prod(self.cuboid)


def make_grid(size: Triple, *, cuboid: Triple, strategy: tuple[str, str, str], shift: Triple) -> Grid:
    """Return the grid with cuboid and shift clipped to the axes, as in the public Earthformer.

    A cuboid at least as long as its axis covers the complete axis, without a shift; a dilated axis has no shift.
    """
    if torch.compiler.is_compiling():  # the compiler warns of a cache
        return _clipped_grid(size, cuboid, strategy, shift)
    return _cached_grid(tuple(size), tuple(cuboid), tuple(strategy), tuple(shift))


def _clipped_grid(size: Sequence[int], cuboid: Sequence[int], strategy: Sequence[str], shift: Sequence[int]) -> Grid:
    clipped, dilated, shifts = [], [], []
    for axis, length, letter, tokens in zip(size, cuboid, strategy, shift, strict=True):
        covers_axis = axis <= length
        clipped.append(axis if covers_axis else length)
        dilated.append(letter == "d")
        shifts.append(0 if covers_axis or letter == "d" else tokens)
    t, h, w = size
    return Grid(
        size=(t, h, w),
        cuboid=(clipped[0], clipped[1], clipped[2]),
        dilated=(dilated[0], dilated[1], dilated[2]),
        shift=(shifts[0], shifts[1], shifts[2]),
    )


# Called several times per call of the operator, with few different arguments in a run.
_cached_grid = lru_cache(maxsize=4096)(_clipped_grid)


class Inputs(NamedTuple):
    """The tensors of one attention.

    In self-attention ``memory`` is None and ``query`` contains query, key and value along its last axis.
    """

    query: Tensor
    memory: Tensor | None = None
    bias: Tensor | None = None
    global_query: Tensor | None = None
    global_key: Tensor | None = None
    global_value: Tensor | None = None

    @property
    def width(self) -> int:
        """Features D of the result."""
        return self.query.shape[-1] // (3 if self.memory is None else 1)

    @property
    def global_vectors(self) -> int:
        """Global vectors G."""
        return 0 if self.global_key is None else self.global_key.shape[1]


class Options(NamedTuple):
    """The arguments of a call that are not tensors, named as in :func:`.cuboid_attention`."""

    heads: int
    cuboid: Triple
    strategy: tuple[str, str, str]
    shift: Triple
    padding: str = "ignore"
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0
    offset: Triple = (0, 0, 0)
    domain: Triple | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The computation of a call: the grid of queries, the grid of keys and values, and the softmax.

    ``offset`` and ``domain`` locate the grid of queries in a larger grid; only the dropout depends on them.
    """

    query: Grid
    memory: Grid
    heads: int
    head_size: int
    padding: str
    scale: float
    dropout: float
    seed: int
    offset: Triple
    domain: Triple

    @property
    def first_row(self) -> int:
        """Row in the domain, ``(t * H + h) * W + w``, of the first query."""
        (t, h, w), (_, height, width) = self.offset, self.domain
        return (t * height + h) * width + w

    @property
    def drop_below(self) -> int:
        """A weight is dropped if its random 32-bit word is below this."""
        return round(self.dropout * 2**32)

    @property
    def keep_scale(self) -> float:
        """Factor of the weights that are not dropped."""
        return 1 / (1 - self.dropout)


def make_problem(inputs: Inputs, options: Options) -> Problem:
    """Return the computation that validated ``inputs`` and ``options`` describe."""
    _, t, h, w, _ = inputs.query.shape
    frames = t if inputs.memory is None else inputs.memory.shape[1]
    cuboid, strategy, shift = options.cuboid, options.strategy, options.shift
    head_size = inputs.width // options.heads
    return Problem(
        query=make_grid((t, h, w), cuboid=cuboid, strategy=strategy, shift=shift),
        memory=make_grid((frames, h, w), cuboid=cuboid, strategy=strategy, shift=shift),
        heads=options.heads,
        head_size=head_size,
        padding=options.padding,
        scale=head_size**-0.5 if options.scale is None else options.scale,
        dropout=options.dropout,
        seed=options.seed,
        offset=options.offset,
        # Resampled grids have no common domain.
        domain=(t, h, w) if options.domain is None or options.padding == "nearest" else options.domain,
    )
