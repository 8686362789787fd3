"""Cuboid self-attention with global vectors, cuboid cross-attention, and their relative position bias."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention
from simcast_kernels.layer_norm_linear import layer_norm_linear

from .global_vectors import GlobalAttention, SeparateProjections, SharedProjections, key_multiplicity
from .patterns import Cuboid, Triple
from .row_sharded_attention import RowShardedAttention


def normed_linear(x: Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Linear], *, biased: bool = True) -> list[Tensor]:
    """Apply each of ``layers`` to ``norm(x)``; either all of them have a bias or none. ``biased``: add it.

    All are one op, so the normalized tensor is never stored in GPU memory; the weights stay in their modules.
    """
    biases = [layer.bias for layer in layers if biased and layer.bias is not None]
    return layer_norm_linear(
        x, norm.weight, norm.bias, weights=[layer.weight for layer in layers], biases=biases, eps=norm.eps
    )


class RelativeBias(nn.Module):
    """Learned bias per head and offset (t, h, w) for each pair of tokens of a cuboid: ``-> [heads, Lq, Lk]``.

    The lookup is a product with one-hot matrices along each axis: exact, and its gradient is a matmul and therefore
    deterministic, whereas the gradient of an indexed lookup accumulates with atomics.

    Args:
        heads: attention heads.
        extents: the largest cuboid (T, H, W) of the table, which has ``(2T-1)(2H-1)(2W-1)`` rows.
        queries: the cuboid of queries, at most ``extents``.
        keys: the cuboid of keys, at most ``extents``.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), Eq. 4, with a third axis.
    """

    def __init__(self, heads: int, *, extents: Triple, queries: Triple, keys: Triple):
        super().__init__()
        self.extents, self.queries, self.keys = extents, queries, keys
        rows = [2 * extent - 1 for extent in extents]
        self.table = nn.Parameter(torch.empty(rows[0] * rows[1] * rows[2], heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        """Return the bias ``[heads, Lq, Lk]`` in the dtype of the table; tokens are in row-major order of (t, h, w)."""
        table = self.table.unflatten(0, [2 * extent - 1 for extent in self.extents])
        t, h, w = (self._one_hot_offsets(axis) for axis in range(3))
        bias = torch.einsum("abcn,xXc->nabxX", table, w)
        bias = torch.einsum("nabxX,yYb->nayYxX", bias, h)
        bias = torch.einsum("nayYxX,tTa->ntyxTYX", bias, t)
        return bias.flatten(4, 6).flatten(1, 3)

    def index(self) -> Tensor:
        """Return the row of the table for each pair of tokens of the largest cuboid, ``[L, L]`` int64."""
        axes = [torch.arange(extent, device=self.table.device) for extent in self.extents]
        positions = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])
        offsets = positions[:, :, None] - positions[:, None, :]
        _, h, w = self.extents
        rows = torch.tensor([(2 * h - 1) * (2 * w - 1), 2 * w - 1, 1], device=self.table.device)
        starts = torch.tensor(self.extents, device=self.table.device) - 1
        return ((offsets + starts[:, None, None]) * rows[:, None, None]).sum(0)

    def _one_hot_offsets(self, axis: int) -> Tensor:
        """Return one-hot offsets ``[queries, keys, 2 * extent - 1]`` along one axis, in the dtype of the table."""
        extent, device = self.extents[axis], self.table.device
        query = torch.arange(self.queries[axis], device=device)[:, None, None]
        key = torch.arange(self.keys[axis], device=device)[None, :, None]
        return (torch.arange(2 * extent - 1, device=device) == query - key + extent - 1).to(self.table.dtype)


class CuboidSelfAttention(nn.Module):
    """Self-attention of each token to its cuboid and the global vectors, without the residual.

    Args:
        config: the model.
        width: D of the level.
        cuboid: size, strategy and shift. A cuboid larger than the grid is clipped and uses the first offsets of its
            bias table: the cuboids of the decoder are sized for the frames of the memory.
        tokens: the grid (T, H, W) of the tokens.
        global_vectors: whether the attention includes global vectors.

    Attributes:
        seed_offset: added to the dropout seed; unique per attention, set by ``Earthformer``.
        updates_globals: whether to return the update of the global vectors; False if no later layer reads it.
        row_sharded: with spatial sharding, the exchange of tokens between the ranks.

    Source: Gao et al. (arXiv 2207.05833), section 3.1 and 3.2.
    """

    seed_offset = 0
    updates_globals = True
    row_sharded: RowShardedAttention | None = None
    key_counts: Tensor | None

    def __init__(self, config: EarthformerConfig, *, width: int, cuboid: Cuboid, tokens: Triple, global_vectors: bool):
        super().__init__()
        self.heads, self.padding, self.attention_dropout = config.heads, config.padding, config.attention_dropout
        self.cuboid, self.tokens = cuboid, tokens
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
            self_attention = config.global_vectors.self_attention
            self.global_norm = nn.LayerNorm(width)
            self.global_projections = (
                SeparateProjections(width, self_attention=self_attention)
                if config.global_vectors.separate_projections
                else SharedProjections(width)
            )
            self.global_attention = GlobalAttention(
                width,
                heads=config.heads,
                self_attention=self_attention,
                attention_dropout=config.attention_dropout,
                projection_dropout=config.projection_dropout,
            )

    def forward(self, x: Tensor, vectors: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the updates of tokens and global vectors.

        Args:
            x: ``[B, T, H, W, D]``.
            vectors: ``[B, G, D]``; None without global vectors.
            seed: seed of the attention dropout in this forward pass.

        Returns:
            ``[B, T, H, W, D]`` and ``[B, G, D]``; the latter is None without global vectors or ``updates_globals``.
        """
        # 1. Projections of the normalized tokens and global vectors
        layers = [self.qkv]
        if self.global_projections is not None:
            layers += self.global_projections.token_layers(update=self.updates_globals)
        projections = normed_linear(x, self.norm, layers)
        qkv = projections[0]
        keys = global_update = None
        if self.global_projections is not None and self.global_norm is not None:
            keys, global_update = self.global_projections(
                self.global_norm(vectors), tokens=projections, update=self.updates_globals
            )

        # 2. Attention of the tokens
        attended = _attend(
            self,
            cuboid_attention,
            qkv,
            bias=None if self.bias is None else self.bias(),
            global_query=None if keys is None else keys.query,
            global_key=None if keys is None else keys.key,
            global_value=None if keys is None else keys.value,
            seed=seed,
        )
        update = self.dropout(self.project(attended))

        # 3. Attention of the global vectors
        if global_update is None or self.global_attention is None:
            return update, None
        return update, self.global_attention(global_update, key_counts=self.key_counts, zero_keys=self.zero_keys)


