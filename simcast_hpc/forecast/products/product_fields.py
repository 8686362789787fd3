"""``ProductField``: a field derived from a forecast, for lead times or for windows of accumulation."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np

from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.radar.radar_frame import Unit

Statistic = Literal["forecast", "mean", "matched_mean", "percentile", "probability", "neighborhood_probability"]
Window = tuple[float, float]
RATE_NAMES: dict[Unit, str] = {
    "mm/h": "rainfall_rate",
    "dBZ": "reflectivity",
    "kg/m^2": "vertically_integrated_liquid",
}
QUANTITIES: dict[str, str] = {
    "mm/h": "rain rate",
    "dBZ": "radar reflectivity factor",
    "kg/m^2": "vertically integrated liquid",
    "mm": "rainfall amount",
}


@dataclass(frozen=True, eq=False)
class ProductField:
    """A field at every lead time, or of every window of a group of accumulations.

    Attributes:
        name: of the variable, and the beginning of file names.
        unit: of the values; ``1`` for probabilities.
        quantity_unit: unit of the quantity that the values describe, also for probabilities.
        statistic: how the values were derived from the members.
        values: float32 ``[T, H, W]``, or ``[K, T, H, W]`` with ``levels``; NaN where missing.
        levels: percentiles in percent, or thresholds in ``quantity_unit``; empty for other statistics.
        group: name of the group of windows, such as ``60min``; empty for fields at the lead times.
        windows: start and end of each window in minutes after the issue time; empty for fields at the lead times.
    """

    name: str
    unit: str
    quantity_unit: str
    statistic: Statistic
    values: np.ndarray
    levels: tuple[float, ...] = ()
    group: str = ""
    windows: tuple[Window, ...] = ()

    @property
    def is_probability(self) -> bool:
        """Whether the values are probabilities."""
        return self.unit == "1"

    @property
    def long_name(self) -> str:
        """Description of the field without its levels and times."""
        quantity = QUANTITIES[self.quantity_unit]
        return {
            "forecast": f"forecast {quantity}",
            "mean": f"ensemble mean of the forecast {quantity}",
            "matched_mean": f"probability-matched ensemble mean of the forecast {quantity}",
            "percentile": f"percentile of the members of the forecast {quantity}",
            "probability": f"probability that the {quantity} reaches the threshold",
            "neighborhood_probability": f"neighborhood probability that the {quantity} reaches the threshold",
        }[self.statistic]


@dataclass(frozen=True, eq=False)
class ProductLayer:
    """A field ``[H, W]`` at one time: a map, a file of a format that contains one.

    Attributes:
        field: that the layer belongs to.
        values: float32 ``[H, W]``, NaN where missing.
        level: percentile or threshold; None for other statistics.
        start: start of the window of an accumulation; None for a field at a lead time.
        valid: valid time, or the end of the window.
        lead_minutes: from the issue time to ``valid``.
    """

    field: ProductField
    values: np.ndarray
    level: float | None
    start: datetime | None
    valid: datetime
    lead_minutes: float

    @cached_property
    def name(self) -> str:
        """Name of the layer without its time, such as ``rainfall_rate_percentile_90``."""
        return self.field.name if self.level is None else f"{self.field.name}_{file_number(self.level)}"

    @cached_property
    def stem(self) -> str:
        """File name without suffix, such as ``rainfall_rate_percentile_90_015min``."""
        whole, _, part = file_number(self.lead_minutes).partition("p")
        return f"{self.name}_{whole:0>3}{'p' + part if part else ''}min"

    @cached_property
    def description(self) -> str:
        """Description with level, for legends and tags."""
        field = self.field
        if self.level is None:
            return field.long_name
        if field.statistic == "percentile":
            return f"{self.level:g} % {field.long_name}"
        return f"{field.long_name} {self.level:g} {field.quantity_unit}"


def fields_of(forecast: Forecast) -> list[ProductField]:
    """Return the fields of a forecast that maps show, without the members of an ensemble.

    These are the forecast, or the ensemble mean and probabilities, and the products.
    """
    name, unit = RATE_NAMES[forecast.unit], forecast.unit
    if not forecast.is_ensemble:
        assert forecast.values is not None
        return [ProductField(name, unit, unit, "forecast", forecast.values[0]), *forecast.products]
    assert forecast.mean is not None
    fields = [ProductField(f"{name}_mean", unit, unit, "mean", forecast.mean)]
    if forecast.probability is not None:
        levels = forecast.thresholds
        fields.append(
            ProductField("probability_of_exceedance", "1", unit, "probability", forecast.probability, levels=levels)
        )
    return [*fields, *forecast.products]


def layers_of(forecast: Forecast, field: ProductField) -> Iterator[ProductLayer]:
    """Yield the layers of a field, by level and then by time."""
    levels: list[float | None] = list(field.levels) or [None]
    stack = field.values if field.levels else field.values[None]
    ends = [end for _, end in field.windows] or forecast.leads_minutes
    starts = [forecast.issue + timedelta(minutes=start) for start, _ in field.windows] or [None] * len(ends)
    for level, fields in zip(levels, stack, strict=True):
        for values, start, end in zip(fields, starts, ends, strict=True):
            yield ProductLayer(field, values, level, start, forecast.issue + timedelta(minutes=end), end)


def file_number(value: float) -> str:
    """Return a number for names of files and variables: ``m`` for a minus sign, ``p`` for a decimal point."""
    return f"{value:.10g}".replace("-", "m").replace(".", "p").replace("+", "")
