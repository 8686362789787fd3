"""``simcast train``: train one stage."""

import os
from typing import Annotated

import typer

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.distributed.ranks import find_rank

from .options import ConfigFile, Overrides, PrintConfig, Quiet

Profile = Annotated[
    str | None,
    typer.Option(
        help="Profile optimizer steps START to STOP, both included, with torch.profiler; writes traces to the folder "
        "profile in run_dir.",
        metavar="START:STOP",
        show_default=False,
    ),
]
ProfileRanks = Annotated[str, typer.Option(help="Ranks that --profile traces, separated by commas.", metavar="RANKS")]


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    profile: Profile = None,
    profile_ranks: ProfileRanks = "0",
    quiet: Quiet = False,
) -> None:
    """Train one stage, or resume it from its newest checkpoint.

    Reads the data in data.root. Writes checkpoints, metrics, the resolved configuration (config.yaml) and the final
    weights to run_dir. Under torchrun, deepspeed, mpiexec or srun all ranks train one model.

    Exit status: 0 trained; 2 invalid configuration or data; 75 stopped by a file STOP in run_dir or in its parent
    folder; 85 checkpoint saved after a signal, run the same command to resume.

    Example: simcast train teacher/sevir --set data.root=/data/sevir --set batch.micro_size=2
    """
    resolved = read_config(TrainConfig, config, overrides or ())
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.monitoring.profiler import ProfileRequest
    from simcast_hpc.train.trainer import run

    rank_info = find_rank(os.environ)
    rank = rank_info.rank
    request = None if profile is None else ProfileRequest.parse(profile, profile_ranks)
    if request is not None:
        request.reject_ranks(rank_info.world_size)
    set_up_logging(rank, quiet=quiet)
    shows = print_config and rank == 0
    run(
        resolved,
        announce=(lambda checked: print(to_yaml(checked), flush=True)) if shows else None,
        profile=request,
    )
