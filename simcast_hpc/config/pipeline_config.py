"""A pipeline: several training runs in order, verification, and how its stages share their fields."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .data_config import DataConfig
from .diffusion_config import MEMBER_FIELDS
from .errors import ConfigError
from .names import Name
from .shipped_configs import resolve
from .stage_sections import STAGES, Added, StrictModel, Unit, reject_unread_sections, unread_sections
from .train_config import SharedConfig, TrainConfig
from .yaml_files import from_mapping, merge, read_yaml

PostprocessingName = Literal["quantile-mapping", "probability-matching"]
POSTPROCESSING: tuple[str, ...] = get_args(PostprocessingName)
"""Names of the changes of a forecast's values after the forecast."""


class SynthesisConfig(StrictModel):
    """The synthetic archive, in SEVIR's layout, that a pipeline writes to ``data.root``."""

    seed: Annotated[int, Unit("1")] = Field(default=0, ge=0)
    """Seed of the random numbers of the archive."""
    size: Annotated[PositiveInt, Unit("pixels")] = 48
    """Side of a square frame."""
    frames_per_event: Annotated[PositiveInt, Unit("frames")] = 25
    """Number of frames per event."""
    train_events: Annotated[PositiveInt, Unit("events")] = 150
    """Number of events in the split ``train``."""
    val_events: Annotated[PositiveInt, Unit("events")] = 8
    """Number of events in the split ``val``."""
    test_events: Annotated[PositiveInt, Unit("events")] = 48
    """Number of events in the split ``test``."""


class TestSetConfig(StrictModel):
    """An additional data set on which the trained models are verified."""

    __test__ = False  # not a pytest class

    name: Name
    """Name of the test set in score files and report: letters, digits, and `. _ + -`."""
    data: DataConfig
    """Data set to verify on; without its own ``root`` it uses the ``data.root`` of the pipeline."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Split to verify on."""


class EvaluationConfig(StrictModel):
    """Verification after training: windows, protocols, baselines and confidence intervals."""

    split: Literal["train", "val", "test", "all"] = "test"
    """Split to verify on."""
    protocols: tuple[str, ...] = ("global", "lead-mean")
    """Names of the verification protocols."""
    baselines: tuple[str, ...] = ("persistence",)
    """Names of the baselines to compare with; a pipeline always adds `extrapolation`."""
    batch_size: Annotated[PositiveInt, Unit("windows")] = 8
    """Windows per forward pass (batch size of the forecast)."""
    min_observed_pixels: Annotated[int, Unit("pixels")] = Field(default=1000, ge=0)
    """Smallest number of observed pixels at or above a threshold for which a score is reported."""
    min_observed_events: Annotated[int, Unit("events")] = Field(default=5, ge=0)
    """Smallest number of events with such pixels for which a score is reported."""
    draws: Annotated[int, Unit("resamples")] = Field(default=1000, ge=0)
    """Number of bootstrap resamples of the events for confidence intervals; 0 computes no intervals."""
    postprocess: tuple[PostprocessingName, ...] = ()
    """Post-processing with which each model is also scored; quantile mappings are fitted on the split ``val``."""
    tables_only: bool = False
    """Skip SSIM, FSS and spectra, which take most of the time on a CPU."""
    scores: tuple[str, ...] = ()
    """Names of additional scores, such as `ets`, `mean_error` and `correlation`, or `all`; see the page Scores."""
    missing_members: Literal["mask", "ignore"] = "mask"
    """How an ensemble is scored where members are missing: `mask` excludes the pixel, `ignore` scores the others."""
    as_issued: Added[bool] = False
    """Score what `simcast predict` writes: values rounded to float32 in the physical unit, and no pixels where an
    input frame of a model, or the last one of a baseline, is missing."""
    also: tuple[TestSetConfig, ...] = ()
    """Additional test sets."""

    @property
    def compared_baselines(self) -> tuple[str, ...]:
        """Baselines of a pipeline: a model that does not beat extrapolation has no skill, so it is always included."""
        return tuple(dict.fromkeys((*self.baselines, "extrapolation")))


