"""Time cuboid_attention: PyTorch, eager PyTorch in the dtype of the inputs, torch.compile, SDPA and the op in one run.

    PYTHONPATH=kernels python -m benchmarks.cuboid_attention [--case NAME] [--mode full] [--device cpu]

Every provider starts from the projection ``[B, T, H, W, 3 D]`` and ends with ``[B, T, H, W, D]``, so reordering tokens
into cuboids is included. ``eager`` does what the published Earthformer does under autocast: matmuls in the dtype of the
inputs, softmax in float32. ``sdpa`` materializes bias and mask; ``flex`` (FlexAttention, CUDA only) evaluates them per
score; a separate local-to-global query doubles the head size of these two. With dropout only ``pytorch``, the
reference, is compared: the others drop other weights.

The gradient of the projection is timed; the backward kernel of the op computes all other gradients with it.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.cuboid_attention_cases import CuboidAttentionCase
from benchmarks.harness import main
from benchmarks.providers import Benchmark, Provider, compiled, op_providers
from simcast_kernels.cuboid_attention.geometry import Inputs, Options, Problem, make_problem
from simcast_kernels.cuboid_attention.reference import attention_mask, from_cuboids, to_cuboids

INTERPRETER_BYTES = 80_000
CPU_BYTES = 30_000_000
# Baselines round scores and weights to bfloat16 in memory; the op does not.
SLACK = 4.0


def tensors(case: CuboidAttentionCase, device: str, seed: int) -> tuple[Any, ...]:
    """Return one set of arguments in the order of :class:`Inputs`."""
    return tuple(Inputs(**case.tensors(device, seed=seed)))


def exact(case: CuboidAttentionCase, *inputs: Tensor | None) -> Tensor:
    """Return the exact result in float64."""
    return case.attention({name: x.double() for name, x in _named(inputs).items()}, reference=True)


def providers(case: CuboidAttentionCase, device: str) -> Sequence[Provider]:
    """Return the providers for a case and device, the reference expression first."""

    def attention(*inputs: Tensor | None, reference: bool = False) -> Tensor:
        return case.attention(_named(inputs), reference=reference)

    if device == "cpu" and case.bytes_moved("forward") > CPU_BYTES:
        return []
    candidates = [Provider(name="pytorch", function=functools.partial(attention, reference=True))]
    if case.dropout == 0:
        eager = functools.partial(_eager, case)
        baselines = {"eager": eager, "compiled": compiled(eager), "sdpa": functools.partial(_sdpa, case)}
        if device == "cuda":
            baselines["flex"] = compiled(functools.partial(_flex, case))
        slack = SLACK if case.dtype == torch.bfloat16 else 1.0
        candidates += [Provider(name=name, function=function, slack=slack) for name, function in baselines.items()]
    interpret = case.bytes_moved("forward") <= INTERPRETER_BYTES
    return [*candidates, *op_providers(attention, device, interpret=interpret)]


def _eager(case: CuboidAttentionCase, *inputs: Tensor | None) -> Tensor:
    inputs_, problem = _problem(case, inputs)
    q, k, v, gq, gk, gv = _cuboid_heads(inputs_, problem)
    scores = q @ k.mT * problem.scale
    if inputs_.bias is not None:
        scores = scores + inputs_.bias.to(q.dtype)
    allowed = attention_mask(problem, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
    if gk is not None:
        scores = torch.cat([scores, gq @ gk.mT * problem.scale], dim=-1)
        v = torch.cat([v, gv.expand(-1, v.shape[1], -1, -1, -1)], dim=-2)
    out = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return from_cuboids(out.transpose(2, 3).flatten(3), problem.query)


def _sdpa(case: CuboidAttentionCase, *inputs: Tensor | None) -> Tensor:
    inputs_, problem = _problem(case, inputs)
    q, k, v = _with_global(*_cuboid_heads(inputs_, problem))
    mask = _materialized(inputs_, problem, k.shape[-2], q)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*flat, attn_mask=mask, scale=problem.scale).unflatten(0, q.shape[:2])
    return from_cuboids(out.transpose(2, 3).flatten(3), problem.query)


def _flex(case: CuboidAttentionCase, *inputs: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    inputs_, problem = _problem(case, inputs)
    q, k, v = _with_global(*_cuboid_heads(inputs_, problem))
    cuboids, tokens = problem.memory.cuboids, problem.memory.tokens
    allowed, bias = attention_mask(problem, q.device), inputs_.bias

    def score(value, batch, head, row, column):
        local = column < tokens
        inside = torch.where(local, column, 0)
        if bias is not None:
            value = torch.where(local, value + bias[head, row, inside], value)
        if allowed is not None:
            value = torch.where(~local | allowed[batch % cuboids, row, inside], value, -float("inf"))
        return value

    flat = (x.flatten(0, 1) for x in (q, k, v))
    out = flex_attention(*flat, score_mod=score, scale=problem.scale)
    assert isinstance(out, Tensor)
    return from_cuboids(out.unflatten(0, q.shape[:2]).transpose(2, 3).flatten(3), problem.query)


def _named(inputs: Sequence[Tensor | None]) -> dict[str, Tensor]:
    return {name: x for name, x in zip(Inputs._fields, inputs, strict=True) if x is not None}


def _problem(case: CuboidAttentionCase, inputs: Sequence[Tensor | None]) -> tuple[Inputs, Problem]:
    rest = _named(inputs)
    inputs_ = Inputs(rest.pop("query"), **rest)
    return inputs_, make_problem(inputs_, Options(**case.options))


def _cuboid_heads(inputs_: Inputs, problem: Problem) -> tuple:
    """Return q, k, v and the global query, key, value or None, each ``[B, cuboids or 1, heads, tokens, head size]``."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (problem.heads, -1)).transpose(2, 3)

    query = to_cuboids(inputs_.query, problem.query)
    q, k, v = (
        query.chunk(3, -1)
        if inputs_.memory is None
        else (query, *to_cuboids(inputs_.memory, problem.memory).chunk(2, -1))
    )
    q, k, v = heads(q), heads(k), heads(v)
    if inputs_.global_key is None or inputs_.global_value is None:
        return q, k, v, None, None, None
    gq = q if inputs_.global_query is None else heads(to_cuboids(inputs_.global_query, problem.query))
    return q, k, v, gq, heads(inputs_.global_key[:, None]), heads(inputs_.global_value[:, None])


