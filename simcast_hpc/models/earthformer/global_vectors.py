"""Global vectors: their projections, the attention that updates them, and the multiplicity of its keys.

Source: Gao et al. (arXiv 2207.05833), section 3.2. Tokens attend to their cuboid and to the global vectors in one
softmax. The global vectors attend to all tokens, and optionally to one another, in a second softmax. With separate
projections each of these directions has its own weights; otherwise all share one projection of the global vectors and
that of the tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_kernels.cuboid_attention.geometry import Grid, make_grid
from simcast_kernels.cuboid_attention.reference import resample, to_cuboids

from .patterns import Cuboid, Triple


@dataclass(frozen=True, kw_only=True)
class GlobalKeys:
    """Keys and values of the global vectors for tokens, ``[B, G, D]``, and the tokens' query ``[B, T, H, W, D]``.

    If ``query`` is None, the tokens use the query of their cuboid attention.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GlobalUpdate:
    """Inputs of the update of the global vectors: their query ``[B, G, D]``, keys and values of tokens ``[B, N, D]``.

    ``self_query``, ``self_key`` and ``self_value``, ``[B, G, D]``, are for their attention to one another.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    self_query: Tensor
    self_key: Tensor
    self_value: Tensor


class SharedProjections(nn.Module):
    """One projection of the global vectors; tokens reuse the query, key and value of their cuboid attention."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)

    def token_layers(self, *, update: bool) -> list[nn.Linear]:
        """Return the additional projections of the normalized tokens: none."""
        return []

    def forward(
        self, vectors: Tensor, *, tokens: Sequence[Tensor], update: bool
    ) -> tuple[GlobalKeys, GlobalUpdate | None]:
        """Return the keys of ``vectors [B, G, D]`` for tokens, and with ``update`` the inputs of their update.

        ``tokens`` contains the concatenated query, key and value of the tokens, and the output of
        :meth:`token_layers`.
        """
        query, key, value = self.qkv(vectors).chunk(3, dim=-1)
        keys = GlobalKeys(key=key, value=value, query=None)
        if not update:
            return keys, None
        _, token_key, token_value = tokens[0].flatten(1, 3).chunk(3, dim=-1)
        return keys, GlobalUpdate(
            query=query, key=token_key, value=token_value, self_query=query, self_key=key, self_value=value
        )


