"""Kinds of problems in data, which raise an error or, if the user names the kind, are skipped."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import printable

ProblemKind = Literal[
    "absent-file", "cadence", "catalog", "checksum", "date-in-two-splits", "dtype", "gap", "grid", "missing-frame",
    "missing-share", "overlapping-splits", "repeated-id", "truncated", "unfinished", "unit", "unsorted-times",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(ProblemKind)


@dataclass(frozen=True)
class DataProblem:
    """One problem of a file or, if ``event`` is not empty, of one event of it."""

    kind: ProblemKind
    file: str
    event: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}, event {self.event}" if self.event else self.file
        return printable(f"[{self.kind}] {where}: {self.message}")


def require_skipped(problems: Sequence[DataProblem], *, skip: Collection[str] = ()) -> list[DataProblem]:
    """Return the problems if all are of kinds in ``skip``.

    Raises:
        DataError: there are others (the message lists the first ten and the options that skip them), or ``skip``
            contains an unknown kind.
    """
    unknown = sorted(set(skip) - set(KINDS))
    if unknown:
        raise DataError(f"{unknown[0]!r} is not a kind of problem; choose {', '.join(KINDS)}")
    others = [problem for problem in problems if problem.kind not in skip]
    if others:
        shown = "\n  ".join(str(problem) for problem in others[:10])
        more = f"\n  and {len(others) - 10} more" if len(others) > 10 else ""
        kinds = " ".join(f"--skip {kind}" for kind in sorted({problem.kind for problem in others}))
        raise DataError(
            f"{len(others)} problem{'s' if len(others) > 1 else ''} in the data:\n  {shown}{more}\n"
            f"fix them, or skip the affected events: simcast data prepare ... {kinds}"
        )
    return list(problems)
