"""Blocks of consecutive attentions and feed-forwards, and position embeddings."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcast_hpc.config import EarthformerConfig
from simcast_kernels.bias_activation import bias_activation, replaces

from .attention import CuboidCrossAttention, CuboidSelfAttention, normed_linear
from .patterns import Triple, cross_attention_pattern, self_attention_pattern
from .stems import ACTIVATIONS, FUSED_ACTIVATIONS


class Positions(nn.Module):
    """Add learned position embeddings: ``[B, T, H, W, D] -> [B, T, H, W, D]``.

    ``t+h+w`` has one table per axis, ``t+hw`` one for time and one for space.

    Attributes:
        rows: of the grid, that this rank computes; all without spatial sharding.
    """

    rows: slice | None = None

    def __init__(self, kind: str, *, tokens: Triple, width: int):
        super().__init__()
        t, h, w = tokens
        separate = kind == "t+h+w"
        self.grid = (h, w)
        self.time = _table(t, width)
        self.row = _table(h, width) if separate else None
        self.column = _table(w, width) if separate else None
        self.space = None if separate else _table(h * w, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the position embeddings."""
        x = x + self.time[:, None, None]
        if self.space is not None:
            return x + self._own_rows(self.space.unflatten(0, self.grid))
        assert self.row is not None and self.column is not None
        return x + self._own_rows(self.row)[:, None] + self.column

    def _own_rows(self, table: Tensor) -> Tensor:
        return table if self.rows is None else table[self.rows]


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, width), std=0.02))


EXPANSION = 4


class FeedForward(nn.Module):
    """Layer norm and a two-layer MLP with a residual connection: ``[..., D] -> [..., D]``.

    With ``config.gated`` the activated projection multiplies a second one (Shazeer, arXiv 2002.05202). Where
    ``bias_activation`` runs as a kernel it computes all that is not a matmul, and dropout depends on ``seed``.

    Attributes:
        seed_offset: added to the dropout seed; unique per kernel call, set by ``Earthformer``.
    """

    seed_offset = 0

    def __init__(self, config: EarthformerConfig, *, width: int):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fused: dict[str, Any] = (
            {"activation": "gelu"} if config.activation == "gelu" else FUSED_ACTIVATIONS[config.activation]
        )
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, EXPANSION * width)
        self.gate = nn.Linear(width, EXPANSION * width) if config.gated else None
        self.narrow = nn.Linear(EXPANSION * width, width)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """Return ``x`` plus the output of the MLP; ``seed`` is that of the dropout of kernels in this forward pass."""
        if self.gate is None and replaces(x, self.widen, self.narrow, self.dropout):
            return self._fused(x, seed + self.seed_offset)
        if self.gate is None:
            (widened,) = normed_linear(x, self.norm, [self.widen])
            hidden = self.activation(widened)
        else:
            gate, widened = normed_linear(x, self.norm, [self.gate, self.widen])
            hidden = self.activation(gate) * widened
        return x + self.dropout(self.narrow(self.dropout(hidden)))

    def _fused(self, x: Tensor, seed: int) -> Tensor:
        dropout = self.dropout.p if self.training else 0.0
        (widened,) = normed_linear(x, self.norm, [self.widen], biased=False)
        hidden = bias_activation(widened, self.widen.bias, **self.fused, dropout=dropout, seed=seed)
        if not dropout or hidden.dtype != x.dtype:  # a matmul adds its bias at no cost
            return x + self.dropout(self.narrow(hidden))
        update = F.linear(hidden, self.narrow.weight)
        return bias_activation(update, self.narrow.bias, activation="none", dropout=dropout, seed=seed + 1, residual=x)


class SelfAttentionBlock(nn.Module):
    """Cuboid self-attentions: ``[B, T, H, W, D] -> [B, T, H, W, D]``, and the global vectors ``[B, G, D]``.

    A feed-forward follows each attention, or only the last one without ``feed_forward_between``. The cuboids of the
    pattern are sized for the grid ``pattern_tokens`` and applied to the grid ``tokens``.
    """

    def __init__(
        self,
        config: EarthformerConfig,
        *,
        level: int,
        pattern: str,
        pattern_tokens: Triple,
        tokens: Triple,
        feed_forward_between: bool,
        global_vectors: bool,
    ):
        super().__init__()
        width = config.width_at(level)
        self.recompute = level in config.checkpoint_levels
        self.attentions = nn.ModuleList(
            CuboidSelfAttention(config, width=width, cuboid=cuboid, tokens=tokens, global_vectors=global_vectors)
            for cuboid in self_attention_pattern(pattern, pattern_tokens)
        )
        count = len(self.attentions) if feed_forward_between else 1
        self.feed_forwards = nn.ModuleList(FeedForward(config, width=width) for _ in range(count))
        global_count = count if global_vectors and config.global_vectors.feed_forward else 0
        self.global_feed_forwards = nn.ModuleList(FeedForward(config, width=width) for _ in range(global_count))

    def forward(self, x: Tensor, vectors: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return tokens and global vectors after the block, with activation checkpointing if configured."""
        if self.recompute and self.training:
            return checkpoint(self._attend, x, vectors, seed, use_reentrant=False)
        return self._attend(x, vectors, seed)

    def _attend(self, x: Tensor, vectors: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        first = len(self.attentions) - len(self.feed_forwards)
        for i, attention in enumerate(self.attentions):
            update, vector_update = attention(x, vectors, seed=seed)
            x = x + update
            if vector_update is not None:
                vectors = vectors + vector_update
            if i >= first:
                x = self.feed_forwards[i - first](x, seed=seed)
                if vector_update is not None and self.global_feed_forwards:
                    vectors = self.global_feed_forwards[i - first](vectors, seed=seed)
        return x, vectors


class CrossAttentionBlock(nn.Module):
    """Cuboid cross-attentions to the memory of one level: ``[B, T', H, W, D] -> [B, T', H, W, D]``."""

    def __init__(self, config: EarthformerConfig, *, level: int, pattern: str, memory: Triple, frames_out: int):
        super().__init__()
        width = config.width_at(level)
        self.recompute = level in config.checkpoint_levels
        self.attentions = nn.ModuleList(
            CuboidCrossAttention(config, width=width, cuboid=cuboid, memory=memory, frames_out=frames_out)
            for cuboid in cross_attention_pattern(pattern, memory)
        )
        count = len(self.attentions) if config.decoder_feed_forward_between else 1
        self.feed_forwards = nn.ModuleList(FeedForward(config, width=width) for _ in range(count))

    def forward(self, x: Tensor, memory: Tensor, vectors: Tensor | None, *, seed: int) -> Tensor:
        """Return the tokens after the block, with activation checkpointing if configured."""
        if self.recompute and self.training:
            return checkpoint(self._attend, x, memory, vectors, seed, use_reentrant=False)
        return self._attend(x, memory, vectors, seed)

    def _attend(self, x: Tensor, memory: Tensor, vectors: Tensor | None, seed: int) -> Tensor:
        first = len(self.attentions) - len(self.feed_forwards)
        for i, attention in enumerate(self.attentions):
            x = x + attention(x, memory, vectors, seed=seed)
            if i >= first:
                x = self.feed_forwards[i - first](x, seed=seed)
        return x