def _with_global(q, k, v, gq, gk, gv) -> tuple[Tensor, Tensor, Tensor]:
    if gk is None:
        return q, k, v
    if gq is not q:
        q, k, gk = torch.cat([q, gq], dim=-1), F.pad(k, (0, k.shape[-1])), F.pad(gk, (k.shape[-1], 0))
    k, v = (torch.cat([x, g.expand(-1, x.shape[1], -1, -1, -1)], dim=-2) for x, g in ((k, gk), (v, gv)))
    return q, k, v


def _materialized(inputs_: Inputs, problem: Problem, keys: int, q: Tensor) -> Tensor | None:
    """Return bias and mask of every cuboid of a batch, ``[B x cuboids, heads, query tokens, keys]``, or None."""
    allowed = attention_mask(problem, q.device)
    if inputs_.bias is None and allowed is None:
        return None
    shape = (problem.query.cuboids, problem.heads, problem.query.tokens, problem.memory.tokens)
    mask = torch.zeros(shape, dtype=q.dtype, device=q.device)
    if inputs_.bias is not None:
        mask = mask + inputs_.bias.to(q.dtype)
    if allowed is not None:
        mask = mask.masked_fill(~allowed[:, None], -float("inf")).masked_fill(~allowed.any(-1)[:, None, :, None], 0)
    mask = F.pad(mask, (0, keys - mask.shape[-1]))
    return mask.repeat(q.shape[0], 1, 1, 1)


BENCHMARK = Benchmark(op="cuboid_attention", tensors=tensors, providers=providers, exact=exact)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
