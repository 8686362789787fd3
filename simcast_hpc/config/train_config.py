"""One training run: which frames, which data, which model, which loss, how it is optimised and kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .diffusion_config import AutoencoderTrainingConfig, DiffusionConfig, SamplingConfig
from .errors import ConfigError
from .model_config import ModelConfig, SimVPConfig
from .yaml_files import StrictModel


class SequenceConfig(StrictModel):
    """Which frames go in and which come out; output k (from 1) is valid ``k * step_minutes`` after the last.

    ``teacher_frames_out`` is the short horizon T's of the teacher (SimCast section 3: half of the long one).
    """

    frames_in: PositiveInt = 13
    frames_out: PositiveInt = 12
    teacher_frames_out: PositiveInt = 6

    @model_validator(mode="after")
    def _teacher_is_shorter(self) -> Self:
        if self.teacher_frames_out > self.frames_out:
            raise ValueError(
                f"sequence.teacher_frames_out={self.teacher_frames_out} is longer than sequence.frames_out="
                f"{self.frames_out}; the teacher's horizon is at most the student's, usually half of it"
            )
        return self


class HoldOutConfig(StrictModel):
    """Training without one fold of the events: fold ``fold``, from 0, of ``folds``, by a hash of their identifiers."""

    folds: int = Field(ge=2)
    fold: int = Field(ge=0)

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(
                f"data.hold_out.fold={self.fold} is none of data.hold_out.folds={self.folds}; they count from 0"
            )
        return self


class DataConfig(StrictModel):
    """Which data set, where it stands and how windows are cut from its events.

    ``dataset`` is a built-in description (``sevir``, ``synthetic``, ...) or the path of a YAML file of one.
    ``frame_stride`` keeps every n-th frame; ``block_mean`` averages n x n pixels in physical units over valid
    pixels; ``recode_as`` writes the result in another data set's code (both need a known encoding).
    ``augment`` flips and turns each training sample, ``crop`` cuts ``crop`` x ``crop`` pixels out of it, both by
    counters. ``stage_to`` is a folder on the node's own disk, such as ``$SLURM_TMPDIR``, to copy prepared shards to.
    ``hold_out`` leaves a fold of the events out of the split ``train``.
    """

    dataset: str = "sevir"
    root: Path | None = None
    frame_stride: PositiveInt = 1
    window_stride: PositiveInt = 12
    block_mean: PositiveInt = 1
    recode_as: str | None = None
    file_names: tuple[str, ...] | None = None
    max_percent_missing: float | None = 0.0
    workers: int = Field(default=0, ge=0)
    augment: bool = False
    crop: PositiveInt | None = None
    stage_to: str | None = None
    hold_out: HoldOutConfig | None = None


class LossConfig(StrictModel):
    """Weighted MSE (SimCast Eq. 1-2): weight ``weights[i]`` where i of the thresholds lie below the target.

    Without ``thresholds`` one step stands at the data set's highest evaluation threshold. With them, ``unit``
    must name the data set's own threshold unit (``code`` for SEVIR, ``mm/h`` for rain rates).
    ``inclusive`` counts a target on a threshold as above it (HKO-7's balanced weights).
    """

    thresholds: tuple[float, ...] | None = None
    unit: str | None = None
    weights: tuple[PositiveFloat, ...] = (1.0, 10.0)
    inclusive: bool = False

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        if self.thresholds is None:
            if len(self.weights) != 2:
                raise ValueError(
                    f"loss.weights has {len(self.weights)} values and no loss.thresholds; one step at the highest "
                    "threshold wants 2 weights, an unweighted loss wants thresholds: [] and one weight"
                )
            return self
        if len(self.weights) != len(self.thresholds) + 1:
            raise ValueError(
                f"loss.weights has {len(self.weights)} values for {len(self.thresholds)} thresholds; "
                f"give {len(self.thresholds) + 1}"
            )
        if self.thresholds and self.unit is None:
            raise ValueError("loss.thresholds needs loss.unit, the data set's threshold unit (code, mm/h, dBZ)")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"loss.thresholds must ascend, got {list(self.thresholds)}")
        return self


class BatchConfig(StrictModel):
    """Global batch is what the science fixes; micro batch is what memory fixes; accumulation follows."""

    global_size: PositiveInt = 8
    micro_size: PositiveInt = 1

    def accumulation_steps(self, world_size: int) -> int:
        """Return micro batches per optimizer step on each of ``world_size`` ranks.

        Raises:
            ConfigError: the ranks cannot share the global batch evenly.
        """
        per_step = self.micro_size * world_size
        if self.global_size % per_step:
            near = max(per_step, round(self.global_size / per_step) * per_step)
            raise ConfigError(
                f"batch.global_size={self.global_size} is not a multiple of batch.micro_size x ranks = "
                f"{self.micro_size} x {world_size}; try batch.global_size={near}, or another micro_size"
            )
        return self.global_size // per_step


class OptimizerConfig(StrictModel):
    """Adam and its learning rate as a function of the step (``train/optim.py``).

    ``weight_decay`` is decoupled (AdamW) and falls on all parameters, or with ``no_decay: norms_and_biases`` on all
    but those. ``final_fraction`` is the share of the peak rate that the last step has; None is the schedule's own.
    """

    learning_rate: PositiveFloat = 5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay: Literal["norms_and_biases"] | None = None
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup_fraction: float = Field(default=0.3, ge=0, lt=1)
    final_fraction: float | None = Field(default=None, gt=0, le=1)
    gradient_clip: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.no_decay is not None and self.weight_decay == 0:
            raise ValueError(
                f"optimizer.no_decay={self.no_decay} changes nothing with optimizer.weight_decay=0; "
                "set a weight_decay, or leave no_decay out"
            )
        if self.final_fraction is not None and self.schedule == "constant":
            raise ValueError("optimizer.final_fraction changes nothing with optimizer.schedule=constant; leave it out")
        return self


class EngineConfig(StrictModel):
    """How DeepSpeed holds the model: memory and speed, never science beyond rounding.

    ``offload`` keeps on the host what Adam keeps, and steps it there (``optimizer``), or the shared-out weights as
    well (``parameters``). ``zero_hpz_partition_size`` is ZeRO++'s hierarchical partitioning (arXiv 2306.10209,
    section 3.2): so many neighbouring ranks, usually a node's, hold a second whole copy of the weights among them,
    and the gather of the backward pass stays inside; 1 has no such copy.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    zero_hpz_partition_size: PositiveInt = 1
    timeout_minutes: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _bf16_needs_a_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "engine.precision=bf16 with engine.zero_stage=0 drifts about 8 times more than stage 1; "
                "set engine.zero_stage=1 (or engine.precision=fp32)"
            )
        return self

    @model_validator(mode="after")
    def _stage_shares_out_what_is_moved(self) -> Self:
        stage = self.zero_stage
        if self.offload == "optimizer" and stage == 0:
            raise ValueError(
                "engine.offload=optimizer moves what ZeRO shares out, and engine.zero_stage=0 shares out nothing; "
                "set engine.zero_stage=1, 2 or 3"
            )
        if self.offload == "parameters" and stage != 3:
            raise ValueError(
                f"engine.offload=parameters wants weights that are shared out, and engine.zero_stage={stage} holds "
                "them whole; set engine.zero_stage=3, or engine.offload=optimizer with stage 1 or 2"
            )
        if self.zero_hpz_partition_size > 1 and stage != 3:
            raise ValueError(
                f"engine.zero_hpz_partition_size={self.zero_hpz_partition_size} is a second partition of weights, and "
                f"engine.zero_stage={stage} has no first; set engine.zero_stage=3, or leave it out"
            )
        return self

    def reject_ranks(self, world_size: int) -> None:
        """Refuse a number of ranks that hierarchical partitioning cannot be laid out on.

        Raises:
            ConfigError: the size does not divide the ranks.
        """
        size = self.zero_hpz_partition_size
        if world_size % size:
            fits = [divisor for divisor in range(2, world_size + 1) if world_size % divisor == 0]
            right = f"it may be {', '.join(map(str, fits))}" if fits else "one rank has nothing to share out"
            raise ConfigError(
                f"engine.zero_hpz_partition_size={size} does not divide the {world_size} rank"
                f"{'s' if world_size > 1 else ''}: {right}; as many as a node has is usual, and 1 leaves it out"
            )


