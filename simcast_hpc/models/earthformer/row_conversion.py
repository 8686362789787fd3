"""Convert Earthformer so that each rank computes its rows of a sample; parameters and their names do not change.

Attentions exchange tokens as in ``row_sharded_attention.py``; the update of the global vectors sums over the tokens of
all ranks. Convolutions and up-sampling exchange a halo, group norms use the statistics of all rows, dropout uses this
rank's rows of the mask of the whole grid, and position tables are sliced. All else acts on single tokens.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.distributed.row_shards import RowShards, rows_per_rank
from simcast_hpc.models.row_sharding import RowShardedDropout, shard_layers

from .attention import CuboidCrossAttention, CuboidSelfAttention
from .blocks import CrossAttentionBlock, FeedForward, Positions, SelfAttentionBlock
from .earthformer import Earthformer
from .global_vectors import GlobalAttention, GlobalUpdate, own_head, token_and_other_scores
from .patterns import Triple
from .row_sharded_attention import RowShardedAttention
from .stems import ConvBlock, PatchMerge, Upsample, UpsampleConv

_ROWS = -3  # axis of H in [.., H, W, D]


def earthformer_row_multiple(network: Earthformer) -> int:
    """Return the number of which the rows of each rank must be a multiple: the factor of all merges along H."""
    return prod(module.scales[0] for module in network.modules() if isinstance(module, PatchMerge))


def shard_earthformer(network: Earthformer, shards: RowShards) -> None:
    """Convert in place: the network then maps the rows of this rank, of frames of the same width, to the same rows.

    All ranks of a group must have the same state of torch's generators.

    Raises:
        ConfigError: the rows cannot be divided; it names the next height that can.
    """
    if shards.size == 1:
        return
    rows_per_rank(network.grid[0], shards.size, earthformer_row_multiple(network))
    for module in list(network.modules()):
        if isinstance(module, (CuboidSelfAttention, CuboidCrossAttention)):
            _shard_attention(module, shards)
        # The feed-forwards of the global vectors are the same on each rank.
        elif isinstance(module, (SelfAttentionBlock, CrossAttentionBlock)):
            for feed_forward in module.feed_forwards:
                assert isinstance(feed_forward, FeedForward)
                feed_forward.dropout = RowShardedDropout(feed_forward.dropout, shards, dim=_ROWS)
        elif isinstance(module, Positions):
            rows = shards.rows(module.grid[0])
            module.rows = slice(rows.start, rows.stop)
        elif isinstance(module, ConvBlock):
            shard_layers(module, shards)
        elif isinstance(module, Upsample):
            module.conv = RowShardedUpsampleConv(module.conv, shards)
    network.grid = (network.grid[0] // shards.size, network.grid[1])


class RowShardedUpsampleConv(UpsampleConv):
    """Up-sampling and convolution of the rows of this rank, with the parameters of ``layer``.

    Along H the finer grid must be a multiple of the coarse one.
    """

    def __init__(self, layer: UpsampleConv, shards: RowShards):
        with torch.device("meta"):  # draws no random numbers
            super().__init__(layer.in_channels, layer.out_channels, grid=layer.grid)
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)
        self.shards, self.rows, self.columns = shards, layer.grid[0] // shards.size, layer.grid[1]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[N, E, n', W']`` from the coarse rows ``[N, C, n, W]``."""
        coarse = input.shape[-2]
        scale = self.rows // coarse
        # One coarse row on each side contains all fine rows that the kernel reads.
        self.grid = ((coarse + 2) * scale, self.columns)
        return super().forward(self.shards.halo(input, 1, 1)).narrow(-2, scale, self.rows)


class RowShardedGlobalAttention(GlobalAttention):
    """The update of the global vectors from the tokens of all ranks, with the parameters of ``attention``.

    Softmax numerators and denominators are summed over the ranks in the dtype of the softmax, at least fp32.

    Args:
        attention: that of one rank.
        shards: of the rows.
        tokens: the whole grid (T, H, W).
    """

    def __init__(self, attention: GlobalAttention, shards: RowShards, *, tokens: Triple):
        nn.Module.__init__(self)
        self.heads, self.self_attention = attention.heads, attention.self_attention
        self.weight_dropout, self.project, self.dropout = attention.weight_dropout, attention.project, attention.dropout
        self.train(attention.training)
        self.shards, self.tokens = shards, tokens

    def forward(self, update: GlobalUpdate, *, key_counts: Tensor | None, zero_keys: int) -> Tensor:
        """Return the update of the vectors, equal on all ranks; ``key_counts`` are those of this rank's tokens."""
        count = update.query.shape[1]
        scores, others, dtype = token_and_other_scores(
            update, heads=self.heads, self_attention=self.self_attention, key_counts=key_counts, zero_keys=zero_keys
        )
        # 1. Numerators of the softmax
        largest = scores.amax(-1, keepdim=True).to(dtype)
        if others is not None:
            largest = torch.maximum(largest, others.amax(-1, keepdim=True).to(dtype))
        largest = self.shards.maximum(largest)
        weights = (scores.to(dtype) - largest).exp()
        other_weights = None if others is None else (others.to(dtype) - largest).exp()
        denominator = weights.sum(-1, keepdim=True)
        # 2. Dropout
        own, other = self._masks(weights, other_weights)
        # 3. Sums over the tokens of all ranks, in one collective; the other keys are the same on each rank
        value = update.value
        partial = ((weights if own is None else weights * own).to(value.dtype) @ value).to(dtype)
        partial, denominator = self.shards.sum(torch.cat([partial, denominator], dim=-1)).tensor_split((-1,), dim=-1)
        if other_weights is not None:
            denominator = denominator + other_weights.sum(-1, keepdim=True)
            dropped = other_weights if other is None else other_weights * other
            if self.self_attention:
                partial = partial + dropped[..., :count] @ update.self_value.to(dtype)
        attended = (partial / denominator).to(value.dtype)
        return self.dropout(self.project(own_head(attended, self.heads)))

    def _masks(self, weights: Tensor, others: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return this rank's part of the dropout factors of one rank, and those of the other keys."""
        if not self.training or self.weight_dropout.p == 0:
            return None, None
        tokens = prod(self.tokens)
        whole = weights.new_ones((*weights.shape[:-1], tokens + (0 if others is None else others.shape[-1])))
        mask = F.dropout(whole, self.weight_dropout.p, training=True, inplace=True)
        own = self.shards.take(mask[..., :tokens].unflatten(-1, self.tokens), -2)
        return own.flatten(-3), mask[..., tokens:]


def _shard_attention(attention: CuboidSelfAttention | CuboidCrossAttention, shards: RowShards) -> None:
    tokens, has_memory = attention.tokens, isinstance(attention, CuboidCrossAttention)
    attention.row_sharded = RowShardedAttention(
        shards, attention.cuboid, tokens, padding=attention.padding, has_memory=has_memory
    )
    attention.dropout = RowShardedDropout(attention.dropout, shards, dim=_ROWS)
    if isinstance(attention, CuboidCrossAttention) or attention.global_attention is None:
        return
    if attention.key_counts is not None:
        attention.key_counts = shards.take(attention.key_counts.unflatten(0, tokens), -2).flatten()
    attention.global_attention = RowShardedGlobalAttention(attention.global_attention, shards, tokens=tokens)
