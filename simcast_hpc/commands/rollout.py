"""``simcast rollout``: the teacher's pseudo-frames, made once and stored."""

from simcast_hpc.config import TrainConfig, read_config

from .options import ConfigFile, Overrides, Quiet


def rollout(config: ConfigFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Roll the teacher of a student's CONFIG out over its training data, into the folder student.rollouts."""
    resolved = read_config(TrainConfig, config, overrides or ())
    from simcast_hpc.observe.log import set_up_logging
    from simcast_hpc.train.stages.fill import fill_cache

    set_up_logging(0)
    folder = fill_cache(resolved)
    if not quiet:
        print(f"roll-outs stand in {folder}")
