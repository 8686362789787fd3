"""One training run: the sections of all stages, and the fields that training runs and pipelines share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .data_config import DataConfig, SequenceConfig
from .deepspeed_fields import scientific_options
from .diffusion_config import AutoencoderTrainingConfig, DiffusionConfig, SamplingConfig
from .model_config import ModelConfig, SimVPConfig
from .names import Name
from .optimization_config import BatchConfig, EMAConfig, EngineConfig, LossConfig, OptimizerConfig, ParallelConfig
from .path_expansion import FieldPath, NameOrPath
from .stage_sections import (
    FORECASTING,
    Added,
    Operational,
    Section,
    Stage,
    StrictModel,
    Unit,
    reject_unread_sections,
    scientific_fields,
    unread_sections,
)
from .validation_config import ValidationConfig


class StudentConfig(Section, read_by=("student",)):
    """Short-to-long distillation (SimCast section 3.3): the teacher and how its pseudo-frames are made.

    A training window starts at frame k of the extended sequence; its last k targets are pseudo-frames.
    """

    teacher: Operational[FieldPath | None] = None
    """Run directory of the trained teacher. Operational, because the run adds the hash of its weights."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Initial weights: random (`scratch`), or the weights of the teacher (`teacher`)."""
    extension: Literal["teacher", "oracle", "none"] = "teacher"
    """Frames that extend a training sequence beyond its end: the rollout of the teacher (`teacher`), or as controls the
    later observed frames of the event (`oracle`) or none (`none`)."""
    start: Added[Literal["random", "last"]] = "random"
    """Start k of a training window: uniform on 0, ..., ``sequence.frames_out`` (`random`, as in SimCast), or always the
    last one (`last`), so that every target is a frame of the extension: the student learns to forecast in one pass what
    the teacher forecasts in several."""
    rollouts: Operational[NameOrPath] = "online"
    """Source of the teacher's rollouts: ``online`` computes them during training; ``cached`` reads the files that
    ``simcast rollout`` wrote to the folder ``rollouts`` of the run directory; any other value is the path of such a
    folder."""
    pseudo_dtype: Literal["fp16", "uint8"] = "fp16"
    """Data type to which pseudo-frames are rounded, both online and cached."""
    lease_seconds: Operational[Annotated[PositiveFloat, Unit("s")]] = 300.0
    """Time without a heartbeat after which another process of ``simcast rollout`` takes over the block of a process."""

    @model_validator(mode="after")
    def _last_start_has_targets(self) -> Self:
        if self.start == "last" and self.extension == "none":
            raise ValueError(
                "student.start=last needs frames that extend the sequence, but student.extension is none; choose "
                "student.extension=teacher, or student.start=random"
            )
        return self


class CheckpointConfig(Section):
    """How often checkpoints are written; a kill loses at most one interval and ``ahead_steps`` optimizer steps."""

    every_steps: Annotated[int, Unit("optimizer steps")] = Field(default=1000, ge=0)
    """Number of optimizer steps between checkpoints; 0 writes none by steps, only one at the end."""
    every_minutes: Annotated[PositiveFloat | None, Unit("minutes")] = None
    """Wall time between checkpoints, in addition to `checkpoint.every_steps`; null writes none by time. Rank 0's clock
    decides for all ranks. Set `every_steps` to 0 if a step takes milliseconds."""
    ahead_steps: Annotated[int, Unit("optimizer steps")] = Field(default=20, ge=0)
    """Number of optimizer steps that training may advance while a checkpoint is written in the background; 0 waits."""
    keep: Annotated[PositiveInt, Unit("checkpoints")] = 2
    """Number of checkpoints to keep."""