class StudentConfig(StrictModel):
    """The short-to-long distillation (SimCast section 3.3).

    ``teacher`` is the teacher's run folder. ``rollouts`` is ``online``, or ``cached`` for what ``simcast rollout``
    stored in the run folder's own ``rollouts``, or another such folder. Pseudo-frames are rounded to
    ``pseudo_dtype`` either way. ``extension`` ``oracle`` uses the event's
    own later frames, ``none`` does not extend: the controls that the paper lacks. A process of ``simcast rollout``
    that is silent for ``lease_seconds`` loses the block that it works on to the others.
    """

    teacher: Path | None = None
    init: Literal["scratch", "teacher"] = "scratch"
    extension: Literal["teacher", "oracle", "none"] = "teacher"
    rollouts: str = "online"
    pseudo_dtype: Literal["fp16", "uint8"] = "fp16"
    lease_seconds: PositiveFloat = 300.0


class CheckpointConfig(StrictModel):
    """How often the state is saved and how many checkpoints are kept; 0 steps saves at the end alone.

    Training goes on while a checkpoint is written, for at most ``ahead_steps`` optimizer steps; then it waits until
    the checkpoint stands whole. So a kill at any moment costs at most ``every_steps + ahead_steps`` steps; with
    ``ahead_steps`` 0, which writes nothing in the background, one interval of ``every_steps``.
    """

    every_steps: int = Field(default=1000, ge=0)
    ahead_steps: int = Field(default=20, ge=0)
    keep: PositiveInt = 2


