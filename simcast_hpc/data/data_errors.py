"""What can be wrong with data, by kind: refused when met, or skipped where a configuration names the kind."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from simcast_hpc.config import DataError

ProblemKind = Literal[
    "absent-file", "cadence", "catalog", "checksum", "date-in-two-splits", "dtype", "gap", "grid", "missing-frame",
    "missing-share", "overlapping-splits", "repeated-id", "truncated", "unfinished", "unit", "unsorted-times",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(ProblemKind)


@dataclass(frozen=True)
class DataProblem:
    """One thing that is wrong, with the file and, where it is one event's, the event."""

    kind: ProblemKind
    file: str
    event: str
    says: str

    def __str__(self) -> str:
        where = f"{self.file}, event {self.event}" if self.event else self.file
        return f"[{self.kind}] {where}: {self.says}"


def refuse(problems: Sequence[DataProblem], *, skip: Collection[str] = ()) -> list[DataProblem]:
    """Return the problems that ``skip`` names; refuse if there is any other.

    Raises:
        DataError: with the first few of the others, how many there are, and how they could be skipped.
        ValueError: ``skip`` holds a word that is no kind of problem.
    """
    unknown = sorted(set(skip) - set(KINDS))
    if unknown:
        raise DataError(f"{unknown[0]!r} is no kind of problem; the kinds are {', '.join(KINDS)}")
    others = [problem for problem in problems if problem.kind not in skip]
    if others:
        shown = "\n  ".join(str(problem) for problem in others[:10])
        more = f"\n  and {len(others) - 10} more" if len(others) > 10 else ""
        kinds = " ".join(f"--skip {kind}" for kind in sorted({problem.kind for problem in others}))
        raise DataError(
            f"{len(others)} problem{'s' if len(others) > 1 else ''} in the data:\n  {shown}{more}\n"
            f"mend them, or leave out what they touch: simcast data prepare ... {kinds}"
        )
    return list(problems)
