"""Logging of a program's process: INFO on rank 0, WARNING with the rank number on the others."""

import logging
import sys


def set_up_logging(rank: int, *, quiet: bool = False) -> logging.Logger:
    """Send the log records of both packages to stderr: INFO and above on rank 0, WARNING and above on other ranks.

    Modules log to ``logging.getLogger(__name__)``, so a level can be set per module. With ``quiet``, rank 0 also logs
    only WARNING and above.

    Returns:
        The logger of this package.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    for name in ("simcast_hpc", "simcast_kernels"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if rank == 0 and not quiet else logging.WARNING)
        logger.propagate = False
    return logging.getLogger("simcast_hpc")
