"""``simcast data prepare``: from raw data to shards, alone or under ``mpiexec`` or ``srun``."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.data.data_errors import KINDS

from .options import Dataset

PREPARE_HELP = """Turn raw data into shards that loaders read fast; SHARDS becomes data.root.

Several processes share the work, mpiexec -n 8 simcast data prepare ... or srun, and write the same bytes as one.
Stopped or killed, the same call goes on. What is wrong with the data is refused; --skip KIND leaves it out and
lists it.

Example: simcast data prepare /raw/hko7 /data/hko7 --dataset hko7-cascast
"""


def prepare(
    raw: Annotated[Path, typer.Argument(help="Folder of the raw data.", show_default=False)],
    shards: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    dataset: Dataset = "sevir",
    codec: Annotated[str, typer.Option(help="lz4, which reads twice as fast, or zstd, which is smaller.")] = "lz4",
    events_per_shard: Annotated[int, typer.Option(min=1, help="Events in a shard.")] = 64,
    skip: Annotated[
        list[str] | None,
        typer.Option(help=f"A kind of problem to leave out; may be repeated: {', '.join(KINDS)}.", show_default=False),
    ] = None,
) -> None:
    """Turn raw data into shards."""
    import os

    from simcast_hpc.data.dataset_spec import read_spec
    from simcast_hpc.data.prepare import Recipe, open_raw, prepare
    from simcast_hpc.distributed.ranks import find_rank, join_mpi_ranks
    from simcast_hpc.monitoring.log import set_up_logging

    set_up_logging(find_rank(os.environ).rank)
    spec = read_spec(dataset)
    ranks = join_mpi_ranks()
    recipe = Recipe(codec, events_per_shard, tuple(skip or ()))
    manifest = prepare(lambda: open_raw(spec, raw), shards, recipe, ranks)
    if ranks.is_first:
        events = {name: about["events"] for name, about in manifest.statistics.items()}
        print(f"{shards}: {manifest.index.events} events in {len(manifest.shards)} shards {events}")
        for line in (*manifest.left_out, *manifest.notes):
            print(line)
        print(f"manifest {manifest.hash}")
