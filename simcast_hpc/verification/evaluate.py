"""Forecasts of one test set counted under its protocols, side by side, and what a page or a paper needs of them."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, SequenceConfig
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open import coded_as, open_windows, step_minutes
from simcast_hpc.data.source import WindowSource
from simcast_hpc.data.spec import DatasetSpec, Split, read_spec
from simcast_hpc.forecast.load import TrainedModel
from simcast_hpc.observe.run_folder import write_whole

from .counting import Accumulator
from .protocols import ScoreProtocol, protocol_for
from .published import resolve_protocol
from .scores import mean_csi, scores, supported_thresholds
from .statistics import Statistics

logger = logging.getLogger("simcast")
_NOTES = {
    "persistence": "the last frame, held",
    "extrapolation": "pysteps: Lucas-Kanade motion, semi-Lagrangian advection",
}


class Forecast(Protocol):
    """Anything that forecasts from frames: a trained model or a baseline."""

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` after uint8 codes ``[B, T, H, W]``."""
        ...


@dataclass(frozen=True)
class Entry:
    """One row of a table: a forecast, what it is called and what it cost."""

    name: str
    forecast: Forecast
    kind: str
    note: str
    steps: int | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class TestSet:
    """Windows that forecasts are held against."""

    __test__ = False  # not a pytest class

    name: str
    data: DataConfig
    split: Split


def model_entry(name: str, model: TrainedModel) -> Entry:
    """Return the table row of a trained model."""
    sequence, made = model.config.sequence, model.config.frames_out
    calls = math.ceil(sequence.frames_out / made)
    reach = "one pass" if calls == 1 else f"rolled out in {calls} calls"
    origin = model.config.stage if model.steps is not None else "published weights"
    note = f"{origin}, {reach}; {model.config.model.title}"
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Entry(name, model, "model", note, steps=model.steps, parameters=parameters)


def baseline_entry(name: str, data: DataConfig) -> Entry:
    """Return the table row of a baseline, bound to the code of a data set.

    Raises:
        ConfigError: no such baseline, or it needs an extra that is not installed.
    """
    try:
        return Entry(name, _Positional(load_baseline(name, coded_as(data).encoding)), "baseline", _NOTES.get(name, ""))
    except (KeyError, ImportError) as error:
        raise ConfigError(f"evaluation.baselines: {error.args[0]}") from error


class _Positional:
    """A baseline in the form of a model's forecast."""

    def __init__(self, baseline: Any):
        self._baseline = baseline

    def forecast(self, frames: torch.Tensor, /, *, frames_out: int) -> torch.Tensor:
        return self._baseline.forecast(frames, frames_out)


def protocols_of(spec: DatasetSpec, names: Sequence[str]) -> list[ScoreProtocol]:
    """Return protocols by name; ``global`` and ``lead-mean`` are the data set's own thresholds so aggregated.

    Raises:
        ConfigError: no such protocol.
    """
    found = []
    for name in names:
        if name in ("global", "lead-mean"):
            found.append(
                protocol_for(
                    f"{spec.name}-{name}",
                    spec.threshold_codes(),
                    spec.threshold_labels(),
                    unit=spec.thresholds.unit,
                    aggregation=name,
                    source=f"thresholds of {spec.name}: {spec.source}",
                )
            )
        else:
            try:
                found.append(resolve_protocol(name))
            except KeyError as error:
                raise ConfigError(f"evaluation.protocols: {error.args[0]}; or global, lead-mean") from error
            if spec.encoding.kind != "sevir_vil":
                raise ConfigError(
                    f"evaluation.protocols: {name} compares SEVIR's VIL codes, but {spec.name} is coded in "
                    f"{spec.encoding.unit}; its own thresholds are global and lead-mean"
                )
    return found


def evaluate(
    test_set: TestSet,
    entries: Sequence[Entry],
    *,
    sequence: SequenceConfig,
    settings: EvaluationConfig,
    folder: Path,
    train_dates: Sequence[str] = (),
) -> dict[str, Any]:
    """Count every entry's forecasts of a test set and write scores, statistics and an example.

    Args:
        test_set: which windows.
        entries: what is compared, all on the same windows.
        sequence: T and T'.
        settings: protocols, batch size, and from how much observed a threshold enters the mean.
        folder: gets ``<name>.json``, ``<name>.example.npz`` and each entry's ``<name>.<entry>.<counting hash>.npz``.
        train_dates: the dates that the models were trained on, so that a page can say which are shared.

    Returns:
        What the JSON holds.

    Raises:
        ConfigError, DataError: an unknown protocol, or data that cannot be used.
    """
    spec = coded_as(test_set.data)
    protocols = protocols_of(spec, settings.protocols)
    frames = sequence.frames_in + sequence.frames_out
    source = open_windows(test_set.data, split=test_set.split, frames=frames)
    folder.mkdir(parents=True, exist_ok=True)
    heavy = spec.threshold_codes()[-2:][0]
    counted, heaviest = _count(
        source, entries, protocols, sequence=sequence, batch_size=settings.batch_size, heavy=heavy
    )
    for name, by_rule in counted.items():
        for statistics in by_rule.values():
            statistics.save(folder / f"{test_set.name}.{name}.{statistics.protocol.counting_hash}.npz")
    result = _result(test_set, source, entries, protocols, counted, sequence=sequence, settings=settings)
    result["train_dates"] = list(train_dates)
    write_whole(folder / f"{test_set.name}.json", json.dumps(_without_nan(result), indent=1))
    example = folder / f"{test_set.name}.example.npz"
    _write_example(example, source, heaviest, entries=entries, spec=spec, sequence=sequence)
    return result


