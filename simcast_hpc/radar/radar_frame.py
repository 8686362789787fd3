"""``RadarFrame``: a physical field on a map grid at one time; missing and no echo are different values."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simcast_hpc.config import DataError

from .declared_size import check_pixels
from .importer_choice import ImporterChoice
from .projection_text import projection_name

logger = logging.getLogger(__name__)
Unit = Literal["mm/h", "dBZ", "kg/m^2"]
# Plausible values. A field outside was read in the wrong unit, or its missing code was taken for a value.
_VALID_RANGE: dict[str, tuple[float, float]] = {"mm/h": (0.0, 3000.0), "dBZ": (-100.0, 100.0), "kg/m^2": (0.0, 500.0)}
# Single pixels outside are invalid, such as codes next to the missing code; many are a wrong unit or missing value.
MAX_IMPLAUSIBLE_SHARE = 1e-3
# Packing, unit conversion and interpolation leave small negative values where there is no rain. 0.001 mm/h is below
# the smallest rate that radar composites resolve and far from the codes that mark missing pixels (-1, -9999).
ROUNDING_NOISE = 1e-3
_BLOCK_ROWS = 128
_EARTH_KM_PER_DEGREE = 111.195
_EARTH_KM = 40_100.0  # around the equator


class QuantityError(DataError):
    """A readable file contains other quantities than the one that is read."""


def require_plausible(values: np.ndarray, unit: str) -> None:
    """Raise an error for physical values that cannot be in ``unit``; NaN is missing, minus infinity no echo in dBZ.

    Other units than mm/h, dBZ and kg/m^2 are not checked, except for plus infinity.

    Raises:
        ValueError: names the value, the range and the probable causes.
    """
    if np.isposinf(values).any():
        raise ValueError("values contain plus infinity; give finite numbers, NaN where missing")
    if unit not in _VALID_RANGE:
        return
    low, high = _VALID_RANGE[unit]
    noise = 0.0 if unit == "dBZ" else ROUNDING_NOISE
    with np.errstate(invalid="ignore"):
        outside = values[((values < low - noise) | (values > high)) & ~((unit == "dBZ") & np.isneginf(values))]
    if outside.size:
        raise ValueError(
            f"values contain {outside[0]:g}, outside of the valid range of {unit}, {low:g} to {high:g}; give NaN where "
            "missing, and check the unit and the transform (10 log10 of an amount is in dB)"
        )


@dataclass(frozen=True)
class FieldChoice:
    """Which fields are read from a file that contains several, and by which importer.

    Attributes:
        unit: preferred unit; another one is read if the file contains no field in this unit.
        dataset: number N of ``datasetN`` in an ODIM file; None reads the lowest level or the first.
        importer: reads the file; None detects the format by its content.
        times: aware UTC times to read, others are skipped; None reads all.
    """

    unit: Unit = "mm/h"
    dataset: int | None = None
    importer: ImporterChoice | None = None
    times: frozenset[datetime] | None = None

    def includes(self, time: datetime) -> bool:
        """Return whether the frame of ``time`` is read."""
        return self.times is None or time in self.times

    def option(self, name: str, default: str = "") -> str:
        """Return an option of the importer."""
        return default if self.importer is None else self.importer.values.get(name, default)


@dataclass(frozen=True)
class RadarGrid:
    """Map grid of a frame. Row 0 is north, column 0 west.

    Attributes:
        projection: PROJ string, or WKT where PROJ cannot express the projection of the file.
        left: outer edge of column 0, in ``unit``.
        top: outer edge of row 0.
        spacing_x: width of a pixel, positive.
        spacing_y: height of a pixel, positive.
        height: pixels from north to south.
        width: pixels from west to east.
        unit: ``m`` of the projection, or ``degree`` of longitude and latitude.
    """

    projection: str
    left: float
    top: float
    spacing_x: float
    spacing_y: float
    height: int
    width: int
    unit: Literal["m", "degree"] = "m"

    @cached_property
    def x(self) -> np.ndarray:
        """Centers of the columns from west to east, float64 ``[W]``."""
        return self.left + self.spacing_x * (np.arange(self.width) + 0.5)

    @cached_property
    def y(self) -> np.ndarray:
        """Centers of the rows from north to south, float64 ``[H]``."""
        return self.top - self.spacing_y * (np.arange(self.height) + 0.5)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (H, W)."""
        return self.height, self.width

    @property
    def spacing_km(self) -> float:
        """Square root of the pixel area in km; for degrees, that of the middle row."""
        if self.unit == "m":
            return float(np.sqrt(self.spacing_x * self.spacing_y)) / 1000.0
        middle = self.top - self.spacing_y * self.height / 2
        across = self.spacing_x * np.cos(np.deg2rad(middle))
        return float(_EARTH_KM_PER_DEGREE * np.sqrt(across * self.spacing_y))

    def coarser(self, factor: int) -> "RadarGrid":
        """Return the grid of ``factor`` x ``factor`` blocks from the upper left; incomplete blocks are dropped."""
        return RadarGrid(
            self.projection,
            self.left,
            self.top,
            self.spacing_x * factor,
            self.spacing_y * factor,
            self.height // factor,
            self.width // factor,
            self.unit,
        )

    def difference(self, other: "RadarGrid") -> str:
        """Return a description of the difference from ``other``; empty if the grids are equal."""
        if self.shape != other.shape:
            return f"{self.height} x {self.width} pixels instead of {other.height} x {other.width}"
        if self.projection != other.projection or self.unit != other.unit:
            own, others = projection_name(self.projection), projection_name(other.projection)
            if (own, self.unit) == (others, other.unit):
                return f"projection {own!r} with other parameters"
            return f"projection {own!r} in {self.unit} instead of {others!r} in {other.unit}"
        for name in ("left", "top", "spacing_x", "spacing_y"):
            own, others = getattr(self, name), getattr(other, name)
            # Writers round corners differently: tolerate a hundredth of a pixel.
            if abs(own - others) > 0.01 * self.spacing_x:
                return f"{name} {own:.10g} instead of {others:.10g} {self.unit}"
        return ""


