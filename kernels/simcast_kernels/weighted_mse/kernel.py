"""Weighted MSE: loss and gradient in one pass over memory; the backward pass scales that gradient.

Shapes: N elements, all tensors contiguous and flat. With an fp32 prediction and a uint8 target the forward pass reads
5N bytes (6N with a mask) and writes 4N; without a gradient it writes one float per program. The backward pass reads 4N
and writes 4N. Each program writes the float32 partial sum of BLOCK * STEPS elements and PyTorch adds the partial sums:
no atomics, so results are bitwise reproducible. BLOCK and STEPS determine the summation order, so they are not
autotuned.
"""

# Pyright does not understand Triton constexpr arguments and tuples in jitted functions.
# pyright: reportArgumentType=false
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import Launch, interpreter_is_on

from .reference import comparison_values

# BLOCK gives 4 elements per thread, the 16 bytes of one fp32 store. With 8, target and gradient get different layouts,
# which Triton converts through shared memory (8 barriers in the PTX). STEPS amortizes one reduction over 4 blocks.
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
    inverse_scale,
    INCLUSIVE: tl.constexpr,
    BY_INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)  # int64: 64 x 20 x 1500 x 1500 pixels exceed 2**31
    total = tl.zeros((BLOCK,), tl.float32)
    for step in tl.static_range(STEPS):
        offset = first + step * BLOCK + tl.arange(0, BLOCK)
        valid = offset < numel
        # 1. Prediction, target, mask
        forecast = tl.load(prediction + offset, mask=valid, other=0.0).to(tl.float32)
        level = tl.load(target + offset, mask=valid, other=0).to(tl.float32)
        if mask is not None:
            # Masking the loads themselves would split them into scalar loads, so select afterwards.
            keep = tl.load(mask + offset, mask=valid, other=0) != 0
        # 2. Weight of each pixel
        weight = tl.zeros((BLOCK,), tl.float32) + weights[0]
        for i in tl.static_range(len(thresholds)):
            above = level >= thresholds[i] if INCLUSIVE else level > thresholds[i]
            weight = tl.where(above, weights[i + 1], weight)
        # 3. Weighted squared error and its gradient
        if target.dtype.element_ty == tl.uint8:
            # Correctly rounded: 219 * (1 / 255) is not 219 / 255. The division has a slow path, whose branch for each
            # element keeps the compiler from starting the loads of later steps.
            if BY_INVERSE:
                quotient = level * inverse_scale
                level = tl.fma(tl.fma(-quotient, code_scale, level), inverse_scale, quotient)
            else:
                level = tl.div_rn(level, code_scale)
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


def rounded(value: Fraction) -> Fraction:
    """Return the float32 number nearest to ``value``, ties to even, without limits of the exponent."""
    if value == 0:
        return value
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)  # of the last of 24 bits
    return round(value / unit) * unit


@lru_cache
def divides_by_inverse(code_scale: float) -> bool:
    """Return whether two fused multiply-adds with the reciprocal divide all 256 codes with correct rounding.

    Checked code by code in exact arithmetic. The reciprocal must be far from the limits of the exponent, so that no
    step overflows or underflows.
    """
    scale = rounded(Fraction(code_scale))
    inverse = rounded(1 / scale)
    if not 2.0**-60 < scale < 2.0**60:
        return False
    for code in range(256):
        quotient = rounded(code * inverse)
        remainder = rounded(code - quotient * scale)
        if rounded(quotient + remainder * inverse) != rounded(code / scale):
            return False
    return True


@lru_cache
def _inverse(code_scale: float) -> float:
    return float(rounded(1 / rounded(Fraction(code_scale))))


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
    # The interpreter rounds the product of tl.fma.
    by_inverse = target.dtype == torch.uint8 and not interpreter_is_on() and divides_by_inverse(code_scale)
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
            _inverse(code_scale),
        ),
        options={"INCLUSIVE": inclusive, "BY_INVERSE": by_inverse, **LOSS_OPTIONS},
    )


def scale_launch(gradient: Tensor, grad_output: Tensor, *, scaled: Tensor) -> Launch:
    """Return the launch that writes ``gradient * grad_output`` to ``scaled``, of the same shape and dtype."""
    return Launch(
        kernel=_scale_kernel,
        grid=(triton.cdiv(gradient.numel(), SCALE_OPTIONS["BLOCK"]),),
        arguments=(gradient, grad_output, scaled, gradient.numel()),
        options=SCALE_OPTIONS,
    )


def partial_count(numel: int) -> int:
    """Return the number of partial sums of a forward pass over ``numel`` elements: one per program."""
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
    """Compute :func:`.reference.loss_and_gradient` in one pass over memory, in float32."""
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
    """Return ``gradient * grad_output`` as a new tensor; ``grad_output`` is a scalar and stays on the device."""
    gradient = gradient.contiguous()
    scaled = torch.empty_like(gradient)
    scale_launch(gradient, grad_output, scaled=scaled).run()
    return scaled
