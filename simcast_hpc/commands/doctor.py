"""``simcast doctor``: whether this machine, or all nodes of a job, are fit for a run."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.distributed.place import find_place


def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where the run will write.")] = Path("runs"),
    min_free_gib: Annotated[float, typer.Option(help="Free space asked for there, GiB.")] = 10.0,
    ranks: Annotated[bool, typer.Option("--ranks", help="One line for each rank, not for each node.")] = False,
) -> None:
    """Check devices, arithmetic, an all-reduce and free space on every rank; the first bad node is named."""
    from simcast_hpc.distributed.health import check_ranks

    found = check_ranks(run_dir, min_free_gib=min_free_gib)
    if find_place(os.environ).rank != 0:
        return
    seen = set()
    for rank, one in enumerate(found):
        if ranks or one.node not in seen:
            seen.add(one.node)
            print(
                f"rank {rank} on {one.node}: {one.device}, 512 x 512 matmul {one.matmul_seconds * 1e3:.2f} ms, "
                f"{one.free_gib:.1f} GiB free in {run_dir}"
            )
