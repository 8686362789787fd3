"""Rolling the teacher out over every training sequence, once, by any number of processes: ``simcast rollout``.

The processes form no group. Ranks of a launcher and tasks of an array share out blocks of windows by leases in the
folder itself: what a lost one held is taken over by the others, or by the next start, and all end when every block
stands.
"""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.windows import to_frames
from simcast_hpc.distributed.process_group import local_device
from simcast_hpc.distributed.ranks import RankInfo, find_rank
from simcast_hpc.inference.load import TrainedModel
from simcast_hpc.monitoring.stop_request import StopReason, StopRequest
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.block_store import (
    BLOCK,
    block_path,
    read_manifest,
    standing_blocks,
    sweep,
    write_block,
    write_manifest,
)
from simcast_hpc.storage.leases import Lease, Leases

from .preemption import raise_for, reject_stop_file
from .stages.student_stage import DTYPES, extend, load_teacher, rollout_identity

logger = logging.getLogger(__name__)
_LONGEST_PAUSE_SECONDS = 2.0


def fill_cache(config: TrainConfig) -> Path:
    """Fill ``student.rollouts`` with the pseudo-frames that the student of ``config`` trains on.

    Processes take blocks of windows in turn; blocks that stand are kept if they were made of the same teacher and data.

    Raises:
        ConfigError: ``student.rollouts`` is ``online``, or there is no finished teacher, or others fill the folder
            with something else.
        DataError: the windows cannot be read.
        PausedError: a signal asked this process to leave; what it held is free.
        StoppedError: a STOP file keeps it from starting or from going on.
    """
    folder = config.rollout_dir
    if folder is None:
        raise ConfigError("student.rollouts is 'online'; say where to store them, --set student.rollouts=cached")
    frames = config.sequence.frames_in + config.sequence.frames_out
    source = open_windows(config.data, split="train", frames=frames)
    teacher = load_teacher(config)
    teacher.check_grid(source.grid)
    identity = rollout_identity(config, teacher, source)
    if read_manifest(folder) == identity:
        logger.info("roll-outs stand in %s: nothing to do", folder)
        return folder
    stops = (config.run_dir, config.run_dir.parent)
    reject_stop_file(stops)
    request = StopRequest(stops, checks_files=True)
    with request.handle_signals():
        rank_info = find_rank(os.environ)
        filling = _Filling(config, folder, identity, rank_info, request)
        filling.claim()
        teacher.network.to(local_device(rank_info), DTYPES[config.engine.precision])
        filling.fill(source, teacher)
    return folder


class _Filling:
    """This process's part in filling a folder."""

    def __init__(
        self, config: TrainConfig, folder: Path, identity: dict[str, object], rank_info: RankInfo, request: StopRequest
    ):
        self.config, self.folder, self.identity, self.rank_info, self.request = (
            config,
            folder,
            identity,
            rank_info,
            request,
        )
        folder.mkdir(parents=True, exist_ok=True)
        limit = config.student.lease_seconds
        self.leases = Leases(folder, rank=rank_info.rank, stale_seconds=limit)
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, limit / 4)
        self._claim, self._claimed = folder / "claim.json", json.dumps(identity, indent=1)

    def claim(self) -> None:
        """Keep the blocks of a cut-short roll-out of the same making; clear those of another, one process for all.

        Raises:
            ConfigError: the folder is of something else, or other processes are filling it.
        """
        while not self._is_ours():
            with self.leases.acquire("claim") as lease:
                if lease is None:
                    self._pause()
                elif not self._is_ours():
                    self._clear()
                    write_text(self._claim, self._claimed)

    def fill(self, source: WindowSource, teacher: TrainedModel) -> None:
        """Take blocks until all stand, and declare the folder finished."""
        blocks = range((len(source) + BLOCK - 1) // BLOCK)
        first = len(blocks) * self.rank_info.rank // self.rank_info.world_size  # ranks begin apart and rarely meet
        order = [*blocks[first:], *blocks[:first]]
        waited = False
        while missing := set(blocks) - standing_blocks(self.folder):
            took = False
            for block in (block for block in order if block in missing):
                with self.leases.acquire(block_path(self.folder, block).stem) as lease:
                    if lease is not None and not block_path(self.folder, block).is_file():
                        took = True
                        self._roll_out(block, source, teacher, lease, of=len(blocks))
            if not took:
                if not waited:
                    logger.info("waiting for %d blocks of %s", len(missing), "; ".join(self.leases.owners("block-*")))
                waited = True
                self._pause()
        write_manifest(self.folder, self.identity)
        sweep(self.folder)

    def _roll_out(self, block: int, source: WindowSource, teacher: TrainedModel, lease: Lease, *, of: int) -> None:
        micro, last = self.config.batch.micro_size, min((block + 1) * BLOCK, len(source))
        device = next(teacher.network.parameters()).device
        made = []
        for begin in range(block * BLOCK, last, micro):
            self._heed()
            if not lease.renew():
                logger.warning("block %d was taken over: this process had been silent too long", block)
                return
            codes = torch.from_numpy(np.stack([source.read(index) for index in range(begin, min(begin + micro, last))]))
            made.append(extend(teacher, to_frames(codes.to(device)), self.config).cpu().numpy())
        if not self._is_ours():
            raise ConfigError(f"{self.folder} was claimed for another teacher or other data meanwhile; name another")
        write_block(self.folder, block, np.concatenate(made))
        logger.info("rolled out block %d of %d", block + 1, of)

    def _is_ours(self) -> bool:
        return self._claim.is_file() and self._claim.read_text(encoding="utf-8") == self._claimed

    def _clear(self) -> None:
        strangers = [path.name for path in self.folder.iterdir() if not path.name.startswith(_OURS)]
        if strangers:
            raise ConfigError(
                f"student.rollouts={self.folder} holds {strangers[0]} and is no roll-out folder; name another"
            )
        if at_work := self.leases.owners("block-*"):
            raise ConfigError(
                f"student.rollouts={self.folder} is being filled from another teacher or other data by {at_work[0]}; "
                "wait for it, or name another folder"
            )
        for path in sorted(self.folder.iterdir(), reverse=True):  # the manifest before the blocks that it speaks of
            if not path.name.startswith("claim"):
                path.unlink(missing_ok=True)

    def _pause(self) -> None:
        self._heed()
        time.sleep(self._pause_seconds)

    def _heed(self) -> None:
        """Leave where that is asked; what this process holds is given back on the way."""
        reason = self.request()
        if reason != StopReason.NONE:
            raise_for(reason, cause=self.request.cause, saved="finished blocks are kept")


_OURS = ("block-", "claim", "manifest")
