"""Count one issued forecast, and baselines of the same issue time, against the frames that came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch

from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.radar.frame_encoding import ModelEncoding
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.sufficient_statistics import Statistics

from ..unit_fields import UnitFields
from .arrived_frames import ArrivedFrames, PhysicalValues
from .count_cache import IssueCounts
from .issued_files import IssuedForecast, read_fields

FORECAST = "forecast"
# Increase it when the counts of an unchanged forecast change.
_VERSION = 4


@dataclass(frozen=True)
class IssueCounter:
    """Counts issued forecasts under protocols.

    Attributes:
        frames: the frames that came.
        code: encoding, pixel size and cadence of the forecasts; with :class:`.PhysicalValues` frames and forecasts are
            compared with ``levels`` in the physical unit, otherwise as positions on the code axis.
        protocols: protocols with thresholds on the code axis.
        baselines: names of baselines that are forecast from the same frames.
        levels: stated thresholds in the unit of the encoding by position; others are decoded.
    """

    frames: ArrivedFrames
    code: ModelEncoding
    protocols: Sequence[ScoreProtocol]
    baselines: Sequence[str] = ()
    levels: Mapping[float, float] = field(default_factory=dict)

    @cached_property
    def _physical_levels(self) -> Mapping[float, float] | None:
        """Thresholds in the physical unit by position; None if codes are compared."""
        if not isinstance(self.code, PhysicalValues):
            return None
        value_of = self.code.spec.encoding.value_of
        return {
            one: self.levels.get(one, float(value_of(np.array(one))))
            for protocol in self.protocols
            for one in protocol.thresholds
        }

    @cached_property
    def _units(self) -> UnitFields:
        positions = tuple(one for protocol in self.protocols for one in protocol.thresholds)
        return UnitFields(self.code, positions, self._physical_levels)

    def check(self, forecast: IssuedForecast) -> None:
        """Check that the settings fit a forecast.

        Raises:
            DataError: the forecast has another unit than the description.
            ConfigError: a baseline does not exist, or its package is not installed.
        """
        if forecast.unit != self.code.unit:
            raise DataError(
                f"{forecast.path} is in {forecast.unit} and the description {self.code.spec.name} in {self.code.unit}; "
                "give the description of the forecast's model with --dataset"
            )
        for name in self.baselines:
            _baseline(self, name, forecast.step_minutes)

    def key(self, forecast: IssuedForecast, content: str) -> dict[str, Any]:
        """Return everything that determines the counts of a forecast with this hash of its content."""
        observed, inputs = self._times(forecast)
        relation = self.code.z_r
        return {
            "version": _VERSION,
            "forecast": content,
            "encoding": self.code.spec.encoding.model_dump_json(),
            "z_r": None if relation is None else relation.model_dump_json(),
            "reading": [
                self.code.spacing_km,
                self.code.any_spacing,
                self.code.any_interval,
                self.code.dataset,
                str(self.code.importer or ""),
            ],
            "levels": None if self._physical_levels is None else sorted(self._physical_levels.items()),
            "protocols": sorted({protocol.counting_hash for protocol in self.protocols}),
            "observed": [self.frames.identity(time) for time in observed],
            "baselines": list(self.baselines),
            "inputs": [self.frames.identity(time) for time in inputs] if self.baselines else [],
        }

    def count(self, forecast: IssuedForecast) -> IssueCounts:
        """Return the counts of a forecast.

        Raises:
            DataError: the forecast cannot be read, has another unit, or its grid is not that of the frames.
            ConfigError: as :meth:`check`.
        """
        # 1. Observations
        self.check(forecast)
        times, inputs = self._times(forecast)
        shape = (len(forecast.grid.y), len(forecast.grid.x))
        for time in filter(None, times):
            found = self.frames.grid(time)
            if found is not None and (difference := forecast.grid.difference(found[0])):
                raise DataError(
                    f"{found[1]} has another grid than {forecast.path}, after averaging to its pixels: {difference}"
                )
        observed = self.frames.codes(times, shape)
        arrived = np.array([time is not None and self.frames.frame(time) is not None for time in times])
        if not arrived.any():
            return IssueCounts({}, None, None, arrived)
        # 2. The forecast
        fields = read_fields(forecast)
        statistics: dict[str, dict[str, Statistics]] = {}
        if fields.values is not None:
            unit = np.stack([self._units.of(member) for member in fields.values])
            statistics[FORECAST] = self._count(forecast, observed, unit if len(unit) > 1 else unit[0])
        probability = (None, None)
        if fields.probability is not None and forecast.thresholds:
            probability = self._count_probability(forecast, observed, fields.probability)
        # 3. Baselines
        if self.baselines:
            statistics |= self._baselines(forecast, observed, self.frames.codes(inputs, shape))
        return IssueCounts(statistics, *probability, arrived)

    def _times(self, forecast: IssuedForecast) -> tuple[list[Any], list[Any]]:
        """Return the times of the frames of the valid times and of the inputs, None where none came."""
        step = forecast.step_minutes
        tolerance = FrameRequest(1, step).tolerance
        observed = [self.frames.nearest(time, tolerance) for time in forecast.valid]
        inputs = 0
        if self.baselines:
            needed = [getattr(_baseline(self, name, step), "min_frames", 1) for name in self.baselines]
            inputs = max([forecast.inputs, *needed])
        moments = [forecast.issue - timedelta(minutes=step * back) for back in reversed(range(inputs))]
        return observed, [self.frames.nearest(time, tolerance) for time in moments]

    def _count(self, forecast: IssuedForecast, observed: np.ndarray, unit: Any) -> dict[str, Statistics]:
        by_hash = {protocol.counting_hash: protocol for protocol in self.protocols}
        day = f"{forecast.issue:%Y-%m-%d}"
        if observed.dtype == np.uint8:  # on the domain of an import, which the diagonal in SAL contains
            seen, unit = self.code.padded(observed), self.code.padded(np.asarray(unit))
        else:
            seen = self._units.of(observed)
        observation, values = torch.from_numpy(seen)[None], torch.as_tensor(unit)[None]
        return {key: count(observation, values, protocol=one, events=[day]) for key, one in by_hash.items()}

    def _count_probability(
        self, forecast: IssuedForecast, observed: np.ndarray, probability: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        forecasts = np.zeros((len(forecast.thresholds), len(observed), forecast.bins + 1), np.int64)
        events = np.zeros_like(forecasts)
        for row, threshold in enumerate(forecast.thresholds):
            if observed.dtype == np.uint8:
                level = self.code.spec.encoding.code_of(threshold)
            else:
                level = threshold - self._units.error_of(threshold)
            for lead, codes in enumerate(observed):
                issued = probability[row, lead]
                valid = ~_is_missing(codes) & np.isfinite(issued)
                index = np.rint(issued[valid].clip(0, 1) * forecast.bins).astype(np.intp)
                forecasts[row, lead] = np.bincount(index, minlength=forecast.bins + 1)
                events[row, lead] = np.bincount(index[codes[valid] >= level], minlength=forecast.bins + 1)
        return forecasts, events

    def _baselines(
        self, forecast: IssuedForecast, observed: np.ndarray, inputs: np.ndarray
    ) -> dict[str, dict[str, Statistics]]:
        """Return the counts of the baselines; that of a baseline whose input frames did not come is absent."""
        counted = {}
        complete = [not _is_missing(frame).all() for frame in inputs]
        if inputs.dtype != np.uint8:
            inputs = self._units.of(inputs)
        for name in self.baselines:
            baseline = _baseline(self, name, forecast.step_minutes)
            needed = len(inputs) if name != "persistence" else 1
            if needed < getattr(baseline, "min_frames", 1) or not all(complete[-needed:]):
                continue
            made = baseline.forecast(torch.from_numpy(self.code.padded(inputs[-needed:]))[None], len(observed))
            unit: Any = made[0][..., : observed.shape[1], : observed.shape[2]]
            unit = unit.masked_fill(torch.from_numpy(_is_missing(inputs[-1])), torch.nan)  # as in issued forecasts
            # As if its values had been issued
            is_encoded = observed.dtype == np.uint8
            values = unit.numpy()
            unit = self._units.issued(values) if is_encoded else self._units.of(self.code.physical(values))
            counted[name] = self._count(forecast, observed, unit)
        return counted


def _is_missing(frames: np.ndarray) -> np.ndarray:
    return frames == MISSING_CODE if frames.dtype == np.uint8 else np.isnan(frames)


def _baseline(counter: IssueCounter, name: str, step_minutes: float) -> Any:
    try:
        return load_baseline(
            name, counter.code.spec.encoding, step_minutes=step_minutes, spacing_km=counter.code.spacing_km
        )
    except (KeyError, ImportError) as error:
        raise ConfigError(f"--baseline: {error.args[0]}") from error