@dataclass(frozen=True, eq=False)
class RadarFrame:
    """One composite at one time.

    ``values`` is float32 ``[H, W]``, row 0 north: NaN where missing (outside radar coverage), minus infinity for no
    echo in dBZ, 0 for no rain. ``unit`` is ``mm/h``, ``dBZ`` or ``kg/m^2``. ``time`` is aware UTC: the observation
    time, or the end of an accumulation interval. ``start`` is the start of that interval, over which ``values`` is the
    mean rate, or None for an instantaneous field. ``metadata`` contains further metadata for messages and attributes.

    Any other infinity is replaced by NaN with a warning. Values of mm/h and kg/m^2 from -0.001 to 0 are rounding noise
    and are replaced by 0. Values out of range for the unit are replaced by NaN with a warning if they are at most
    0.1 % of the valid pixels; ``metadata`` contains their number as ``implausible_pixels``.
    """

    values: np.ndarray
    unit: Unit
    time: datetime
    grid: RadarGrid
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    start: datetime | None = None

    def __post_init__(self) -> None:
        """Check the field.

        Raises:
            DataError: the shape differs from the grid, the grid extends beyond a pole or more than once around the
                globe, no pixel is valid, more than 0.1 % of the valid values are out of range for the unit, or the
                interval does not start before its end.
        """
        if self.start is not None and self.start >= self.time:
            raise DataError(
                f"{self.path}: the accumulation interval starts at {self.start} and ends at {self.time}; "
                "the end must be later"
            )
        if self.values.shape != self.grid.shape:
            raise DataError(f"{self.path}: the field has shape {self.values.shape} and its grid {self.grid.shape}")
        check_pixels(*self.grid.shape, self.path)  # a forecast takes memory and time in proportion to its domain
        self._check_place()
        object.__setattr__(self, "values", self._without_noise())
        if all(np.isnan(rows).all() for rows in _row_blocks(self.values)):
            raise DataError(f"{self.path}: all pixels are missing; the radars were off, or the missing value is wrong")
        self._remove_implausible()

    @property
    def interval_minutes(self) -> float | None:
        """Length of the accumulation interval; None for an instantaneous field."""
        return None if self.start is None else (self.time - self.start).total_seconds() / 60.0

    def _check_place(self) -> None:
        grid = self.grid
        if grid.unit != "degree":
            sides = [side / 1000.0 for side in (grid.height * grid.spacing_y, grid.width * grid.spacing_x)]
            if not max(sides) <= _EARTH_KM:
                raise DataError(
                    f"{self.path}: the grid of {sides[0]:.6g} x {sides[1]:.6g} km is larger than the earth; at most "
                    f"{_EARTH_KM:g} km are valid"
                )
            return
        north, south, width = float(grid.y[0]), float(grid.y[-1]), grid.spacing_x * grid.width
        if not max(abs(north), abs(south)) <= 90.0 + 1e-6:
            raise DataError(
                f"{self.path}: the rows are from latitude {north:g} to {south:g}; latitudes are from -90 to 90"
            )
        if width > 360.0 + grid.spacing_x:
            raise DataError(
                f"{self.path}: the columns extend over {width:g} degrees of longitude; at most 360 are valid"
            )

    def _without_noise(self) -> np.ndarray:
        """Return the values with infinities replaced by NaN and rounding noise by 0; minus infinity stays in dBZ."""
        values, is_dbz = self.values, self.unit == "dBZ"
        infinite = sum(int(_is_infinite(rows, is_dbz=is_dbz).sum()) for rows in _row_blocks(values))
        if infinite:
            logger.warning("%s: %d infinite pixels in %s are missing", self.path, infinite, self.unit)
        has_noise = not is_dbz and any(_is_noise(rows).any() for rows in _row_blocks(values))
        if not infinite and not has_noise:
            return values
        values = values.copy()
        for rows in _row_blocks(values):
            rows[_is_infinite(rows, is_dbz=is_dbz)] = np.nan
            if not is_dbz:
                rows[_is_noise(rows)] = 0
        return values

    def _remove_implausible(self) -> None:
        """Replace values out of range by NaN if they are few.

        Raises:
            DataError: they are more than 0.1 % of the valid pixels.
        """
        values, (low, high) = self.values, _VALID_RANGE[self.unit]
        if not any(_is_outside(rows, low, high).any() for rows in _row_blocks(values)):
            return
        outside = _is_outside(values, low, high)
        count = int(outside.sum())
        valid = values.size - int(np.isnan(values).sum())
        if count > MAX_IMPLAUSIBLE_SHARE * valid:
            finite = values[np.isfinite(values)]
            raise DataError(
                f"{self.path}: values from {finite.min():g} to {finite.max():g} are outside the valid range of "
                f"{self.unit}, {low:g} to {high:g}, at {count} of {valid} valid pixels; check the unit and scale of "
                f"the file and its missing value (at most {100 * MAX_IMPLAUSIBLE_SHARE:g} % are made missing)"
            )
        logger.warning(
            "%s: %d of %d valid pixels are missing because their values, from %g to %g, are outside the valid range of "
            "%s, %g to %g",
            self.path, count, valid, values[outside].min(), values[outside].max(), self.unit, low, high,
        )  # fmt: skip
        object.__setattr__(self, "values", np.where(outside, np.float32(np.nan), values))
        object.__setattr__(self, "metadata", {**self.metadata, "implausible_pixels": count})


def _row_blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield views of blocks of rows: masks of a continental composite need hundreds of MB."""
    return (values[top : top + _BLOCK_ROWS] for top in range(0, len(values), _BLOCK_ROWS))


def _is_infinite(values: np.ndarray, *, is_dbz: bool) -> np.ndarray:
    return np.isposinf(values) if is_dbz else np.isinf(values)


def _is_noise(values: np.ndarray) -> np.ndarray:
    return (values < 0) & (values >= -ROUNDING_NOISE)


def _is_outside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return ((values < low) & ~np.isneginf(values)) | (values > high)
