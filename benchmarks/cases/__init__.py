"""The ops of this package and their cases, found by looking: a new op is a new folder, no list is edited."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from .launch import Launch

Direction = Literal["forward", "backward", "inference"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class Case(Protocol):
    """One input of an op: what tests, compile table and benchmark agree to call by this name.

    ``inference`` is a forward that nothing will ask a gradient of, where the op treats it apart.
    """

    @property
    def name(self) -> str:
        """A short name, unique within the op."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the op's main input."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype of the op's main input."""
        ...

    @property
    def spills_expected(self) -> Mapping[str, str]:
        """Why registers may spill to memory, by the targets on which they may; on all others they must not."""
        ...

    def bytes_moved(self, direction: Direction) -> int:
        """Return the fewest bytes that this direction moves: every input read once, every output written once."""
        ...

    def operations(self, direction: Direction) -> int:
        """Return the operations of matrix products, a multiplication and its addition as two; 0 where there are none.

        Of a backward those that it cannot do without: what a kernel computes again to save bytes is its own affair.
        """
        ...


class OpCases(Protocol):
    """What ``<op>/cases.py`` offers: its cases, the first of which stands for the op, and their launches."""

    CASES: Sequence[Case]

    def launches(self, case: Case) -> Mapping[Direction, Sequence[Launch]]:
        """Return the launches of each direction on ``meta`` tensors, as dispatch configures them."""
        ...


def op_names() -> list[str]:
    """Return the name of every op: each package beside this file that has a ``cases.py``."""
    here = Path(__file__).parent
    found = pkgutil.iter_modules([str(here)])
    return sorted(m.name for m in found if m.ispkg and (here / m.name / "cases.py").is_file())


def op_cases(op: str) -> OpCases:
    """Return the ``cases`` module of an op.

    Raises:
        KeyError: there is no such op.
    """
    if op not in op_names():
        raise KeyError(f"no op {op!r}; there are {', '.join(op_names())}")
    return cast(OpCases, importlib.import_module(f"{__package__}.{op}.cases"))
