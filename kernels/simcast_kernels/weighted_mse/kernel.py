"""Weighted MSE: loss and gradient in one pass over memory; the backward scales that gradient.

Shapes: N elements, all tensors contiguous and read flat. With an fp32 prediction and uint8 codes the forward reads 5N
bytes (6N with a mask) and writes 4N; without a gradient it writes one float a program. The backward reads 4N and
writes 4N. Each program sums BLOCK * STEPS elements into a float32 partial of its own and PyTorch sums the partials: no
atomics, so the same input gives the same bits. BLOCK and STEPS fix the order of that sum, so they are not autotuned.
"""

# Pyright misreads Triton constexpr arguments, and what a jitted function does with its tuples.
# pyright: reportArgumentType=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.launch import Launch

from .reference import comparison_values

# BLOCK is 4 elements a thread, the 16 bytes of one fp32 store: with 8, codes and gradient get different layouts, and
# Triton exchanges them through shared memory (8 barriers, seen in the PTX). STEPS spreads one reduction over 4 blocks.
LOSS_OPTIONS = {"BLOCK": 1024, "STEPS": 4, "num_warps": 8}
SCALE_OPTIONS = {"BLOCK": 4096, "num_warps": 8}


@triton.jit
def _loss_kernel(
    prediction,
    target,
    mask,
    partials,
    gradient,
    thresholds,
    weights,
    numel,
    inverse_numel,
    code_scale,
    INCLUSIVE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)  # int64: 64 x 20 x 1500 x 1500 pixels are past 2**31
    total = tl.zeros((BLOCK,), tl.float32)
    for step in tl.static_range(STEPS):
        offset = first + step * BLOCK + tl.arange(0, BLOCK)
        valid = offset < numel
        forecast = tl.load(prediction + offset, mask=valid, other=0.0).to(tl.float32)
        level = tl.load(target + offset, mask=valid, other=0).to(tl.float32)
        if mask is not None:
            # A predicate of its own for each element would split the loads into scalars: select after them.
            keep = tl.load(mask + offset, mask=valid, other=0) != 0
        weight = tl.zeros((BLOCK,), tl.float32) + weights[0]
        for i in tl.static_range(len(thresholds)):
            above = level >= thresholds[i] if INCLUSIVE else level > thresholds[i]
            weight = tl.where(above, weights[i + 1], weight)
        if target.dtype.element_ty == tl.uint8:
            level = tl.div_rn(level, code_scale)  # correctly rounded: 219 * (1 / 255) is not 219 / 255
        difference = forecast - level
        if mask is not None:
            difference = tl.where(keep, difference, 0.0)
        weighted = weight * difference
        total += weighted * difference
        if gradient is not None:
            out = (weighted * (2.0 * inverse_numel)).to(gradient.dtype.element_ty)
            tl.store(gradient + offset, out, mask=valid)
    tl.store(partials + tl.program_id(0), tl.sum(total) * inverse_numel)


@triton.jit
def _scale_kernel(gradient, grad_output, scaled, numel, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < numel
    factor = tl.load(grad_output).to(tl.float32)
    value = tl.load(gradient + offset, mask=valid, other=0.0).to(tl.float32) * factor
    tl.store(scaled + offset, value.to(scaled.dtype.element_ty), mask=valid)


def loss_launch(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    *,
    partials: Tensor,
    gradient: Tensor | None,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool,
    code_scale: float,
) -> Launch:
    """Return the launch that writes ``partials`` (float32 ``[partial_count(numel)]``) and, if given, ``gradient``."""
    numel = prediction.numel()
    values = comparison_values(thresholds, target.dtype, inclusive=inclusive, code_scale=code_scale)
    return Launch(
        kernel=_loss_kernel,
        grid=(partial_count(numel),),
        arguments=(
            prediction,
            target,
            None if mask is None else mask.view(torch.uint8),
            partials,
            gradient,
            values,
            tuple(map(float, weights)),
            numel,
            1.0 / numel,
            float(code_scale),
        ),
        options={"INCLUSIVE": inclusive, **LOSS_OPTIONS},
    )


def scale_launch(gradient: Tensor, grad_output: Tensor, *, scaled: Tensor) -> Launch:
    """Return the launch that writes ``gradient * grad_output`` into ``scaled``, of the same shape and dtype."""
    return Launch(
        kernel=_scale_kernel,
        grid=(triton.cdiv(gradient.numel(), SCALE_OPTIONS["BLOCK"]),),
        arguments=(gradient, grad_output, scaled, gradient.numel()),
        options=SCALE_OPTIONS,
    )


def partial_count(numel: int) -> int:
    """Return how many partial sums the forward of ``numel`` elements writes: one a program."""
    return -(-numel // (LOSS_OPTIONS["BLOCK"] * LOSS_OPTIONS["STEPS"]))


def loss_and_gradient(
    prediction: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool,
    code_scale: float,
    mask: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`.reference.loss_and_gradient` in one pass, in float32 inside."""
    prediction, target = prediction.contiguous(), target.contiguous()
    mask = None if mask is None else mask.contiguous()
    partials = prediction.new_empty(partial_count(prediction.numel()), dtype=torch.float32)
    gradient = torch.empty_like(prediction) if with_gradient else None
    loss_launch(
        prediction,
        target,
        mask,
        partials=partials,
        gradient=gradient,
        thresholds=thresholds,
        weights=weights,
        inclusive=inclusive,
        code_scale=code_scale,
    ).run()
    return partials.sum(), gradient


def scale(gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Return ``gradient * grad_output`` in a fresh tensor; ``grad_output`` is a scalar and stays on the device."""
    gradient = gradient.contiguous()
    scaled = torch.empty_like(gradient)
    scale_launch(gradient, grad_output, scaled=scaled).run()
    return scaled
