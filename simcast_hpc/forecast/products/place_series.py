"""Time series at points and in polygons, as CSV and GeoJSON.

In a polygon the statistic of the pixels (mean, maximum, percentile) is computed for each member, and then the ensemble
products of these. So a percentile of the mean over a catchment is not the mean of the percentiles of its pixels.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.cf_dataset import forecast_attributes
from simcast_hpc.forecast.forecast_fields import Forecast, ObservedFrames

from .accumulation import amounts
from .derived_fields import groups_of, lowest_echo
from .places import PIXEL_RULES, Place, PlacePixels, pixels_of
from .product_fields import RATE_NAMES, Window
from .product_settings import ProductSettings

COLUMNS = (
    "place", "kind", "product", "pixels", "statistic", "level", "level_unit", "issue_time", "start_time", "valid_time",
    "lead_minutes", "value", "unit", "valid_share", "undetermined_share",
)  # fmt: skip
_TIME = "%Y-%m-%dT%H:%M:%SZ"
# Spreadsheets evaluate cells that begin with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class PlaceSettings:
    """Places of the series.

    Attributes:
        places: points and polygons.
        rule: which pixels a polygon has, one of ``PIXEL_RULES``.
        statistics: of the pixels of a polygon: ``mean``, ``max``, or ``p90`` for a percentile.
    """

    places: tuple[Place, ...] = ()
    rule: str = "coverage"
    statistics: tuple[str, ...] = ("mean", "max")

    def __post_init__(self) -> None:
        """Check the statistics.

        Raises:
            ConfigError: one is unknown, or the rule.
        """
        if self.rule not in PIXEL_RULES:
            raise ConfigError(f"--polygon-pixels {self.rule!r} must be {' or '.join(PIXEL_RULES)}")
        for statistic in self.statistics:
            _percentile_of(statistic)

    @property
    def identity(self) -> str:
        """Text that differs between settings that give different files; empty without places."""
        places = [[place.name, place.geometry, place.properties] for place in self.places]
        return json.dumps([places, self.rule, self.statistics], sort_keys=True, default=str) if places else ""


class SeriesRow(NamedTuple):
    """One value of a series; the fields are those of the CSV file."""

    place: str
    kind: str
    product: str
    pixels: str
    statistic: str
    level: float | None
    level_unit: str
    issue_time: str
    start_time: str
    valid_time: str
    lead_minutes: float
    value: float | None
    unit: str
    valid_share: float
    undetermined_share: float | None


def series_of(forecast: Forecast, settings: ProductSettings, places: PlaceSettings) -> Iterator[SeriesRow]:
    """Yield the values of all places, by place, product and time.

    A place outside the grid, or without valid pixels, has empty values. ``valid_share`` is the share of the area of a
    polygon, or of the pixel of a point, that is on the grid and not missing; ``undetermined_share`` the part of it that
    is not determined by observations (``validity`` 0; of an accumulation at any of its lead times), None if unknown.

    Raises:
        ConfigError: the members of an ensemble were not kept.
    """
    if forecast.values is None:
        raise ConfigError("series at places are computed from the members of an ensemble, which were not kept")
    found = pixels_of(places.places, forecast.grid, places.rule)
    for place, pixels in zip(places.places, found, strict=True):
        kind, statistics = ("point", ("value",)) if place.is_point else ("polygon", places.statistics)
        for quantity in _quantities(forecast, settings, pixels):
            for statistic in statistics:
                values, shares = _reduce(quantity, pixels, statistic)
                guessed = _undetermined_shares(forecast, quantity, pixels)
                yield from _rows(forecast, settings, quantity, (place.name, kind, statistic), values, shares, guessed)


class _Quantity(NamedTuple):
    """Values ``[M, T, N]`` of the pixels of a place; ``thresholds`` in ``unit``, which values below ``lowest`` miss."""

    product: str
    unit: str
    values: np.ndarray
    windows: tuple[Window, ...]
    thresholds: tuple[float, ...]
    averages_z: bool
    lowest: float


def _quantities(forecast: Forecast, settings: ProductSettings, pixels: PlacePixels) -> Iterator[_Quantity]:
    """Yield the values at the lead times and the accumulations of the pixels of a place."""
    cut = _pixels_as_forecast(forecast, pixels)
    assert cut.values is not None
    levels = forecast.thresholds if forecast.is_ensemble else ()
    unit, rates = forecast.unit, cut.values[:, :, 0]
    yield _Quantity(RATE_NAMES[unit], unit, rates, (), levels, unit == "dBZ", lowest_echo(forecast))
    if groups := groups_of(forecast, settings):
        levels = tuple(sorted(settings.accumulation_thresholds)) if forecast.is_ensemble else ()
        for group, sums in zip(groups, amounts(cut, groups, slice(None)), strict=True):
            yield _Quantity(f"rainfall_amount_{group.name}", "mm", sums[:, :, 0], group.windows, levels, False, 0.0)


def _pixels_as_forecast(forecast: Forecast, pixels: PlacePixels) -> Forecast:
    """Return a forecast whose only row has the pixels of a place."""
    assert forecast.values is not None
    rows, columns, inputs = pixels.rows, pixels.columns, forecast.inputs
    if inputs is not None:
        cut = inputs.codes[:, rows, columns][:, None]
        inputs = ObservedFrames(cut, inputs.times, inputs.decode, inputs.are_means)
    observed = forecast.observed[rows, columns][None]
    values = forecast.values[:, :, rows, columns][:, :, None]
    return replace(forecast, values=values, inputs=inputs, observed=observed)


def _reduce(quantity: _Quantity, pixels: PlacePixels, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistic of the pixels of every member ``[M, T]``, NaN without valid pixels, and valid shares [T]."""
    values = quantity.values.astype(np.float64)
    valid = np.isfinite(values)
    weights = valid * pixels.weights
    total = weights.sum(axis=-1)
    shares = (total / max(pixels.weights.sum(), 1e-12)).min(axis=0) * pixels.area_share
    exists = total > 0
    if not exists.any():
        return np.full(values.shape[:2], np.nan), shares
    with np.errstate(invalid="ignore", divide="ignore"):
        if statistic == "value":
            reduced = values[..., 0]
        elif statistic == "mean":
            linear = 10.0 ** (values / 10.0) if quantity.averages_z else values
            mean = np.where(valid, linear * pixels.weights, 0.0).sum(axis=-1) / total
            reduced = 10.0 * np.log10(mean) if quantity.averages_z else mean
        elif statistic == "max":
            reduced = np.where(valid, values, -np.inf).max(axis=-1)
        else:
            reduced = weighted_percentile(values, weights, _percentile_of(statistic))
    return np.where(exists, reduced, np.nan), shares


