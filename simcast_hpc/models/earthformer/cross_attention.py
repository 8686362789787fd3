"""Attention of the decoder's tokens to the encoder's, in cuboids that span time."""

from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_kernels.cuboid_attention import cuboid_cross_attention

from .normed import normed_linear
from .patterns import Cuboid, Triple
from .relative_bias import RelativeBias


class CuboidCrossAttention(nn.Module):
    """Every token attends to all memory frames of its cuboid in space, before the residual.

    Only the queries are normalised. Biases know offsets of up to ``T + T'`` frames; the frames of memory and of the
    forecast are counted from 0 each.

    Args:
        config: the model.
        width: D of the level.
        cuboid: size (its frames are the memory's), strategy and shift.
        memory: the grid (T, H, W) of the memory.
        frames_out: T', frames of the queries.

    Attributes:
        number: this attention's own share of the dropout seed; ``Earthformer`` counts them.

    Source: Gao et al. (arXiv 2207.05833), section 3.3.
    """

    number = 0

    def __init__(self, config: EarthformerConfig, *, width: int, cuboid: Cuboid, memory: Triple, frames_out: int):
        super().__init__()
        self.heads, self.padding, self.attention_dropout = config.heads, config.padding, config.attention_dropout
        self.last_frames = config.cross_last_frames
        frames = memory[0] if self.last_frames is None else min(self.last_frames, memory[0])
        extents = (memory[0] + frames_out, *cuboid.size[1:])
        self.cuboid = Cuboid(extents, cuboid.strategy, cuboid.shift).split_where_whole(memory)
        _, height, across = self.cuboid.size
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.bias = None
        if config.relative_bias:
            self.bias = RelativeBias(
                config.heads,
                extents=extents,
                queries=(frames_out, height, across),
                keys=(frames, height, across),
            )
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.shows_vectors = config.global_vectors.in_cross_attention

    def forward(self, x: Tensor, memory: Tensor, vectors: Tensor | None, *, seed: int) -> Tensor:
        """Return what the tokens learn from the memory.

        Args:
            x: ``[B, T', H, W, D]``.
            memory: ``[B, T, H, W, D]``.
            vectors: ``[B, G, D]``, or None without global vectors.
            seed: of the attention's dropout in this pass through the model.
        """
        if self.last_frames is not None:
            memory = memory[:, -self.last_frames :]
        key = value = None
        if self.shows_vectors and vectors is not None:
            key, value = self.key_value(vectors).chunk(2, dim=-1)
        (query,) = normed_linear(x, self.norm, [self.query])
        learnt = cuboid_cross_attention(
            query,
            self.key_value(memory),
            heads=self.heads,
            cuboid=self.cuboid.size,
            strategy=self.cuboid.strategy,
            shift=self.cuboid.shift,
            padding=self.padding,
            bias=None if self.bias is None else self.bias(),
            global_key=key,
            global_value=value,
            dropout=self.attention_dropout if self.training else 0.0,
            seed=seed + self.number,
        )
        return self.dropout(self.project(learnt))
