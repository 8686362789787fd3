"""How a run is optimized: loss, batch, optimizer, weight average, and the DeepSpeed engine."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .deepspeed_fields import reject_owned
from .errors import ConfigError
from .stage_sections import FORECASTING, Added, Operational, Section, StrictModel, Unit


class LossConfig(Section, read_by=FORECASTING):
    """Weighted sum of loss terms over valid pixels, in [0, 1] (pixel value / 255); formulas: ``simcast_hpc/losses/``.

    The default is the weighted MSE of SimCast (Eq. 1-2): a pixel's weight depends on how many thresholds its target
    exceeds. MSE and MAE use the same pixel weights.
    """

    mse_weight: Added[Annotated[float, Unit("1")]] = Field(default=1.0, ge=0)
    """Coefficient of the MSE with pixel weights."""
    mae_weight: Added[Annotated[float, Unit("1")]] = Field(default=0.0, ge=0)
    """Coefficient of the mean absolute error with pixel weights. `weighting: balanced` with `mse_weight: 1` and
    `mae_weight: 1` is the loss of the HKO-7 benchmark (Shi et al. 2017)."""
    amse_weight: Added[Annotated[float, Unit("1")]] = Field(default=0.0, ge=0)
    """Coefficient of the adjusted MSE (Subich et al. 2025): an MSE per wavenumber of the 2-D spectrum that does not
    reward blurred forecasts. It is equal to the MSE where the amplitudes are right."""
    crps_weight: Added[Annotated[float, Unit("1")]] = Field(default=0.0, ge=0)
    """Coefficient of the almost-fair CRPS (Lang et al. 2024) of the members of a network with ``model.noise_channels``.
    It replaces all other terms, which would lower the spread. ``loss.weights`` are the weights of values, not of
    pixels: the score is the threshold-weighted CRPS, which is proper."""
    crps_alpha: Added[Annotated[float, Unit("1")]] = Field(default=0.95, ge=0, le=1)
    """Share of the fair CRPS in the almost-fair CRPS; the remainder is the standard CRPS of the members."""
    members: Added[Annotated[int, Unit("members")]] = Field(default=2, ge=2)
    """Number of members per sample in training with ``loss.crps_weight``; forecasts have ``sampling.members``."""
    pinball_weight: Added[Annotated[float, Unit("1")]] = Field(default=0.0, ge=0)
    """Coefficient of the pinball loss of smoothed exceedances of the data set's evaluation thresholds, a surrogate of
    the mean CSI."""
    pinball_threshold_weights: Added[Annotated[tuple[PositiveFloat, ...] | None, Unit("1")]] = None
    """Weight of each evaluation threshold in the pinball loss, usually inverse to the number of pixels above it; null
    weights them equally."""
    pinball_level: Added[Annotated[float, Unit("1")]] = Field(default=2 / 3, gt=0, lt=1)
    """Quantile level of the pinball loss. An event is best forecast where its probability is above 1 - level; with a
    CSI of c the best level for CSI is 1 / (1 + c)."""
    pinball_width: Added[Annotated[PositiveFloat, Unit("encoded value / 255")]] = 0.04
    """Standard deviation of the smoothing of the thresholds in the pinball loss."""
    weighting: Added[Literal["simcast", "balanced"]] = "simcast"
    """Pixel weights: `simcast` is `loss.weights`; `balanced` is 1, 2, 5, 10 and 30 for rain rates below 2, from 2, 5,
    10 and 30 mm/h, converted to the unit of the data set (B-MSE and B-MAE, Shi et al. 2017)."""
    thresholds: Annotated[tuple[float, ...] | None, Unit("`loss.unit`")] = None
    """Ascending thresholds in the unit ``loss.unit``; null uses the highest evaluation threshold of the data set."""
    unit: str | None = None
    """Unit of ``loss.thresholds``. It must be the threshold unit of the data set: ``code`` (encoded values, SEVIR),
    ``mm/h`` or ``dBZ``."""
    weights: Annotated[tuple[PositiveFloat, ...], Unit("1")] = (1.0, 10.0)
    """Weights of the error of a pixel: value i applies where the target exceeds i of the thresholds. One more value
    than there are thresholds."""
    inclusive: bool = False
    """Count a target that equals a threshold as above it, as in the balanced weights of HKO-7."""

    @property
    def pixel_weights(self) -> tuple[float, ...]:
        """Weights of pixels between the thresholds, ascending."""
        return (1.0, 2.0, 5.0, 10.0, 30.0) if self.weighting == "balanced" else self.weights

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        names = ("mse_weight", "mae_weight", "amse_weight", "pinball_weight", "crps_weight")
        terms = {name: getattr(self, name) for name in names}
        given = [f"loss.{name}" for name, value in terms.items() if value]
        if not given:
            raise ValueError(f"{', '.join(f'loss.{name}' for name in terms)} are all 0; set one above 0")
        if self.crps_weight and len(given) > 1:
            raise ValueError(
                f"loss.crps_weight={self.crps_weight:g} excludes other terms, which would lower the spread of the "
                f"members; set {', '.join(f'{name}=0' for name in given[:-1])}"
            )
        return self

    @model_validator(mode="after")
    def _members_have_an_effect(self) -> Self:
        for name in ("members", "crps_alpha"):
            value = getattr(self, name)
            if not self.crps_weight and value != type(self).model_fields[name].default:
                raise ValueError(f"loss.{name}={value} has no effect with loss.crps_weight=0; set loss.crps_weight")
        return self

    @model_validator(mode="after")
    def _pinball_options_have_an_effect(self) -> Self:
        names = ("pinball_threshold_weights", "pinball_level", "pinball_width")
        given = [f"loss.{name}" for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if given and not self.pinball_weight:
            raise ValueError(f"{', '.join(given)} has no effect with loss.pinball_weight=0; remove it")
        return self

    @model_validator(mode="after")
    def _one_table_of_weights(self) -> Self:
        given = [
            f"loss.{name}"
            for name in ("thresholds", "unit", "weights", "inclusive")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.weighting == "balanced" and given:
            raise ValueError(
                f"{', '.join(given)} and loss.weighting=balanced exclude each other: balanced has its own thresholds "
                "and weights; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _weights_match_thresholds(self) -> Self:
        if self.thresholds is None:
            if len(self.weights) != 2:
                raise ValueError(
                    f"loss.weights has {len(self.weights)} values and loss.thresholds is not set; give 2 weights for "
                    "the data set's highest threshold, or thresholds: [] and 1 weight for an unweighted loss"
                )
            return self
        if len(self.weights) != len(self.thresholds) + 1:
            raise ValueError(
                f"loss.weights has {len(self.weights)} values for {len(self.thresholds)} thresholds; "
                f"give {len(self.thresholds) + 1}"
            )
        if self.thresholds and self.unit is None:
            raise ValueError("loss.thresholds requires loss.unit, the data set's threshold unit (code, mm/h, dBZ)")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"loss.thresholds must ascend, got {list(self.thresholds)}")
        return self


class BatchConfig(Section):
    """Global and micro-batch size; the number of gradient accumulation steps follows from both and the ranks."""

    global_size: Annotated[PositiveInt, Unit("samples")] = 8
    """Samples per optimizer step over all ranks (global batch size). Gradient accumulation follows from it."""
    micro_size: Operational[Annotated[PositiveInt, Unit("samples")]] = 1
    """Samples per forward and backward pass of a rank (micro-batch size)."""

    def accumulation_steps(self, world_size: int) -> int:
        """Return the micro-batches per optimizer step on each of ``world_size`` ranks.

        With spatial sharding it is the number of groups of ranks that share a sample (``ParallelConfig.groups``).

        Raises:
            ConfigError: the global batch is not divisible by micro-batch size times ranks.
        """
        per_step = self.micro_size * world_size
        if self.global_size % per_step:
            sizes = range(1, self.global_size + 1)
            fits = [size for size in sizes if self.global_size % (size * world_size) == 0]
            valid = (
                f"choose batch.micro_size={_either(fits)}"
                if fits
                else f"the number of ranks must divide batch.global_size={self.global_size}: choose "
                f"{_either([size for size in sizes if self.global_size % size == 0])} ranks. Another batch.global_size "
                "changes the training; optimizer.batch_rule then sets the learning rate. parallel.spatial=p uses p "
                "times as many ranks without changing it"
            )
            raise ConfigError(
                f"batch.global_size={self.global_size} is not a multiple of batch.micro_size x ranks = "
                f"{self.micro_size} x {world_size}; {valid}"
            )
        return self.global_size // per_step


class BatchRuleConfig(StrictModel):
    """Learning rate and warm-up for another global batch size than that of the recipe: a change of the recipe."""

    reference_size: Annotated[PositiveInt, Unit("samples")]
    """Global batch size for which ``optimizer.learning_rate`` was chosen."""
    rule: Literal["sqrt", "linear"] = "sqrt"
    """Factor of the learning rate: the square root of `batch.global_size / reference_size` (`sqrt`, for Adam: Malladi
    et al. 2022, who also change the decay rates of the moments), or the ratio itself (`linear`, for SGD: Goyal et al.
    2017)."""
    warmup_steps: Annotated[PositiveInt | None, Unit("optimizer steps")] = None
    """Number of optimizer steps of the warm-up, in place of ``optimizer.warmup_fraction``."""

    def factor(self, global_size: int) -> float:
        """Return the factor of the learning rate for a global batch of ``global_size`` samples."""
        ratio = global_size / self.reference_size
        return ratio if self.rule == "linear" else ratio**0.5


class OptimizerConfig(Section):
    """Adam, its learning rate as a function of the optimizer step (``train/learning_rate.py``), and clipping."""

    learning_rate: Annotated[PositiveFloat, Unit("1")] = 5e-3
    """Peak learning rate."""
    betas: Annotated[tuple[float, float], Unit("1")] = (0.9, 0.999)
    """Decay rates of the first and second moment in Adam."""
    weight_decay: Annotated[float, Unit("1")] = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    no_decay: Literal["norms_and_biases"] | None = None
    """Exclude normalization parameters and biases from weight decay; null decays all parameters."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """Shape of the learning rate after the warm-up; ``train/learning_rate.py`` gives the formulas."""
    cycle_momentum: Added[bool] = False
    """Change the first decay rate of Adam from 0.95 to 0.85 and back with `optimizer.schedule=one_cycle`, as torch's
    OneCycleLR does by default (OpenSTL's SimVP recipe), in place of the first value of `optimizer.betas`."""
    warmup_fraction: Annotated[float, Unit("1")] = Field(default=0.3, ge=0, lt=1)
    """Fraction of the optimizer steps in which the learning rate rises to its peak (warm-up)."""
    final_fraction: Annotated[float | None, Unit("1")] = Field(default=None, gt=0, le=1)
    """Learning rate of the last step divided by the peak; null uses the default of the schedule."""
    gradient_clip: Annotated[float, Unit("1")] = Field(default=1.0, ge=0)
    """Largest global norm of the gradient; larger gradients are scaled down. 0 does not clip."""
    batch_rule: Added[BatchRuleConfig | None] = None
    """Rule that derives learning rate and warm-up from `batch.global_size`; null uses them as they are."""

    def peak(self, global_size: int) -> float:
        """Return the peak learning rate of a run with a global batch of ``global_size`` samples."""
        return self.learning_rate * (1.0 if self.batch_rule is None else self.batch_rule.factor(global_size))

    def warmup_steps(self, max_steps: int) -> float:
        """Return the length of the warm-up of a run of ``max_steps`` optimizer steps."""
        given = None if self.batch_rule is None else self.batch_rule.warmup_steps
        return self.warmup_fraction * max_steps if given is None else float(given)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.no_decay is not None and self.weight_decay == 0:
            raise ValueError(
                f"optimizer.no_decay={self.no_decay} has no effect with optimizer.weight_decay=0; "
                "set optimizer.weight_decay, or remove optimizer.no_decay"
            )
        if self.final_fraction is not None and self.schedule == "constant":
            raise ValueError(
                f"optimizer.final_fraction={self.final_fraction} has no effect with optimizer.schedule=constant; "
                "remove it"
            )
        if self.cycle_momentum and self.schedule != "one_cycle":
            raise ValueError(
                f"optimizer.cycle_momentum=true requires optimizer.schedule=one_cycle (got {self.schedule})"
            )
        return self


class EMAConfig(Section):
    """An exponential moving average of the weights, which is exported in their place."""

    decay: Annotated[float | None, Unit("1")] = Field(default=None, gt=0, lt=1)
    """Decay of the average per update; null keeps no average."""
    every_steps: Annotated[PositiveInt, Unit("optimizer steps")] = 1
    """Number of optimizer steps between updates of the average."""


class EngineConfig(Section):
    """How DeepSpeed partitions and stores the model."""

    zero_stage: Operational[Annotated[Literal[0, 1, 2, 3], Unit("1")]] = 1
    """ZeRO stage: plain data parallel training without sharding (0), or sharded optimizer states (1), also gradients
    (2), also weights (3)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of the forward and backward pass; `bf16` is mixed precision with fp32 master weights."""
    tf32: Added[bool] = False
    """Train in TF32 on NVIDIA GPUs with `engine.precision=fp32`: inputs of convolutions and matmuls are rounded to 10
    bits of mantissa, except in the output layer. Forecasts, samples and latents are always computed in IEEE fp32."""
    deterministic: Operational[bool] = False
    """Use only deterministic algorithms on a GPU, so that a resumed run is bitwise equal to an uninterrupted one on the
    same layout; slower. On a CPU this holds without it."""
    offload: Operational[Literal["none", "optimizer", "parameters"]] = "none"
    """Store the optimizer states in host memory and update them there (`optimizer`), or also the sharded weights
    (`parameters`)."""
    zero_hpz_partition_size: Operational[Annotated[PositiveInt, Unit("ranks")]] = 1
    """Number of ranks, usually those of a node, that share a secondary partition of the weights, so that the all-gather
    of the backward pass stays within them (ZeRO++, arXiv 2306.10209, section 3.2); 1 disables it."""
    timeout_minutes: Operational[Annotated[PositiveFloat, Unit("minutes")]] = 30.0
    """Timeout of a collective operation."""
    gradient_reduction: Operational[Literal["fp32", "bf16"]] = "fp32"
    """Data type in which gradients are summed over ranks with `engine.precision=bf16`; `bf16` halves the bytes, but its
    rounding errors grow with the number of ranks. A run that was started with `bf16` keeps it unless this field is
    set."""
    zero_init: Operational[bool] = False
    """Partition the weights while the model is built (`engine.zero_stage=3`), for models that do not fit into the
    memory of a host; the weights are the same. Validation and export still need a complete copy of the weights."""
    compile: Operational[bool] = False
    """Run the network of the training step as code generated by `torch.compile`, which fuses chains of elementwise
    operations; compiling takes minutes at the first step. Losses differ by rounding, and dropout masks differ."""
    cuda_graph: Operational[bool] = False
    """Run the network's forward and backward pass as CUDA graphs, for networks whose kernels finish before Python
    launches the next. No effect without a GPU."""
    deepspeed: Operational[dict[str, Any]] = {}  # noqa: RUF012  pydantic copies it
    """Further options of DeepSpeed, in its own structure, such as `zero_optimization: {overlap_comm: true}`. Options
    that a field of this configuration sets are rejected, and unknown ones."""

    @model_validator(mode="after")
    def _bf16_needs_a_zero_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "engine.precision=bf16 with engine.zero_stage=0 drifts about 8 times more than stage 1; "
                "set engine.zero_stage=1 (or engine.precision=fp32)"
            )
        return self

    @model_validator(mode="after")
    def _tf32_needs_fp32(self) -> Self:
        if self.tf32 and self.precision != "fp32":
            raise ValueError(
                f"engine.tf32=true has no effect with engine.precision={self.precision}; set engine.precision=fp32, or "
                "remove engine.tf32"
            )
        return self

    @model_validator(mode="after")
    def _reduction_needs_bf16(self) -> Self:
        if self.gradient_reduction == "bf16" and self.precision == "fp32":
            raise ValueError(
                "engine.gradient_reduction=bf16 requires engine.precision=bf16 (got fp32); "
                "set engine.gradient_reduction=fp32"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_options_are_free(self) -> Self:
        reject_owned(self.deepspeed, offload=self.offload)
        return self

    @model_validator(mode="after")
    def _options_match_zero_stage(self) -> Self:
        stage = self.zero_stage
        if self.offload == "optimizer" and stage == 0:
            raise ValueError("engine.offload=optimizer requires engine.zero_stage=1, 2 or 3 (got 0)")
        if self.offload == "parameters" and stage != 3:
            raise ValueError(f"engine.offload=parameters requires engine.zero_stage=3 (got {stage})")
        if self.zero_init and stage != 3:
            raise ValueError(f"engine.zero_init=true requires engine.zero_stage=3 (got {stage})")
        if self.zero_init and self.zero_hpz_partition_size > 1:
            raise ValueError(
                f"engine.zero_init=true excludes engine.zero_hpz_partition_size={self.zero_hpz_partition_size}, whose "
                "groups DeepSpeed creates only once; set engine.zero_hpz_partition_size=1"
            )
        if self.zero_hpz_partition_size > 1 and stage != 3:
            raise ValueError(
                f"engine.zero_hpz_partition_size={self.zero_hpz_partition_size} requires engine.zero_stage=3 "
                f"(got {stage})"
            )
        return self

    @model_validator(mode="after")
    def _programs_match_layout(self) -> Self:
        if self.zero_stage == 3 and (self.compile or self.cuda_graph):
            name = "compile" if self.compile else "cuda_graph"
            raise ValueError(
                f"engine.{name}=true requires engine.zero_stage=0, 1 or 2 (got 3), whose weights stay in place"
            )
        if self.cuda_graph and self.offload != "none":
            raise ValueError(
                f"engine.cuda_graph=true requires engine.offload=none (got {self.offload}), which copies "
                "gradients to the host during the backward pass"
            )
        return self

    def reject_ranks(self, world_size: int) -> None:
        """Raise an error if the secondary partition does not divide the ranks.

        Raises:
            ConfigError: ``zero_hpz_partition_size`` is not a divisor of ``world_size``.
        """
        size = self.zero_hpz_partition_size
        if world_size % size:
            fits = [divisor for divisor in range(1, world_size + 1) if world_size % divisor == 0]
            raise ConfigError(
                f"engine.zero_hpz_partition_size={size} does not divide the number of ranks, {world_size}; "
                f"choose {_either(fits)}"
            )


class ParallelConfig(Section, read_by=FORECASTING):
    """How ranks share one sample; all other parallelism is over samples."""

    spatial: Operational[Annotated[PositiveInt, Unit("ranks")]] = 1
    """Number of ranks that share each sample: each computes an equal part of the rows of its frames (spatial sharding).
    It must divide the number of ranks; then a run can use `spatial` times as many ranks as samples. It may change when
    a run resumes."""

    def groups(self, world_size: int) -> int:
        """Return the number of groups of ``spatial`` ranks, which process different samples.

        Raises:
            ConfigError: ``spatial`` is not a divisor of ``world_size``.
        """
        if world_size % self.spatial:
            fits = [divisor for divisor in range(1, world_size + 1) if world_size % divisor == 0]
            raise ConfigError(
                f"parallel.spatial={self.spatial} does not divide the number of ranks, {world_size}; "
                f"choose {_either(fits)}"
            )
        return world_size // self.spatial


def _either(values: list[int]) -> str:
    """Return ``1, 2 or 4``."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last
