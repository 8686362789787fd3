"""``simcast rollout``: compute and store the teacher's rollouts that a student trains on."""

import os

from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.distributed.ranks import find_rank

from .options import ConfigFile, Overrides, Quiet


def rollout(config: ConfigFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Roll out the teacher of a student's configuration over the training data and store the pseudo-frames.

    Reads the data in data.root and the run directory student.teacher. Writes the pseudo-frames to the folder
    student.rollouts, from which the student reads them instead of running its teacher. Under a launcher the windows
    are distributed over the ranks. Run again, the command computes only the missing blocks.

    Example: simcast rollout student/sevir --set data.root=/data/sevir --set student.rollouts=cached
    """
    resolved = read_config(TrainConfig, config, overrides or ())
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.train.precompute_rollouts import fill_rollouts

    set_up_logging(find_rank(os.environ).rank, quiet=quiet)
    folder = fill_rollouts(resolved)
    if not quiet:
        print(f"rollouts: {folder}")
