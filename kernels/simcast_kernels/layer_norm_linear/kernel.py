"""Layer norm and linear layers: the normed tensor lives in registers alone.

N bytes are one ``[rows, D]``, F N the results of all layers together. Forward: N read, F N written; PyTorch's own norm
and layers move 2 N more, and N more for each layer (the inputs of a level's first attention: 12 N, here 7 N). Backward:
F N and N read, N written; the normed tensor is written once for the gradients of the weights, which are PyTorch's own
products. Every row has one writer; gradients of the norm are partial sums, one a program.
"""

# Pyright misreads Triton constexpr arguments, and what a jitted function does with its tuples.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import interpreter_is_on
from simcast_kernels.launch import Launch

from .reference import Gradients, Inputs, of_layers

WIDEST = 1024


@triton.jit
def _statistics(x, row, there, eps, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return (rows normalised to mean 0 and variance 1, float32, 0 beyond WIDTH; their inverse deviations)."""
    column = tl.arange(0, BLOCK_D)
    inside = there[:, None] & (column < WIDTH)[None, :]
    value = tl.load(x + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value - (tl.sum(value, 1) / WIDTH)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / WIDTH + eps)
    return value * inverse[:, None], inverse


@triton.jit
def _per_column(vector, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    return tl.load(vector + column, mask=column < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    x,
    norm_weight,
    norm_bias,
    weights,
    biases,
    outs,
    rows,
    eps,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write BLOCK_M rows of every result."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = row < rows
    normed, _inverse = _statistics(x, row, there, eps, WIDTH, BLOCK_D)
    scale, shift = _per_column(norm_weight, WIDTH, BLOCK_D), _per_column(norm_bias, WIDTH, BLOCK_D)
    normed = (normed * scale[None, :] + shift[None, :]).to(DOT)
    depth = tl.arange(0, BLOCK_D)
    for part in tl.static_range(len(FEATURES)):
        for first in range(0, FEATURES[part], BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            known = column < FEATURES[part]
            address = weights[part] + column[None, :] * WIDTH + depth[:, None]
            weight = tl.load(address, mask=known[None, :] & (depth < WIDTH)[:, None], other=0.0)
            value = tl.dot(normed, weight.to(tl.float32).to(DOT), input_precision="ieee")
            if len(biases) > 0:
                value += tl.load(biases[part] + column, mask=known, other=0.0).to(tl.float32)[None, :]
            out = outs[part] + row[:, None] * FEATURES[part] + column[None, :]
            tl.store(out, value.to(outs[part].dtype.element_ty), mask=there[:, None] & known[None, :])


@triton.jit
def _rows_kernel(
    x,
    norm_weight,
    norm_bias,
    weights,
    grads,
    d_x,
    normed,
    partials,
    rows,
    eps,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """Write BLOCK_M rows of the gradient of x and of the normed tensor, and a partial sum of the norm's gradients."""
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_M + tl.arange(0, BLOCK_M)
    there = row < rows
    depth = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for part in tl.static_range(len(FEATURES)):
        for first in range(0, FEATURES[part], BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            known = column < FEATURES[part]
            address = grads[part] + row[:, None] * FEATURES[part] + column[None, :]
            grad = tl.load(address, mask=there[:, None] & known[None, :], other=0.0).to(tl.float32)
            address = weights[part] + column[:, None] * WIDTH + depth[None, :]
            weight = tl.load(address, mask=known[:, None] & (depth < WIDTH)[None, :], other=0.0).to(tl.float32)
            total += tl.dot(grad.to(DOT), weight.to(DOT), input_precision="ieee")
    unit, inverse = _statistics(x, row, there, eps, WIDTH, BLOCK_D)
    valid = there[:, None] & (depth < WIDTH)[None, :]
    at = row[:, None] * WIDTH + depth[None, :]
    scale, shift = _per_column(norm_weight, WIDTH, BLOCK_D), _per_column(norm_bias, WIDTH, BLOCK_D)
    if normed is not None:
        tl.store(normed + at, (unit * scale[None, :] + shift[None, :]).to(normed.dtype.element_ty), mask=valid)
    own = partials + program * (2 * WIDTH) + depth
    tl.store(own, tl.sum(total * unit, 0), mask=depth < WIDTH)
    tl.store(own + WIDTH, tl.sum(total, 0), mask=depth < WIDTH)
    total = total * scale[None, :]
    along, mean = tl.sum(total * unit, 1) / WIDTH, tl.sum(total, 1) / WIDTH
    total = (total - unit * along[:, None] - mean[:, None]) * inverse[:, None]
    tl.store(d_x + at, total.to(d_x.dtype.element_ty), mask=valid)


def refusal(inputs: Inputs) -> str:
    """Return why the kernel does not take a call, or an empty string."""
    width = inputs.x.shape[-1]
    return f"width {width} is more than {WIDEST}" if width > WIDEST else ""


def dispatched(inputs: Inputs) -> bool:
    """Return whether a call takes the kernel unasked.

    Float32 products without tf32 run on plain registers here, where cuBLAS has better ones; so unless
    ``SIMCAST_KERNELS=triton`` asks for the kernel, float32 layers are PyTorch's.
    """
    return inputs.weights[0].dtype != torch.float32


def forward(inputs: Inputs, eps: float) -> list[Tensor]:
    """Compute :func:`.reference.forward` in one pass over memory."""
    inputs = _contiguous(inputs)
    outs = [w.new_empty(*inputs.x.shape[:-1], w.shape[0]) for w in inputs.weights]
    forward_launch(inputs, eps, outs=outs).run()
    return outs


def backward(inputs: Inputs, grads: Sequence[Tensor], eps: float, *, with_layers: bool) -> Gradients:
    """Compute :func:`.reference.backward`."""
    inputs, width = _contiguous(inputs), inputs.x.shape[-1]
    flat = [grad.reshape(-1, grad.shape[-1]).contiguous() for grad in grads]
    d_x, normed, partials = buffers(inputs)
    normed = normed if with_layers else None
    backward_launch(inputs, flat, eps, d_x=d_x, normed=normed, partials=partials).run()
    norm = partials.sum(0).view(2, width).to(inputs.norm_weight.dtype)
    layers = ([], []) if normed is None else of_layers(inputs, normed, flat)
    return Gradients(d_x, norm[0].clone(), norm[1].clone(), *layers)


def buffers(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the backward's launch fills: gradient of x, normed rows, partial sums of the norm's gradients."""
    x, width = inputs.x, inputs.x.shape[-1]
    normed = inputs.weights[0].new_empty(x.numel() // width, width)
    return torch.empty_like(x), normed, x.new_empty(_programs(inputs, _options(inputs)), 2 * width, dtype=torch.float32)


def forward_launch(inputs: Inputs, eps: float, *, outs: Sequence[Tensor]) -> Launch:
    """Return the launch that writes ``outs``."""
    x, norm_weight, norm_bias, weights, biases = inputs
    options = _forward_options(inputs)
    return Launch(
        kernel=_forward_kernel,
        dispatched=dispatched(inputs),
        grid=(_programs(inputs, options),),
        arguments=(x, norm_weight, norm_bias, tuple(weights), tuple(biases), tuple(outs), _rows(inputs), eps),
        options=options,
    )


def backward_launch(
    inputs: Inputs, grads: Sequence[Tensor], eps: float, *, d_x: Tensor, normed: Tensor | None, partials: Tensor
) -> Launch:
    """Return the launch that fills :func:`buffers` from ``grads``, each ``[rows, F]``; ``normed`` if it is given."""
    x, norm_weight, norm_bias, weights, _ = inputs
    written = (d_x, normed, partials)
    return Launch(
        kernel=_rows_kernel,
        dispatched=dispatched(inputs),
        grid=(_programs(inputs, _options(inputs)),),
        arguments=(x, norm_weight, norm_bias, tuple(weights), tuple(grads), *written, _rows(inputs), eps),
        options=_options(inputs, warps=8),  # it holds two tiles; with 4 warps it needs all registers there are
    )


def _rows(inputs: Inputs) -> int:
    return inputs.x.numel() // inputs.x.shape[-1]


def _programs(inputs: Inputs, options: dict) -> int:
    return -(-_rows(inputs) // options["BLOCK_M"])


def _options(inputs: Inputs, *, warps: int = 4) -> dict:
    """Return constants and tiles; a tile of rows in float32 takes 64 registers a thread of 4 warps."""
    width, exact = inputs.x.shape[-1], inputs.weights[0].dtype == torch.float32
    block_d = max(16, 1 << (width - 1).bit_length())
    block_m = max(16, min(64, 8192 // block_d))
    return {
        "WIDTH": width,
        "FEATURES": tuple(weight.shape[0] for weight in inputs.weights),
        "BLOCK_M": block_m,
        "BLOCK_N": 16 if exact else max(16, min(64, 8192 // block_d)),
        "BLOCK_D": block_d,
        "DOT": tl.float32 if exact or interpreter_is_on() else tl.bfloat16,
        "num_warps": warps,
        "num_stages": 2 if block_d < 1024 else 1,  # each holds a tile of a layer in shared memory
    }


def _forward_options(inputs: Inputs) -> dict:
    """Return constants and tiles of the forward, which holds one tile of rows.

    At 256 wide, 32 rows a program spill a few bytes on one target or another, however warps and stages are chosen;
    64 rows of 8 warps do not on any, and read each layer half as often.
    """
    options = _options(inputs)
    return options | {"BLOCK_M": 64, "num_warps": 8} if options["BLOCK_D"] == 256 else options


def _contiguous(inputs: Inputs) -> Inputs:
    x, norm_weight, norm_bias, weights, biases = inputs
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    return Inputs(x.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), weights, biases)