class SeparateProjections(nn.Module):
    """Separate projections for tokens to vectors, vectors to tokens, and vectors to vectors."""

    def __init__(self, width: int, *, self_attention: bool):
        super().__init__()
        self.seen_query = nn.Linear(width, width, bias=False)
        self.seen_key_value = nn.Linear(width, 2 * width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.self_qkv = nn.Linear(width, 3 * width, bias=False) if self_attention else None

    def token_layers(self, *, update: bool) -> list[nn.Linear]:
        """Return the additional projections of the normalized tokens."""
        return [self.seen_query, self.key, self.value] if update else [self.seen_query]

    def forward(
        self, vectors: Tensor, *, tokens: Sequence[Tensor], update: bool
    ) -> tuple[GlobalKeys, GlobalUpdate | None]:
        """Return the keys of ``vectors [B, G, D]`` for tokens, and with ``update`` the inputs of their update.

        ``tokens`` contains the concatenated query, key and value of the tokens, and the output of
        :meth:`token_layers`.
        """
        key, value = self.seen_key_value(vectors).chunk(2, dim=-1)
        keys = GlobalKeys(key=key, value=value, query=tokens[1])
        if not update:
            return keys, None
        query = self.query(vectors)
        self_query, self_key, self_value = (
            (query, query, query) if self.self_qkv is None else self.self_qkv(vectors).chunk(3, dim=-1)
        )
        return keys, GlobalUpdate(
            query=query,
            key=tokens[2].flatten(1, 3),
            value=tokens[3].flatten(1, 3),
            self_query=self_query,
            self_key=self_key,
            self_value=self_value,
        )


class GlobalAttention(nn.Module):
    """Attention that updates the global vectors from all tokens: ``-> [B, G, D]``, without the residual.

    Args:
        width: D.
        heads: attention heads.
        self_attention: whether the vectors also attend to one another, in the same softmax.
        attention_dropout: dropout probability of attention weights, from torch's generator of the device.
        projection_dropout: dropout probability of the output.
    """

    def __init__(
        self, width: int, *, heads: int, self_attention: bool, attention_dropout: float, projection_dropout: float
    ):
        super().__init__()
        self.heads, self.self_attention = heads, self_attention
        self.weight_dropout = nn.Dropout(attention_dropout)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(projection_dropout)

    def forward(self, update: GlobalUpdate, *, key_counts: Tensor | None, zero_keys: int) -> Tensor:
        """Return the update of the vectors.

        Args:
            update: queries, keys and values.
            key_counts: multiplicity of each token as a key, ``[N]``; None means one each.
            zero_keys: number of additional all-zero keys and values.
        """
        count, tokens = update.query.shape[1], update.key.shape[1]
        scores, others, softmax_dtype = token_and_other_scores(
            update, heads=self.heads, self_attention=self.self_attention, key_counts=key_counts, zero_keys=zero_keys
        )
        scores = scores if others is None else torch.cat([scores, others], dim=-1)
        weights = self.weight_dropout(scores.to(softmax_dtype).softmax(-1)).to(update.value.dtype)
        attended = weights[..., :tokens] @ update.value
        if self.self_attention:
            attended = attended + weights[..., tokens : tokens + count] @ update.self_value
        return self.dropout(self.project(own_head(attended, self.heads)))


def token_and_other_scores(
    update: GlobalUpdate, *, heads: int, self_attention: bool, key_counts: Tensor | None, zero_keys: int
) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Return the scores of the global vectors in the dtype of the query, and the dtype for their softmax.

    Returns:
        Those of the tokens, ``[B, heads * G, N]``; those of the vectors themselves and of all zero keys together, ``[B,
        heads * G, G + 1]`` or fewer, None without either.
    """
    scale = (update.query.shape[2] // heads) ** -0.5
    query = by_head(update.query * scale, heads)
    softmax_dtype = torch.promote_types(query.dtype, torch.float32)
    scores, others = query @ update.key.transpose(1, 2), []
    if key_counts is not None:
        scores = scores + key_counts.to(softmax_dtype).log().to(query.dtype)
    if self_attention:
        self_query = by_head(update.self_query * scale, heads)
        others.append(self_query @ update.self_key.transpose(1, 2))
    if zero_keys:
        others.append(query.new_full((*query.shape[:2], 1), math.log(zero_keys)))
    return scores, torch.cat(others, dim=-1) if others else None, softmax_dtype


def by_head(query: Tensor, heads: int) -> Tensor:
    """Return ``[B, G, D]`` as ``[B, heads * G, D]``, one row per head with zeros in the features of the other heads.

    One matmul over all features then computes the scores of every head and reads the keys in place, where a matmul per
    head would first copy them. There are few vectors, so the added zeros cost little.
    """
    head_mask = torch.eye(heads, dtype=query.dtype, device=query.device)
    return torch.einsum("bghd,hk->bhgkd", query.unflatten(2, (heads, -1)), head_mask).flatten(3, 4).flatten(1, 2)


def own_head(rows: Tensor, heads: int) -> Tensor:
    """Return ``[B, heads * G, D]`` as ``[B, G, D]``, taking from each row the features of its head."""
    rows = rows.unflatten(2, (heads, -1)).unflatten(1, (heads, -1))
    return rows.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2).flatten(2)


def key_multiplicity(cuboid: Cuboid, tokens: Triple, *, padding: str) -> tuple[Tensor | None, int]:
    """Return the multiplicity of each token as a key, int64 ``[T * H * W]`` on the CPU, and the number of zero keys.

    The official implementation updates the global vectors from the padded tokens in the order of cuboids. Here the
    tokens keep their order, so each real token counts zero, one or more times, and some all-zero keys are added.
    ``zeros`` counts every token once and every padded one as a zero key; ``nearest`` counts a token as often as it is
    repeated. ``ignore`` follows the official implementation: its mask marks positions of the padded and rolled grid,
    but its keys are in the order of cuboids. It therefore masks real tokens instead of padded ones, as published
    weights require. If the first result is None, each token counts once.
    """
    # The device is explicit, so that a model built on the meta device also has real counts.
    token_ids = torch.arange(1, tokens[0] * tokens[1] * tokens[2] + 1, device="cpu").view(1, *tokens, 1)
    grid = make_grid(tokens, cuboid=cuboid.size, strategy=cuboid.strategy, shift=cuboid.shift)
    if not any(grid.padding):
        return None, 0
    if padding == "zeros":
        return None, grid.padded[0] * grid.padded[1] * grid.padded[2] - token_ids.numel()
    if padding == "nearest":
        repeated = resample(token_ids, grid.padded)
        assert repeated is not None
        keys = repeated.flatten()
    else:
        keys = to_cuboids(token_ids, grid).flatten()[_released_mask(grid)]
    counts = keys.bincount(minlength=token_ids.numel() + 1)
    return counts[1:], int(counts[0])


def _released_mask(grid: Grid) -> Tensor:
    """Return the mask of real tokens in the official implementation, bool, over the padded and rolled grid."""
    t, h, w = grid.padding
    real = F.pad(torch.ones(grid.size, dtype=torch.bool, device="cpu"), (0, w, 0, h, 0, t))
    return real.roll([-shift for shift in grid.shift], (0, 1, 2)).flatten()