class LogConfig(Section):
    """How often metrics are written, experiment trackers, and what is recorded for profilers."""

    every_steps: Annotated[PositiveInt, Unit("optimizer steps")] = 20
    """Number of optimizer steps between lines of metrics."""
    tracker: Literal["none", "mlflow", "wandb", "trackio"] = "none"
    """Experiment tracker that also receives the metrics; its package must be installed. `none` uses no tracker."""
    project: str = Field(default="simcast", min_length=1)
    """Project (Weights & Biases, trackio) or experiment (MLflow) of the tracked run; ``name`` is the run's name."""
    nvtx: bool = False
    """Mark the parts of a step (reading, forward, backward, waiting, optimizer) as NVTX ranges for Nsight Systems."""
    memory_history: bool = False
    """Record the stack of each memory allocation for the snapshot that is written when the device memory runs out;
    each allocation takes longer."""


class WatchConfig(Section):
    """Reaction to anomalies during training: non-finite values, loss spikes, hanging and slow ranks."""

    non_finite: Literal["stop", "skip"] = "stop"
    """Reaction to a non-finite loss or gradient: stop the run, or skip the optimizer step with a warning that names
    the windows."""
    most_skipped: Annotated[PositiveInt, Unit("optimizer steps")] = 10
    """Largest number of consecutive skipped steps; one more stops the run."""
    spike_factor: Annotated[PositiveFloat | None, Unit("1")] = 10.0
    """Log the windows of a step whose loss exceeds this multiple of the median of the preceding steps; null disables
    the check."""
    spike_window: Annotated[PositiveInt, Unit("optimizer steps")] = 100
    """Number of preceding steps in the median for ``watch.spike_factor``."""
    hang_minutes: Annotated[PositiveFloat | None, Unit("minutes")] = 20.0
    """Time without a step after which a rank writes its stacks and the run ends; it must exceed the time that training
    waits for a checkpoint. null disables the watchdog."""
    straggler_factor: Annotated[PositiveFloat | None, Unit("1")] = 2.0
    """Log a rank whose time for reading and computing exceeds this multiple of the median over ranks; null disables the
    check."""


class SharedConfig(StrictModel):
    """The fields that a training run and a pipeline share."""

    name: Operational[Name]
    """Name of the run in logs, reports and forecast files: letters, digits, and `. _ + -`."""
    run_dir: Operational[FieldPath]
    """Run directory, to which all outputs are written."""
    seed: Annotated[int, Unit("1")] = Field(default=0, ge=0)
    """Seed of all random numbers."""
    data: DataConfig = DataConfig()
    """Data set and windows."""
    sequence: SequenceConfig = SequenceConfig()
    """Numbers of input and output frames."""
    model: ModelConfig = SimVPConfig()
    """Forecasting network: its name (`simvp`, `earthformer`), or a mapping with ``kind`` and its fields."""
    loss: LossConfig = LossConfig()
    """Weighted MSE of the forecasting stages."""
    batch: BatchConfig = BatchConfig()
    """Global and micro-batch size."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam, learning rate and gradient clipping."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed: ZeRO stage, precision, offload."""
    parallel: Operational[ParallelConfig] = ParallelConfig()
    """Spatial sharding: several ranks share each sample."""
    student: StudentConfig = StudentConfig()
    """Distillation from the teacher."""
    autoencoder: AutoencoderTrainingConfig = AutoencoderTrainingConfig()
    """Autoencoder, discriminator and their losses."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Denoiser, noise schedule, and the runs that it is conditioned on."""
    sampling: Operational[SamplingConfig] = SamplingConfig()
    """How ensembles are sampled, in validation and from the finished run."""
    ema: EMAConfig = EMAConfig()
    """Exponential moving average of the weights."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during training, and the weights that it selects."""
    checkpoint: Operational[CheckpointConfig] = CheckpointConfig()
    """How often checkpoints are written."""
    log: Operational[LogConfig] = LogConfig()
    """Metrics, experiment trackers and profiling."""
    watch: Operational[WatchConfig] = WatchConfig()
    """Reaction to anomalies."""


