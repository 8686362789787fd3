"""A failure on one rank ends the work of all, so that none waits in a collective for one that will not come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simcast_hpc.config import SimcastError


@contextmanager
def fail_together(rank: int, gather: Callable[[Any], list[Any]]) -> Iterator[None]:
    """Run a block that holds no collective; if it fails on any rank it ends on all.

    Args:
        rank: this process's.
        gather: returns the picklable argument of every rank, on every rank.

    Raises:
        SimcastError: on the ranks whose own block went well, with what another rank said.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = gather(None if failure is None else f"rank {rank}: {failure}")
    if failure is not None:
        raise failure
    if any(said):
        raise SimcastError(next(words for words in said if words))
