"""The common form of a radar frame: a physical field on a map, at a time, with missing and no echo told apart."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simcast_hpc.config import DataError

Unit = Literal["mm/h", "dBZ", "kg/m^2"]
# What no radar shows: a field outside was read in the wrong unit, or its missing code was taken for a value.
_RANGE: dict[str, tuple[float, float]] = {"mm/h": (0.0, 3000.0), "dBZ": (-100.0, 100.0), "kg/m^2": (0.0, 500.0)}
_EARTH_KM_PER_DEGREE = 111.195


@dataclass(frozen=True)
class RadarGrid:
    """Where the pixels of a frame lie. Row 0 is north, column 0 west.

    Args:
        projection: a PROJ string, or WKT where the file says more than PROJ can.
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
        """Centres of the columns from west to east, float64 ``[W]``."""
        return self.left + self.spacing_x * (np.arange(self.width) + 0.5)

    @cached_property
    def y(self) -> np.ndarray:
        """Centres of the rows from north to south, float64 ``[H]``."""
        return self.top - self.spacing_y * (np.arange(self.height) + 0.5)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (H, W)."""
        return self.height, self.width

    @property
    def spacing_km(self) -> float:
        """The side of a square as large as a pixel; of degrees that of the middle row."""
        if self.unit == "m":
            return float(np.sqrt(self.spacing_x * self.spacing_y)) / 1000.0
        middle = self.top - self.spacing_y * self.height / 2
        across = self.spacing_x * np.cos(np.deg2rad(middle))
        return float(_EARTH_KM_PER_DEGREE * np.sqrt(across * self.spacing_y))

    def coarser(self, factor: int) -> "RadarGrid":
        """Return the grid of ``factor`` x ``factor`` blocks, from the upper left on; incomplete ones are left out."""
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

    def differs_from(self, other: "RadarGrid") -> str:
        """Say in what this grid differs from ``other``, in words; nothing where they are one."""
        if self.shape != other.shape:
            return f"{self.height} x {self.width} pixels against {other.height} x {other.width}"
        if self.projection != other.projection or self.unit != other.unit:
            return f"projection {self.projection!r} against {other.projection!r}"
        for name in ("left", "top", "spacing_x", "spacing_y"):
            mine, its = getattr(self, name), getattr(other, name)
            # A hundredth of a pixel: corners are rounded differently by different writers.
            if abs(mine - its) > 0.01 * self.spacing_x:
                return f"{name} {mine:.10g} against {its:.10g} {self.unit}"
        return ""


@dataclass(frozen=True, eq=False)
class RadarFrame:
    """One composite at one time.

    ``values`` float32 ``[H, W]``, row 0 north: NaN where missing (no radar sees it), minus infinity where no echo in
    dBZ, 0 where no rain. ``unit`` is ``mm/h``, ``dBZ`` or ``kg/m^2``. ``time`` is UTC, aware: when the field was
    seen, of an accumulation its end. ``about`` is what else the file says, for messages and attributes.
    """

    values: np.ndarray
    unit: Unit
    time: datetime
    grid: RadarGrid
    path: Path
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a field that cannot be what it says it is.

        Raises:
            DataError: another shape than the grid, no valid pixel, or values out of the range of the unit.
        """
        if self.values.shape != self.grid.shape:
            raise DataError(f"{self.path}: the field is {self.values.shape} and its grid {self.grid.shape}")
        seen = self.values[np.isfinite(self.values)]
        if not seen.size and np.isnan(self.values).all():
            raise DataError(f"{self.path}: every pixel is missing; the radars were off, or the missing code is wrong")
        low, high = _RANGE[self.unit]
        if seen.size and (seen.min() < low or seen.max() > high):
            raise DataError(
                f"{self.path}: values from {seen.min():g} to {seen.max():g} cannot be {self.unit}, "
                f"which lies from {low:g} to {high:g}; is the unit or the scale of the file wrong?"
            )
