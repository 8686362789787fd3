"""``simcast train``: one stage, on all ranks of whichever launcher started it."""

import os

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.distributed.place import find_place

from .options import ConfigFile, Overrides, Quiet


def train(config: ConfigFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Train one stage (teacher, direct or student); started again, it goes on from its newest checkpoint."""
    resolved = read_config(TrainConfig, config, overrides or ())
    if not quiet and find_place(os.environ).rank == 0:
        print(to_yaml(resolved), flush=True)
    from simcast_hpc.train.stages.run import run

    run(resolved)
