"""Adaptive layer norm with a gated residual connection: one pass forward, one pass backward.

Shapes: N samples of L tokens of D features, R = N L rows, tensors contiguous; shift, scale and gate ``[N, D]`` with
any stride between samples, so that chunks of one projection are not copied. With n = R D elements the forward pass
reads 2n and writes 2n (without a branch 1n each), and stores mean and reciprocal standard deviation of each row in
float32; the backward pass reads 4n and writes 2n (without a branch 2n to 3n and 1n). The gradients of shift, scale and
gate are sums over L: each program writes a partial sum over its rows and PyTorch adds them, in an order that depends
on the shape only. A row fits one tile; D is padded to a power of two by masked lanes, which move no memory. The
backward pass splits rows of more than 512 features into a head and a tail of powers of two, 1152 into 1024 and 128, so
that few lanes are masked. D is a constant of the compiled code, so that accesses beyond it are removed.
"""

# Pyright does not understand Triton constexpr arguments and optional tensors in jitted functions.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import Launch

TILE = 2048  # elements per tile
ROWS = 16  # rows of a tile at most
SPLIT = 512  # features; wider rows are split and prefetched in the backward pass
PROGRAMS = 528  # of the backward pass: four per multiprocessor of an H200
LEAST_ROWS = 16  # per program of the backward pass; half as many programs if there would be fewer
MAX_FEATURES = 4096


