"""Launches of the cuboid attention kernels: choice of kernel and tile sizes, buffers, sums of partial gradients."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from simcast_kernels.dispatch import Launch, interpreter_is_on

from .geometry import Grid, Inputs, Problem
from .kernel_backward import backward_kernel
from .kernel_backward_split import bias_kernel, columns_kernel, rows_kernel
from .kernel_forward import forward_kernel

ONE_TILE_TOKENS = 64
# Enough programs to fill a large GPU several times.
PROGRAMS = 4096
MAX_TILES = 16
# Every program of the backward pass writes partial sums: as few as fill a large GPU, 8 per multiprocessor of 132, or 16
# of one warp. Fixed, because the number of tiles per program determines the summation order of shared gradients.
BACKWARD_PROGRAMS = 1056
MAX_BACKWARD_TILES = 32
MAX_BIAS_PARTIALS = 2**26
# On ROCm a second stage is no asynchronous copy: it doubles the code of the loop with its barriers and takes more
# registers.
ROCM = {"num_stages": 1}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tiling: ``pack`` cuboids per tile and ``tiles`` tiles per program, or blocks of one cuboid (``split``).

    ``backward_tiles`` replaces ``tiles`` in the one-tile backward kernel.
    """

    block_m: int
    block_n: int
    pack: int
    tiles: int
    backward_tiles: int
    split: bool
    warps: int

    def programs(self, problem: Problem, *, backward: bool = False) -> int:
        """Programs per head and sample, in the forward or in the one-tile backward kernel."""
        if self.split:
            return problem.query.cuboids * -(-problem.query.tokens // self.block_m)
        return -(-problem.query.cuboids // (self.pack * (self.backward_tiles if backward else self.tiles)))


def unsupported(inputs: Inputs, problem: Problem) -> str:
    """Return the reason why the kernels do not support a call, or an empty string."""
    if problem.padding == "nearest":
        return "padding 'nearest' resamples the axes"
    if problem.head_size > 128:
        return f"head size {problem.head_size} is more than 128"
    if inputs.global_vectors > 64:
        return f"{inputs.global_vectors} global vectors are more than 64"
    for tensor, grid in ((inputs.query, problem.query), (inputs.memory, problem.memory)):
        if tensor is not None and grid.positions * tensor.shape[-1] >= 2**31:
            return f"a sample of {grid.positions * tensor.shape[-1]} elements needs 64-bit offsets"
    return ""


def plan(inputs: Inputs, problem: Problem) -> Plan:
    """Return the tiling: one cuboid padded to a power of two, which spills on no target (benchmarks/compiled.csv)."""
    return _plan(problem.query, problem.memory, problem.heads, inputs.query.shape[0], inputs.query.dtype)


@lru_cache(maxsize=4096)
def _plan(query: Grid, memory: Grid, heads: int, batch: int, dtype: torch.dtype) -> Plan:
    rows, keys = query.tokens, memory.tokens
    # Float32 matmuls hold both operands in registers.
    wider = 4 if dtype == torch.float32 else 1
    if max(rows, keys) > ONE_TILE_TOKENS:
        block_m, block_n = _block(min(rows, ONE_TILE_TOKENS)), _block(min(keys, ONE_TILE_TOKENS))
        return Plan(
            block_m=block_m, block_n=block_n, pack=1, tiles=1, backward_tiles=1, split=True, warps=4 * min(wider, 2)
        )
    block_m, block_n = _block(rows), _block(keys)
    pack = min(block_m // rows, block_n // keys, query.cuboids)
    groups = -(-query.cuboids // pack)
    units = groups * heads * batch
    tiles = max(1, min(MAX_TILES, units // PROGRAMS))
    warps = min(8, max(block_m, block_n) // 16 * wider)
    backward_tiles = min(MAX_BACKWARD_TILES, -(-units // (BACKWARD_PROGRAMS * (2 if warps == 1 else 1))))
    return Plan(
        block_m=block_m,
        block_n=block_n,
        pack=pack,
        tiles=2 ** (tiles.bit_length() - 1),
        # The same number of programs with fewer tiles in the largest
        backward_tiles=-(-groups // -(-groups // backward_tiles)),
        split=False,
        warps=warps,
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
        arguments=(inputs.query, memory, *inputs[2:], out, *_dropout(problem), problem.scale, tiles.tiles),
        options=_constants(inputs, problem, tiles, with_globals=True),
        rocm_options=ROCM,
    )


def backward_launches(inputs: Inputs, problem: Problem, grad: Tensor) -> tuple[Inputs, list[Launch]]:
    """Return the buffers of all gradients, and the launches that write them.

    Gradients of shared inputs are partial sums, to be added over the first axis (bias) or the second (global key and
    value, ``[B, n, heads, G, head size]``).
    """
    tiles = plan(inputs, problem)
    buffers = _buffers(inputs, problem, tiles)
    if tiles.split:
        return buffers, _split_launches(inputs, problem, grad, tiles, buffers)
    query, memory, bias, *global_tensors = inputs
    d_query, d_memory, d_bias, *d_global = buffers
    launch = Launch(
        kernel=backward_kernel,
        grid=(problem.heads * tiles.programs(problem, backward=True), grad.shape[0]),
        arguments=(
            *(query, query if memory is None else memory, bias, *global_tensors, grad),
            *(d_query, d_query if d_memory is None else d_memory, d_bias, *d_global),
            *(*_dropout(problem), problem.scale, tiles.backward_tiles),
        ),
        options=_constants(inputs, problem, tiles, with_globals=True),
        rocm_options=ROCM,
    )
    return buffers, [launch]


def _split_launches(inputs: Inputs, problem: Problem, grad: Tensor, tiles: Plan, buffers: Inputs) -> list[Launch]:
    query, memory, bias, *global_tensors = inputs
    memory = query if memory is None else memory
    d_query, d_memory, d_bias, *d_global = buffers
    d_memory = d_query if d_memory is None else d_memory
    batch, heads = grad.shape[0], problem.heads
    # 1. Gradients of queries; per row: maximum of the scores, reciprocal of the normalizer, delta
    rows = [grad.new_empty(batch, heads, problem.query.positions, dtype=torch.float32) for _ in range(3)]
    constants = _constants(inputs, problem, tiles, with_globals=False)
    key_blocks = -(-problem.memory.tokens // tiles.block_n)
    # With the mask of dropout, 64 columns spill.
    columns = min(tiles.block_n, 32) if problem.dropout else tiles.block_n
    launches = [
        Launch(
            kernel=rows_kernel,
            grid=(heads * tiles.programs(problem), batch),
            arguments=(
                *(query, memory, bias, *global_tensors, grad, d_query, *d_global, *rows),
                *(*_dropout(problem), problem.scale),
            ),
            options={**constants, **_global_constants(inputs.global_vectors), "BLOCK_N": columns},
        ),
        # 2. Gradients of keys and values
        Launch(
            kernel=columns_kernel,
            grid=(heads * problem.memory.cuboids * key_blocks, batch),
            arguments=(query, memory, bias, grad, d_memory, *rows, *_dropout(problem), problem.scale),
            options=constants,
        ),
    ]
    # 3. Gradient of the bias
    if d_bias is not None:
        units = batch * problem.query.cuboids
        row_blocks = -(-problem.query.tokens // tiles.block_m)
        sums = (*rows, *_dropout(problem), problem.scale, units, -(-units // d_bias.shape[0]))
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
    batch, programs = inputs.query.shape[0], tiles.programs(problem, backward=True)
    d_bias = d_global = None
    if inputs.bias is not None:
        tables = batch * programs * tiles.pack
        if tiles.split:
            units = batch * problem.query.cuboids
            most = max(1, min(units, 64, MAX_BIAS_PARTIALS // inputs.bias.numel()))
            tables = -(-units // -(-units // most))
        d_bias = inputs.bias.new_empty(tables, *inputs.bias.shape, dtype=torch.float32)
    if inputs.global_key is not None:
        shape = (batch, programs, problem.heads, inputs.global_vectors, problem.head_size)
        d_global = inputs.query.new_empty(shape, dtype=torch.float32)
    return Inputs(
        query=torch.empty_like(inputs.query),
        memory=None if inputs.memory is None else torch.empty_like(inputs.memory),
        bias=d_bias,
        global_query=None if inputs.global_query is None else torch.empty_like(inputs.global_query),
        global_key=d_global,
        global_value=None if d_global is None else torch.empty_like(d_global),
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


def _constants(inputs: Inputs, problem: Problem, tiles: Plan, *, with_globals: bool) -> dict[str, Any]:
    """Return the constants of a kernel; ``with_globals``: of a one-tile kernel, which reads the global vectors."""
    softmax = (problem.heads, problem.head_size, problem.padding, problem.drop_below, problem.keep_scale)
    is_float32 = inputs.query.dtype == torch.float32
    global_vectors = inputs.global_vectors if with_globals else None
    given = (inputs.memory is None, is_float32, is_float32 or interpreter_is_on(), global_vectors)
    return {**_cached_constants(problem.query, problem.memory, softmax, given, tiles)}


@lru_cache(maxsize=4096)
def _cached_constants(
    query: Grid,
    memory: Grid,
    softmax: tuple[int, int, str, int, float],
    given: tuple[bool, bool, bool, int | None],
    tiles: Plan,
) -> dict[str, Any]:
    heads, head_size, padding, drop_below, keep_scale = softmax
    is_self, is_float32, exact, global_vectors = given
    constants = {
        "HEADS": heads,
        "HEAD_SIZE": head_size,
        "QUERY_AXES": _axes(query),
        "KEY_AXES": _axes(memory),
        "SELF": is_self,
        "ZEROS": padding == "zeros",
        "DROP_BELOW": drop_below,
        "KEEP_SCALE": keep_scale,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": _block(head_size),
        "DOT": tl.float32 if exact else tl.bfloat16,
        "num_warps": tiles.warps,
        # With 2 the loads of a tile are asynchronous copies that run while the tile before is computed; with 1 they are
        # serialized by barriers, and a program waits for DRAM up to four times per tile. The blocks of long cuboids do
        # not fit twice, and float32 tiles spill.
        "num_stages": 1 if tiles.split or is_float32 else 2,
    }
    if global_vectors is not None:
        constants |= {**_global_constants(global_vectors), "PACK": tiles.pack}
    return constants


def _dropout(problem: Problem) -> tuple[int, int, int, int]:
    """Return the seed, and origin and strides of t and h of the dropout row of a query at (t, h, w)."""
    _, h, w = problem.domain
    return problem.seed, problem.first_row, h * w, w


def _global_constants(global_vectors: int) -> dict[str, int]:
    return {"GLOBALS": global_vectors, "BLOCK_G": _block(max(1, global_vectors))}


def _axes(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Return a grid as :mod:`simcast_kernels.device.cuboids` takes it."""
    axes = zip(grid.size, grid.cuboid, grid.blocks, grid.shift, map(int, grid.dilated), strict=True)
    return tuple(axes)


def _block(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())
