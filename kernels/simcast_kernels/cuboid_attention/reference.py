"""Reference implementation of cuboid attention in PyTorch: the definition for the kernels, and the CPU path.

Pad, roll, split into cuboids, one softmax over the tokens of a cuboid and the global vectors, and the inverse. Computed
in float32, or in float64 if the query is float64, and rounded once at the end.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_kernels.philox import WORDS, philox

from .geometry import Grid, Inputs, Options, Problem, Triple, make_problem

_COLUMNS = 16  # of four Philox calls


def cuboid_attention_reference(
    qkv: Tensor,
    *,
    bias: Tensor | None = None,
    global_query: Tensor | None = None,
    global_key: Tensor | None = None,
    global_value: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return cuboid self-attention, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.cuboid_attention.cuboid_attention`; float64 is also accepted and returned.
    """
    return _differentiable(Inputs(qkv, None, bias, global_query, global_key, global_value), Options(**options))


def cuboid_cross_attention_reference(
    query: Tensor,
    key_value: Tensor,
    *,
    bias: Tensor | None = None,
    global_query: Tensor | None = None,
    global_key: Tensor | None = None,
    global_value: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return cuboid cross-attention; see :func:`simcast_kernels.cuboid_attention.cuboid_cross_attention`."""
    return _differentiable(Inputs(query, key_value, bias, global_query, global_key, global_value), Options(**options))


def forward(inputs: Inputs, problem: Problem) -> Tensor:
    """Return the attention ``[B, T, H, W, D]`` in the query's dtype; differentiable."""
    query, memory = problem.query, problem.memory
    q, k, v = projections(inputs, problem)
    weights, _, keep = softmax_weights(inputs, problem, q, k)
    dropped = weights if keep is None else weights * keep
    tokens = memory.tokens
    out = dropped[..., :tokens] @ v
    if inputs.global_value is not None:
        out = out + dropped[..., tokens:] @ _global_heads(inputs.global_value, problem, out.dtype)
    return from_cuboid_heads(out, query).to(inputs.query.dtype)


def backward(inputs: Inputs, problem: Problem, grad_output: Tensor) -> list[Tensor | None]:
    """Return the gradient of each of ``inputs``, None for absent inputs; recompute the weights."""
    query, memory = problem.query, problem.memory
    q, k, v = projections(inputs, problem)
    weights, gq, keep = softmax_weights(inputs, problem, q, k)
    (grad,) = to_cuboid_heads(grad_output.to(q.dtype), query, parts=1, heads=problem.heads)
    dropped = weights if keep is None else weights * keep
    d_weights = grad @ v.mT
    gk = gv = None
    tokens = memory.tokens
    if inputs.global_key is not None and inputs.global_value is not None:
        gk = _global_heads(inputs.global_key, problem, q.dtype)
        gv = _global_heads(inputs.global_value, problem, q.dtype)
        d_weights = torch.cat([d_weights, grad @ gv.mT], dim=-1)
    if keep is not None:
        d_weights = d_weights * keep
    # Softmax, in place: these are the largest tensors.
    d_scores = d_weights.sub_((weights * d_weights).sum(-1, keepdim=True)).mul_(weights)
    local = d_scores[..., :tokens]
    d_q = (local @ k).mul_(problem.scale)
    d_k = (local.mT @ q).mul_(problem.scale)
    d_v = dropped[..., :tokens].mT @ grad
    grads: list[Tensor | None] = [None] * 6
    if gk is not None:
        global_scores = d_scores[..., tokens:]
        d_gq = (global_scores @ gk).mul_(problem.scale)
        if inputs.global_query is None:
            d_q = d_q.add_(d_gq)
        else:
            grads[3] = _merge([d_gq], query)
        grads[4] = (global_scores.mT @ gq).mul_(problem.scale).sum(1).transpose(1, 2).flatten(2)
        grads[5] = (dropped[..., tokens:].mT @ grad).sum(1).transpose(1, 2).flatten(2)
    if inputs.memory is None:
        grads[0] = _merge([d_q, d_k, d_v], query)
    else:
        grads[0], grads[1] = _merge([d_q], query), _merge([d_k, d_v], memory)
    grads[2] = None if inputs.bias is None else local.sum((0, 1))
    return [None if g is None or x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)]


def to_cuboids(x: Tensor, grid: Grid) -> Tensor:
    """Return ``[B, T, H, W, F]`` as ``[B, cuboids, tokens, F]``, padded with zeros and rolled."""
    return _cut(_padded_and_rolled(x, grid), grid)


def from_cuboids(x: Tensor, grid: Grid) -> Tensor:
    """Return ``[B, cuboids, tokens, F]`` as ``[B, T, H, W, F]``: the inverse of :func:`to_cuboids`, padding dropped."""
    return from_cuboid_heads(x.unsqueeze(2), grid)