Counted = dict[str, dict[str, Statistics]]


def _count(
    source: WindowSource,
    entries: Sequence[Entry],
    protocols: Sequence[ScoreProtocol],
    *,
    sequence: SequenceConfig,
    batch_size: int,
    heavy: float,
) -> tuple[Counted, int]:
    """Return the statistics of each entry by counting hash, and the window with the most observed pixels of ``heavy``.

    Protocols that count alike share one pass, and the windows are read once.
    """
    most, heaviest = -1, 0
    rules = {protocol.counting_hash: protocol for protocol in protocols}
    sums = {entry.name: {key: Accumulator(protocol) for key, protocol in rules.items()} for entry in entries}
    for begin in range(0, len(source), batch_size):
        indices = range(begin, min(begin + batch_size, len(source)))
        windows = torch.from_numpy(np.stack([source.read(index) for index in indices]))
        events = [source.key(index).event for index in indices]
        past, observed = windows[:, : sequence.frames_in], windows[:, sequence.frames_in :]
        counts = ((observed >= heavy) & (observed != MISSING_CODE)).flatten(1).sum(1)
        if int(counts.max()) > most:
            most, heaviest = int(counts.max()), begin + int(counts.argmax())
        for entry in entries:
            forecast = entry.forecast.forecast(past, frames_out=sequence.frames_out)
            for accumulator in sums[entry.name].values():
                accumulator.add(observed.to(forecast.device), forecast, events=events)
    counted = {name: {key: one.statistics.to("cpu") for key, one in rules.items()} for name, rules in sums.items()}
    return counted, heaviest


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
    spec, own = coded_as(test_set.data), protocols[0].counting_hash
    measured = read_spec(test_set.data.dataset)
    first = counted[entries[0].name][own]
    # A test set of fewer events than are asked for cannot meet that rule; all of its events then must.
    min_events = min(settings.min_observed_events, len(set(first.events)))
    floor = {"min_pixels": settings.min_observed_pixels, "min_events": min_events}
    supported = supported_thresholds(first, **floor)
    if not supported:
        logger.warning("%s: no threshold was observed on %s; the mean takes all", test_set.name, floor)
    observed = (first.hits + first.misses).sum(-1)
    return {
        "name": test_set.name,
        "title": measured.title,
        "dataset": measured.name,
        "quantity": spec.quantity,
        "unit": spec.thresholds.unit,
        "license": measured.license,
        "citation": measured.citation,
        "split": test_set.split,
        "windows": len(source),
        "events": len(set(first.events)),
        "dates": list(source.dates),
        "step_minutes": step_minutes(test_set.data),
        "frames_in": sequence.frames_in,
        "frames_out": sequence.frames_out,
        "fingerprint": source.fingerprint,
        "observed": {
            label: {"pixels": int(observed[:, row].sum()), "events": int((observed[:, row] > 0).sum())}
            for row, label in enumerate(first.protocol.labels)
        },
        "supported_thresholds": list(supported),
        "min_observed_pixels": settings.min_observed_pixels,
        "min_observed_events": min_events,
        "protocols": {protocol.name: {**_named(protocol), "hash": protocol.hash} for protocol in protocols},
        "entries": [{key: value for key, value in vars(entry).items() if key != "forecast"} for entry in entries],
        "scores": {
            entry.name: {
                protocol.name: scores(
                    counted[entry.name][protocol.counting_hash].under(protocol),
                    per_lead=True,
                    mean_over=[label for label in supported if label in protocol.labels] or None,
                )
                for protocol in protocols
            }
            for entry in entries
        },
        "mean_csi_by_lead": {
            entry.name: mean_csi(counted[entry.name][own], thresholds=supported or None).tolist() for entry in entries
        },
    }


def _named(protocol: ScoreProtocol) -> dict[str, Any]:
    return {"labels": list(protocol.labels), "aggregation": protocol.aggregation, "source": protocol.source}


def _write_example(
    path: Path,
    source: WindowSource,
    chosen: int,
    *,
    entries: Sequence[Entry],
    spec: DatasetSpec,
    sequence: SequenceConfig,
) -> None:
    """Write the window with the most pixels over the second-highest threshold: chosen by weather, not by skill."""
    window = torch.from_numpy(source.read(chosen))[None]
    past = window[:, : sequence.frames_in]
    made = {
        f"forecast/{entry.name}": entry.forecast.forecast(past, frames_out=sequence.frames_out)[0].cpu().numpy()
        for entry in entries
    }
    arrays: dict[str, Any] = {
        "event": np.array(str(source.key(chosen))),
        "inputs": past[0].numpy(),
        "observed": window[0, sequence.frames_in :].numpy(),
        "thresholds": np.array(spec.threshold_codes()),
        **made,
    }
    np.savez_compressed(path, **arrays)


def _without_nan(thing: Any) -> Any:
    """Return a copy in which NaN and infinity (the PSNR of a perfect forecast) are None, since JSON has neither."""
    if isinstance(thing, dict):
        return {key: _without_nan(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [_without_nan(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
