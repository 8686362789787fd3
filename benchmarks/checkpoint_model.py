"""Extrapolate the counts of a save and of a resume to more ranks, for ZeRO 1 to 3 and the same ranks at both.

    PYTHONPATH=kernels python -m benchmarks.checkpoint_model [--parameters 976274441] [--ranks 2 4 512 4096]

The state is 16 bytes per parameter: fp32 weights, both Adam moments and the moving average. Each rank writes its share,
and reads it for the hash. The constants are those of two ranks, counted by ``benchmarks.checkpoint_counts``; the counts
of four ranks check what depends on the number of ranks (``tests/benchmarks/test_checkpoint_model.py``).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurements import print_table

STATE_BYTES = 16
"""Bytes of state per parameter."""


@dataclass(frozen=True, kw_only=True)
class CheckpointCost:
    """Counts of one rank in a save or a resume.

    Attributes:
        opens: opened files; rank 0 of a save also lists the folder until all files are there, which is counted once.
        stats: looks at files, with the listing counted once.
        changes: folders and files made, renamed or removed.
        state_bytes: bytes of state that are written or mapped, and those read for hashes as well.
    """

    opens: int
    stats: int
    changes: int
    state_bytes: float


def save_cost(parameters: int, *, ranks: int, first: bool) -> CheckpointCost:
    """Return the counts of rank 0 (``first``), which reads the description of each rank's file, or of another."""
    share = STATE_BYTES * parameters / ranks
    if first:
        return CheckpointCost(opens=16 + ranks, stats=17 + 2 * ranks, changes=9, state_bytes=share)
    return CheckpointCost(opens=9, stats=8, changes=5, state_bytes=share)


def resume_cost(parameters: int, *, ranks: int, first: bool) -> CheckpointCost:
    """Return the counts of rank 0 (``first``), which also lists the folder, or of another; each reads its own file."""
    calls = 5 if first else 4
    return CheckpointCost(opens=calls, stats=calls, changes=0, state_bytes=STATE_BYTES * parameters / ranks)


COSTS = {"save": save_cost, "resume": resume_cost}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts of all ranks together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parameters", type=int, default=976_274_441)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 512, 4096])
    options = parser.parse_args(arguments)
    lines = [["ranks", "phase", "opens", "opens of rank 0", "stats", "changes", "GB", "MB per rank"]]
    for ranks in options.ranks:
        for phase, cost in COSTS.items():
            first, other = (cost(options.parameters, ranks=ranks, first=is_first) for is_first in (True, False))
            sums = [getattr(first, key) + (ranks - 1) * getattr(other, key) for key in ("opens", "stats", "changes")]
            sizes = [f"{ranks * other.state_bytes / 1e9:.1f}", f"{other.state_bytes / 1e6:.1f}"]
            opens, stats, changes = (f"{value:,}" for value in sums)
            lines.append([f"{ranks:,}", phase, opens, f"{first.opens:,}", stats, changes, *sizes])
    print("Estimates, extrapolated from counts of two ranks:")
    print_table(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
