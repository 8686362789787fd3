"""Several training runs in order, with verification after."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .shipped_configs import resolve
from .train_config import DataConfig, SharedConfig, TrainConfig
from .yaml_files import StrictModel, from_mapping, merge, read_yaml


class SynthesisConfig(StrictModel):
    """The synthetic archive that a pipeline makes for itself, in SEVIR's layout, under ``data.root``."""

    seed: int = Field(default=0, ge=0)
    size: PositiveInt = 48
    frames_per_event: PositiveInt = 25
    train_events: PositiveInt = 150
    val_events: PositiveInt = 8
    test_events: PositiveInt = 48


class TestSetConfig(StrictModel):
    """One more data set on which the trained models are verified."""

    __test__ = False  # not a pytest class

    name: str
    data: DataConfig
    split: Literal["train", "val", "test", "all"] = "test"


class EvaluationConfig(StrictModel):
    """What is verified after training: on which windows, under which protocols, beside which baselines.

    ``draws`` resamples of the events give every score an interval, none without draws. ``tables_only`` leaves out
    SSIM, FSS and spectra, which take most of the time on a CPU.
    """

    split: Literal["train", "val", "test", "all"] = "test"
    protocols: tuple[str, ...] = ("global", "lead-mean")
    baselines: tuple[str, ...] = ("persistence",)
    batch_size: PositiveInt = 8
    min_observed_pixels: int = Field(default=1000, ge=0)
    min_observed_events: int = Field(default=5, ge=0)
    draws: int = Field(default=1000, ge=0)
    tables_only: bool = False
    also: tuple[TestSetConfig, ...] = ()


class LaunchConfig(StrictModel):
    """How a pipeline starts its stages: on how many ranks of this machine."""

    ranks: PositiveInt = 1


class PipelineConfig(SharedConfig):
    """Stages in order, each a training run of its own, then verification and a page.

    ``stages`` maps a stage's name to the fields in which it differs from the shared ones; ``stage`` defaults to
    the name. Students that hold out a fold of the events serve the diffusion's conditions alone and are not verified.
    With ``time_budget_minutes`` the steps of all stages are scaled down together, once, before the first starts, so
    that training fits (never up); ``fitted_steps`` then holds them, and ``stages`` still says what was asked for.
    """

    stages: dict[str, dict[str, Any]]
    synthesis: SynthesisConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    launch: LaunchConfig = LaunchConfig()
    time_budget_minutes: PositiveFloat | None = None
    fitted_steps: dict[str, PositiveInt] | None = None

    @classmethod
    def of_another_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Say what ``data`` is where it is a training run's configuration."""
        if "stage" in data and "stages" not in data:
            return "this is the configuration of one training run: start it by `simcast train`"
        return None

    @model_validator(mode="after")
    def _stages_are_runs(self) -> Self:
        for name in self.stages:
            self.train_config(name)
        return self

    def train_config(self, name: str) -> TrainConfig:
        """Return the training run that stage ``name`` is.

        Raises:
            ConfigError: a field of ``stages.<name>`` is unknown or does not fit.
        """
        shared = json.loads(self.model_dump_json(include=set(SharedConfig.model_fields)))
        shared |= {"name": f"{self.name}-{name}", "run_dir": str(self.run_dir / name)}
        own = dict(self.stages[name])
        own.setdefault("stage", name)
        if own["stage"] == "student" and self.student.teacher is None:
            held_out = self._held_out(name)
            alike = [one for one in self._stages_of("teacher") if held_out and self._held_out(one) == held_out]
            shared["student"]["teacher"] = str(self.run_dir / (alike[0] if alike else "teacher"))
        if own["stage"] == "diffusion":
            for part in ("autoencoder", "student"):
                if shared["diffusion"][part] is None and part in self.stages:
                    shared["diffusion"][part] = str(self.run_dir / part)
            if shared["diffusion"]["fold_students"] is None:
                apart = [one for one in self._stages_of("student", "direct") if self._held_out(one)]
                shared["diffusion"]["fold_students"] = [str(self.run_dir / one) for one in apart] or None
        asked = from_mapping(TrainConfig, merge(shared, own), where=f"stages.{name}")
        steps = None if self.fitted_steps is None else self.fitted_steps.get(name)
        return asked if steps is None else _shortened(asked, steps)

    def _stages_of(self, *kinds: str) -> list[str]:
        return [name for name, fields in self.stages.items() if fields.get("stage", name) in kinds]

    def _held_out(self, name: str) -> Any:
        """Return ``data.hold_out`` of a stage as it stands in its own fields, None where it has none."""
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
    data = read_yaml(path, overrides)
    return from_mapping(PipelineConfig if "stages" in data else TrainConfig, data, where=str(path))


def _shortened(asked: TrainConfig, steps: int) -> TrainConfig:
    """Return a run of so many steps; what an autoencoder begins after a share of its steps keeps that share."""
    fitted = asked.model_copy(update={"max_steps": steps})
    begins = asked.autoencoder.adversarial_start
    if asked.stage != "autoencoder" or begins >= asked.max_steps:
        return fitted
    share = {"adversarial_start": begins * steps // asked.max_steps}
    return fitted.model_copy(update={"autoencoder": asked.autoencoder.model_copy(update=share)})