class EMAConfig(StrictModel):
    """An exponential moving average of the weights, exported in their place; none without ``decay``."""

    decay: float | None = Field(default=None, gt=0, lt=1)
    every_steps: PositiveInt = 1


class LogConfig(StrictModel):
    """How often metrics are written, in optimizer steps."""

    every_steps: PositiveInt = 20


class WatchConfig(StrictModel):
    """What is watched while a run trains, and what is done about it.

    ``non_finite``: a loss or gradient that is no number ends the run, or its optimizer step is left out, with a
    warning that names the windows; after ``most_skipped`` such steps in a row the run ends all the same.
    ``spike_factor``: a loss this many times the median of the ``spike_window`` steps before is logged with its
    windows. ``hang_minutes``: a rank that takes no step for so long, after its first, says where it stands and ends
    the run; it must be longer than a step that waits for a checkpoint to be written.
    ``straggler_factor``: a rank that reads and computes this many times slower than the median is named.
    """

    non_finite: Literal["stop", "skip"] = "stop"
    most_skipped: PositiveInt = 10
    spike_factor: PositiveFloat | None = 10.0
    spike_window: PositiveInt = 100
    hang_minutes: PositiveFloat | None = 20.0
    straggler_factor: PositiveFloat | None = 2.0


class SharedConfig(StrictModel):
    """What a single training run and a pipeline have in common."""

    name: str
    run_dir: Path
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    sequence: SequenceConfig = SequenceConfig()
    model: ModelConfig = SimVPConfig()
    loss: LossConfig = LossConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    student: StudentConfig = StudentConfig()
    autoencoder: AutoencoderTrainingConfig = AutoencoderTrainingConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    ema: EMAConfig = EMAConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    watch: WatchConfig = WatchConfig()


Stage = Literal["teacher", "direct", "student", "autoencoder", "diffusion"]
FORECASTING: tuple[Stage, ...] = ("teacher", "direct", "student")
# Sections that decide nothing in stages that do not read them.
_READ_BY: dict[str, tuple[Stage, ...]] = {
    "autoencoder": ("autoencoder",),
    "diffusion": ("diffusion",),
    "loss": FORECASTING,
    "model": FORECASTING,
    "sampling": (),
    "student": ("student",),
}


class TrainConfig(SharedConfig):
    """One training run of one stage."""

    stage: Stage
    max_steps: PositiveInt = 100_000

    @classmethod
    def of_another_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Say what ``data`` is where it is a pipeline's configuration."""
        if "stages" in data and "stage" not in data:
            return "this is the configuration of a pipeline: start it by `simcast pipeline`"
        return None

    @model_validator(mode="after")
    def _student_has_a_teacher(self) -> Self:
        wants = self.student.extension == "teacher" or self.student.init == "teacher"
        if self.stage == "student" and wants and self.student.teacher is None:
            raise ValueError("stage student needs student.teacher, the run folder of a trained teacher")
        return self

    @property
    def frames_out(self) -> int:
        """Frames the trained model puts out: the teacher's short horizon or the long one."""
        return self.sequence.teacher_frames_out if self.stage == "teacher" else self.sequence.frames_out

    @property
    def rollout_dir(self) -> Path | None:
        """The folder of stored pseudo-frames; None where the teacher makes them online."""
        if self.student.rollouts == "online":
            return None
        return self.run_dir / "rollouts" if self.student.rollouts == "cached" else Path(self.student.rollouts)

    def science(self) -> dict[str, Any]:
        """Return what decides the result of this run, by dotted key: not where it runs, on what, or how it is logged.

        A checkpoint continues under an equal science only. The data and the teacher count by their content, which
        the run adds; ZeRO stage and micro batch may change at a resume.
        """
        data = self.model_dump(mode="json", exclude={"name", "run_dir", "checkpoint", "log", "watch"})
        data = {key: value for key, value in data.items() if self.stage in _READ_BY.get(key, (self.stage,))}
        flat = dict(_flatten(data))
        return {key: value for key, value in flat.items() if key not in _NOT_SCIENCE}


_NOT_SCIENCE = frozenset(
    {
        "autoencoder.model.checkpoint",
        "batch.micro_size",
        "data.dataset",  # a name or a path: what it describes counts, which the run adds
        "data.recode_as",
        "data.root",
        "data.stage_to",
        "data.workers",
        "diffusion.autoencoder",
        "diffusion.casformer.checkpoint",
        "diffusion.fold_students",
        "diffusion.latents",
        "diffusion.student",
        "diffusion.validation.every_steps",
        "diffusion.validation.members",
        "diffusion.validation.windows",
        "engine.offload",
        "engine.timeout_minutes",
        "engine.zero_hpz_partition_size",
        "engine.zero_stage",
        "model.channels_last",
        "model.checkpoint_levels",
        "model.grid",  # that of the data, whose content counts
        "student.lease_seconds",
        "student.rollouts",
        "student.teacher",
    }
)


def _flatten(data: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield above + key, value
