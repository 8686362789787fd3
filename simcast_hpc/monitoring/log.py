"""Logging by rank: rank 0 speaks, the others only warn, and a warning carries its rank."""

import logging
import sys


def set_up_logging(rank: int) -> logging.Logger:
    """Return the program's logger: INFO on rank 0, WARNING with the rank's number elsewhere."""
    logger = logging.getLogger("simcast")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    where = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where}%(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    return logger
