"""One attention as data: its tensors, the options of the call, and what they come to."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .geometry import Grid, Triple, make_grid

PADDINGS = ("ignore", "zeros", "nearest")


class Inputs(NamedTuple):
    """The tensors of one attention.

    ``memory`` is None where query, key and value are one tensor: ``query`` is then ``qkv``, three times as wide.
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
    """The arguments of a call that are no tensors, by the names of :func:`.cuboid_attention`."""

    heads: int
    cuboid: Triple
    strategy: tuple[str, str, str]
    shift: Triple
    padding: str = "ignore"
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What to compute: the grid of queries, that of keys and values, and the softmax."""

    query: Grid
    memory: Grid
    heads: int
    head_size: int
    padding: str
    scale: float
    dropout: float
    seed: int

    @property
    def drop_below(self) -> int:
        """A random word of 32 bits below this drops its weight."""
        return round(self.dropout * 2**32)

    @property
    def keep_scale(self) -> float:
        """What the weights that stay are multiplied with."""
        return 1 / (1 - self.dropout)


def make_problem(inputs: Inputs, options: Options) -> Problem:
    """Return what ``inputs`` and ``options``, both checked, come to."""
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
    )
