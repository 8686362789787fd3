"""Self-attention inside cuboids, with global vectors."""

from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_kernels.cuboid_attention import cuboid_attention

from .global_vectors import GlobalAttention, SeparateProjections, SharedProjections
from .multiplicity import key_multiplicity
from .normed import normed_linear
from .patterns import Cuboid, Triple
from .relative_bias import RelativeBias


class CuboidSelfAttention(nn.Module):
    """Every token attends to its cuboid and to the global vectors, before the residual.

    Args:
        config: the model.
        width: D of the level.
        cuboid: size, strategy and shift. Longer than the grid it is clipped, and serves the first offsets of its
            table of biases: the decoder's cuboids are made for the memory's frames.
        tokens: the grid (T, H, W) that is attended.
        global_vectors: whether there are any here.

    Attributes:
        number: this attention's own share of the dropout seed; ``Earthformer`` counts them.
        renews: whether the global vectors it returns are read by anybody; False saves computing them.

    Source: Gao et al. (arXiv 2207.05833), section 3.1 and 3.2.
    """

    number = 0
    renews = True
    key_counts: Tensor | None

    def __init__(self, config: EarthformerConfig, *, width: int, cuboid: Cuboid, tokens: Triple, global_vectors: bool):
        super().__init__()
        self.heads, self.padding, self.attention_dropout = config.heads, config.padding, config.attention_dropout
        self.cuboid = cuboid
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        clipped = cuboid.clipped(tokens)
        self.bias = None
        if config.relative_bias:
            self.bias = RelativeBias(config.heads, extents=cuboid.size, queries=clipped, keys=clipped)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.projection_dropout)
        counts, self.zero_keys = key_multiplicity(cuboid, tokens, padding=config.padding)
        self.register_buffer("key_counts", counts, persistent=False)
        self.global_norm = self.global_projections = self.global_attention = None
        if global_vectors:
            shared, among = not config.global_vectors.separate_projections, config.global_vectors.self_attention
            self.global_norm = nn.LayerNorm(width)
            self.global_projections = (
                SharedProjections(width) if shared else SeparateProjections(width, self_attention=among)
            )
            self.global_attention = GlobalAttention(
                width,
                heads=config.heads,
                self_attention=among,
                attention_dropout=config.attention_dropout,
                projection_dropout=config.projection_dropout,
            )

    def forward(self, x: Tensor, vectors: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return what tokens and global vectors learn.

        Args:
            x: ``[B, T, H, W, D]``.
            vectors: ``[B, G, D]``; None without global vectors.
            seed: of the attention's dropout in this pass through the model.

        Returns:
            ``[B, T, H, W, D]`` and ``[B, G, D]``; None for the latter without global vectors or ``renews``.
        """
        layers = [self.qkv]
        if self.global_projections is not None:
            layers += self.global_projections.of_tokens(update=self.renews)
        projections = normed_linear(x, self.norm, layers)
        qkv = projections[0]
        seen = update = None
        if self.global_projections is not None and self.global_norm is not None:
            seen, update = self.global_projections(self.global_norm(vectors), tokens=projections, update=self.renews)
        learnt = cuboid_attention(
            qkv,
            heads=self.heads,
            cuboid=self.cuboid.size,
            strategy=self.cuboid.strategy,
            shift=self.cuboid.shift,
            padding=self.padding,
            bias=None if self.bias is None else self.bias(),
            global_query=None if seen is None else seen.query,
            global_key=None if seen is None else seen.key,
            global_value=None if seen is None else seen.value,
            dropout=self.attention_dropout if self.training else 0.0,
            seed=seed + self.number,
        )
        learnt = self.dropout(self.project(learnt))
        if update is None or self.global_attention is None:
            return learnt, None
        return learnt, self.global_attention(update, key_counts=self.key_counts, zero_keys=self.zero_keys)
