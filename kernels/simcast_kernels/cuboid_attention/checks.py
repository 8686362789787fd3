"""Validate the arguments of cuboid attention; each error names the argument."""

from math import prod

import torch
from torch import Tensor

from .geometry import PADDINGS, Inputs, Options, Triple, make_problem

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def check(inputs: Inputs, options: Options) -> None:
    """Validate a call; see :func:`.cuboid_attention` and :func:`.cuboid_cross_attention`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    op = "cuboid_attention" if inputs.memory is None else "cuboid_cross_attention"
    _check_main(op, inputs)
    _check_options(op, inputs, options)
    _check_globals(op, inputs)
    problem = make_problem(inputs, options)
    if inputs.bias is not None:
        shape = (options.heads, problem.query.tokens, problem.memory.tokens)
        _check_tensor(op, "bias", inputs.bias, shape, inputs.query, "[heads, query tokens, key tokens] of a cuboid")
    _check_domain(op, problem.query.size, options)
    for axis, (shift, tokens) in enumerate(zip(problem.query.shift, problem.query.cuboid, strict=True)):
        if not shift < tokens:
            raise ValueError(
                f"{op}: shift is {options.shift}; along axis {axis} it must be below {tokens}, the tokens of the cuboid"
            )


def _check_main(op: str, inputs: Inputs) -> None:
    query, memory = inputs.query, inputs.memory
    name, times = ("qkv", 3) if memory is None else ("query", 1)
    if query.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} is {query.dtype}; it must be float32, bfloat16 or float64")
    layout = "[B, T, H, W, 3 D]" if memory is None else "[B, Tq, H, W, D]"
    if query.ndim != 5 or 0 in query.shape or query.shape[-1] % times:
        raise ValueError(f"{op}: {name} has shape {tuple(query.shape)}; it must be {layout} with no empty axis")
    if memory is None:
        return
    frames = memory.shape[1] if memory.ndim == 5 else 0
    batch, _, h, w, width = query.shape
    if not frames or memory.shape != (batch, frames, h, w, 2 * width):
        layout = f"[{batch}, Tm, {h}, {w}, {2 * width}]"
        raise ValueError(f"{op}: key_value has shape {tuple(memory.shape)}; it must be {layout} for this query")
    _check_like(op, "key_value", memory, query)


def _check_options(op: str, inputs: Inputs, options: Options) -> None:
    heads, cuboid, strategy, shift, padding, _, dropout, seed, *_ = options
    if heads < 1 or inputs.width % heads:
        raise ValueError(f"{op}: heads is {heads}; it must divide the width D = {inputs.width}")
    if len(cuboid) != 3 or min(cuboid) < 1:
        raise ValueError(f"{op}: cuboid is {cuboid}; it must be tokens along T, H, W, each at least 1")
    if len(strategy) != 3 or not all(letter in ("l", "d") for letter in strategy):
        raise ValueError(f"{op}: strategy is {strategy}; it must be 'l' (local) or 'd' (dilated) for each of T, H, W")
    if len(shift) != 3 or min(shift) < 0:
        raise ValueError(f"{op}: shift is {shift}; it must be tokens along T, H, W, each at least 0")
    if padding not in PADDINGS:
        raise ValueError(f"{op}: padding is {padding!r}; it must be {', '.join(PADDINGS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout is {dropout}; it must be in [0, 1)")
    if dropout > 0 and not 0 <= seed < 2**63:
        raise ValueError(f"{op}: seed is {seed}; it must be in [0, 2**63)")
    if inputs.memory is not None:
        frames = max(inputs.query.shape[1], inputs.memory.shape[1])
        if cuboid[0] < frames:
            raise ValueError(f"{op}: cuboid is {cuboid}; it must contain all frames, at least {frames} along T")


def _check_domain(op: str, size: Triple, options: Options) -> None:
    offset, domain = options.offset, size if options.domain is None else options.domain
    if options.domain is None and offset == (0, 0, 0):
        return  # without comparisons of sizes, which torch.compile would turn into guards
    if len(domain) != 3 or len(offset) != 3 or min(offset) < 0:
        raise ValueError(f"{op}: offset is {offset}, domain is {domain}; each must be three integers of at least 0")
    if any(first + tokens > whole for first, tokens, whole in zip(offset, size, domain, strict=True)):
        raise ValueError(
            f"{op}: domain is {domain}; it must contain the grid {tuple(size)} at offset {tuple(offset)} along T, H, W"
        )
    if prod(domain) >= 2**31:
        raise ValueError(f"{op}: domain is {domain}; it must have fewer than 2**31 tokens")
    if options.padding == "nearest" and tuple(domain) != tuple(size):
        raise ValueError(f"{op}: domain is {domain}; with padding 'nearest' it must be the grid, {tuple(size)}")


def _check_globals(op: str, inputs: Inputs) -> None:
    key, value, query = inputs.global_key, inputs.global_value, inputs.global_query
    if (key is None) != (value is None):
        missing = "global_key" if key is None else "global_value"
        raise ValueError(f"{op}: {missing} is None; global_key and global_value must be given together")
    if key is None or value is None:
        if query is not None:
            raise ValueError(f"{op}: global_query requires global_key and global_value")
        return
    batch, width = inputs.query.shape[0], inputs.width
    if key.ndim != 3 or key.shape[1] == 0:
        raise ValueError(f"{op}: global_key has shape {tuple(key.shape)}; it must be [B, G, D] with G at least 1")
    shape = (batch, key.shape[1], width)
    for name, tensor in (("global_key", key), ("global_value", value)):
        _check_tensor(op, name, tensor, shape, inputs.query, "[B, G, D]")
        _check_like(op, name, tensor, inputs.query)
    if query is not None:
        _check_tensor(
            op, "global_query", query, (*inputs.query.shape[:4], width), inputs.query, "the shape of the result"
        )
        _check_like(op, "global_query", query, inputs.query)


def _check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], main: Tensor, meaning: str) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; it must be {shape}, {meaning}")
    if tensor.dtype not in (torch.float32, main.dtype):
        raise TypeError(f"{op}: {name} is {tensor.dtype}; it must be float32 or {main.dtype}")
    if tensor.device != main.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}; it must be on {main.device} as the query")


def _check_like(op: str, name: str, tensor: Tensor, main: Tensor) -> None:
    if tensor.dtype != main.dtype:
        raise TypeError(f"{op}: {name} is {tensor.dtype}; it must be {main.dtype} as the query")
    if tensor.device != main.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}; it must be on {main.device} as the query")
