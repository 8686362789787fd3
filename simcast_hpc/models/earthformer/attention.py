"""Self-attention inside cuboids, with global vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention
from simcast_kernels.layer_norm_linear import layer_norm_linear

from .global_vectors import GlobalAttention, SeparateProjections, SharedProjections, key_multiplicity
from .patterns import Cuboid, Triple


def normed_linear(x: Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """Return each of ``layers`` of ``norm(x)``; either all of them have a bias or none.

    In one op, which keeps the normed tensor out of a GPU's memory; the modules hold the weights under their own names.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return layer_norm_linear(
        x, norm.weight, norm.bias, weights=[layer.weight for layer in layers], biases=biases, eps=norm.eps
    )


class RelativeBias(nn.Module):
    """A table over offsets (t, h, w), read for every pair of tokens of a cuboid: ``-> [heads, Lq, Lk]``.

    The read is a product with one-hot rows along each axis in turn: exact, and its gradient a matrix product, so
    the same to the bit at every run, where the gradient of an indexed read adds with atomics.

    Args:
        heads: attention heads.
        extents: the largest cuboid (T, H, W) that the table serves; it has ``(2T-1)(2H-1)(2W-1)`` rows.
        queries: the cuboid of queries, within ``extents``.
        keys: the cuboid of keys, within ``extents``.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), Eq. 4, with a third axis.
    """

    def __init__(self, heads: int, *, extents: Triple, queries: Triple, keys: Triple):
        super().__init__()
        self.extents, self.queries, self.keys = extents, queries, keys
        rows = [2 * extent - 1 for extent in extents]
        self.table = nn.Parameter(torch.empty(rows[0] * rows[1] * rows[2], heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        """Return the bias ``[heads, Lq, Lk]`` in the dtype of the table; tokens are counted w fastest."""
        table = self.table.unflatten(0, [2 * extent - 1 for extent in self.extents])
        t, h, w = (self._offsets(axis) for axis in range(3))
        bias = torch.einsum("abcn,xXc->nabxX", table, w)
        bias = torch.einsum("nabxX,yYb->nayYxX", bias, h)
        bias = torch.einsum("nayYxX,tTa->ntyxTYX", bias, t)
        return bias.flatten(4, 6).flatten(1, 3)

    def index(self) -> Tensor:
        """Return the table's row for every pair of tokens of the largest cuboid, ``[L, L]`` int64."""
        axes = [torch.arange(extent, device=self.table.device) for extent in self.extents]
        places = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])
        offsets = places[:, :, None] - places[:, None, :]
        _, h, w = self.extents
        rows = torch.tensor([(2 * h - 1) * (2 * w - 1), 2 * w - 1, 1], device=self.table.device)
        starts = torch.tensor(self.extents, device=self.table.device) - 1
        return ((offsets + starts[:, None, None]) * rows[:, None, None]).sum(0)

    def _offsets(self, axis: int) -> Tensor:
        """Return one-hot ``[queries, keys, 2 * extent - 1]`` along one axis, in the dtype of the table."""
        extent, device = self.extents[axis], self.table.device
        query = torch.arange(self.queries[axis], device=device)[:, None, None]
        key = torch.arange(self.keys[axis], device=device)[None, :, None]
        return (torch.arange(2 * extent - 1, device=device) == query - key + extent - 1).to(self.table.dtype)


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
