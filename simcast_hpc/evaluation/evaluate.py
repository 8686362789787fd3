"""Evaluate all forecasts of a test set under all protocols, and write the results."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, SequenceConfig
from simcast_hpc.config.names import file_stem
from simcast_hpc.data.open_windows import open_windows, pixel_spacing_km, source_spec, step_minutes, target_spec
from simcast_hpc.data.shared_reads import read_together
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.inference.quantile_mapping import QuantileMapping
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.storage.atomic_files import write_json, write_text
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.verification.diagram_statistics import heavy_rain_panel
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.scores import mean_csi, scores, supported_thresholds

from .count_entries import Counted, count_entries
from .dataset_protocols import protocols_of
from .entries import Entry, TestSet
from .example_file import write_example
from .score_files import LEVEL, as_csv, diagrams, intervals, without_nan
from .unit_fields import UnitFields

logger = logging.getLogger(__name__)


def evaluate(
    test_set: TestSet,
    entries: Sequence[Entry],
    *,
    sequence: SequenceConfig,
    settings: EvaluationConfig,
    folder: Path,
    train_dates: Sequence[str] = (),
    ranks: Ranks = SINGLE_RANK,
) -> dict[str, Any]:
    """Score all entries on a test set, and write scores, statistics and an example window.

    Args:
        test_set: the windows.
        entries: the forecasts to compare, all on the same windows.
        sequence: numbers of input and output frames.
        settings: protocols, batch size, number of resamples, and minimum observations of a threshold in means.
        folder: rank 0 writes ``<name>.json``, ``<name>.csv``, ``<name>.example.npz`` and for each entry
            ``<name>.<entry>.<counting hash>.npz``.
        train_dates: dates of the training data, so that the report can name dates shared with the test set.
        ranks: the ranks over which windows are distributed; None for one process.

    Returns:
        The content of the JSON file; empty on ranks other than 0.

    Raises:
        ConfigError, DataError: unknown protocol, too few input frames for a baseline, invalid data, or another process
            writes the same test set.
    """
    # 1. Windows
    spec, protocols = target_spec(test_set.data), _protocols(test_set, entries, settings)
    frames = sequence.frames_in + sequence.frames_out
    for entry in entries:
        if (needed := getattr(entry.forecast, "min_frames", 1)) > sequence.frames_in:
            raise ConfigError(
                f"{entry.name} needs at least {needed} input frames, but sequence.frames_in is {sequence.frames_in}"
            )
        if isinstance(entry.postprocessing, QuantileMapping) and test_set.split in ("val", "all"):
            logger.warning("%s: fitted on the split val, which is scored here: the scores are too good", entry.name)
    source = read_together(lambda: open_windows(test_set.data, split=test_set.split, frames=frames), ranks)
    purpose = f"an evaluation of {test_set.name}"
    with hold_directory(folder, purpose, field="--out", name=test_set.name, ranks=ranks) as lock:
        # 2. Count all forecasts
        counted, heaviest = count_entries(
            source,
            entries,
            protocols,
            frames_in=sequence.frames_in,
            batch_size=settings.batch_size,
            heavy=spec.threshold_codes()[-2:][0],
            as_issued=_written_fields(test_set.data, protocols) if settings.as_issued else None,
            ranks=ranks,
        )
        if not ranks.is_first:
            return {}
        # 3. Score and write
        result = _result(test_set, source, entries, protocols, counted, sequence=sequence, settings=settings)
        result["train_dates"] = list(train_dates)
        lock.check()
        _write(result, counted, folder)
        write_example(
            folder / f"{test_set.name}.example.npz",
            source,
            heaviest,
            entries=entries,
            # Those whose labels the report shows, see ScoreFile.pooled_protocol
            thresholds=next((one for one in protocols if one.aggregation == "global"), protocols[0]).thresholds,
            frames_in=sequence.frames_in,
        )
        return result


def _protocols(test_set: TestSet, entries: Sequence[Entry], settings: EvaluationConfig) -> list[ScoreProtocol]:
    return protocols_of(
        target_spec(test_set.data),
        settings.protocols,
        spacing_km=pixel_spacing_km(test_set.data),
        packed=any(entry.packed for entry in entries),
        tables_only=settings.tables_only,
        scores=settings.scores,
        missing_members=settings.missing_members,
    )


def _written_fields(data: DataConfig, protocols: Sequence[ScoreProtocol]) -> UnitFields:
    """Return the conversion of forecasts to values in files and back, as in ``simcast score-issued``.

    Raises:
        ConfigError: ``simcast predict`` has no forecasts in the unit of the data, or they have no cadence.
    """
    return UnitFields(encoding_of_run(data), tuple(one for protocol in protocols for one in protocol.thresholds))


def _write(result: dict[str, Any], counted: Counted, folder: Path) -> None:
    name = result["name"]
    for entry, by_rule in counted.items():
        for statistics in by_rule.values():
            statistics.save(folder / f"{name}.{file_stem(entry)}.{statistics.protocol.counting_hash}.npz")
    write_text(folder / f"{name}.csv", as_csv(result))
    write_json(folder / f"{name}.json", without_nan(result))


def _result(
    test_set: TestSet,
    source: WindowSource,
    entries: Sequence[Entry],
    protocols: Sequence[ScoreProtocol],
    counted: Counted,
    *,
    sequence: SequenceConfig,
    settings: EvaluationConfig,
) -> dict[str, Any]:
    own = protocols[0].counting_hash
    first = counted[entries[0].name][own]
    # 1. Thresholds of the means; in a test set with fewer events than required, all of its events are required.
    min_events = min(settings.min_observed_events, len(set(first.events)))
    floor = {"min_pixels": settings.min_observed_pixels, "min_events": min_events}
    supported = supported_thresholds(first, **floor)
    if not supported:
        logger.warning("%s: no threshold was observed with %s; means are over all thresholds", test_set.name, floor)
    # 2. Scores, intervals and differences
    observed = (first.hits + first.misses).sum(-1)
    bounds, differences = intervals(counted, protocols, supported=supported, draws=settings.draws)
    scored = {
        entry.name: {
            protocol.name: scores(
                counted[entry.name][protocol.counting_hash].under(protocol),
                per_lead=True,
                mean_over=[label for label in supported if label in protocol.labels] or None,
            )
            for protocol in protocols
        }
        for entry in entries
    }
    # 3. Content of the score file
    return _test_set_metadata(test_set, source, sequence) | {
        "unit": protocols[0].unit,
        "events": len(set(first.events)),
        "observed": {
            label: {"pixels": int(observed[:, row].sum()), "events": int((observed[:, row] > 0).sum())}
            for row, label in enumerate(first.protocol.labels)
        },
        "supported_thresholds": list(supported),
        "min_observed_pixels": settings.min_observed_pixels,
        "min_observed_events": min_events,
        "protocols": {protocol.name: {**_protocol_metadata(protocol), "hash": protocol.hash} for protocol in protocols},
        "entries": [entry.metadata() for entry in entries],
        "scores": scored,
        "intervals": bounds,
        "differences": differences,
        "bootstrap": {"draws": settings.draws, "level": LEVEL, "over": "events"},
        "heavy_rain": {
            name: {protocol.name: heavy_rain_panel(row[protocol.name], protocol.labels) for protocol in protocols}
            for name, row in scored.items()
        },
        "diagrams": {
            entry.name: diagrams(counted[entry.name][own], grid=source.grid, spacing_km=pixel_spacing_km(test_set.data))
            for entry in entries
        },
        "mean_csi_by_lead": {
            entry.name: mean_csi(counted[entry.name][own], thresholds=supported or None).tolist() for entry in entries
        },
    }


def _test_set_metadata(test_set: TestSet, source: WindowSource, sequence: SequenceConfig) -> dict[str, Any]:

    spec, measured = target_spec(test_set.data), source_spec(test_set.data)
    return {
        "name": test_set.name,
        "title": measured.title,
        "dataset": measured.name,
        "quantity": spec.quantity,
        "license": measured.license,
        "citation": measured.citation,
        "split": test_set.split,
        "windows": len(source),
        "dates": list(source.dates),
        "step_minutes": step_minutes(test_set.data),
        "grid": list(source.grid),
        "spacing_km": pixel_spacing_km(test_set.data),
        "frames_in": sequence.frames_in,
        "frames_out": sequence.frames_out,
        "fingerprint": source.fingerprint,
    }


def _protocol_metadata(protocol: ScoreProtocol) -> dict[str, Any]:
    return {
        "labels": list(protocol.labels),
        "aggregation": protocol.aggregation,
        "source": protocol.source,
        "additional_scores": list(protocol.scores),
    }
