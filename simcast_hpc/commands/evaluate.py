"""``simcast evaluate``: trained runs and baselines held against one data set, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, from_mapping


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of finished training runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for scores, statistics and an example.")] = Path("scores"),
    root: Annotated[Path | None, typer.Option(help="Data root; by default that of the first run.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    protocol: Annotated[list[str] | None, typer.Option(help="global, lead-mean, or a protocol's name.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="persistence, extrapolation.")] = None,
) -> None:
    """Score finished runs and baselines on the same windows under named protocols."""
    from simcast_hpc.forecast.load import forecast_device, load_trained
    from simcast_hpc.observe.log import set_up_logging
    from simcast_hpc.report import print_scores
    from simcast_hpc.verification.evaluate import TestSet, baseline_entry, model_entry
    from simcast_hpc.verification.evaluate import evaluate as score_all

    set_up_logging(0)
    models = {run.name: load_trained(run, device=forecast_device()) for run in runs}
    if len(models) != len(runs):
        raise ConfigError(f"two of the run folders have one name: {[run.name for run in runs]}")
    first = next(iter(models.values())).config
    settings = from_mapping(
        EvaluationConfig,
        {"split": split}
        | ({"protocols": protocol} if protocol else {})
        | ({"baselines": baseline} if baseline is not None else {}),
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
