"""Test cases of the kernels, used by the tests, the compile table and the benchmarks: one module per op."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from simcast_kernels.dispatch import Launch

Direction = Literal["forward", "backward", "inference"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_SUFFIX = "_cases"


class Case(Protocol):
    """One input of an op.

    The direction ``inference`` is a forward pass without a gradient, for ops that treat it separately.
    """

    @property
    def name(self) -> str:
        """Short name, unique within the op."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the op's main input."""
        ...

    @property
    def dtype(self) -> Any:
        """Dtype of the op's main input."""
        ...

    @property
    def edge(self) -> bool:
        """Whether the case tests the edges of the tiling; no training or forecast has such a shape."""
        ...

    @property
    def spills_expected(self) -> Mapping[str, str]:
        """Reason for register spills, by target; spills are an error on every other target."""
        ...

    def bytes_moved(self, direction: Direction) -> int:
        """Return the minimum memory traffic in bytes: every input read once, every output written once."""
        ...

    def operations(self, direction: Direction) -> int:
        """Return the FLOPs of the matmuls, a multiply-add as two; 0 without matmuls.

        Recomputation that a kernel does in its backward pass to save memory traffic is not included.
        """
        ...


class OpCases(Protocol):
    """Contents of a module ``<op>_cases``: the cases, the first of which is representative, and their launches."""

    CASES: Sequence[Case]

    def launches(self, case: Case) -> Mapping[Direction, Sequence[Launch]]:
        """Return the launches of each direction on ``meta`` tensors, configured as in a call."""
        ...


def op_names() -> list[str]:
    """Return the name of every op: each module ``<op>_cases.py`` of this package."""
    return sorted(path.stem.removesuffix(_SUFFIX) for path in Path(__file__).parent.glob(f"*{_SUFFIX}.py"))


def op_cases(op: str) -> OpCases:
    """Return the module with the cases of an op.

    Raises:
        KeyError: unknown op.
    """
    if op not in op_names():
        raise KeyError(f"unknown op {op!r}; choose one of {', '.join(op_names())}")
    return cast(OpCases, importlib.import_module(f"{__name__}.{op}{_SUFFIX}"))
