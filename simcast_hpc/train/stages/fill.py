"""Rolling the teacher out over every training sequence, once, by all ranks: what ``simcast rollout`` does."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open import open_windows
from simcast_hpc.distill.cache import BLOCK, block_path, read_manifest, write_block, write_manifest
from simcast_hpc.distill.windows import to_frames
from simcast_hpc.distributed.world import join

from .student import DTYPES, extend, load_teacher, rollout_identity

logger = logging.getLogger("simcast")


def fill_cache(config: TrainConfig) -> Path:
    """Fill ``student.rollouts`` with the pseudo-frames that the student of ``config`` trains on.

    Ranks take blocks of windows in turn; blocks that stand are kept if they were made of the same teacher and data.

    Raises:
        ConfigError: ``student.rollouts`` is ``online``, or there is no finished teacher.
        DataError: the windows cannot be read.
    """
    folder = config.rollout_dir
    if folder is None:
        raise ConfigError("student.rollouts is 'online'; say where to store them, --set student.rollouts=cached")
    frames = config.sequence.frames_in + config.sequence.frames_out
    source = open_windows(config.data, split="train", frames=frames)
    teacher = load_teacher(config)
    teacher.refuse_another_grid(source.grid)
    identity = rollout_identity(config, teacher, source)
    if read_manifest(folder) == identity:
        logger.info("roll-outs stand in %s: nothing to do", folder)
        return folder
    world = join(timeout_minutes=config.engine.timeout_minutes)
    try:
        with world.together():
            if world.is_first:
                _claim(folder, identity)
        teacher.network.to(world.device, DTYPES[config.engine.precision])
        blocks = range((len(source) + BLOCK - 1) // BLOCK)
        for block in blocks[world.place.rank :: world.place.world_size]:
            if block_path(folder, block).is_file():
                continue
            made = []
            last = min((block + 1) * BLOCK, len(source))
            for begin in range(block * BLOCK, last, config.batch.micro_size):
                indices = range(begin, min(begin + config.batch.micro_size, last))
                codes = torch.from_numpy(np.stack([source.read(index) for index in indices]))
                made.append(extend(teacher, to_frames(codes.to(world.device)), config).cpu().numpy())
            write_block(folder, block, np.concatenate(made))
            logger.info("rolled out %d of %d blocks", block + 1, len(blocks))
        world.barrier()
        if world.is_first:
            write_manifest(folder, identity)
    finally:
        world.leave()
    return folder


def _claim(folder: Path, identity: dict[str, object]) -> None:
    """Keep the blocks of a cut-short roll-out of the same making; clear those of another."""
    claim = folder / "claim.json"
    text = json.dumps(identity, indent=1)
    if claim.is_file() and claim.read_text(encoding="utf-8") == text:
        return
    if folder.exists():
        strangers = [
            path.name for path in folder.iterdir() if not path.name.startswith(("block-", "claim", "manifest"))
        ]
        if strangers:
            raise ConfigError(f"student.rollouts={folder} holds {strangers[0]} and is no roll-out folder; name another")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    claim.write_text(text, encoding="utf-8")
