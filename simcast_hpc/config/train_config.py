"""One training run: the sections of all stages, and the fields that training runs and pipelines share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .data_config import DataConfig, SequenceConfig
from .diffusion_config import AutoencoderTrainingConfig, DiffusionConfig, SamplingConfig
from .model_config import ModelConfig, SimVPConfig
from .optimization_config import BatchConfig, EMAConfig, EngineConfig, LossConfig, OptimizerConfig
from .stage_sections import (
    Operational,
    Section,
    Stage,
    StrictModel,
    reject_unread_sections,
    scientific_fields,
    unread_sections,
)


class StudentConfig(Section, read_by=("student",)):
    """Short-to-long distillation (SimCast section 3.3): the teacher and how its pseudo-frames are made."""

    teacher: Operational[Path | None] = None
    """Run directory of the trained teacher. Operational, because the run adds the hash of its weights."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Initial weights: random, or the teacher's."""
    extension: Literal["teacher", "oracle", "none"] = "teacher"
    """What extends the sequence: the teacher's rollout, or as a control the event's own later frames, or nothing."""
    rollouts: Operational[str] = "online"
    """``online`` rolls the teacher out during training; ``cached`` reads what ``simcast rollout`` stored in the run
    directory's own ``rollouts``; any other value is the path of such a folder."""
    pseudo_dtype: Literal["fp16", "uint8"] = "fp16"
    """Data type to which pseudo-frames are rounded, online as well as cached."""
    lease_seconds: Operational[PositiveFloat] = 300.0
    """Seconds without a heartbeat after which a process of ``simcast rollout`` loses its block to another process."""


class CheckpointConfig(Section):
    """How often checkpoints are written; a kill loses at most ``every_steps + ahead_steps`` optimizer steps."""

    every_steps: int = Field(default=1000, ge=0)
    """Optimizer steps between checkpoints; 0 writes one at the end only."""
    ahead_steps: int = Field(default=20, ge=0)
    """Optimizer steps that training may advance while a checkpoint is written in the background; 0 waits for it."""
    keep: PositiveInt = 2
    """Number of checkpoints to keep."""


class LogConfig(Section):
    """How often metrics are written."""

    every_steps: PositiveInt = 20
    """Optimizer steps between metrics."""


class WatchConfig(Section):
    """Reaction to anomalies during training: non-finite values, loss spikes, hanging and slow ranks."""

    non_finite: Literal["stop", "skip"] = "stop"
    """Reaction to a non-finite loss or gradient: stop the run, or skip the optimizer step with a warning that names
    the windows."""
    most_skipped: PositiveInt = 10
    """Stop the run after more skipped steps in a row than this."""
    spike_factor: PositiveFloat | None = 10.0
    """Log the windows of a step whose loss exceeds this multiple of the recent median; null disables it."""
    spike_window: PositiveInt = 100
    """Number of preceding steps in that median."""
    hang_minutes: PositiveFloat | None = 20.0
    """Dump the stacks of a rank and end the run after this many minutes without a step, which must exceed the wait for
    a checkpoint; null disables it."""
    straggler_factor: PositiveFloat | None = 2.0
    """Log a rank that reads and computes this many times slower than the median; null disables it."""


class SharedConfig(StrictModel):
    """The fields that a training run and a pipeline share."""

    name: Operational[str]
    """Name of the run, for people."""
    run_dir: Operational[Path]
    """Run directory, to which all outputs are written."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers."""
    data: DataConfig = DataConfig()
    """Data set and windows."""
    sequence: SequenceConfig = SequenceConfig()
    """Numbers of input and output frames."""
    model: ModelConfig = SimVPConfig()
    """Network that forecasts: its name, or a mapping with ``kind`` and its sizes."""
    loss: LossConfig = LossConfig()
    """Weighted MSE of the stages that forecast."""
    batch: BatchConfig = BatchConfig()
    """Global and micro-batch size."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam and its learning rate."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed: ZeRO stage, precision, offload."""
    student: StudentConfig = StudentConfig()
    """Distillation from the teacher."""
    autoencoder: AutoencoderTrainingConfig = AutoencoderTrainingConfig()
    """Autoencoder, discriminator and their losses."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Denoiser, noise schedule, and the runs that it is conditioned on."""
    sampling: Operational[SamplingConfig] = SamplingConfig()
    """How ensembles are sampled, in validation and from the finished run."""
    ema: EMAConfig = EMAConfig()
    """Moving average of the weights."""
    checkpoint: Operational[CheckpointConfig] = CheckpointConfig()
    """How often checkpoints are written."""
    log: Operational[LogConfig] = LogConfig()
    """How often metrics are written."""
    watch: Operational[WatchConfig] = WatchConfig()
    """Reaction to anomalies."""


class TrainConfig(SharedConfig):
    """One training run of one stage."""

    stage: Stage
    """What is trained."""
    max_steps: PositiveInt = 100_000
    """Optimizer steps of the run."""

    @classmethod
    def other_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Return a message if ``data`` is the configuration of a pipeline."""
        if "stages" in data and "stage" not in data:
            return "this is the configuration of a pipeline: run `simcast pipeline`"
        return None

    @model_validator(mode="after")
    def _sections_are_read(self) -> Self:
        reject_unread_sections(self, [self.stage])
        return self

    @model_validator(mode="after")
    def _student_has_a_teacher(self) -> Self:
        uses_teacher = self.student.extension == "teacher" or self.student.init == "teacher"
        if self.stage == "student" and uses_teacher and self.student.teacher is None:
            raise ValueError("stage student requires student.teacher, the run directory of a trained teacher")
        return self

    def unread_sections(self) -> set[str]:
        """Return the names of the sections that the stage does not read."""
        return unread_sections(self, [self.stage])

    @property
    def frames_out(self) -> int:
        """Frames that the trained model forecasts: the short horizon for a teacher, else the long one."""
        return self.sequence.teacher_frames_out if self.stage == "teacher" else self.sequence.frames_out

    @property
    def rollout_dir(self) -> Path | None:
        """The folder of cached pseudo-frames, or None for online rollouts."""
        if self.student.rollouts == "online":
            return None
        return self.run_dir / "rollouts" if self.student.rollouts == "cached" else Path(self.student.rollouts)

    def science(self) -> dict[str, Any]:
        """Return the fields that decide the result of this run, by dotted key, without the operational ones.

        A checkpoint is resumed only if these are equal. The run adds the content of the data and the hashes of the
        weights that it reads.
        """
        return dict(scientific_fields(self, self.stage))