class CuboidCrossAttention(nn.Module):
    """Attention of decoder tokens to all memory frames of their spatial cuboid, without the residual.

    Only the queries are normalized. The bias table covers offsets of up to ``T + T'`` frames; the frames of the memory
    and of the forecast are both numbered from 0.

    Args:
        config: the model.
        width: D of the level.
        cuboid: size (with the frames of the memory), strategy and shift.
        memory: the grid (T, H, W) of the memory.
        frames_out: T', number of frames of the queries.

    Attributes:
        seed_offset: added to the dropout seed; unique per attention, set by ``Earthformer``.
        row_sharded: with spatial sharding, the exchange of tokens between the ranks.

    Source: Gao et al. (arXiv 2207.05833), section 3.3.
    """

    seed_offset = 0
    row_sharded: RowShardedAttention | None = None

    def __init__(self, config: EarthformerConfig, *, width: int, cuboid: Cuboid, memory: Triple, frames_out: int):
        super().__init__()
        self.heads, self.padding, self.attention_dropout = config.heads, config.padding, config.attention_dropout
        self.last_frames = config.cross_last_frames
        frames = memory[0] if self.last_frames is None else min(self.last_frames, memory[0])
        extents = (memory[0] + frames_out, *cuboid.size[1:])
        self.cuboid = Cuboid(extents, cuboid.strategy, cuboid.shift).split_shifted_axes(memory)
        self.tokens = (frames_out, *memory[1:])
        _, rows, columns = self.cuboid.size
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.bias = None
        if config.relative_bias:
            self.bias = RelativeBias(
                config.heads,
                extents=extents,
                queries=(frames_out, rows, columns),
                keys=(frames, rows, columns),
            )
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.attends_globals = config.global_vectors.in_cross_attention

    def forward(self, x: Tensor, memory: Tensor, vectors: Tensor | None, *, seed: int) -> Tensor:
        """Return the update of the tokens from the memory.

        Args:
            x: ``[B, T', H, W, D]``.
            memory: ``[B, T, H, W, D]``.
            vectors: ``[B, G, D]``, or None without global vectors.
            seed: seed of the attention dropout in this forward pass.
        """
        if self.last_frames is not None:
            memory = memory[:, -self.last_frames :]
        key = value = None
        if self.attends_globals and vectors is not None:
            key, value = self.key_value(vectors).chunk(2, dim=-1)
        (query,) = normed_linear(x, self.norm, [self.query])
        attended = _attend(
            self,
            cuboid_cross_attention,
            query,
            self.key_value(memory),
            bias=None if self.bias is None else self.bias(),
            global_key=key,
            global_value=value,
            seed=seed,
        )
        return self.dropout(self.project(attended))


def _attend(
    layer: CuboidSelfAttention | CuboidCrossAttention,
    op: Callable[..., Tensor],
    *fields: Tensor,
    seed: int,
    **tensors: Tensor | None,
) -> Tensor:
    """Return ``op`` of ``fields`` and ``tensors`` with the options of ``layer``."""
    tensors_and_options: dict[str, Any] = tensors | {
        "heads": layer.heads,
        "dropout": layer.attention_dropout if layer.training else 0.0,
        "seed": seed + layer.seed_offset,
    }
    if layer.row_sharded is not None:
        return layer.row_sharded(op, *fields, **tensors_and_options)
    cuboid = layer.cuboid
    return op(
        *fields,
        cuboid=cuboid.size,
        strategy=cuboid.strategy,
        shift=cuboid.shift,
        padding=layer.padding,
        **tensors_and_options,
    )
