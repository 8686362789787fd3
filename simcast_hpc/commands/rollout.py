"""``simcast rollout``: the teacher's pseudo-frames, made once and stored."""

import os

from simcast_hpc.config import TrainConfig, read_config
from simcast_hpc.distributed.ranks import find_rank

from .options import ConfigFile, Overrides, Quiet


def rollout(config: ConfigFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Roll the teacher of a student's CONFIG out over its training data, into the folder student.rollouts.

    The student reads them then in place of its teacher. Started by a launcher, the ranks share the windows.

    Example: simcast rollout configs/student/sevir.yaml --set data.root=/data/sevir --set student.rollouts=cached
    """
    resolved = read_config(TrainConfig, config, overrides or ())
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.train.precompute_rollouts import fill_cache

    set_up_logging(find_rank(os.environ).rank)
    folder = fill_cache(resolved)
    if not quiet:
        print(f"roll-outs stand in {folder}")
