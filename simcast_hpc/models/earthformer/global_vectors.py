"""What the global vectors ask and answer, and how they are renewed.

Source: Gao et al. (arXiv 2207.05833), section 3.2: tokens attend to their cuboid and the global vectors in one
softmax; the global vectors attend to all tokens, and if wanted to one another, in another. With separate
projections each of these directions has its own weights, else all share one projection of the global vectors and
the tokens' own.
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
    """What tokens see of the global vectors: keys and values ``[B, G, D]``, their own query ``[B, T, H, W, D]``.

    Without ``query`` the tokens ask with the query of their cuboid.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GlobalUpdate:
    """What renews the global vectors: their query ``[B, G, D]`` to tokens with ``key`` and ``value [B, N, D]``.

    ``self_query``, ``self_key`` and ``self_value [B, G, D]`` are their attention to one another.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    self_query: Tensor
    self_key: Tensor
    self_value: Tensor


class SharedProjections(nn.Module):
    """One projection of the global vectors; tokens take part with their query, key and value of the cuboid."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)

    def of_tokens(self, *, update: bool) -> list[nn.Linear]:
        """Return the layers of the normed tokens that are wanted besides their query, key and value: none."""
        return []

    def forward(
        self, vectors: Tensor, *, tokens: Sequence[Tensor], update: bool
    ) -> tuple[GlobalKeys, GlobalUpdate | None]:
        """Return what tokens see of ``vectors [B, G, D]``, and with ``update`` what renews them.

        ``tokens`` holds the tokens' own query, key and value as one, and the results of :meth:`of_tokens`.
        """
        query, key, value = self.qkv(vectors).chunk(3, dim=-1)
        seen = GlobalKeys(key=key, value=value, query=None)
        if not update:
            return seen, None
        _, token_key, token_value = tokens[0].flatten(1, 3).chunk(3, dim=-1)
        return seen, GlobalUpdate(
            query=query, key=token_key, value=token_value, self_query=query, self_key=key, self_value=value
        )