def to_cuboid_heads(x: Tensor, grid: Grid, *, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Return ``parts`` tensors ``[B, cuboids, heads, tokens, head size]`` of ``[B, T, H, W, parts * D]``.

    As :func:`to_cuboids`, with the heads before the tokens, the layout for the matmuls; takes one copy.
    """
    x = _padded_and_rolled(x, grid)
    split, blocks, tokens = _axes(grid)
    x = x.reshape(x.shape[0], *split, parts, heads, -1)
    x = x.permute(7, 0, *blocks, 8, *tokens, 9)
    return x.reshape(parts, x.shape[1], grid.cuboids, heads, grid.tokens, -1).unbind(0)


def from_cuboid_heads(x: Tensor, grid: Grid) -> Tensor:
    """Return ``[B, cuboids, heads, tokens, head size]`` as ``[B, T, H, W, D]``, padding dropped."""
    batch, _, heads, _, features = x.shape
    x = x.view(batch, *grid.blocks, heads, *grid.cuboid, features)
    order = [0]
    for axis, dilated in enumerate(grid.dilated):
        order += [5 + axis, 1 + axis] if dilated else [1 + axis, 5 + axis]
    x = x.permute(*order, 4, 8).reshape(batch, *grid.padded, heads * features)
    return _unrolled(x, grid)


def attention_mask(problem: Problem, device: torch.device) -> Tensor | None:
    """Return the attention mask, bool ``[cuboids, query tokens, key tokens]``, or None if nothing is masked.

    A shifted cuboid contains up to three regions of each axis that are not contiguous; keys of another region are
    masked. With padding ``ignore`` padded keys are masked too.
    """
    query, memory = problem.query, problem.memory
    shifted, padded = any(query.shift), problem.padding == "ignore" and any(memory.padding)
    if not (shifted or padded):
        return None
    mask = _regions(query, device)[:, :, None] == _regions(memory, device)[:, None, :]
    if padded:
        inside = torch.ones(1, *memory.size, 1, dtype=torch.bool, device=device)
        mask = mask & to_cuboids(inside, memory)[0, :, None, :, 0]
    return mask


def dropout_factors(problem: Problem, *, batch: int, global_vectors: int, device: torch.device) -> Tensor:
    """Return 0 or 1 / (1 - dropout) for each weight, float32 ``[B, cuboids, heads, query tokens, keys]``.

    The Philox counters are the position of the query in the domain, ``(t * H + h) * W + w``, the quad, the head and the
    sample. A quad is the columns 2c, 2c + 1, 2c + 8 and 2c + 9 of 16, which take its words in this order; c is its
    number modulo 4. The column of a key is its token number in the cuboid; those of the global vectors follow, from the
    next multiple of 16. A weight is dropped if its word is below ``dropout * 2^32``. The mask depends only on the seed
    and on positions, so the backward pass recomputes it.
    """
    query, tokens = problem.query, problem.memory.tokens
    _, height, width = problem.domain
    t, h, w = (
        torch.arange(first, first + n, device=device) for first, n in zip(problem.offset, query.size, strict=True)
    )
    positions = (t[:, None, None] * height + h[:, None]) * width + w
    position = to_cuboids(positions[None, ..., None], query).view(1, -1, 1, query.tokens, 1)
    blocks = -(-tokens // _COLUMNS)
    quad = torch.arange((blocks + -(-global_vectors // _COLUMNS)) * (_COLUMNS // WORDS), device=device)
    head = torch.arange(problem.heads, device=device).view(1, 1, -1, 1, 1)
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    words = philox(problem.seed, (position, quad, head, sample))
    kept = torch.stack([word >= problem.drop_below for word in words], dim=-1)
    # Words (last 8, second) of 4 quads of a block of 16 columns
    kept = kept.unflatten(-2, (-1, 4)).unflatten(-1, (2, 2)).movedim(-2, -3).flatten(-4)
    if global_vectors or tokens % _COLUMNS:
        first = blocks * _COLUMNS
        kept = torch.cat([kept[..., :tokens], kept[..., first : first + global_vectors]], dim=-1)
    return kept.to(torch.float32).mul_(problem.keep_scale)


def resampled(inputs: Inputs, problem: Problem) -> Inputs:
    """Return the inputs resampled to the padded size, for padding ``nearest``."""
    query, memory = problem.query.padded, problem.memory.padded
    return inputs._replace(
        query=resample(inputs.query, query),
        memory=None if inputs.memory is None else resample(inputs.memory, memory),
        global_query=None if inputs.global_query is None else resample(inputs.global_query, query),
    )


def resample(x: Tensor, size: Triple) -> Tensor:
    """Return ``[B, T, H, W, F]`` resampled by nearest neighbor, with the indices of ``F.interpolate``.

    Uses indexing because the gradient of ``F.interpolate`` is not deterministic on CUDA.
    """
    for axis, length in enumerate(size, start=1):
        if x.shape[axis] != length:
            # In float32 as F.interpolate: for 22 and 26 this differs from the integer quotient.
            ratio = torch.tensor(x.shape[axis] / length, dtype=torch.float32, device=x.device)
            index = (torch.arange(length, device=x.device) * ratio).long().clamp_max(x.shape[axis] - 1)
            x = x.movedim(axis, 0)[index].movedim(0, axis)
    return x.contiguous()


def _differentiable(inputs: Inputs, options: Options) -> Tensor:
    problem = make_problem(inputs, options)
    if problem.padding != "nearest":
        return forward(inputs, problem)
    inputs = resampled(inputs, problem)
    return resample(forward(inputs, make_problem(inputs, options)), problem.query.size)


def _padded_and_rolled(x: Tensor, grid: Grid) -> Tensor:
    t, h, w = grid.padding
    if t or h or w:
        x = F.pad(x, (0, 0, 0, w, 0, h, 0, t))
    return x.roll([-s for s in grid.shift], (1, 2, 3)) if any(grid.shift) else x


def _unrolled(x: Tensor, grid: Grid) -> Tensor:
    if any(grid.shift):
        x = x.roll(list(grid.shift), (1, 2, 3))
    t, h, w = grid.size
    return x[:, :t, :h, :w].contiguous()


def _axes(grid: Grid) -> tuple[list[int], list[int], list[int]]:
    """Return T, H, W split into six axes of blocks and tokens, and the numbers (from 1) of block and token axes."""
    split: list[int] = []
    blocks, tokens = [], []
    for n, b, dilated in zip(grid.blocks, grid.cuboid, grid.dilated, strict=True):
        first = 1 + len(split)
        split += [b, n] if dilated else [n, b]
        blocks.append(first + 1 if dilated else first)
        tokens.append(first if dilated else first + 1)
    return split, blocks, tokens


def _cut(x: Tensor, grid: Grid) -> Tensor:
    split, blocks, tokens = _axes(grid)
    x = x.reshape(x.shape[0], *split, x.shape[-1]).permute(0, *blocks, *tokens, 7)
    return x.reshape(x.shape[0], grid.cuboids, grid.tokens, -1)


def _regions(grid: Grid, device: torch.device) -> Tensor:
    region = torch.zeros(grid.padded, dtype=torch.int64, device=device)
    for axis, (length, tokens, shift) in enumerate(zip(grid.padded, grid.cuboid, grid.shift, strict=True)):
        region = region * 3
        if shift:
            position = torch.arange(length, device=device)
            part = (position >= length - tokens).long() + (position >= length - shift).long()
            region = region + part.view([-1 if a == axis else 1 for a in range(3)])
    return _cut(region[None, ..., None], grid)[0, ..., 0]


def _global_heads(x: Tensor, problem: Problem, dtype: torch.dtype) -> Tensor:
    """Return ``[B, G, D]`` as ``[B, 1, heads, G, head size]``."""
    return x.to(dtype).unflatten(-1, (problem.heads, -1)).transpose(1, 2).unsqueeze(1)


def projections(inputs: Inputs, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v as ``[B, cuboids, heads, tokens, head size]``."""
    dtype = torch.float64 if inputs.query.dtype == torch.float64 else torch.float32
    if inputs.memory is None:
        q, k, v = to_cuboid_heads(inputs.query.to(dtype), problem.query, parts=3, heads=problem.heads)
        return q, k, v
    (q,) = to_cuboid_heads(inputs.query.to(dtype), problem.query, parts=1, heads=problem.heads)
    k, v = to_cuboid_heads(inputs.memory.to(dtype), problem.memory, parts=2, heads=problem.heads)
    return q, k, v


def softmax_weights(inputs: Inputs, problem: Problem, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return softmax weights ``[B, cuboids, heads, query tokens, keys]``, local-to-global query, dropout factors."""
    # In place: short cuboids are bound by memory.
    scores = (q @ k.mT).mul_(problem.scale)
    if inputs.bias is not None:
        scores = scores.add_(inputs.bias.to(scores.dtype))
    mask = attention_mask(problem, q.device)
    if mask is not None:
        # Not -inf: the row of a padded query may have no key and must not become NaN.
        scores = scores.masked_fill_(~mask[:, None], torch.finfo(scores.dtype).min)
    gq, count = q, 0
    if inputs.global_key is not None:
        count = inputs.global_key.shape[1]
        if inputs.global_query is not None:
            (gq,) = to_cuboid_heads(inputs.global_query.to(q.dtype), problem.query, parts=1, heads=problem.heads)
        global_scores = (gq @ _global_heads(inputs.global_key, problem, q.dtype).mT).mul_(problem.scale)
        scores = torch.cat([scores, global_scores], dim=-1)
    keep = None
    if problem.dropout > 0:
        keep = dropout_factors(problem, batch=q.shape[0], global_vectors=count, device=q.device)
    return scores.softmax(-1), gq, keep


def _merge(parts: Sequence[Tensor], grid: Grid) -> Tensor:
    """Return gradients ``[B, cuboids, heads, tokens, head size]`` concatenated as ``[B, T, H, W, parts * D]``."""
    first = parts[0]
    batch, _, heads, _, features = first.shape
    split, blocks, tokens = _axes(grid)
    merged = first.new_empty(batch, *split, len(parts), heads, features)
    slices = merged.permute(7, 0, *blocks, 8, *tokens, 9)
    for target, part in zip(slices, parts, strict=True):
        target.copy_(part.view(target.shape))
    return _unrolled(merged.view(batch, *grid.padded, -1), grid)
