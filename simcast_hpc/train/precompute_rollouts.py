"""Roll out the teacher over every training sequence once, by any number of processes: ``simcast rollout``.

The processes form no process group: ranks of a launcher and tasks of a job array fill one block store together.
"""

import os
from pathlib import Path

import numpy as np
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.distributed.rank_devices import local_device
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.monitoring.stop_request import StopRequest

from .stages.student_stage import DTYPES, extend, load_teacher, rollout_store
from .stop_errors import raise_for, reject_stop_file


def fill_rollouts(config: TrainConfig) -> Path:
    """Fill ``student.rollouts`` with the pseudo-frames that the student of ``config`` trains on.

    Returns:
        The directory of the store.

    Raises:
        ConfigError: ``student.rollouts`` is ``online``, the teacher is not finished, or other processes fill the
            directory from another teacher or other data.
        DataError: the windows cannot be read.
        PausedError: a signal asked this process to exit; its leases are released.
        StoppedError: a STOP file exists.
    """
    directory = config.rollout_dir
    if directory is None:
        raise ConfigError("student.rollouts=online stores nothing; choose --set student.rollouts=cached or a directory")
    source = open_windows(config.data, split="train", frames=config.sequence.frames_in + config.sequence.frames_out)
    teacher = load_teacher(config)
    teacher.check_grid(source.grid)
    stop_folders = (config.run_dir, config.run_dir.parent)
    reject_stop_file(stop_folders)
    request = StopRequest(stop_folders, checks_files=True)
    rank_info = find_rank(os.environ)
    device = local_device(rank_info)

    def check() -> None:
        if reason := request():
            raise_for(reason, cause=request.cause, saved="the stored blocks are kept")

    def compute(indices: range) -> np.ndarray:
        codes = torch.from_numpy(np.stack([source.read(index) for index in indices]))
        return extend(teacher, to_frames(codes.to(device)), config).cpu().numpy()

    with request.handle_signals():
        teacher.network.to(device, DTYPES[config.engine.precision])
        rollout_store(directory, config, teacher, source).fill(
            compute,
            batch_size=config.batch.micro_size,
            rank=rank_info.rank,
            ranks=rank_info.world_size,
            lease_seconds=config.student.lease_seconds,
            check=check,
        )
    return directory
