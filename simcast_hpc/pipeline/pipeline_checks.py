"""What a pipeline refuses before it makes anything, and the steps that an earlier start in its folder fixed."""

import logging

from simcast_hpc.config import FORECASTING, ConfigError, DataConfig, PipelineConfig, TestSetConfig, read_config
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.evaluation import baseline_entry, protocols_of
from simcast_hpc.models import fitted_to, grid_of
from simcast_hpc.storage.run_directory import RunDirectory, reject_another

logger = logging.getLogger(__name__)
_OWN_FOLDERS = {"archive", "report", "scores", "timing"}
_OWN_PARTS = {"prepare", "verify"}


def continue_or_reject(asked: PipelineConfig) -> PipelineConfig:
    """Return ``asked`` with the steps that an earlier start in the same folder fixed.

    Raises:
        ConfigError: the folder holds stages of another configuration: they stay as they are.
    """
    path = RunDirectory(asked.run_dir).config
    begun = [name for name in asked.stages if (asked.run_dir / name / "checkpoints").is_dir()]
    if not path.is_file() or not begun:
        return asked
    return _continued(read_config(PipelineConfig, path), asked, begun)


def prepared_or_reject(asked: PipelineConfig) -> PipelineConfig:
    """Return ``asked`` with the steps that were fixed when the pipeline was prepared in its folder.

    Raises:
        ConfigError: it was not prepared, or for another configuration.
    """
    path = RunDirectory(asked.run_dir).config
    if not path.is_file():
        raise ConfigError(f"{asked.run_dir} holds no {path.name}: run the part `prepare` first")
    return _continued(read_config(PipelineConfig, path), asked, list(asked.stages))


def _continued(before: PipelineConfig, asked: PipelineConfig, names: list[str]) -> PipelineConfig:
    unfitted = (config.model_copy(update={"fitted_steps": None}) for config in (before, asked))
    reject_another(*(_science(config, names) for config in unfitted), where=asked.run_dir)
    if before.fitted_steps is None or asked.stages.keys() != before.stages.keys():
        return asked
    if asked.time_budget_minutes != before.time_budget_minutes:
        raise ConfigError(
            f"time_budget_minutes is {asked.time_budget_minutes}, and the steps of {asked.run_dir} were fitted to "
            f"{before.time_budget_minutes} when it began, once for all; give the other budget another run_dir"
        )
    return asked.model_copy(update={"fitted_steps": before.fitted_steps})


def _science(config: PipelineConfig, names: list[str]) -> dict[str, object]:
    """Return what decides the results of some stages, by dotted key."""
    made: dict[str, object] = {}
    if config.synthesis is not None:
        made |= {f"synthesis.{key}": value for key, value in config.synthesis.model_dump(mode="json").items()}
    for name in names:
        if name in config.stages:
            made |= {f"{name}: {key}": value for key, value in config.train_config(name).science().items()}
    return made


def check_names(config: PipelineConfig) -> None:
    """Refuse what names something that does not exist, before anything is made."""
    spec = target_spec(config.data)
    protocols_of(spec, config.evaluation.protocols)
    for name in config.evaluation.baselines:
        baseline_entry(name, config.data)
    taken = sorted(_OWN_FOLDERS & config.stages.keys())
    if taken:
        raise ConfigError(f"stages.{taken[0]}: the run folder has a {taken[0]} of its own; give the stage another name")
    taken = sorted(name for name in config.stages if name in _OWN_PARTS or ":" in name)
    if taken:
        raise ConfigError(f"stages.{taken[0]}: parts of every pipeline are called so; give the stage another name")
    names = ["test", *(one.name for one in config.evaluation.also)]
    if len(set(names)) != len(names):
        raise ConfigError(f"evaluation.also repeats a name, or uses 'test': {names[1:]}; give each its own")


def check_data(config: PipelineConfig) -> None:
    """Open every data set once and hold its grid against the models, before anything is trained.

    Raises:
        ConfigError, DataError: one of them cannot be used, or a model does not fit.
    """
    frames = config.sequence.frames_in + config.sequence.frames_out
    grids = {}
    for split in ("train", config.evaluation.split):
        source = open_windows(config.data, split=split, frames=frames)
        grids[f"the split {split}"] = source.grid
        logger.info("%s: %d windows of %d frames on %d dates", split, len(source), frames, len(source.dates))
    for one in config.evaluation.also:
        grids[f"evaluation.also {one.name}"] = open_windows(beside(config, one), split=one.split, frames=frames).grid
    trained_on = grids["the split train"]
    for name in config.stages:
        if config.train_config(name).stage not in FORECASTING:
            continue  # they are held against the data when they begin
        model = config.train_config(name).model
        try:
            takes = grid_of(fitted_to(model, trained_on))
        except ValueError as error:
            raise ConfigError(f"stage {name}: the model does not fit: {error}") from error
        for where, grid in grids.items():
            if takes not in (None, grid):
                raise ConfigError(
                    f"stage {name}: model.kind={model.kind} is made for the grid that it is trained on, "
                    f"{takes[0]} x {takes[1]} pixels, and {where} has {grid[0]} x {grid[1]}; leave that data out, or "
                    "match it by block_mean"
                )


def beside(config: PipelineConfig, one: TestSetConfig) -> DataConfig:
    """Return the data of a further test set; it stands under the same root unless it names its own."""
    return one.data if one.data.root is not None else one.data.model_copy(update={"root": config.data.root})
