"""``simcast evaluate``: runs, forecasts in files and baselines held against one data set, side by side."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, SequenceConfig, TrainConfig, from_mapping
from simcast_hpc.data.open_windows import description_hash, step_minutes
from simcast_hpc.storage.run_directory import reject_another

from .options import DATASETS

_FILES = (".npz", ".h5", ".hdf5")
# What a data set is checked by when nothing else is asked for: see evaluation/sevir_reference.py.
_SEVIR_CHECK = ("sevir-lead-mean", "sevir-lead-mean-released")


def evaluate(
    forecasts: Annotated[
        list[str],
        typer.Argument(
            help="Finished training runs (a folder), forecasts in files (.npz or .h5 with forecast, event, start) or "
            "baselines (persistence, extrapolation, darts, s-prog, steps, linda, anvil); NAME=... names a row.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for scores (JSON, CSV), statistics and an example.")] = Path(
        "scores"
    ),
    dataset: Annotated[
        str | None, typer.Option(help=f"Where no run says what the data are: {DATASETS}.", show_default=False)
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; by default that of the first run.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="global, lead-mean, frame-mean, sample-mean, or a name in docs/verification.md."),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Baselines beside runs and files: persistence (the default), ..., or none.")
    ] = None,
    frames_in: Annotated[int, typer.Option(help="Frames in, where no run says how many.")] = 13,
    frames_out: Annotated[int, typer.Option(help="Frames out, likewise.")] = 12,
    window_stride: Annotated[int, typer.Option(help="Frames between the starts of windows, likewise.")] = 12,
    frame_stride: Annotated[int, typer.Option(help="Keep every n-th frame, likewise.")] = 1,
    draws: Annotated[int, typer.Option(help="Resamples of events for the intervals; 0 for none.")] = 1000,
    tables_only: Annotated[
        bool, typer.Option(help="Leave out SSIM, FSS and spectra, most of the time on a CPU.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder in which baselines' forecasts are kept.")] = None,
) -> None:
    """Score forecasts on the same windows under named protocols, on as many ranks as the launcher starts.

    Example: simcast evaluate runs/sevir/student forecasts.h5 --protocol sevir-global --baseline extrapolation
    """
    from simcast_hpc.distributed.process_group import join_ranks, local_device
    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.evaluation import TestSet, baseline_entry, file_entry, run_entry
    from simcast_hpc.evaluation import evaluate as score_all
    from simcast_hpc.evaluation.sevir_reference import sevir_reference
    from simcast_hpc.inference.ensemble import load_run
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report import print_scores

    named = _named(forecasts)
    ranks = join_ranks(timeout_minutes=240)
    set_up_logging(ranks.rank)
    device = local_device(find_rank(os.environ))
    models = {name: load_run(Path(what), device=device) for name, what, kind in named if kind == "run"}
    given = DataConfig(dataset=dataset or "sevir", root=root, window_stride=window_stride, frame_stride=frame_stride)
    data, sequence = _windows(
        {name: model.config for name, model in models.items()}, dataset, given, frames_in, frames_out
    )
    settings = _settings(split, protocol, baseline, draws, tables_only, kinds={kind for *_, kind in named}, data=data)
    entries = [baseline_entry(name, data, cache=cache) for name in settings.baselines]
    for name, what, kind in named:
        if kind == "run":
            entries.append(run_entry(name, models[name]))
        elif kind == "file":
            entries.append(file_entry(name, Path(what)))
        else:
            entries.append(baseline_entry(what, data, cache=cache, row=name))
    test_set = TestSet(settings.split, data, settings.split)
    result = score_all(test_set, entries, sequence=sequence, settings=settings, folder=out, ranks=ranks)
    if result:
        path = out / f"{test_set.name}.json"
        print_scores(path)
        for line in sevir_reference(result):
            print(line)
        print(f"scores: {path} and {path.with_suffix('.csv').name}")
    ranks.leave()


def _named(forecasts: list[str]) -> list[tuple[str, str, str]]:
    """Return name, what, and kind (``baseline``, ``file`` or ``run``) of each row.

    Raises:
        ConfigError: a word names nothing, or two rows have one name.
    """
    from simcast_hpc.baselines import BASELINES

    rows = []
    for word in forecasts:
        name, found, what = word.partition("=")
        what = what if found else word
        kind = "baseline" if what in BASELINES else "file" if Path(what).suffix in _FILES else "run"
        if kind == "run" and not Path(what).exists():
            near = difflib.get_close_matches(what, BASELINES, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; baselines are {', '.join(BASELINES)}"
            raise ConfigError(f"{what} is neither the folder of a run, a file of forecasts nor a baseline{meant}")
        own = what if kind == "baseline" else Path(what).stem if kind == "file" else Path(what).resolve().name
        rows.append((name if found else own, what, kind))
    names = [name for name, *_ in rows]
    if len(set(names)) != len(names):
        raise ConfigError(f"two rows have one name: {names}; name them, as in seed1=runs/a/teacher")
    return rows


def _windows(
    configs: dict[str, TrainConfig], dataset: str | None, given: DataConfig, frames_in: int, frames_out: int
) -> tuple[DataConfig, SequenceConfig]:
    """Return the data and the frames that all rows are scored on: of the runs, or as given.

    Raises:
        ConfigError: the runs do not belong into one table, or the data are said twice or not at all.
    """
    if not configs:
        if dataset is None or given.root is None:
            raise ConfigError(
                "no training run says what to score on, so give both, for example --dataset sevir --root /data/sevir; "
                f"{'--dataset' if dataset is None else '--root'} is missing"
            )
        short = min(frames_out, SequenceConfig().teacher_frames_out)
        values = {"frames_in": frames_in, "frames_out": frames_out, "teacher_frames_out": short}
        return given, from_mapping(SequenceConfig, values, where="evaluate")
    first = next(iter(configs.values()))
    for name, config in configs.items():
        reject_another(_comparable(first), _comparable(config), where=Path(name))
    if dataset is not None:
        raise ConfigError(f"--dataset {dataset} says what the runs say themselves ({first.data.dataset}); leave it out")
    data: DataConfig = first.data.model_copy(update={"root": given.root}) if given.root else first.data
    return data, first.sequence


def _settings(
    split: str,
    protocol: list[str] | None,
    baseline: list[str] | None,
    draws: int,
    tables_only: bool,
    *,
    kinds: set[str],
    data: DataConfig,
) -> EvaluationConfig:
    values: dict[str, Any] = {"split": split, "draws": draws, "tables_only": tables_only}
    if protocol:
        values["protocols"] = protocol
    elif kinds == {"baseline"} and data.dataset == "sevir":
        values |= {"protocols": _SEVIR_CHECK, "tables_only": True}
    if baseline:
        values["baselines"] = [name for name in baseline if name != "none"]
    elif "baseline" in kinds:
        values["baselines"] = []
    return from_mapping(EvaluationConfig, values, where="evaluate")


def _comparable(config: TrainConfig) -> dict[str, object]:
    """Return what models must share to stand in one table: the code of their data, its spacing, and the frames."""
    return {
        "the code of the data": description_hash(config.data),
        "minutes between frames": step_minutes(config.data),
        "data.block_mean": config.data.block_mean,
        "sequence.frames_in": config.sequence.frames_in,
        "sequence.frames_out": config.sequence.frames_out,
    }