class LaunchConfig(StrictModel):
    """How a pipeline starts its stages."""

    ranks: Annotated[PositiveInt, Unit("ranks")] = 1
    """Number of ranks per stage, all on this machine."""


class PipelineConfig(SharedConfig):
    """Stages in order, each a training run of its own, then verification and an HTML report.

    A model that holds out a fold of the events (``data.hold_out``) forecasts conditions for the diffusion and is not
    verified.
    """

    stages: dict[Name, dict[str, Any]]
    """Stages by name (letters, digits, and `. _ + -`), each with the fields that differ from the shared ones; the field
    ``stage`` defaults to the name. A stage receives the shared sections that it reads."""
    synthesis: SynthesisConfig | None = None
    """Synthetic archive to write first; null uses the archive in ``data.root``."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Verification after training."""
    launch: LaunchConfig = LaunchConfig()
    """How the stages are started."""
    time_budget_minutes: Annotated[PositiveFloat | None, Unit("minutes")] = None
    """Time for the training of all stages. If it is exceeded, the steps of all stages are reduced by one factor, once;
    they are never increased. null keeps the steps."""
    fitted_steps: Annotated[dict[str, PositiveInt] | None, Unit("optimizer steps")] = None
    """Number of steps of each stage after reduction to the time budget; written by the pipeline, do not set it."""

    @classmethod
    def other_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Return a message if ``data`` is the configuration of a training run."""
        if "stage" in data and "stages" not in data:
            return "this is the configuration of one training run: run `simcast train`"
        return None

    @model_validator(mode="after")
    def _stages_are_runs(self) -> Self:
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage")
        configs = {name: self.train_config(name) for name in self.stages}
        reject_unread_sections(self, list(dict.fromkeys(config.stage for config in configs.values())))
        if "sampling" in self.unread_sections() and (given := self.sampling.given()):
            raise ValueError(
                f"{', '.join(f'sampling.{key}={value}' for key, value in given.items())} has no effect: no stage is "
                "diffusion or has model.noise_channels"
            )
        for name, config in configs.items():
            self._check_inputs(name, config, list(configs))
        return self

    def _check_inputs(self, name: str, config: TrainConfig, order: list[str]) -> None:
        """Check that the stages of this pipeline on which stage ``name`` builds run before it.

        Raises:
            ValueError: names the field and the stage.
        """
        inputs: list[tuple[str, Path | None]] = []
        if config.stage == "student":
            inputs = [("student.teacher", config.student.teacher)]
        elif config.stage == "diffusion":
            parts = config.diffusion
            inputs = [("diffusion.autoencoder", parts.autoencoder), ("diffusion.student", parts.student)]
            inputs += [("diffusion.fold_students", path) for path in parts.fold_students or ()]
        for field, path in inputs:
            if path is None or path.parent != self.run_dir or path.name not in order:
                continue
            if path.name == name:
                raise ValueError(
                    f"stages.{name}.stage={config.stage!r}: {field} of stage {name} is its own run {path}; set its "
                    f"stage, or {field} of stage {name} to another run"
                )
            if order.index(path.name) > order.index(name):
                raise ValueError(
                    f"stages.{name}: {field} is the run of stage {path.name}, which runs later; list {path.name} first"
                )

    def unread_sections(self) -> set[str]:
        """Return the names of the sections that no stage of the pipeline reads."""
        stages = [{"stage": name, **fields} for name, fields in self.stages.items()]
        unread = unread_sections(self, [own["stage"] for own in stages])
        sampled = any(own["stage"] == "diffusion" or self._has_noise(own) for own in stages)
        return unread if sampled else unread | {"sampling"}

    def train_config(self, name: str) -> TrainConfig:
        """Return the training run of stage ``name``: the shared sections that it reads, overridden by its own fields.

        Raises:
            ConfigError: a field of ``stages.<name>`` is unknown, invalid, or not read by the stage.
        """
        own = {"stage": name} | self.stages[name]
        if "run_dir" in own:
            raise ConfigError(
                f"stages.{name}.run_dir={own['run_dir']!r}: it is folder {name} of the pipeline's run_dir"
            )
        if not isinstance(own["stage"], str):
            raise ConfigError(f"stages.{name}.stage={own['stage']!r} must be one of {', '.join(STAGES)}")
        shared_fields = set(SharedConfig.model_fields) - unread_sections(self, [own["stage"]])
        shared = json.loads(self.model_dump_json(include=shared_fields))
        shared["sampling"] = self._shared_sampling(own)
        shared |= {"name": f"{self.name}-{name}", "run_dir": str(self.run_dir / name)}
        # 1. Runs of this pipeline that the stage builds on
        if own["stage"] == "student" and self.student.teacher is None:
            fold = self._held_out(name)
            same_fold = [teacher for teacher in self._stages_of("teacher") if fold and self._held_out(teacher) == fold]
            shared["student"]["teacher"] = str(self.run_dir / (same_fold[0] if same_fold else "teacher"))
        if own["stage"] == "diffusion":
            for part in ("autoencoder", "student"):
                if shared["diffusion"][part] is None and part in self.stages:
                    shared["diffusion"][part] = str(self.run_dir / part)
            if shared["diffusion"]["fold_students"] is None:
                folds = [student for student in self._stages_of("student", "direct") if self._held_out(student)]
                shared["diffusion"]["fold_students"] = [str(self.run_dir / student) for student in folds] or None
        # 2. The stage's own fields, and steps that were scaled to a time budget
        config = from_mapping(TrainConfig, merge(shared, own), where=f"stages.{name}")
        steps = None if self.fitted_steps is None else self.fitted_steps.get(name)
        return config if steps is None else _shortened(config, steps)

    def _shared_sampling(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shared fields of section ``sampling`` that have an effect on a stage with the fields ``own``."""
        shared = json.loads(self.sampling.model_dump_json())
        if own["stage"] == "diffusion":
            return shared
        return {key: shared[key] for key in MEMBER_FIELDS} if self._has_noise(own) else {}

    def _has_noise(self, own: Mapping[str, Any]) -> bool:
        """Return whether the network of a stage with the fields ``own`` has noise channels."""
        model = own.get("model")
        noise = model.get("noise_channels", self.model.noise_channels) if isinstance(model, Mapping) else None
        shared = self.model.noise_channels if model is None else 0  # a bare name selects the defaults of a network
        return own["stage"] in ("direct", "student") and bool(shared if noise is None else noise)

    def _stages_of(self, *kinds: str) -> list[str]:
        return [name for name, fields in self.stages.items() if fields.get("stage", name) in kinds]

    def _held_out(self, name: str) -> Any:
        """Return ``data.hold_out`` among a stage's own fields, or None."""
        data = self.stages[name].get("data")
        return data.get("hold_out") if isinstance(data, Mapping) else None


def read_run_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig | PipelineConfig:
    """Read the configuration of a training run or of a pipeline, whichever it is.

    Args:
        name_or_path: a YAML file, or the name of a shipped configuration such as ``teacher/sevir``.
        overrides: ``a.b=value``, each replacing the value of the field ``a.b``.

    Raises:
        ConfigError: the file is absent or not YAML, or a key is unknown, missing, or has an invalid value.
    """
    path = resolve(name_or_path)
    data = read_yaml(path, [overrides] if isinstance(overrides, str) else overrides)
    return from_mapping(PipelineConfig if "stages" in data else TrainConfig, data, where=str(path))


def _shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """Return a run of ``steps`` optimizer steps whose discriminator is added after the same share of the steps."""
    fitted = config.model_copy(update={"max_steps": steps})
    start = config.autoencoder.adversarial_start
    if config.stage != "autoencoder" or start >= config.max_steps:
        return fitted
    share = {"adversarial_start": start * steps // config.max_steps}
    return fitted.model_copy(update={"autoencoder": config.autoencoder.model_copy(update=share)})