def _undetermined_shares(forecast: Forecast, quantity: _Quantity, pixels: PlacePixels) -> list[float | None]:
    """Return the share of the area with values, at each time, that observations do not determine; None if unknown."""
    count = quantity.values.shape[1]
    if forecast.validity is None:
        return [None] * count
    guessed = ~forecast.validity[:, pixels.rows, pixels.columns]
    if quantity.windows:
        # A lead time contributes to a window that contains it, or ends within the time step before it.
        leads, are_means = np.array(forecast.leads_minutes), forecast.inputs is not None and forecast.inputs.are_means
        inside = [
            (leads > start if are_means else leads >= start) & (leads < end + forecast.step_minutes)
            for start, end in quantity.windows
        ]
        guessed = np.stack([guessed[times].any(axis=0) for times in inside])
    weights = (guessed & np.isfinite(quantity.values).all(axis=0)) * pixels.weights
    shares = weights.sum(axis=-1) / max(pixels.weights.sum(), 1e-12) * pixels.area_share
    return [round(float(share), 4) for share in shares]


def weighted_percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> np.ndarray:
    """Return the smallest of the values ``[..., N]`` up to which the weights add up to a percentage of their sum."""
    order = np.argsort(np.where(weights > 0, values, np.inf), axis=-1)
    ranked = np.take_along_axis(values, order, axis=-1)
    sums = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    first = (sums >= sums[..., -1:] * (percent / 100.0 - 1e-12)) & (sums > 0)
    return np.take_along_axis(ranked, first.argmax(axis=-1)[..., None], axis=-1)[..., 0]


