"""The constant bank of a compiled launch: its arguments as the kernel reads them, with an address per tensor."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from simcast_kernels.dispatch import Launch

from .sass_execution import SPACE
from .sass_program import SassError
from .sass_registers import Block

# Byte offset of the first kernel parameter in constant bank 0, by compute capability.
PARAMETERS_AT = {80: 0x160, 90: 0x210}
_SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "fp32": 4, "fp64": 8}


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Bytes of each distinct tensor of a launch, and its parameter names; numbered as in :class:`.Access`."""

    sizes: tuple[int, ...]
    names: tuple[str, ...]


def constant_bank(
    launch: Launch, signature: Mapping[str, Any], *, arch: int, threads: int
) -> tuple[dict[int, int], Tensors]:
    """Return the words of constant bank 0 by byte offset, and the tensors of a launch.

    Args:
        launch: the launch; its tensors may be on ``meta``.
        signature: type of every argument by name, of the compiled kernel: ``*bf16``, ``i32``, ``constexpr``, tuples.
        arch: compute capability, 80 or 90.
        threads: threads per block.

    Raises:
        SassError: an argument whose type is unknown.
    """
    if arch not in PARAMETERS_AT:
        raise SassError(f"compute capability {arch} is unknown; known are {sorted(PARAMETERS_AT)}")
    data, numbers, sizes, names = bytearray(), {}, [], []
    for name, kind, value in _leaves(launch, signature):
        if kind.startswith("*"):
            if id(value) not in numbers:
                numbers[id(value)] = len(sizes)
                sizes.append(prod(value.shape) * value.element_size())
                names.append(name)
            number, size = (numbers[id(value)] + 1) * SPACE, 8
        elif kind in _SIZES:
            number, size = value, _SIZES[kind]
        else:
            raise SassError(f"argument {name} has type {kind!r}; known are pointers and {sorted(_SIZES)}")
        data += b"\0" * (-len(data) % size)
        if kind in ("fp32", "fp64"):
            data += struct.pack("<f" if kind == "fp32" else "<d", number)
        else:
            data += (int(number) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    data += b"\0" * (-len(data) % 8 + 16)  # scratch memory of Triton, unused
    first = PARAMETERS_AT[arch]
    bank = {first + at: int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)}
    grid = (*launch.grid, 1, 1)[:3]
    bank |= {0x0: threads, 0x4: 1, 0x8: 1, 0xC: grid[0], 0x10: grid[1], 0x14: grid[2]}
    return bank, Tensors(sizes=tuple(sizes), names=tuple(names))


def middle_block(launch: Launch, bank: Mapping[int, int]) -> Block:
    """Return the block in the middle of the grid: neither first nor last along an axis of more than two."""
    x, y, z = (size // 2 for size in (*launch.grid, 1, 1)[:3])
    return Block(program=(x, y, z), constants=bank)


def _leaves(launch: Launch, signature: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, type, value) of every argument that the compiled kernel has as a parameter."""
    for (name, kind), value in zip(signature.items(), launch.arguments, strict=False):
        yield from _flat(name, kind, value)


def _flat(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(kind, tuple | list):
        for number, (inner, item) in enumerate(zip(kind, value, strict=True)):
            yield from _flat(f"{name}[{number}]", inner, item)
    elif kind != "constexpr" and value is not None:
        if kind.startswith("*") and not isinstance(value, torch.Tensor):
            raise SassError(f"argument {name} is {type(value).__name__}; its type {kind} needs a tensor")
        yield name, kind, value
