"""A limit on the memory of this process, for tests that read files which declare more than they store."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited_memory(extra_bytes: int = 2 << 30) -> Iterator[None]:
    """Limit the address space to ``extra_bytes`` more than now, so that a fault of ours ends in a MemoryError."""
    former = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
