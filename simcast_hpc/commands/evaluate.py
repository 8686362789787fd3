"""``simcast evaluate``: score runs, forecast files and baselines on one data set."""

import difflib
import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from simcast_hpc.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    SequenceConfig,
    TrainConfig,
    expand_path,
    from_mapping,
)
from simcast_hpc.config.names import check_name

from .options import DATASETS, MissingMembersOption, Quiet, Scores

_FILES = (".npz", ".h5", ".hdf5")
# The protocols of SEVIR's baselines when no protocol is given; see evaluation/sevir_reference.py.
_SEVIR_CHECK = ("sevir-lead-mean", "sevir-lead-mean-released")


def evaluate(
    forecasts: Annotated[
        list[str],
        typer.Argument(
            help="Run directories, forecast files (.npz or .h5 with forecast, event, start) or baselines (persistence, "
            "extrapolation, pysteps-lk, darts, s-prog, steps, linda, anvil). NAME=SOURCE sets the name in the results.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Output folder: scores (JSON, CSV), sufficient statistics and an example window.")
    ] = Path("scores"),
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Data set, if no run is given: {DATASETS} (default: dataset.yaml in --root).", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Data folder (default: data.root of the first run).", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, val, test or all.")] = "test",
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Verification protocol: global, lead-mean, frame-mean, sample-mean, or a published one of "
            "docs/reference/scores.md (repeatable; default: global and lead-mean).",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Baseline to add to runs and files, or none (repeatable; default: persistence).", show_default=False
        ),
    ] = None,
    frames_in: Annotated[
        int | None,
        typer.Option(
            help="Number of input frames, if no run is given (default: 13; 6 if events have fewer than 25 frames).",
            show_default=False,
        ),
    ] = None,
    frames_out: Annotated[
        int | None,
        typer.Option(help="Number of forecast frames, if no run is given (default: 12).", show_default=False),
    ] = None,
    window_stride: Annotated[
        int | None,
        typer.Option(
            help="Frames between window starts (default: data.window_stride of the first run, or 12).",
            show_default=False,
        ),
    ] = None,
    frame_stride: Annotated[
        int | None, typer.Option(help="Use every n-th frame, if no run is given (default: 1).", show_default=False)
    ] = None,
    max_percent_missing: Annotated[
        float | None,
        typer.Option(
            help="Skip events with a larger share of missing pixels, in percent (default: data.max_percent_missing of "
            "the first run; without a run 0 for a built-in data set, else all events).",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    postprocess: Annotated[
        list[str] | None,
        typer.Option(
            help="Also score each forecast with this post-processing, as NAME+POSTPROCESSING: quantile-mapping (of a "
            "run after simcast calibrate RUN) or probability-matching (repeatable).",
            show_default=False,
        ),
    ] = None,
    scores: Scores = None,
    missing_members: MissingMembersOption = "mask",
    draws: Annotated[
        int, typer.Option(help="Bootstrap resamples of events for 95 % intervals; 0: no intervals.")
    ] = 1000,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Skip SSIM, FSS and spectra, which take most of the time on a CPU.")
    ] = False,
    as_issued: Annotated[
        bool,
        typer.Option(
            "--as-issued",
            help="Score what simcast predict writes: values rounded to float32 in the physical unit, and no pixels "
            "where an input frame of a model, or the last one of a baseline, is missing. For comparison with simcast "
            "score-issued --encoded.",
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder in which forecasts of baselines are cached (default: no cache).", show_default=False),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score forecasts on the same windows under named protocols, on all ranks of the launcher.

    Reads runs, forecast files and the windows of one split. Writes SPLIT.json, SPLIT.csv, an example window and
    sufficient statistics to --out, and prints a table of the scores.

    Example: simcast evaluate runs/sevir/student forecasts.h5 --protocol sevir-global --baseline extrapolation
    """
    from simcast_hpc.distributed.process_group import join_ranks
    from simcast_hpc.distributed.rank_devices import local_device
    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.evaluation import TestSet, baseline_entry, file_entry, run_entry, with_postprocessing
    from simcast_hpc.evaluation import evaluate as evaluate_entries
    from simcast_hpc.evaluation.sevir_reference import sevir_reference
    from simcast_hpc.inference.calibration import fit_quantile_mapping
    from simcast_hpc.inference.trained_ensemble import load_run
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report import print_scores

    # 1. Runs and options
    rows = _parse_rows(forecasts)
    settings_given = {
        "split": split, "draws": draws, "tables_only": tables_only, "postprocess": postprocess or [],
        "scores": scores or [], "missing_members": missing_members, "as_issued": as_issued,
    }  # fmt: skip
    ranks = join_ranks(timeout_minutes=240)
    set_up_logging(ranks.rank, quiet=quiet)
    device = local_device(find_rank(os.environ))
    models = {name: load_run(Path(source), device=device) for name, source, kind in rows if kind == "run"}
    options = {
        "dataset": dataset, "root": None if root is None else str(root), "window_stride": window_stride,
        "frame_stride": frame_stride, "max_percent_missing": max_percent_missing,
    }  # fmt: skip
    # 2. Windows, protocols and forecasts
    given = {name: value for name, value in options.items() if value is not None}
    frames = {"frames_in": frames_in, "frames_out": frames_out}
    data, sequence = _windows(
        {name: model.config for name, model in models.items()},
        given,
        {name: value for name, value in frames.items() if value is not None},
    )
    settings = _settings(settings_given, protocol, baseline, kinds={kind for *_, kind in rows}, data=data)
    entries = [baseline_entry(name, data, cache=cache) for name in settings.baselines]
    fit = functools.partial(
        fit_quantile_mapping, data=data, sequence=sequence, batch_size=settings.batch_size, ranks=ranks
    )
    for name, source, kind in rows:
        if kind == "run":
            entry = run_entry(name, models[name])
        elif kind == "file":
            entry = file_entry(name, Path(source))
        else:
            entry = baseline_entry(source, data, cache=cache, row=name)
        run = (Path(source), models[name]) if kind == "run" else None
        entries += with_postprocessing(
            entry, settings.postprocess, data, run=run, fit=fit if kind == "baseline" else None
        )
    # 3. Scores
    test_set = TestSet(settings.split, data, settings.split)
    result = evaluate_entries(test_set, entries, sequence=sequence, settings=settings, folder=out, ranks=ranks)
    if result:
        path = out / f"{test_set.name}.json"
        print_scores(path)
        for line in sevir_reference(result):
            print(line)
        print(f"scores: {path} and {path.with_suffix('.csv').name}")
    ranks.leave()


def _parse_rows(forecasts: list[str]) -> list[tuple[str, str, str]]:
    """Return name, source and kind (``baseline``, ``file`` or ``run``) of each row.

    Raises:
        ConfigError: a source does not exist, or two rows have the same name.
    """
    from simcast_hpc.baselines import BASELINES

    rows = []
    for word in forecasts:
        name, named, source = word.partition("=")
        source = expand_path(source if named else word)
        kind = "baseline" if source in BASELINES else "file" if Path(source).suffix in _FILES else "run"
        if kind == "run" and not Path(source).exists():
            near = difflib.get_close_matches(source, BASELINES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"baselines are {', '.join(BASELINES)}"
            raise ConfigError(f"{source} is neither a run directory, a forecast file nor a baseline; {hint}")
        own = source if kind == "baseline" else Path(source).stem if kind == "file" else Path(source).resolve().name
        rows.append((check_name(name, where=f"{word}: the row") if named else own, source, kind))
    names = [name for name, *_ in rows]
    if len(set(names)) != len(names):
        raise ConfigError(f"two rows have the same name: {names}; name them, for example seed1=runs/a/teacher")
    return rows


def _windows(
    configs: dict[str, TrainConfig], given: dict[str, Any], frames: dict[str, int]
) -> tuple[DataConfig, SequenceConfig]:
    """Return the data and the sequence that all rows are scored on: those of the runs, or as given.

    Args:
        configs: configurations of the runs by row.
        given: fields of :class:`DataConfig` that options set.
        frames: fields of :class:`SequenceConfig` that options set.

    Raises:
        ConfigError: the runs differ in data or frames, or the data are given twice or not at all.
    """
    from simcast_hpc.storage.run_directory import reject_another

    # 1. Without a run: options, or the defaults of the published evaluation of SEVIR
    if not configs:
        if "root" not in given:
            raise ConfigError("without a run, --root is required, for example --dataset sevir --root /data/sevir")
        defaults = {"dataset": None, "window_stride": 12, "frame_stride": 1}
        data = from_mapping(DataConfig, defaults | given, where="evaluate")
        values = _frames_of_events(data) | frames
        values["teacher_frames_out"] = min(values["frames_out"], SequenceConfig().teacher_frames_out)
        return data, from_mapping(SequenceConfig, values, where="evaluate")
    # 2. With runs: the first one defines frames, cadence and data set
    first = next(iter(configs.values()))
    for name, config in configs.items():
        reject_another(_comparable(first), _comparable(config), where=Path(name))
    defined = {
        "dataset": first.data.dataset, "frame_stride": first.data.frame_stride, "frames_in": first.sequence.frames_in,
        "frames_out": first.sequence.frames_out,
    }  # fmt: skip
    for name, value in (given | frames).items():
        if name in defined:
            option = f"--{name.replace('_', '-')} {value}"
            raise ConfigError(f"{option} is not allowed with a run, which defines it ({defined[name]})")
    checked = from_mapping(DataConfig, {"dataset": first.data.dataset} | given, where="evaluate")
    return first.data.model_copy(update={name: getattr(checked, name) for name in given}), first.sequence


def _frames_of_events(data: DataConfig) -> dict[str, int]:
    """Return the default numbers of frames: of SEVIR's evaluation, or for short events of configs/direct/own.yaml.

    The events of an import of a short archive are shorter than the windows of SEVIR.
    """
    from simcast_hpc.data.open_windows import source_spec

    per_event = source_spec(data).frames_per_event
    is_short = per_event is not None and per_event // data.frame_stride < 25
    return {"frames_in": 6 if is_short else 13, "frames_out": 12}


def _settings(
    values: dict[str, Any],
    protocol: list[str] | None,
    baseline: list[str] | None,
    *,
    kinds: set[str],
    data: DataConfig,
) -> EvaluationConfig:
    if "quantile-mapping" in values["postprocess"] and kinds == {"file"}:
        raise ConfigError(
            "--postprocess quantile-mapping needs forecasts of the split val, which a file lacks; give a run "
            "directory, or choose probability-matching"
        )
    if protocol:
        values = values | {"protocols": protocol}
    elif kinds == {"baseline"} and data.dataset == "sevir":
        values = values | {"protocols": _SEVIR_CHECK, "tables_only": True}
    if baseline:
        values = values | {"baselines": [name for name in baseline if name != "none"]}
    elif "baseline" in kinds:
        values = values | {"baselines": []}
    return from_mapping(EvaluationConfig, values, where="evaluate")


def _comparable(config: TrainConfig) -> dict[str, object]:
    """Return what models must share to be compared: encoding and spacing of their data, and the frames."""
    from simcast_hpc.data.open_windows import description_hash, step_minutes

    return {
        "the encoding of the data": description_hash(config.data),
        "minutes between frames": step_minutes(config.data),
        "data.block_mean": config.data.block_mean,
        "sequence.frames_in": config.sequence.frames_in,
        "sequence.frames_out": config.sequence.frames_out,
    }
