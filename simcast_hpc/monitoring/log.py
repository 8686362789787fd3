"""Logging of a program's process: INFO on rank 0, WARNING with the rank number on the others."""

import logging
import sys


def set_up_logging(rank: int, *, quiet: bool = False) -> logging.Logger:
    """Send the log records of both packages to stderr: INFO and above on rank 0, WARNING and above on other ranks.

    Modules log to ``logging.getLogger(__name__)``, so a level can be set per module. With ``quiet``, rank 0 also logs
    only WARNING and above. A message is one line, whatever the file names in it contain.

    Returns:
        The logger of this package.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(_OneLineFormatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    for name in ("simcast_hpc", "simcast_kernels"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if rank == 0 and not quiet else logging.WARNING)
        logger.propagate = False
    return logging.getLogger("simcast_hpc")


def printable(text: str) -> str:
    r"""Return a text with control characters, invisible characters and invalid UTF-8 escaped (``\n``, ``\x1b``)."""
    return "".join(one if one.isprintable() or one == "\N{NO-BREAK SPACE}" else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    is_invalid_byte = "\udc80" <= character <= "\udcff"  # how Python decodes file names that are not UTF-8
    return f"\\x{ord(character) - 0xDC00:02x}" if is_invalid_byte else character.encode("unicode_escape").decode()


class _OneLineFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)
