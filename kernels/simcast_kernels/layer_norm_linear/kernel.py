"""Layer norm and linear layers: the normalized tensor stays in registers.

N bytes are one ``[rows, D]`` tensor, F N the results of all layers. Forward: reads N, writes F N; PyTorch's separate
norm and layers move 2 N more, and N more per layer (first attention of a level: 12 N, here 7 N). Backward: reads F N
and N, writes N; the normalized tensor is written once for the gradients of the weights, which are PyTorch matmuls.
Every row has one writer; gradients of the norm are partial sums, one per program.
"""

# Pyright does not understand Triton constexpr arguments and tuples in jitted functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import Launch, interpreter_is_on

from .reference import Gradients, Inputs, layer_gradients

WIDEST, WIDEST_DISPATCHED = 1024, 256
# (width, backward): rows and features per tile, warps, stages; for bfloat16 layers of the widths of published models
TILES = {
    (128, False): (128, 128, 8, 2),
    (128, True): (128, 64, 8, 3),
    (256, False): (128, 64, 8, 2),
    (256, True): (64, 64, 8, 2),
}


@triton.jit
def _statistics(x, row, is_row, eps, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return (rows normalized to mean 0 and variance 1, float32, 0 beyond WIDTH; reciprocal standard deviations)."""
    column = tl.arange(0, BLOCK_D)
    inside = is_row[:, None] & (column < WIDTH)[None, :]
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
    # 1. Normalized rows
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < rows
    normed, _inverse = _statistics(x, row, is_row, eps, WIDTH, BLOCK_D)
    scale, shift = _per_column(norm_weight, WIDTH, BLOCK_D), _per_column(norm_bias, WIDTH, BLOCK_D)
    normed = (normed * scale[None, :] + shift[None, :]).to(DOT)
    # 2. Matmul of every layer, BLOCK_N features at a time
    depth = tl.arange(0, BLOCK_D)
    for part in tl.static_range(len(FEATURES)):
        for first in range(0, FEATURES[part], BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            is_feature = column < FEATURES[part]
            address = weights[part] + column[None, :] * WIDTH + depth[:, None]
            weight = tl.load(address, mask=is_feature[None, :] & (depth < WIDTH)[:, None], other=0.0)
            value = tl.dot(normed, weight.to(tl.float32).to(DOT), input_precision="ieee")
            if len(biases) > 0:
                value += tl.load(biases[part] + column, mask=is_feature, other=0.0).to(tl.float32)[None, :]
            out = outs[part] + row[:, None] * FEATURES[part] + column[None, :]
            tl.store(out, value.to(outs[part].dtype.element_ty), mask=is_row[:, None] & is_feature[None, :])


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
    """Write BLOCK_M rows of the gradient of x and of the normalized tensor, and partial sums for the norm."""
    # 1. Gradient of the normalized rows: sum over the layers
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < rows
    depth = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for part in tl.static_range(len(FEATURES)):
        for first in range(0, FEATURES[part], BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            is_feature = column < FEATURES[part]
            address = grads[part] + row[:, None] * FEATURES[part] + column[None, :]
            grad = tl.load(address, mask=is_row[:, None] & is_feature[None, :], other=0.0).to(tl.float32)
            address = weights[part] + column[:, None] * WIDTH + depth[None, :]
            weight = tl.load(address, mask=is_feature[:, None] & (depth < WIDTH)[None, :], other=0.0).to(tl.float32)
            total += tl.dot(grad.to(DOT), weight.to(DOT), input_precision="ieee")
    # 2. Normalized rows again, stored for the gradients of the weights
    unit, inverse = _statistics(x, row, is_row, eps, WIDTH, BLOCK_D)
    valid = is_row[:, None] & (depth < WIDTH)[None, :]
    at = row[:, None] * WIDTH + depth[None, :]
    scale, shift = _per_column(norm_weight, WIDTH, BLOCK_D), _per_column(norm_bias, WIDTH, BLOCK_D)
    if normed is not None:
        tl.store(normed + at, (unit * scale[None, :] + shift[None, :]).to(normed.dtype.element_ty), mask=valid)
    # 3. Gradients of the norm: partial sums over BLOCK_M rows
    address = partials + program * (2 * WIDTH) + depth
    tl.store(address, tl.sum(total * unit, 0), mask=depth < WIDTH)
    tl.store(address + WIDTH, tl.sum(total, 0), mask=depth < WIDTH)
    # 4. Gradient of x
    total = total * scale[None, :]
    along, mean = tl.sum(total * unit, 1) / WIDTH, tl.sum(total, 1) / WIDTH
    total = (total - unit * along[:, None] - mean[:, None]) * inverse[:, None]
    tl.store(d_x + at, total.to(d_x.dtype.element_ty), mask=valid)


def unsupported(inputs: Inputs) -> str:
    """Return the reason why the kernel does not support a call, or an empty string."""
    width = inputs.x.shape[-1]
    return f"width {width} is more than {WIDEST}" if width > WIDEST else ""


def dispatched(inputs: Inputs) -> bool:
    """Return whether a call runs the kernel by default; ``SIMCAST_KERNELS=triton`` overrides it.

    Others are computed by PyTorch, a layer norm and one matmul per layer. Float32 matmuls without tf32 do not use the
    matrix units. Rows wider than ``WIDEST_DISPATCHED`` leave registers for only 16 rows per program, and every program
    reads all weights: L2 moves rows / 16 times the weights, several times more than cuBLAS.
    """
    return inputs.weights[0].dtype != torch.float32 and inputs.x.shape[-1] <= WIDEST_DISPATCHED


def forward(inputs: Inputs, eps: float) -> list[Tensor]:
    """Compute :func:`.reference.forward` in one pass over memory."""
    inputs = prepared(inputs)
    outs = [w.new_empty(*inputs.x.shape[:-1], w.shape[0]) for w in inputs.weights]
    forward_launch(inputs, eps, outs=outs).run()
    return outs


def backward(inputs: Inputs, grads: Sequence[Tensor], eps: float, *, with_layers: bool) -> Gradients:
    """Compute :func:`.reference.backward`."""
    inputs, width = prepared(inputs), inputs.x.shape[-1]
    flat = [grad.reshape(-1, grad.shape[-1]).contiguous() for grad in grads]
    d_x, normed, partials = buffers(inputs)
    normed = normed if with_layers else None
    backward_launch(inputs, flat, eps, d_x=d_x, normed=normed, partials=partials).run()
    # Separate sums: the results of an operator must not share memory.
    norm = [partials[:, first : first + width].sum(0).to(inputs.norm_weight.dtype) for first in (0, width)]
    layers = ([], []) if normed is None else layer_gradients(inputs, normed, flat)
    return Gradients(d_x, norm[0], norm[1], *layers)


def buffers(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of the backward launch: gradient of x, normalized rows, partial sums for the norm."""
    x, width = inputs.x, inputs.x.shape[-1]
    normed = inputs.weights[0].new_empty(x.numel() // width, width)
    programs = _programs(inputs, _options(inputs, backward=True))
    return torch.empty_like(x), normed, x.new_empty(programs, 2 * width, dtype=torch.float32)


def forward_launch(inputs: Inputs, eps: float, *, outs: Sequence[Tensor]) -> Launch:
    """Return the launch that writes ``outs``."""
    x, norm_weight, norm_bias, weights, biases = inputs
    options = _options(inputs, backward=False)
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
    """Return the launch that writes :func:`buffers` from ``grads``, each ``[rows, F]``; ``normed`` may be None."""
    x, norm_weight, norm_bias, weights, _ = inputs
    written, options = (d_x, normed, partials), _options(inputs, backward=True)
    return Launch(
        kernel=_rows_kernel,
        dispatched=dispatched(inputs),
        grid=(_programs(inputs, options),),
        arguments=(x, norm_weight, norm_bias, tuple(weights), tuple(grads), *written, _rows(inputs), eps),
        options=options,
    )


def _rows(inputs: Inputs) -> int:
    return inputs.x.numel() // inputs.x.shape[-1]


def _programs(inputs: Inputs, options: dict) -> int:
    return -(-_rows(inputs) // options["BLOCK_M"])


def _options(inputs: Inputs, *, backward: bool) -> dict:
    """Return constants and tile sizes.

    Every program reads all weights, so more rows per program move fewer bytes through L2: as many as fit in registers
    without a spill on any target (benchmarks/compiled.csv).
    """
    width, exact = inputs.x.shape[-1], inputs.weights[0].dtype == torch.float32
    block_d = max(16, 1 << (width - 1).bit_length())
    few = max(16, min(64, 8192 // block_d))
    # By default 4 warps, whose threads hold 64 float32 values of the rows each; backward holds two tiles of rows.
    block_m, block_n, warps, stages = few, few, 8 if backward else 4, 2 if block_d < 1024 else 1
    if exact:
        block_n = 16
    if block_d == 256 and not backward:
        block_m, warps = 64, 8  # with 32 rows it spills a few bytes on some target
    if width in (128, 256) and not exact:
        block_m, block_n, warps, stages = TILES[width, backward]
    return {
        "WIDTH": width,
        "FEATURES": tuple(weight.shape[0] for weight in inputs.weights),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "DOT": tl.float32 if exact or interpreter_is_on() else tl.bfloat16,
        "num_warps": warps,
        "num_stages": stages,  # each stage holds a tile of weights in shared memory
    }


def prepared(inputs: Inputs) -> Inputs:
    """Return the inputs contiguous, and copies of weights that do not start at a multiple of 16 bytes.

    Every program reads all weights. Misaligned ones would be loaded element by element, without asynchronous copies;
    the copy moves them once.
    """
    x, norm_weight, norm_bias, weights, biases = inputs
    weights, biases = [_aligned(w.contiguous()) for w in weights], [b.contiguous() for b in biases]
    return Inputs(x.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), weights, biases)


def _aligned(weight: Tensor) -> Tensor:
    return weight.clone() if weight.data_ptr() % 16 else weight
