"""Rule by which a frame is wet, such as ``1 mm/h on 2 %``, and rain statistics of the tiles of a frame."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.data.encoding import rain_rate_from_reflectivity
from simcast_hpc.radar.radar_frame import RadarFrame

MARSHALL_PALMER = ZRRelation(a=200.0, b=1.6)
_FORM = re.compile(
    r"\s*(?P<value>\d*\.?\d+)\s*(?P<unit>mm/h|dBZ|kg/m\^2)\s+on\s+(?P<percent>\d*\.?\d+)\s*%"
    r"(\s+of\s+((the\s+)?(covered|valid)\s+)?pixels)?\s*",
    re.IGNORECASE,
)
_UNITS = {"mm/h": "mm/h", "dbz": "dBZ", "kg/m^2": "kg/m^2"}
_BLOCK_ROWS = 128


@dataclass(frozen=True)
class WetRule:
    """A tile of a frame is wet if at least ``percent`` of its valid pixels are at or above ``value``."""

    value: float
    unit: Literal["mm/h", "dBZ", "kg/m^2"]
    percent: float

    def __str__(self) -> str:
        """Return the text that :func:`parse_wet_rule` reads."""
        return f"{self.value:g} {self.unit} on {self.percent:g} %"

    @property
    def share(self) -> float:
        """Required share of the valid pixels, 0 to 1."""
        return self.percent / 100

    def threshold_in(self, unit: str, z_r: ZRRelation) -> float:
        """Return the threshold in ``unit``.

        Raises:
            ConfigError: there is no conversion between the two units.
        """
        if unit == self.unit:
            return self.value
        if (self.unit, unit) == ("mm/h", "dBZ"):
            return z_r.reflectivity(self.value)
        if (self.unit, unit) == ("dBZ", "mm/h"):
            return float(rain_rate_from_reflectivity(np.array(self.value), z_r.a, z_r.b))
        raise ConfigError(f"--wet {str(self)!r}: the frames are in {unit}; give a threshold in {unit}")


def parse_wet_rule(text: str) -> WetRule:
    """Return the rule of ``--wet``.

    Raises:
        ConfigError: the text has another form, or a number is out of range.
    """
    match = _FORM.fullmatch(text)
    if match is None or float(match["value"]) <= 0 or not 0 < float(match["percent"]) <= 100:
        raise ConfigError(
            f"--wet {text!r} is invalid; expected a threshold above 0 and a percentage of the valid pixels, such as "
            '"1 mm/h on 2 %" or "20 dBZ on 5 %"'
        )
    return WetRule(float(match["value"]), _UNITS[match["unit"].lower()], float(match["percent"]))  # pyright: ignore[reportArgumentType]


def row_blocks(height: int) -> list[slice]:
    """Return blocks of rows of a grid, for computations that need much memory per pixel."""
    return [slice(top, min(top + _BLOCK_ROWS, height)) for top in range(0, height, _BLOCK_ROWS)]


def tile_origins(size: int, tile: int | None) -> list[int]:
    """Return the first pixels of tiles along one axis, evenly spaced from edge to edge; tiles may overlap."""
    if tile is None or tile >= size:
        return [0]
    count = -(-size // tile)
    return [round(k * (size - tile) / (count - 1)) for k in range(count)]


def tile_slices(shape: tuple[int, int], tile: int | None) -> list[tuple[slice, slice]]:
    """Return rows and columns of the tiles of a grid, from the upper left; the whole grid without ``tile``."""
    height, width = (size if tile is None else min(size, tile) for size in shape)
    return [
        (slice(top, top + height), slice(left, left + width))
        for top in tile_origins(shape[0], tile)
        for left in tile_origins(shape[1], tile)
    ]


def tile_statistics(frame: RadarFrame, tile: int | None, rule: WetRule, z_r: ZRRelation) -> np.ndarray:
    """Return mean rate, wet share and missing share of the tiles of a frame, float32 ``[tiles, 3]``.

    The mean rate is in mm/h (in kg/m^2 for such frames) and, as the wet share, over valid pixels; both are NaN where a
    tile has none.
    """
    threshold = np.float32(rule.threshold_in(frame.unit, z_r))
    slices = tile_slices(frame.values.shape, tile)
    result = np.full((len(slices), 3), np.nan, np.float32)
    for number, (rows, columns) in enumerate(slices):
        total, wet, count = 0.0, 0, 0
        field = frame.values[rows, columns]
        for block in row_blocks(len(field)):  # copies of a continental composite need hundreds of MB
            values = field[block]
            values = values[~np.isnan(values)]
            wet += int((values >= threshold).sum())
            count += values.size
            rate = rain_rate_from_reflectivity(values, z_r.a, z_r.b) if frame.unit == "dBZ" else values
            total += float(rate.sum(dtype=np.float64))
        if count:
            result[number, :2] = total / count, wet / count
        result[number, 2] = 1 - count / field.size
    return result