def _percentile_of(statistic: str) -> float:
    """Return the percentage of a statistic such as ``p90``.

    Raises:
        ConfigError: it is neither this nor ``mean`` or ``max``.
    """
    if statistic in ("mean", "max"):
        return float("nan")
    try:
        percent = float(statistic[1:]) if statistic.startswith("p") else -1.0
    except ValueError:
        percent = -1.0
    if not 0.0 <= percent <= 100.0:
        raise ConfigError(f"--polygon-statistic {statistic!r} must be mean, max, or p0 to p100 such as p90")
    return percent


def _rows(
    forecast: Forecast,
    settings: ProductSettings,
    quantity: _Quantity,
    words: tuple[str, str, str],
    values: np.ndarray,
    shares: np.ndarray,
    guessed: list[float | None],
) -> Iterator[SeriesRow]:
    """Yield the ensemble products of the values of every member ``[M, T]``."""
    place, kind, pixels = words
    # 1. Statistics over the members: name, level, its unit, values [T], unit
    lines: list[tuple[str, float | None, str, np.ndarray, str]] = []
    if not forecast.is_ensemble:
        lines.append(("forecast", None, "", values[0], quantity.unit))
    else:
        linear = 10.0 ** (values / 10.0) if quantity.averages_z else values
        mean = 10.0 * np.log10(linear.mean(axis=0)) if quantity.averages_z else values.mean(axis=0)
        lines.append(("mean", None, "", mean, quantity.unit))
        for level in sorted(settings.percentiles):
            lines.append(("percentile", level, "%", np.percentile(values, level, axis=0), quantity.unit))
        missing = np.isnan(values).any(axis=0)
        for level in quantity.thresholds:
            share = np.where(missing, np.nan, (values >= np.float32(max(level, quantity.lowest))).mean(axis=0))
            lines.append(("probability", level, quantity.unit, share, "1"))
    # 2. One row per time
    ends = [end for _, end in quantity.windows] or forecast.leads_minutes
    starts = [_clock(forecast.issue, start) for start, _ in quantity.windows] or [""] * len(ends)
    issue = f"{forecast.issue:{_TIME}}"
    for name, level, level_unit, series, unit in lines:
        for start, end, value, share, guess in zip(starts, ends, series, shares, guessed, strict=True):
            number = float(f"{value:.6g}") if np.isfinite(value) else None
            yield SeriesRow(
                place, kind, quantity.product, pixels, name, level, level_unit, issue, start,
                _clock(forecast.issue, end), end, number, unit, round(float(share), 4), guess,
            )  # fmt: skip


def _clock(issue: datetime, minutes: float) -> str:
    return f"{issue + timedelta(minutes=minutes):{_TIME}}"


def write_series_csv(path: Path, rows: list[SeriesRow]) -> None:
    """Write rows as CSV; empty where a value does not exist.

    An apostrophe precedes a name that a spreadsheet would evaluate as a formula.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            if row.place.startswith(_FORMULA):
                row = row._replace(place=f"'{row.place}")
            writer.writerow(
                ["" if value is None else f"{value:g}" if isinstance(value, float) else value for value in row]
            )


def write_series_geojson(
    path: Path, rows: list[SeriesRow], forecast: Forecast, places: PlaceSettings, *, institution: str = ""
) -> None:
    """Write a FeatureCollection: one feature per place, with its series as a property."""
    series: dict[str, list[dict[str, Any]]] = {place.name: [] for place in places.places}
    for row in rows:
        values = {key: value for key, value in row._asdict().items() if key not in ("place", "kind", "issue_time")}
        series[row.place].append({key: value for key, value in values.items() if value not in ("",)})
    features = [
        {
            "type": "Feature",
            "geometry": place.geometry,
            "properties": {**place.properties, "name": place.name, "series": series[place.name]},
        }
        for place in places.places
    ]
    attributes = forecast_attributes(forecast, institution=institution)
    content = {
        "type": "FeatureCollection",
        "issue_time": f"{forecast.issue:{_TIME}}",
        "attributes": attributes,
        "features": features,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
