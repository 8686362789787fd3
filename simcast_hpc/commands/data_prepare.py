"""``simcast data prepare``: convert raw data to shards, on one process or under ``mpiexec`` or ``srun``."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.data.data_errors import KINDS

from .options import Dataset, Quiet, read_dataset_option


def prepare(
    raw: Annotated[Path, typer.Argument(help="Folder of the raw data.", show_default=False)],
    shards: Annotated[
        Path, typer.Argument(help="Folder to write the shards to; set data.root to it.", show_default=False)
    ],
    dataset: Dataset = None,
    codec: Annotated[str, typer.Option(help="Compression: lz4 (reads twice as fast) or zstd (smaller).")] = "lz4",
    events_per_shard: Annotated[int, typer.Option(min=1, help="Events per shard.")] = 64,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Kind of problem whose events are skipped and listed (repeatable): {', '.join(KINDS)}.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Convert raw data to compressed shards that training reads fast.

    Reads the raw layout of the data set. Under mpiexec or srun the shards are distributed over the processes, with
    identical bytes for any number of processes. Run again, the command resumes an interrupted preparation. A problem
    in the data is an error unless --skip names its kind.

    Example: simcast data prepare /raw/hko7 /data/hko7 --dataset hko7-cascast
    """
    import os

    from simcast_hpc.data.prepare import Recipe, open_raw, prepare
    from simcast_hpc.distributed.ranks import find_rank, join_mpi_ranks
    from simcast_hpc.monitoring.log import set_up_logging

    set_up_logging(find_rank(os.environ).rank, quiet=quiet)
    spec = read_dataset_option(dataset, raw)
    ranks = join_mpi_ranks()
    recipe = Recipe(codec, events_per_shard, tuple(skip or ()))
    manifest = prepare(lambda: open_raw(spec, raw), shards, recipe, ranks)
    if ranks.is_first:
        events = {name: statistics["events"] for name, statistics in manifest.statistics.items()}
        print(f"{shards}: {manifest.index.events} events in {len(manifest.shards)} shards {events}")
        for line in (*manifest.left_out, *manifest.notes):
            print(line)
        print(f"manifest {manifest.hash}")