class SeparateProjections(nn.Module):
    """Own projections for tokens to vectors, for vectors to tokens, and for vectors to vectors."""

    def __init__(self, width: int, *, self_attention: bool):
        super().__init__()
        self.seen_query = nn.Linear(width, width, bias=False)
        self.seen_key_value = nn.Linear(width, 2 * width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.self_qkv = nn.Linear(width, 3 * width, bias=False) if self_attention else None

    def of_tokens(self, *, update: bool) -> list[nn.Linear]:
        """Return the layers of the normed tokens that are wanted besides their query, key and value."""
        return [self.seen_query, self.key, self.value] if update else [self.seen_query]

    def forward(
        self, vectors: Tensor, *, tokens: Sequence[Tensor], update: bool
    ) -> tuple[GlobalKeys, GlobalUpdate | None]:
        """Return what tokens see of ``vectors [B, G, D]``, and with ``update`` what renews them.

        ``tokens`` holds the tokens' own query, key and value as one, and the results of :meth:`of_tokens`.
        """
        key, value = self.seen_key_value(vectors).chunk(2, dim=-1)
        seen = GlobalKeys(key=key, value=value, query=tokens[1])
        if not update:
            return seen, None
        query = self.query(vectors)
        own = (query, query, query) if self.self_qkv is None else self.self_qkv(vectors).chunk(3, dim=-1)
        return seen, GlobalUpdate(
            query=query,
            key=tokens[2].flatten(1, 3),
            value=tokens[3].flatten(1, 3),
            self_query=own[0],
            self_key=own[1],
            self_value=own[2],
        )


class GlobalAttention(nn.Module):
    """Renew the global vectors from all tokens: ``-> [B, G, D]``, before the residual.

    Args:
        width: D.
        heads: attention heads.
        self_attention: whether the vectors are keys to one another, in the same softmax.
        attention_dropout: share of weights set to 0, from torch's generator of the device.
        projection_dropout: likewise, of the result.
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
        """Return what the vectors learn.

        Args:
            update: queries, keys and values.
            key_counts: how often each token counts, ``[N]``; once each if None.
            zero_keys: how many keys and values of zeros count besides.
        """
        count, tokens = update.query.shape[1], update.key.shape[1]
        scale = (update.query.shape[2] // self.heads) ** -0.5
        query = _by_head(update.query * scale, self.heads)
        scores = [query @ update.key.transpose(1, 2)]
        if key_counts is not None:
            scores[0] = scores[0] + key_counts.log().to(query.dtype)
        if self.self_attention:
            own = _by_head(update.self_query * scale, self.heads)
            scores.append(own @ update.self_key.transpose(1, 2))
        if zero_keys:
            scores.append(query.new_full((*query.shape[:2], 1), math.log(zero_keys)))
        wide = torch.promote_types(query.dtype, torch.float32)
        weights = self.weight_dropout(torch.cat(scores, dim=-1).to(wide).softmax(-1)).to(update.value.dtype)
        learnt = weights[..., :tokens] @ update.value
        if self.self_attention:
            learnt = learnt + weights[..., tokens : tokens + count] @ update.self_value
        return self.dropout(self.project(_own_head(learnt, self.heads)))


def _by_head(query: Tensor, heads: int) -> Tensor:
    """Return ``[B, G, D]`` as ``[B, heads * G, D]``, a row for each head with zeros in the others' features.

    So one matrix product over all features gives the scores of every head, and the keys of all tokens are read in
    place, where a product per head would first copy them. There are few vectors: the added zeros cost little.
    """
    mine = torch.eye(heads, dtype=query.dtype, device=query.device)
    return torch.einsum("bghd,hk->bhgkd", query.unflatten(2, (heads, -1)), mine).flatten(3, 4).flatten(1, 2)


def _own_head(rows: Tensor, heads: int) -> Tensor:
    """Return ``[B, heads * G, D]`` as ``[B, G, D]``, of each row the features of its own head."""
    rows = rows.unflatten(2, (heads, -1)).unflatten(1, (heads, -1))
    return rows.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2).flatten(2)


def key_multiplicity(cuboid: Cuboid, tokens: Triple, *, padding: str) -> tuple[Tensor | None, int]:
    """Return how often each token counts, int64 ``[T * H * W]`` on the CPU, and how many keys of zeros do.

    ``zeros`` counts every token once and every padded one as a key of zeros; ``nearest`` counts a token as often as
    it is repeated. ``ignore`` follows the released code, whose mask marks places of the padded and rolled grid while
    its keys stand in the order of cuboids: so it leaves out real tokens in the stead of padded ones. Weights that
    were published for it expect that. None for the first stands for once each.
    """
    # The device is named, so that a model that is built on the meta device has real counts as well.
    places = torch.arange(1, tokens[0] * tokens[1] * tokens[2] + 1, device="cpu").view(1, *tokens, 1)
    grid = make_grid(tokens, cuboid=cuboid.size, strategy=cuboid.strategy, shift=cuboid.shift)
    if not any(grid.padding):
        return None, 0
    if padding == "zeros":
        return None, grid.padded[0] * grid.padded[1] * grid.padded[2] - places.numel()
    if padding == "nearest":
        repeated = resample(places, grid.padded)
        assert repeated is not None
        counted = repeated.flatten()
    else:
        counted = to_cuboids(places, grid).flatten()[_marked(grid)]
    counts = counted.bincount(minlength=places.numel() + 1)
    return counts[1:], int(counts[0])


def _marked(grid: Grid) -> Tensor:
    """Return the places that the released code's mask marks as real, bool, over the padded and rolled grid."""
    t, h, w = grid.padding
    real = F.pad(torch.ones(grid.size, dtype=torch.bool, device="cpu"), (0, w, 0, h, 0, t))
    return real.roll([-shift for shift in grid.shift], (0, 1, 2)).flatten()
