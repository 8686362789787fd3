"""Adaptive layer norm with a gated residual connection: one pass forward, one pass backward.

Shapes: N samples of L tokens of D features, R = N L rows, tensors contiguous; shift, scale and gate ``[N, D]`` with
any stride between samples, so that chunks of one projection are not copied. With n = R D elements the forward pass
reads 2n and writes 2n (without a branch 1n each), and stores mean and reciprocal standard deviation of each row in
float32; the backward pass reads 4n and writes 2n (without a branch 2n to 3n and 1n). The gradients of shift, scale and
gate are sums over L: each program writes a partial sum over ROWS rows and PyTorch adds them, in a fixed order. A row
fits one tile; D is padded to a power of two by masked lanes, which move no memory. D is a constant of the compiled
code, so that accesses beyond it are removed.
"""

# Pyright does not understand Triton constexpr arguments and optional tensors in jitted functions.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import Launch

TILE = 2048  # elements per tile
ROWS = 16  # rows per program in the sums for shift, scale and gate
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
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // parts).to(tl.int64)
    first = (program % parts) * (BLOCK_R * STEPS)
    column = tl.arange(0, BLOCK_D)[None, :]
    is_feature = column < WIDTH
    one_plus_scale = 1.0 + tl.load(scale + sample * scale_stride + column, mask=is_feature, other=0.0).to(tl.float32)
    if branch is not None:
        factor = tl.load(gate + sample * gate_stride + column, mask=is_feature, other=0.0).to(tl.float32)
    to_shift = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    to_scale = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    to_gate = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        token = first + step * BLOCK_R + tl.arange(0, BLOCK_R)
        is_token = token < tokens
        valid = is_token[:, None] & is_feature
        row = sample * tokens + token
        offset = row[:, None] * WIDTH + column
        # 1. Gradient of x through the layer norm
        grad = tl.load(grad_modulated + offset, mask=valid, other=0.0).to(tl.float32)
        value = tl.load(carried + offset, mask=valid, other=0.0).to(tl.float32)
        row_mean = tl.load(mean + row, mask=is_token, other=0.0)
        row_rstd = tl.load(rstd + row, mask=is_token, other=0.0)
        normed = tl.where(valid, (value - row_mean[:, None]) * row_rstd[:, None], 0.0)
        inner = grad * one_plus_scale
        across = tl.sum(inner, axis=1) / WIDTH
        along = tl.sum(inner * normed, axis=1) / WIDTH
        back = row_rstd[:, None] * (inner - across[:, None] - normed * along[:, None])
        if grad_carried is not None:
            back += tl.load(grad_carried + offset, mask=valid, other=0.0).to(tl.float32)
        tl.store(grad_x + offset, back.to(grad_x.dtype.element_ty), mask=valid)
        # 2. Sums for shift, scale and gate; gradient of the branch
        to_shift += grad
        to_scale += grad * normed
        if branch is not None:
            from_branch = tl.load(branch + offset, mask=valid, other=0.0).to(tl.float32)
            to_gate += tl.where(valid, from_branch * back, 0.0)
            tl.store(grad_branch + offset, (factor * back).to(grad_branch.dtype.element_ty), mask=valid)
    # 3. Partial sums of this program
    column, is_feature = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_D) < WIDTH
    offset_out = program.to(tl.int64) * WIDTH + column
    tl.store(shift_partials + offset_out, tl.sum(to_shift, axis=0), mask=is_feature)
    tl.store(scale_partials + offset_out, tl.sum(to_scale, axis=0), mask=is_feature)
    if branch is not None:
        tl.store(gate_partials + offset_out, tl.sum(to_gate, axis=0), mask=is_feature)


def unsupported(x: Tensor) -> bool:
    """Return whether the reference must compute this input: float64, or more features than a tile holds."""
    return x.dtype == torch.float64 or x.shape[-1] > MAX_FEATURES


def _tile(features: int) -> dict[str, int]:
    """Return constants and tile sizes of the forward kernel: as few warps per row as registers allow.

    A warp's accesses cover 256 columns, and those beyond the width are removed at compile time; of several warps per
    row some would be wholly masked and still issue every instruction (of 8 warps at width 1152, 3.5).
    """
    block = 1 << max(0, features - 1).bit_length()
    rows = max(1, min(ROWS, TILE // block))
    warps = block // TILE if block >= TILE else max(1, min(4, rows, rows * block // 256))
    return {"WIDTH": features, "BLOCK_R": rows, "BLOCK_D": block, "num_warps": warps}


def _backward_tile(features: int) -> dict[str, int]:
    """Return constants and tile sizes of the backward kernel, which holds three more tiles, of sums, in registers.

    Rows of more than 512 features are loaded one step ahead (STAGES 2); the widest do not fit registers and
    shorter ones are not worth the exchange through shared memory.
    """
    options = _tile(features)
    block, size = options["BLOCK_D"], options["BLOCK_R"] * options["BLOCK_D"]
    prefetched = 512 < block <= TILE
    warps = 8 if block > TILE else 2 if prefetched else max(1, min(4, size // 256))
    return {**options, "STEPS": ROWS // options["BLOCK_R"], "STAGES": 2 if prefetched else 1, "num_warps": warps}


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


def part_count(tokens: int) -> int:
    """Return the number of programs that share the sums over the tokens of a sample."""
    return -(-tokens // ROWS)


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
    parts = part_count(tokens)
    gate_stride = 0 if gate is None else gate.stride(0)
    tensors = (grad_modulated, grad_carried, carried, branch, gate, scale, mean, rstd, grad_x, grad_branch, *partials)
    return Launch(
        kernel=_backward_kernel,
        grid=(samples * parts,),
        arguments=(*tensors, gate_stride, scale.stride(0), tokens, parts),
        options=_backward_tile(features),
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
    sums = carried.new_empty((2 + (branch is not None), samples, part_count(tokens), features), dtype=torch.float32)
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
