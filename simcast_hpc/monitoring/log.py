"""Logging of a program's process: INFO on rank 0, WARNING with the rank number on the others."""

import copy
import logging
import sys
from typing import Any

from simcast_hpc.config.text_files import printable


class PrintableFormatter(logging.Formatter):
    """A formatter whose lines cannot be forged by the values in a message, such as names of files.

    Characters of a value that are not printable are escaped, line ends included. Further lines of a message (of its own
    text or of a traceback) are indented, so that only a record begins with a time.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        safe = copy.copy(record)
        if isinstance(record.args, tuple):
            safe.args = tuple(_escaped(value) for value in record.args)
        elif record.args:
            safe.args = {name: _escaped(value) for name, value in record.args.items()}
        safe.exc_text = None  # the text of another handler, not escaped
        return printable(super().format(safe), keep="\n").replace("\n", "\n    ")


class _Escaped:
    """A value whose text is escaped when a message is formatted."""

    def __init__(self, value: Any):
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def _escaped(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else _Escaped(value)


def set_up_logging(rank: int, *, quiet: bool = False) -> logging.Logger:
    """Send the log records of both packages to stderr: INFO and above on rank 0, WARNING and above on other ranks.

    Modules log to ``logging.getLogger(__name__)``, so a level can be set per module. With ``quiet``, rank 0 also logs
    only WARNING and above.

    Returns:
        The logger of this package.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(PrintableFormatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    for name in ("simcast_hpc", "simcast_kernels"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if rank == 0 and not quiet else logging.WARNING)
        logger.propagate = False
    return logging.getLogger("simcast_hpc")
