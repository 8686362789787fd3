"""``simcast train``: train one stage."""

import os

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.distributed.ranks import find_rank

from .options import ConfigFile, Overrides, PrintConfig, Quiet


def train(
    config: ConfigFile, overrides: Overrides = None, print_config: PrintConfig = False, quiet: Quiet = False
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
    from simcast_hpc.train.trainer import run

    rank = find_rank(os.environ).rank
    set_up_logging(rank, quiet=quiet)
    shows = print_config and rank == 0
    run(resolved, announce=(lambda checked: print(to_yaml(checked), flush=True)) if shows else None)
