"""Validate a pipeline before anything is written or trained, and resume one with the steps that were fixed."""

import logging

from simcast_hpc.config import FORECASTING, ConfigError, DataConfig, PipelineConfig, TestSetConfig, read_config
from simcast_hpc.data.dataset_spec import Split
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.evaluation import baseline_entry, protocols_of
from simcast_hpc.models import grid_of, with_grid
from simcast_hpc.storage.run_directory import RunDirectory, reject_another
from simcast_hpc.train.forecast_validation import HINT
from simcast_hpc.train.validation import validation_windows

logger = logging.getLogger(__name__)
_RESERVED_FOLDERS = {"archive", "report", "scores", "timing"}
_RESERVED_PARTS = {"prepare", "verify"}


def resumed_config(requested: PipelineConfig) -> PipelineConfig:
    """Return ``requested`` with the steps that were fixed when the pipeline in its run directory was started.

    Raises:
        ConfigError: the run directory contains stages of another configuration.
    """
    path = RunDirectory(requested.run_dir).config
    started = [name for name in requested.stages if (requested.run_dir / name / "checkpoints").is_dir()]
    if not path.is_file() or not started:
        return requested
    return _with_fitted_steps(requested, read_config(PipelineConfig, path), started)


def prepared_config(requested: PipelineConfig) -> PipelineConfig:
    """Return ``requested`` with the steps that part ``prepare`` fixed.

    Raises:
        ConfigError: part ``prepare`` was not run, or ran for another configuration.
    """
    path = RunDirectory(requested.run_dir).config
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; run the part `prepare` first")
    return _with_fitted_steps(requested, read_config(PipelineConfig, path), list(requested.stages))


def _with_fitted_steps(requested: PipelineConfig, saved: PipelineConfig, names: list[str]) -> PipelineConfig:
    """Return ``requested`` with the fitted steps of ``saved``, after comparing the science of the stages ``names``."""
    without_steps = (config.model_copy(update={"fitted_steps": None}) for config in (saved, requested))
    reject_another(*(_science(config, names) for config in without_steps), where=requested.run_dir)
    if saved.fitted_steps is None or requested.stages.keys() != saved.stages.keys():
        return requested
    if requested.time_budget_minutes != saved.time_budget_minutes:
        raise ConfigError(
            f"time_budget_minutes is {requested.time_budget_minutes}, but the steps in {requested.run_dir} were fitted "
            f"to {saved.time_budget_minutes} minutes; choose another run_dir for another budget"
        )
    return requested.model_copy(update={"fitted_steps": saved.fitted_steps})


def _science(config: PipelineConfig, names: list[str]) -> dict[str, object]:
    """Return the fields that decide the results of stages, by dotted key."""
    science: dict[str, object] = {}
    if config.synthesis is not None:
        science |= {f"synthesis.{key}": value for key, value in config.synthesis.model_dump(mode="json").items()}
    for name in names:
        if name in config.stages:
            science |= {f"{name}: {key}": value for key, value in config.train_config(name).science().items()}
    return science


def check_names(config: PipelineConfig) -> None:
    """Validate the names of the data set, protocols, baselines, stages and test sets.

    Raises:
        ConfigError: a name is unknown, reserved, or used twice.
    """
    spec = target_spec(config.data)
    protocols_of(spec, config.evaluation.protocols, scores=config.evaluation.scores)
    for name in config.evaluation.compared_baselines:
        baseline_entry(name, config.data)
    for name in sorted(config.stages):
        if name in _RESERVED_FOLDERS:
            raise ConfigError(f"stages.{name}: the pipeline writes a folder of this name; choose another name")
        if name in _RESERVED_PARTS or ":" in name:
            raise ConfigError(f"stages.{name}: reserved for a part of the pipeline; choose another name")
    names = ["test", *(one.name for one in config.evaluation.also)]
    if len(set(names)) != len(names):
        raise ConfigError(f"evaluation.also has the names {names[1:]}; choose different names other than 'test'")


def check_data(config: PipelineConfig) -> None:
    """Open every data set, and compare its grid with those that the models require.

    Raises:
        ConfigError, DataError: a data set cannot be used, or a model does not fit its grid.
    """
    frames = config.sequence.frames_in + config.sequence.frames_out
    grids = {}
    fitted_on: list[Split] = ["val"] if "quantile-mapping" in config.evaluation.postprocess else []
    splits: list[Split] = ["train", *fitted_on, config.evaluation.split]
    for split in dict.fromkeys(splits):
        source = open_windows(config.data, split=split, frames=frames)
        grids[f"the split {split}"] = source.grid
        logger.info("%s: %d windows of %d frames on %d dates", split, len(source), frames, len(source.dates))
    for one in config.evaluation.also:
        source = open_windows(data_of_test_set(config, one), split=one.split, frames=frames)
        grids[f"evaluation.also {one.name}"] = source.grid
    trained_on = grids["the split train"]
    for name in config.stages:
        stage = config.train_config(name)
        if stage.stage not in FORECASTING:
            continue  # compared with the data when training starts
        if stage.validation.interval(stage.max_steps):
            validation_windows(stage, hint=HINT)
        try:
            required = grid_of(with_grid(stage.model, trained_on))
        except ValueError as error:
            raise ConfigError(f"stage {name}: the model does not fit: {error}") from error
        for where, grid in grids.items():
            if required not in (None, grid):
                raise ConfigError(
                    f"stage {name}: model.kind={stage.model.kind} requires the grid that it is trained on, "
                    f"{required[0]} x {required[1]} pixels, but {where} has {grid[0]} x {grid[1]}; remove that data "
                    "set, or match its grid by block_mean"
                )


def data_of_test_set(config: PipelineConfig, test_set: TestSetConfig) -> DataConfig:
    """Return the data of a further test set, under the pipeline's ``data.root`` unless it has its own."""
    data = test_set.data
    return data if data.root is not None else data.model_copy(update={"root": config.data.root})
