"""Cuboid attention by Triton: which kernel a call takes, with what tiles, and the buffers around it."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import interpreter_is_on
from simcast_kernels.launch import Launch

from .geometry import Grid
from .kernel_backward import backward_kernel
from .kernel_backward_split import bias_kernel, columns_kernel, rows_kernel
from .kernel_forward import forward_kernel
from .problem import Inputs, Problem

ONE_TILE_TOKENS = 64
# Enough programs to fill a large GPU several times over; fixed, since the number of tiles a program takes is the order
# of the sums of shared gradients.
PROGRAMS = 4096
MOST_TILES = 16
MOST_BIAS_PARTIALS = 2**26


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tiles of one problem: PACK cuboids a tile and ``tiles`` tiles a program, or blocks of one cuboid (``split``)."""

    block_m: int
    block_n: int
    pack: int
    tiles: int
    split: bool
    warps: int

    def programs(self, problem: Problem) -> int:
        """Programs a head and sample, in the forward and in the one-tile backward."""
        if self.split:
            return problem.query.cuboids * -(-problem.query.tokens // self.block_m)
        return -(-problem.query.cuboids // (self.pack * self.tiles))


def refusal(inputs: Inputs, problem: Problem) -> str:
    """Return why the kernels do not take a problem, or an empty string."""
    if problem.padding == "nearest":
        return "padding 'nearest' resamples the axes"
    if problem.head_size > 128:
        return f"head size {problem.head_size} is more than 128"
    if inputs.global_vectors > 64:
        return f"{inputs.global_vectors} global vectors are more than 64"
    for tensor, grid in ((inputs.query, problem.query), (inputs.memory, problem.memory)):
        if tensor is not None and grid.positions * tensor.shape[-1] >= 2**31:
            return f"a sample of {grid.positions * tensor.shape[-1]} elements needs offsets of 64 bits"
    return ""


def plan(inputs: Inputs, problem: Problem) -> Plan:
    """Return the tiles of a problem: one cuboid padded to a power of two is what never spills (see cases.py)."""
    rows, keys = problem.query.tokens, problem.memory.tokens
    # Products of float32 hold both factors in registers.
    wider = 4 if inputs.query.dtype == torch.float32 else 1
    if max(rows, keys) > ONE_TILE_TOKENS:
        block_m, block_n = _block(min(rows, ONE_TILE_TOKENS)), _block(min(keys, ONE_TILE_TOKENS))
        return Plan(block_m=block_m, block_n=block_n, pack=1, tiles=1, split=True, warps=4 * min(wider, 2))
    block_m, block_n = _block(rows), _block(keys)
    pack = min(block_m // rows, block_n // keys, problem.query.cuboids)
    groups = -(-problem.query.cuboids // pack)
    tiles = max(1, min(MOST_TILES, groups * problem.heads * inputs.query.shape[0] // PROGRAMS))
    return Plan(
        block_m=block_m,
        block_n=block_n,
        pack=pack,
        tiles=2 ** (tiles.bit_length() - 1),
        split=False,
        warps=min(8, max(block_m, block_n) // 16 * wider),
    )


def forward(inputs: Inputs, problem: Problem) -> Tensor:
    """Compute :func:`.reference.forward` in one pass over memory."""
    inputs = _contiguous(inputs)
    out = inputs.query.new_empty(*inputs.query.shape[:4], inputs.width)
    forward_launch(inputs, problem, out=out).run()
    return out


def backward(inputs: Inputs, problem: Problem, grad_output: Tensor) -> list[Tensor | None]:
    """Compute :func:`.reference.backward`."""
    inputs, grad = _contiguous(inputs), grad_output.contiguous()
    buffers, launches = backward_launches(inputs, problem, grad)
    for launch in launches:
        launch.run()
    return _summed(inputs, problem, buffers)


def forward_launch(inputs: Inputs, problem: Problem, *, out: Tensor) -> Launch:
    """Return the launch that writes ``out``."""
    tiles = plan(inputs, problem)
    memory = inputs.query if inputs.memory is None else inputs.memory
    return Launch(
        kernel=forward_kernel,
        grid=(problem.heads * tiles.programs(problem), out.shape[0]),
        arguments=(inputs.query, memory, *inputs[2:], out, problem.seed, problem.scale, tiles.tiles),
        options={
            **_constants(inputs, problem, tiles),
            **_global_constants(inputs),
            "PACK": tiles.pack,
        },
    )


def backward_launches(inputs: Inputs, problem: Problem, grad: Tensor) -> tuple[Inputs, list[Launch]]:
    """Return the buffers of all gradients, those of shared inputs being partial sums, and the launches that fill them.

    Partial sums have a leading axis to add over (bias) or a second one (global key and value, ``[B, n, heads, G,
    head size]``).
    """
    tiles = plan(inputs, problem)
    buffers = _buffers(inputs, problem, tiles)
    if tiles.split:
        return buffers, _split_launches(inputs, problem, grad, tiles, buffers)
    query, memory, bias, *far = inputs
    d_query, d_memory, d_bias, *d_far = buffers
    launch = Launch(
        kernel=backward_kernel,
        grid=(problem.heads * tiles.programs(problem), grad.shape[0]),
        arguments=(
            *(query, query if memory is None else memory, bias, *far, grad),
            *(d_query, d_query if d_memory is None else d_memory, d_bias, *d_far),
            *(problem.seed, problem.scale, tiles.tiles),
        ),
        options={
            **_constants(inputs, problem, tiles),
            **_global_constants(inputs),
            "PACK": tiles.pack,
        },
    )
    return buffers, [launch]


def _split_launches(inputs: Inputs, problem: Problem, grad: Tensor, tiles: Plan, buffers: Inputs) -> list[Launch]:
    query, memory, bias, *far = inputs
    memory = query if memory is None else memory
    d_query, d_memory, d_bias, *d_far = buffers
    d_memory = d_query if d_memory is None else d_memory
    batch, heads = grad.shape[0], problem.heads
    # Of every row: the softmax's maximum, the inverse of its normaliser, and delta.
    rows = [grad.new_empty(batch, heads, problem.query.positions, dtype=torch.float32) for _ in range(3)]
    constants = _constants(inputs, problem, tiles)
    key_blocks = -(-problem.memory.tokens // tiles.block_n)
    launches = [
        Launch(
            kernel=rows_kernel,
            grid=(heads * tiles.programs(problem), batch),
            arguments=(
                *(query, memory, bias, *far, grad, d_query, *d_far, *rows),
                *(problem.seed, problem.scale),
            ),
            options={**constants, **_global_constants(inputs)},
        ),
        Launch(
            kernel=columns_kernel,
            grid=(heads * problem.memory.cuboids * key_blocks, batch),
            arguments=(query, memory, bias, grad, d_memory, *rows, problem.seed, problem.scale),
            options=constants,
        ),
    ]
    if d_bias is not None:
        units = batch * problem.query.cuboids
        row_blocks = -(-problem.query.tokens // tiles.block_m)
        sums = (*rows, problem.seed, problem.scale, units, -(-units // d_bias.shape[0]))
        launches.append(
            Launch(
                kernel=bias_kernel,
                grid=(heads * row_blocks * key_blocks, d_bias.shape[0]),
                arguments=(query, memory, bias, grad, d_bias, *sums),
                options=constants,
            )
        )
    return launches


def _buffers(inputs: Inputs, problem: Problem, tiles: Plan) -> Inputs:
    batch, programs = inputs.query.shape[0], tiles.programs(problem)
    d_bias = d_far = None
    if inputs.bias is not None:
        tables = batch * programs * tiles.pack
        if tiles.split:
            units = batch * problem.query.cuboids
            most = max(1, min(units, 64, MOST_BIAS_PARTIALS // inputs.bias.numel()))
            tables = -(-units // -(-units // most))
        d_bias = inputs.bias.new_empty(tables, *inputs.bias.shape, dtype=torch.float32)
    if inputs.global_key is not None:
        shape = (batch, programs, problem.heads, inputs.global_vectors, problem.head_size)
        d_far = inputs.query.new_empty(shape, dtype=torch.float32)
    return Inputs(
        query=torch.empty_like(inputs.query),
        memory=None if inputs.memory is None else torch.empty_like(inputs.memory),
        bias=d_bias,
        global_query=None if inputs.global_query is None else torch.empty_like(inputs.global_query),
        global_key=d_far,
        global_value=None if d_far is None else torch.empty_like(d_far),
    )


def _summed(inputs: Inputs, problem: Problem, buffers: Inputs) -> list[Tensor | None]:
    grads: list[Tensor | None] = [*buffers]
    if buffers.bias is not None and inputs.bias is not None:
        grads[2] = buffers.bias.sum(0).to(inputs.bias.dtype)
    for i in (4, 5):
        partial = buffers[i]
        if partial is not None:
            grads[i] = partial.sum(1).transpose(1, 2).flatten(2).to(inputs.query.dtype)
    return grads


def _contiguous(inputs: Inputs) -> Inputs:
    return Inputs(*(None if x is None else x.contiguous() for x in inputs))  # pyright: ignore[reportArgumentType]


def _constants(inputs: Inputs, problem: Problem, tiles: Plan) -> dict:
    exact = inputs.query.dtype == torch.float32 or interpreter_is_on()
    return {
        "HEADS": problem.heads,
        "HEAD_SIZE": problem.head_size,
        "QUERY_AXES": _axes(problem.query),
        "KEY_AXES": _axes(problem.memory),
        "SELF": inputs.memory is None,
        "ZEROS": problem.padding == "zeros",
        "DROP_BELOW": problem.drop_below,
        "KEEP_SCALE": problem.keep_scale,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": _block(problem.head_size),
        "DOT": tl.float32 if exact else tl.bfloat16,
        "num_warps": tiles.warps,
        "num_stages": 1,
    }


def _global_constants(inputs: Inputs) -> dict:
    return {"GLOBALS": inputs.global_vectors, "BLOCK_G": _block(max(1, inputs.global_vectors))}


def _axes(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Return a grid as :mod:`simcast_kernels.device.cuboids` takes it."""
    axes = zip(grid.size, grid.cuboid, grid.blocks, grid.shift, map(int, grid.dilated), strict=True)
    return tuple(axes)


def _block(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())