class TrainConfig(SharedConfig):
    """One training run of one stage."""

    stage: Stage
    """Stage that is trained."""
    max_steps: Annotated[PositiveInt, Unit("optimizer steps")] = 100_000
    """Number of optimizer steps of the run."""

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
    def _warmup_ends(self) -> Self:
        steps = self.optimizer.warmup_steps(self.max_steps)
        if steps >= self.max_steps:
            raise ValueError(
                f"optimizer.batch_rule.warmup_steps={steps:g} must be below max_steps={self.max_steps}, so that the "
                "learning rate reaches its peak"
            )
        return self

    @model_validator(mode="after")
    def _student_has_a_teacher(self) -> Self:
        uses_teacher = self.student.extension == "teacher" or self.student.init == "teacher"
        if self.stage == "student" and uses_teacher and self.student.teacher is None:
            raise ValueError("stage student requires student.teacher, the run directory of a trained teacher")
        return self

    @model_validator(mode="after")
    def _spatial_sharding_fits_the_engine(self) -> Self:
        spatial, engine = self.parallel.spatial, self.engine
        options = {"zero_hpz_partition_size": 1, "compile": False, "cuda_graph": False}
        given = [
            f"engine.{name}={getattr(engine, name)}" for name, off in options.items() if getattr(engine, name) != off
        ]
        if spatial > 1 and given:
            raise ValueError(
                f"parallel.spatial={spatial} excludes {', '.join(given)}; choose parallel.spatial=1, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _noise_has_an_ensemble_loss(self) -> Self:
        noise, crps = self.model.noise_channels, self.loss.crps_weight
        if noise and self.stage == "teacher":
            raise ValueError(
                f"model.noise_channels={noise} is invalid in stage teacher, whose rollout is one sequence per sample; "
                "set it in stage student or direct"
            )
        if noise and not crps and self.stage in FORECASTING:
            raise ValueError(
                f"model.noise_channels={noise} requires loss.crps_weight above 0 (and loss.mse_weight=0): a loss of "
                "single forecasts trains the network to ignore its noise"
            )
        if crps and not noise:
            raise ValueError(
                f"loss.crps_weight={crps:g} requires model.noise_channels of at least 1: without noise all members are "
                "equal"
            )
        return self

    @model_validator(mode="after")
    def _network_can_be_captured(self) -> Self:
        if not self.engine.cuda_graph:
            return self
        if self.stage == "autoencoder":
            raise ValueError(
                "engine.cuda_graph=true is invalid in stage autoencoder: the weight of the adversarial loss "
                "differentiates parts of the network; set engine.cuda_graph=false"
            )
        dropout = getattr(self.model, "attention_dropout", 0.0) if self.stage in FORECASTING else 0.0
        if dropout:
            raise ValueError(
                f"engine.cuda_graph=true is invalid with model.attention_dropout={dropout}: a graph would drop "
                "the same weights in every step; set engine.cuda_graph=false"
            )
        levels = getattr(self.model, "checkpoint_levels", ()) if self.stage in FORECASTING else ()
        if levels or (self.stage == "diffusion" and self.diffusion.casformer.checkpoint):
            field = f"model.checkpoint_levels={list(levels)}" if levels else "diffusion.casformer.checkpoint=true"
            raise ValueError(
                f"engine.cuda_graph=true is invalid with {field}: recomputation restores the state of the random "
                "generator, which cannot be captured; disable one of them"
            )
        return self

    @model_validator(mode="after")
    def _sampling_is_read(self) -> Self:
        if self.stage == "diffusion":
            return self
        if self.model.noise_channels:
            self.sampling.reject_denoising(f"stage {self.stage}")
        elif given := self.sampling.given():
            raise ValueError(
                f"{', '.join(f'sampling.{key}={value}' for key, value in given.items())} has no effect in stage "
                f"{self.stage} without model.noise_channels, whose forecasts are deterministic"
            )
        return self

    def unread_sections(self) -> set[str]:
        """Return the names of the sections that the stage does not read."""
        sampled = self.stage == "diffusion" or self.model.noise_channels
        return unread_sections(self, [self.stage]) | (set() if sampled else {"sampling"})

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
        return dict(scientific_fields(self, self.stage)) | scientific_options(self.engine.deepspeed)
