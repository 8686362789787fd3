"""Results of reading that rank 0 sends to the other ranks, so that catalogs and indices are read once per program.

On rank 0 a block of :func:`share_reads` collects what it reads; the collection is pickled and sent; the same block on
another rank takes the results from it. No collective happens in the block, so an error on one rank cannot block others.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from simcast_hpc.distributed.ranks import Ranks

T = TypeVar("T")


class SharedReads:
    """Results by key; picklable if the results are."""

    def __init__(self):
        self._results: dict[Hashable, Any] = {}

    def result(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the result of ``key``; call ``read`` only if there is none."""
        if key not in self._results:
            self._results[key] = read()
        return self._results[key]


_current: ContextVar[SharedReads | None] = ContextVar("shared reads", default=None)


@contextmanager
def share_reads(reads: SharedReads) -> Iterator[None]:
    """Use and extend ``reads`` in the block."""
    token = _current.set(reads)
    try:
        yield
    finally:
        _current.reset(token)


def shared_read(key: Hashable, read: Callable[[], T]) -> T:
    """Return the result of ``read``, or that of an earlier call with this key in the block of :func:`share_reads`."""
    reads = _current.get()
    return read() if reads is None else reads.result(key, read)


def read_together(read: Callable[[], T], ranks: Ranks) -> T:
    """Return the result of ``read`` on every rank; rank 0 reads what :func:`shared_read` reads. Collective.

    Raises:
        SimcastError: on every rank, see :meth:`.Ranks.on_first` and :meth:`.Ranks.together`.
    """
    own: list[T] = []

    def on_first_rank() -> SharedReads:
        reads = SharedReads()
        with share_reads(reads):
            own.append(read())
        return reads

    reads = ranks.on_first(on_first_rank)
    with ranks.together(), share_reads(reads):
        return own[0] if own else read()