@triton.jit
def _forward_kernel(
    x,
    branch,
    gate,
    shift,
    scale,
    modulated,
    carried,
    mean,
    rstd,
    gate_stride,
    shift_stride,
    scale_stride,
    tokens,
    tiles,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    token = (program % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)[None, :]
    is_token, is_feature = token < tokens, column < WIDTH
    valid = is_token[:, None] & is_feature
    row = sample * tokens + token
    offset = row[:, None] * WIDTH + column
    # 1. Gated residual connection
    value = tl.load(x + offset, mask=valid, other=0.0).to(tl.float32)
    if branch is not None:
        factor = tl.load(gate + sample * gate_stride + column, mask=is_feature, other=0.0).to(tl.float32)
        value += factor * tl.load(branch + offset, mask=valid, other=0.0).to(tl.float32)
        stored = value.to(carried.dtype.element_ty)
        tl.store(carried + offset, stored, mask=valid)
        value = stored.to(tl.float32)  # normalize the stored (rounded) value, which the backward pass reads
    # 2. Layer norm
    row_mean = tl.sum(value, axis=1) / WIDTH
    centred = tl.where(valid, value - row_mean[:, None], 0.0)
    row_rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    tl.store(mean + row, row_mean, mask=is_token)
    tl.store(rstd + row, row_rstd, mask=is_token)
    # 3. Modulation
    one_plus_scale = 1.0 + tl.load(scale + sample * scale_stride + column, mask=is_feature, other=0.0).to(tl.float32)
    shift_row = tl.load(shift + sample * shift_stride + column, mask=is_feature, other=0.0).to(tl.float32)
    result = centred * row_rstd[:, None] * one_plus_scale + shift_row
    tl.store(modulated + offset, result.to(modulated.dtype.element_ty), mask=valid)


@triton.jit
def _columns(vector, column, WIDTH: tl.constexpr):
    """Return the features ``column`` of a vector in float32, ``[1, columns]``."""
    return tl.load(vector + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_part(grad_modulated, carried, base, offset, valid, row_mean, row_rstd, one_plus_scale):
    """Return gradient, normalized value, and gradient with respect to that value, of some columns of a tile.

    Masked columns have gradient 0, so they add nothing to a sum; masked rows have mean and deviation 0.
    """
    grad = tl.load(grad_modulated + base + offset, mask=valid, other=0.0).to(tl.float32)
    value = tl.load(carried + base + offset, mask=valid, other=0.0).to(tl.float32)
    return grad, (value - row_mean) * row_rstd, grad * one_plus_scale


@triton.jit
def _store_part(
    grad_carried,
    branch,
    grad_x,
    grad_branch,
    base,
    offset,
    valid,
    inner,
    normed,
    row_rstd,
    across,
    along,
    factor,
    to_gate,
):
    """Write the gradients of x and branch of some columns of a tile; return the sum for gate."""
    back = inner * row_rstd - across
    if grad_carried is not None:
        back += tl.load(grad_carried + base + offset, mask=valid, other=0.0).to(tl.float32)
    back -= normed * along
    tl.store(grad_x + base + offset, back.to(grad_x.dtype.element_ty), mask=valid)
    if branch is not None:
        to_gate += tl.load(branch + base + offset, mask=valid, other=0.0).to(tl.float32) * back
        tl.store(grad_branch + base + offset, (factor * back).to(grad_branch.dtype.element_ty), mask=valid)
    return to_gate


@triton.jit
def _store_sums(partials, first, column, sums, WIDTH: tl.constexpr):
    """Write the sums over the rows of some columns of a tile."""
    tl.store(partials + first + column, tl.sum(sums, axis=0), mask=column < WIDTH)


# rows depends on the shape: specialized on it, the kernel would be compiled for more shapes.
@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_modulated,
    grad_carried,
    carried,
    branch,
    gate,
    scale,
    mean,
    rstd,
    grad_x,
    grad_branch,
    shift_partials,
    scale_partials,
    gate_partials,
    gate_stride,
    scale_stride,
    tokens,
    parts,
    rows,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // parts).to(tl.int64)
    first = (program % parts) * rows
    end = tl.minimum(first + rows, tokens)
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL else 1)
    scale += sample * scale_stride
    head_scale, head_gate = 1.0 + _columns(scale, head, WIDTH), 0.0
    head_to_shift = tl.zeros((BLOCK_R, HEAD), tl.float32)
    head_to_scale = tl.zeros((BLOCK_R, HEAD), tl.float32)
    head_to_gate = tl.zeros((BLOCK_R, HEAD), tl.float32)
    if TAIL:
        tail_scale, tail_gate = 1.0 + _columns(scale, tail, WIDTH), 0.0
        tail_to_shift = tl.zeros((BLOCK_R, TAIL), tl.float32)
        tail_to_scale = tl.zeros((BLOCK_R, TAIL), tl.float32)
        tail_to_gate = tl.zeros((BLOCK_R, TAIL), tl.float32)
    if branch is not None:
        gate += sample * gate_stride
        head_gate = _columns(gate, head, WIDTH)
        if TAIL:
            tail_gate = _columns(gate, tail, WIDTH)
    row = tl.arange(0, BLOCK_R)
    head_offset, tail_offset = row[:, None] * WIDTH + head[None, :], row[:, None] * WIDTH + tail[None, :]
    for start in tl.range(first, end, BLOCK_R, num_stages=STAGES):
        is_token = row < end - start
        head_valid = is_token[:, None] & (head < WIDTH)[None, :]
        at = sample * tokens + start
        base = at * WIDTH
        # 1. Gradient of x through the layer norm
        row_mean = tl.load(mean + at + row, mask=is_token, other=0.0)[:, None]
        row_rstd = tl.load(rstd + at + row, mask=is_token, other=0.0)[:, None]
        grad, normed, inner = _load_part(
            grad_modulated, carried, base, head_offset, head_valid, row_mean, row_rstd, head_scale
        )
        across, along = tl.sum(inner, axis=1), tl.sum(inner * normed, axis=1)
        if TAIL:
            tail_valid = is_token[:, None] & (tail < WIDTH)[None, :]
            tail_grad, tail_normed, tail_inner = _load_part(
                grad_modulated, carried, base, tail_offset, tail_valid, row_mean, row_rstd, tail_scale
            )
            across += tl.sum(tail_inner, axis=1)
            along += tl.sum(tail_inner * tail_normed, axis=1)
        across, along = across[:, None] / WIDTH * row_rstd, along[:, None] / WIDTH * row_rstd
        # 2. Sums for shift, scale and gate; gradients of x and the branch
        head_to_shift += grad
        head_to_scale += grad * normed
        head_to_gate = _store_part(
            grad_carried, branch, grad_x, grad_branch, base, head_offset, head_valid, inner, normed, row_rstd, across,
            along, head_gate, head_to_gate,
        )  # fmt: skip
        if TAIL:
            tail_to_shift += tail_grad
            tail_to_scale += tail_grad * tail_normed
            tail_to_gate = _store_part(
                grad_carried, branch, grad_x, grad_branch, base, tail_offset, tail_valid, tail_inner, tail_normed,
                row_rstd, across, along, tail_gate, tail_to_gate,
            )  # fmt: skip
    # 3. Partial sums of this program
    out = program.to(tl.int64) * WIDTH
    _store_sums(shift_partials, out, head, head_to_shift, WIDTH)
    _store_sums(scale_partials, out, head, head_to_scale, WIDTH)
    if branch is not None:
        _store_sums(gate_partials, out, head, head_to_gate, WIDTH)
    if TAIL:
        _store_sums(shift_partials, out, tail, tail_to_shift, WIDTH)
        _store_sums(scale_partials, out, tail, tail_to_scale, WIDTH)
        if branch is not None:
            _store_sums(gate_partials, out, tail, tail_to_gate, WIDTH)


def unsupported(x: Tensor) -> bool:
    """Return whether the reference must compute this input: float64, or more features than a tile holds."""
    return x.dtype == torch.float64 or x.shape[-1] > MAX_FEATURES


@lru_cache(maxsize=1024)
def _tile(features: int) -> dict[str, int]:
    """Return constants and tile sizes of the forward kernel: as few warps per row as registers allow.

    A warp's accesses cover 256 columns, and those beyond the width are removed at compile time; of several warps per
    row some would be wholly masked and still issue every instruction (of 8 warps at width 1152, 3.5).
    """
    block = 1 << max(0, features - 1).bit_length()
    rows = max(1, min(ROWS, TILE // block))
    warps = block // TILE if block >= TILE else max(1, min(4, rows, rows * block // 256))
    return {"WIDTH": features, "BLOCK_R": rows, "BLOCK_D": block, "num_warps": warps}


@lru_cache(maxsize=1024)
def _backward_tile(features: int, element_size: int) -> dict[str, int]:
    """Return constants and tile sizes of the backward kernel, which holds three more tiles, of sums, in registers.

    Rows of more than ``SPLIT`` features are split, and loaded one step ahead, in 16-bit dtypes two (STAGES 2 and 3);
    shorter ones are not worth the exchange through shared memory.
    """
    options = _tile(features)
    head, tail = options["BLOCK_D"], 0
    if features > SPLIT and head - head // 4 >= features:  # a tail of half the head or less
        head //= 2
        tail = max(16, 1 << (features - head - 1).bit_length())
    rows = max(1, min(ROWS // 2, TILE // head))
    warps = 8 if head >= TILE else max(1, min(4, rows * head // 256))
    stages = 1 if features <= SPLIT else 3 if element_size == 2 else 2
    return {
        "WIDTH": features,
        "BLOCK_R": rows,
        "HEAD": head,
        "TAIL": tail,
        "STAGES": stages,
        "num_warps": warps,
    }


def forward_launch(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    *,
    eps: float,
    modulated: Tensor,
    carried: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> Launch:
    """Return the launch that writes ``modulated``, ``carried``, ``mean`` and ``rstd``."""
    samples, tokens, features = x.shape
    options = _tile(features)
    tiles = triton.cdiv(tokens, options["BLOCK_R"])
    gate_stride = 0 if gate is None else gate.stride(0)
    numbers = (gate_stride, shift.stride(0), scale.stride(0), tokens, tiles, eps)
    return Launch(
        kernel=_forward_kernel,
        grid=(samples * tiles,),
        arguments=(x, branch, gate, shift, scale, modulated, carried, mean, rstd, *numbers),
        options=options,
    )


@lru_cache(maxsize=1024)
def rows_per_program(samples: int, tokens: int, features: int) -> int:
    """Return the rows of a sample that a program of the backward pass adds up, a multiple of a tile's.

    More rows are fewer partial sums to write and to read again; fewer rows keep all multiprocessors busy.
    """
    programs = PROGRAMS if samples * tokens >= PROGRAMS * LEAST_ROWS else PROGRAMS // 2
    tile = _backward_tile(features, 4)["BLOCK_R"]
    rows = max(LEAST_ROWS // 2, -(-tokens // max(1, programs // samples)))
    return -(-rows // tile) * tile


def part_count(samples: int, tokens: int, features: int) -> int:
    """Return the number of programs that share the sums over the tokens of a sample."""
    return -(-tokens // rows_per_program(samples, tokens, features))


def backward_launch(
    grad_modulated: Tensor,
    grad_carried: Tensor | None,
    carried: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    grad_x: Tensor,
    grad_branch: Tensor | None,
    partials: tuple[Tensor, Tensor, Tensor | None],
) -> Launch:
    """Return the launch that writes the gradients of x and branch, and partial sums of the other gradients."""
    samples, tokens, features = carried.shape
    rows, parts = rows_per_program(samples, tokens, features), part_count(samples, tokens, features)
    gate_stride = 0 if gate is None else gate.stride(0)
    tensors = (grad_modulated, grad_carried, carried, branch, gate, scale, mean, rstd, grad_x, grad_branch, *partials)
    return Launch(
        kernel=_backward_kernel,
        grid=(samples * parts,),
        arguments=(*tensors, gate_stride, scale.stride(0), tokens, parts, rows),
        options=_backward_tile(features, carried.element_size()),
    )


def forward(
    x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Compute :func:`.reference.forward` in one launch."""
    x, branch = x.contiguous(), None if branch is None else branch.contiguous()
    shift, scale, gate = _rows(shift), _rows(scale), None if gate is None else _rows(gate)
    modulated = torch.empty_like(x)
    carried = None if branch is None else torch.empty_like(x)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    forward_launch(
        x, shift, scale, branch, gate, eps=eps, modulated=modulated, carried=carried, mean=mean, rstd=rstd
    ).run()
    return modulated, carried, mean, rstd


def backward(
    grad_modulated: Tensor,
    grad_carried: Tensor | None,
    carried: Tensor,
    scale: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute :func:`.reference.backward` in one launch and one sum per modulation gradient."""
    carried, grad_modulated = carried.contiguous(), grad_modulated.contiguous()
    grad_carried = None if grad_carried is None else grad_carried.contiguous()
    branch = None if branch is None else branch.contiguous()
    scale, gate = _rows(scale), None if gate is None else _rows(gate)
    samples, tokens, features = carried.shape
    grad_x = torch.empty_like(carried)
    grad_branch = None if branch is None else torch.empty_like(branch)
    parts = part_count(samples, tokens, features)
    sums = carried.new_empty((2 + (branch is not None), samples, parts, features), dtype=torch.float32)
    backward_launch(
        grad_modulated,
        grad_carried,
        carried,
        scale,
        branch,
        gate,
        mean,
        rstd,
        grad_x=grad_x,
        grad_branch=grad_branch,
        partials=(sums[0], sums[1], sums[2] if branch is not None else None),
    ).run()
    # Separate sums: the results of an operator must not share memory.
    shift_grad, scale_grad, *gate_grad = (part.sum(dim=1).to(scale.dtype) for part in sums)
    return grad_x, shift_grad, scale_grad, grad_branch, gate_grad[0] if gate_grad else None


def _rows(x: Tensor) -> Tensor:
    """Return ``[N, D]`` with contiguous features; chunks of one projection are not copied."""
    return x if x.stride(-1) == 1 else x.contiguous()
