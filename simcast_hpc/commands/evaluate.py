"""``simcast evaluate``: trained runs and baselines held against one data set, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, TrainConfig, from_mapping
from simcast_hpc.data.open import meaning, step_minutes
from simcast_hpc.observe.run_folder import refuse_another


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(help="Finished training runs: a folder, or NAME=FOLDER.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for scores, statistics and an example.")] = Path("scores"),
    root: Annotated[Path | None, typer.Option(help="Data root; by default that of the first run.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    protocol: Annotated[list[str] | None, typer.Option(help="global, lead-mean, or a protocol's name.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="persistence (the default), extrapolation, or none.")
    ] = None,
) -> None:
    """Score finished runs and baselines on the same windows under named protocols."""
    from simcast_hpc.forecast.load import forecast_device, load_trained
    from simcast_hpc.observe.log import set_up_logging
    from simcast_hpc.report import print_scores
    from simcast_hpc.verification.evaluate import TestSet, baseline_entry, model_entry
    from simcast_hpc.verification.evaluate import evaluate as score_all

    set_up_logging(0)
    named = [_named(run) for run in runs]
    models = {name: load_trained(path, device=forecast_device()) for name, path in named}
    if len(models) != len(runs):
        raise ConfigError(
            f"two rows have one name: {[name for name, _ in named]}; name them, as in seed1=runs/a/teacher"
        )
    first = next(iter(models.values())).config
    for name, model in models.items():
        refuse_another(_comparable(first), _comparable(model.config), where=Path(name))
    settings = from_mapping(
        EvaluationConfig,
        {"split": split}
        | ({"protocols": protocol} if protocol else {})
        | ({"baselines": [name for name in baseline if name != "none"]} if baseline else {}),
        where="evaluate",
    )
    data: DataConfig = first.data.model_copy(update={"root": root}) if root else first.data
    entries = [baseline_entry(name, data) for name in settings.baselines]
    entries += [model_entry(name, model) for name, model in models.items()]
    test_set = TestSet(settings.split, data, settings.split)
    score_all(test_set, entries, sequence=first.sequence, settings=settings, folder=out)
    path = out / f"{test_set.name}.json"
    print_scores(path)
    print(f"scores: {path}")


def _named(run: str) -> tuple[str, Path]:
    """Return the row's name and the folder of ``FOLDER`` or ``NAME=FOLDER``."""
    name, found, folder = run.partition("=")
    return (name, Path(folder)) if found else (Path(run).resolve().name, Path(run))


def _comparable(config: TrainConfig) -> dict[str, object]:
    """Return what models must share to stand in one table: the code of their data, its spacing, and the frames."""
    return {
        "the code of the data": meaning(config.data),
        "minutes between frames": step_minutes(config.data),
        "data.block_mean": config.data.block_mean,
        "sequence.frames_in": config.sequence.frames_in,
        "sequence.frames_out": config.sequence.frames_out,
    }
