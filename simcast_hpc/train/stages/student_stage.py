"""Stage ``student``: the long horizon in one pass, on sequences extended by the teacher (SimCast, section 3.3).

A sequence of T + T_l real frames is extended by T_l pseudo-frames that the teacher rolls out from the last T real
ones; a training window of T + T_l frames starts at a random k in 0 .. T_l, or at T_l (``student.start: last``). Inputs
are always real; the last k targets are pseudo-frames.
"""

import logging
from pathlib import Path

import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import require_same_dataset
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distill.cut_windows import Frames, Sample, to_frames, window_of_frames
from simcast_hpc.distill.rollout import roll_out, to_stored
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.trained_model import TrainedModel, load_trained
from simcast_hpc.models import missing_value, warm_start
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.storage.block_store import BlockStore

from .forecast_stage import ForecastStage

logger = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class StudentStage(ForecastStage):
    """Windows of T + T_l frames from sequences extended by a teacher, by the event's own frames, or not at all."""

    name = "student"

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Load the teacher if one is needed, check that it fits the data, and open cached pseudo-frames.

        Raises:
            ConfigError: the teacher is not finished, or has another context length, data set, horizon or grid; it
                initializes the student and has another base forecast; or the cache is incomplete or was computed from
                another teacher or other data.
        """
        super().__init__(config, source)
        self.teacher: TrainedModel | None = None
        if "teacher" in (config.student.extension, config.student.init):
            self.teacher = load_teacher(config)
            self.teacher.check_grid(source.grid)
            _check_base(config, self.teacher.config)
            self.inputs["teacher"] = self.teacher.weights_hash
            if config.student.extension == "teacher" and config.rollout_dir is not None:
                store = rollout_store(config.rollout_dir, config, self.teacher, source)
                if not store.is_complete():
                    raise ConfigError(
                        f"student.rollouts={store.directory} is not complete; run `simcast rollout` first"
                    )
                self.extension = store

    @classmethod
    def window_frames(cls, config: TrainConfig) -> int:
        """Return T + T_l, or T + 2 T_l if the event's own frames extend the sequence."""
        own = config.sequence.frames_out if config.student.extension == "oracle" else 0
        return super().window_frames(config) + own

    @property
    def start_choices(self) -> int:
        """T_l + 1 for an extended sequence."""
        return 1 if self.config.student.extension == "none" else self.config.sequence.frames_out + 1

    def window_starts(self, batch: MicroBatch) -> torch.Tensor:
        """Return the first frame of each sample's window, int64 ``[B]``."""
        if self.config.student.start == "last":
            return torch.full((len(batch.positions),), self.config.sequence.frames_out, device=batch.windows.device)
        return super().window_starts(batch)

    def initialize(self, model: torch.nn.Module) -> None:
        """With ``student.init: teacher``, copy the teacher's weights where name and shape match."""
        if self.config.student.init == "teacher" and self.teacher is not None:
            logger.info("initialized from the teacher: %s", warm_start(model, self.teacher.network.state_dict()))

    def prepare(self, ranks: TorchRanks) -> WindowSource:
        """Move the teacher to the device, in the precision of training, if it rolls out during training."""
        if self.teacher is not None and self.config.student.extension == "teacher" and self.extension is None:
            self.teacher.network.to(ranks.device, DTYPES[self.config.engine.precision])
        return self.source

    def window(self, batch: MicroBatch) -> Sample:
        """Return inputs, targets and mask of a window of each extended sequence."""
        pseudo = batch.extension
        if pseudo is None and self.config.student.extension == "teacher":
            assert self.teacher is not None
            pseudo = extend(self.teacher, to_frames(batch.windows), self.config)
        if pseudo is None:
            return super().window(batch)
        # After the rollout, as with cached frames: the teacher sees the full grid, and is not equivariant to flips.
        parts = [to_frames(self.augment(frames, batch)) for frames in (batch.windows, pseudo)]
        extended = Frames(*(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)))
        frames_in, frames_out = self.config.sequence.frames_in, self.config.sequence.frames_out
        return window_of_frames(
            extended, self.window_starts(batch), frames_in=frames_in, frames_out=frames_out, missing=self.missing
        )


def load_teacher(config: TrainConfig) -> TrainedModel:
    """Return the finished teacher in the run directory ``student.teacher``.

    Raises:
        ConfigError: the run is not finished, or has another context length, data set, cadence, grid or encoding.
    """
    if config.student.teacher is None:
        raise ConfigError("student.teacher is not set; set it to the run directory of a trained teacher")
    teacher = load_trained(config.student.teacher)
    for key, of_teacher, of_student in (
        ("stage", teacher.config.stage, "teacher"),
        ("sequence.frames_in", teacher.config.sequence.frames_in, config.sequence.frames_in),
        ("data.frame_stride", teacher.config.data.frame_stride, config.data.frame_stride),
        ("data.block_mean", teacher.config.data.block_mean, config.data.block_mean),
        ("data.recode_as", teacher.config.data.recode_as, config.data.recode_as),
    ):
        if of_teacher != of_student:
            raise ConfigError(
                f"the teacher in {config.student.teacher} has {key}={of_teacher!r}, the student needs {of_student!r}"
            )
    require_same_dataset(config.data, teacher.config.data, f"the teacher in {config.student.teacher}")
    return teacher


def _check_base(config: TrainConfig, teacher: TrainConfig) -> None:
    """Reject initial weights of a teacher with another base forecast, whose output has another meaning."""
    if config.student.init == "teacher" and teacher.model.base != config.model.base:
        raise ConfigError(
            f"student.init=teacher requires the teacher's model.base: {config.student.teacher} has "
            f"{teacher.model.base!r}, the student has {config.model.base!r}; choose the same, or student.init=scratch"
        )


@fp32_precision()
def extend(teacher: TrainedModel, real: Frames, config: TrainConfig) -> torch.Tensor:
    """Return the T_l pseudo-frames that continue a sequence of real frames, rounded as they are stored.

    In fp32 they are computed without TF32, also for a student that trains in TF32, so that cached ones are equal.
    """
    frames_in = config.sequence.frames_in
    last = Frames(real.values[:, -frames_in:], real.valid[:, -frames_in:])
    missing = missing_value(teacher.config.model)
    pseudo = roll_out(teacher.network, last, frames_out=config.sequence.frames_out, missing=missing)
    return to_stored(pseudo, config.student.pseudo_dtype)


def rollout_store(directory: Path, config: TrainConfig, teacher: TrainedModel, source: WindowSource) -> BlockStore:
    """Return the store of the pseudo-frames of a run: fp16 in [0, 1] with NaN or uint8 with 255, ``[T_l, H, W]``."""
    identity = {
        "teacher": teacher.weights_hash,
        "source": source.fingerprint,
        "pseudo_dtype": config.student.pseudo_dtype,
        "frames_out": config.sequence.frames_out,
        "windows": len(source),
        "precision": config.engine.precision,
    }
    return BlockStore(directory, identity, name="student.rollouts")
