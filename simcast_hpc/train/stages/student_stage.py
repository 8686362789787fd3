"""Stage ``student``: the long horizon in one pass, on sequences that the teacher extended (SimCast section 3.3).

A sequence of T + T'l real frames grows by T'l pseudo-frames, rolled out from its last T real ones; a training
window of T + T'l begins at a random k in 0 .. T'l. Inputs are always real; the last k targets are the teacher's.
"""

import logging

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import augmented
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.rollout import roll_out, to_stored
from simcast_hpc.distill.windows import Frames, Sample, starts, to_frames, window_of_codes, window_of_frames
from simcast_hpc.inference.load import TrainedModel, load_trained
from simcast_hpc.models import start_from
from simcast_hpc.storage.block_store import RolloutCache, cache_identity

logger = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class StudentStage:
    """Windows of T + T'l frames of extended sequences, from a teacher, from the event itself, or not extended."""

    def __init__(self, config: TrainConfig):
        """Load the teacher where one is needed, and check that it speaks of the same frames and data.

        Raises:
            ConfigError: no finished teacher there, or it has another context length, data set or horizon.
        """
        self.config = config
        sequence = config.sequence
        self.extension: Extension | None = None
        self.teacher: TrainedModel | None = None
        self.inputs: dict[str, str] = {}
        self.sequence_frames = sequence.frames_in + sequence.frames_out
        if config.student.extension == "oracle":
            self.sequence_frames += sequence.frames_out
        if config.student.extension == "teacher" or config.student.init == "teacher":
            self.teacher = load_teacher(config)
            self.inputs["teacher"] = self.teacher.weights_hash

    def open(self, source: WindowSource, device: torch.device) -> None:
        """Open the cached pseudo-frames, or put the teacher on the device to make them online.

        Raises:
            ConfigError: the cache is unfinished or of another teacher or other data, or the teacher of another grid.
        """
        if self.teacher is None:
            return
        self.teacher.check_grid(source.grid)
        folder = self.config.rollout_dir
        if self.config.student.extension == "teacher" and folder is not None:
            self.extension = RolloutCache(folder, identity=rollout_identity(self.config, self.teacher, source))
        else:
            self.teacher.network.to(device, DTYPES[self.config.engine.precision])

    def initialise(self, model: torch.nn.Module) -> None:
        """With ``student.init: teacher`` begin from the teacher's weights, as far as they fit."""
        if self.config.student.init != "teacher" or self.teacher is None:
            return
        started = start_from(model, self.teacher.network.state_dict())
        logger.info("student begins from the teacher: %s", started)

    def sample(self, batch: MicroBatch, device: torch.device) -> Sample:
        """Return the training sample of a micro batch."""
        sequence, seed = self.config.sequence, self.config.seed
        codes = batch.codes.to(device, non_blocking=True)
        stored = None if batch.extension is None else batch.extension.to(device, non_blocking=True)
        if stored is None and self.config.student.extension == "teacher":
            stored = self._pseudo_frames(codes)
        # After the roll-out, as with stored frames: a teacher is not quite symmetric, and sees the whole grid.
        codes = augmented(codes, batch.positions, self.config.data, seed=seed)
        stored = None if stored is None else augmented(stored, batch.positions, self.config.data, seed=seed)
        extends = self.config.student.extension != "none"
        first = starts(
            batch.positions,
            seed=seed,
            purpose="student-start",
            choices=sequence.frames_out + 1 if extends else 1,
            device=device,
        )
        if stored is None:
            return window_of_codes(codes, first, frames_in=sequence.frames_in, frames_out=sequence.frames_out)
        pairs = zip(to_frames(codes), to_frames(stored), strict=True)
        extended = Frames(*(torch.cat(pair, dim=1) for pair in pairs))
        return window_of_frames(extended, first, frames_in=sequence.frames_in, frames_out=sequence.frames_out)

    def _pseudo_frames(self, codes: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        return extend(self.teacher, to_frames(codes), self.config)


def load_teacher(config: TrainConfig) -> TrainedModel:
    """Return the finished teacher that ``student.teacher`` names.

    Raises:
        ConfigError: no finished run there, or it has another context length, data set, cadence, grid or code.
    """
    if config.student.teacher is None:
        raise ConfigError("student.teacher is not set: the run folder of a trained teacher")
    teacher = load_trained(config.student.teacher)
    for key, theirs, ours in (
        ("stage", teacher.config.stage, "teacher"),
        ("sequence.frames_in", teacher.config.sequence.frames_in, config.sequence.frames_in),
        ("data.dataset", teacher.config.data.dataset, config.data.dataset),
        ("data.frame_stride", teacher.config.data.frame_stride, config.data.frame_stride),
        ("data.block_mean", teacher.config.data.block_mean, config.data.block_mean),
        ("data.recode_as", teacher.config.data.recode_as, config.data.recode_as),
    ):
        if theirs != ours:
            raise ConfigError(
                f"the teacher in {config.student.teacher} has {key}={theirs!r}, the student needs {ours!r}"
            )
    return teacher


def extend(teacher: TrainedModel, real: Frames, config: TrainConfig) -> torch.Tensor:
    """Return the T'l pseudo-frames after a sequence of real frames, rounded as they are stored."""
    frames_in = config.sequence.frames_in
    dtype = next(teacher.network.parameters()).dtype
    last = Frames(real.values[:, -frames_in:], real.valid[:, -frames_in:])
    pseudo = roll_out(lambda x: teacher.network(x.to(dtype)), last, frames_out=config.sequence.frames_out)
    return to_stored(pseudo, config.student.pseudo_dtype)


def rollout_identity(config: TrainConfig, teacher: TrainedModel, source: WindowSource) -> dict[str, object]:
    """Return what the cached pseudo-frames of this run must have been made of."""
    return cache_identity(
        teacher=teacher.weights_hash,
        source=source.fingerprint,
        pseudo_dtype=config.student.pseudo_dtype,
        frames_out=config.sequence.frames_out,
        windows=len(source),
        precision=config.engine.precision,
    )
