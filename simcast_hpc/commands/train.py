"""``simcast train``: one stage, on all ranks of whichever launcher started it."""

import os

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.distributed.ranks import find_rank

from .options import ConfigFile, Overrides, Quiet


def train(config: ConfigFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Train one stage (the configuration's); started again, it goes on from its newest checkpoint.

    Under torchrun, deepspeed, mpiexec or srun all ranks train one model. What is left stands in run_dir. Status 85:
    saved because a signal asked for it; 75: because of a file STOP in the run folder or the one above; 2: refused.

    Example: simcast train configs/teacher/sevir.yaml --set data.root=/data/sevir --set batch.micro_size=2
    """
    resolved = read_config(TrainConfig, config, overrides or ())
    from simcast_hpc.train.trainer import run

    shows = not quiet and find_rank(os.environ).rank == 0
    run(resolved, announce=(lambda checked: print(to_yaml(checked), flush=True)) if shows else None)
