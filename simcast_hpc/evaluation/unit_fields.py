"""Convert fields from physical units to the [0, 1] fields that are counted: position on the code axis / 255.

A model forecasts positions on the code axis of its encoding divided by 255. A forecast file contains their physical
values, float32 or packed, and the inverse is exact up to rounding, with these limits:

- Rounding of float32: the position is the float32 number that was written as this value, so that no pixel changes its
  side of a threshold and no score its value. If there is none (packed files, blended tiles), a position
  within the error of the two conversions of a whole code is that code, and a value equal to a threshold reaches it.
  Without this a persistence forecast of exactly the threshold would be below it.
- No echo: where several positions have one value (below the first echo, or no echo in dBZ), they become code 0.
- Positions above the last code, 254, were written as the value of the last code.
- Several float32 positions can have one float32 value, of which the first that is tried is taken, up to 1e-7 from the
  forecast. ``simcast evaluate --as-issued`` converts its forecasts in the same way (:meth:`UnitFields.issued`) and so
  counts the same numbers.
- Packing: a packed file has the error of half its step; its values count as they were issued.

A position between two codes is interpolated in the physical unit, but that of a threshold follows the formula of the
encoding, so that 30 mm/h may have a lower position than the threshold 30 mm/h. ``simcast evaluate`` has only positions.
With the stated thresholds in the physical unit (``levels``) values are compared with these, and the position of a value
on the wrong side of a threshold is moved to the right one.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from simcast_hpc.data.encoding import LAST_CODE
from simcast_hpc.radar.frame_encoding import ModelEncoding

# Spacing of float32 numbers in [0.5, 1] times 255, with a margin: models forecast positions on this lattice.
_LATTICE = 2e-5
_EPSILON = float(np.finfo(np.float32).eps)
_ROUNDINGS = 4  # of float32 between the position and the value in a file
_NEIGHBORS = 8  # float32 numbers on each side of a position that are tried


class UnitFields:
    """The conversion for one encoding.

    Args:
        code: encoding of the data on which the model was trained.
        thresholds: positions of the scores' thresholds on the code axis.
        levels: stated thresholds in the physical unit by their positions; None compares positions, as
            ``simcast evaluate`` does.
    """

    def __init__(self, code: ModelEncoding, thresholds: tuple[float, ...], levels: Mapping[float, float] | None = None):
        self._code = code
        self._levels = None if levels is None else sorted(levels.items())
        self._encoding, self._thresholds = code.spec.encoding, np.array(sorted(thresholds), np.float64)
        self._no_echo = np.float32(code.no_echo_value())

    @cached_property
    def _tolerance(self) -> np.ndarray:
        """Rounding error in codes of positions around each code, float64 ``[255]``."""
        values = self._encoding.value_of(np.arange(LAST_CODE + 1))
        finite = np.where(np.isfinite(values), values, values[np.isfinite(values)].min())
        steps = np.diff(finite)
        slope = np.minimum(np.append(steps, steps[-1]), np.insert(steps, 0, steps[0]))
        error = _ROUNDINGS * _EPSILON * np.maximum(np.abs(finite), 10.0 if self._encoding.unit == "dBZ" else 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(slope > 0, _LATTICE + error / slope, _LATTICE).clip(max=0.25)

    def of(self, physical: np.ndarray) -> np.ndarray:
        """Return the [0, 1] field of physical values of any shape, float32, NaN where missing."""
        given = self._encoding.position_of(physical)
        given[physical <= self._no_echo] = 0.0
        nearest = np.rint(given)
        known = np.isfinite(given)
        tolerance = self._tolerance[np.where(known, nearest, 0).astype(np.intp)]
        position = np.where(known & (np.abs(given - nearest) <= tolerance), nearest, given)
        if self._levels is not None:
            return self._separate((position / 255.0).astype(np.float32), physical)
        for threshold in self._thresholds[self._thresholds % 1 != 0]:
            value = self._encoding.value_of(np.array(threshold))
            equal = np.abs(physical - value) <= _ROUNDINGS * _EPSILON * abs(value)
            position = np.where(equal & (position < threshold), threshold, position)
        unit = (position / 255.0).astype(np.float32)
        moved = known & (position != given)
        unit[moved] = self._written_as(physical[moved], given[moved], unit[moved], _NEIGHBORS)
        # The conversion back is one float32 number off for some positions, always to the same side: not an error of
        # single pixels that averages out.
        others = known & ~moved & (position > 0)
        unit[others] = self._written_as(physical[others], given[others], unit[others], 1)
        return unit

    def issued(self, unit: np.ndarray) -> np.ndarray:
        """Return the [0, 1] field ``[..., H, W]`` that :meth:`of` gives for the file of a forecast, float32."""
        fields = np.asarray(unit, np.float32).reshape(-1, *unit.shape[-2:])
        return np.stack([self.of(self._written(one)) for one in fields]).reshape(unit.shape)

    def _written_as(self, physical: np.ndarray, given: np.ndarray, rounded: np.ndarray, neighbors: int) -> np.ndarray:
        """Return the [0, 1] numbers that were written as ``physical``, all ``[N]``; ``rounded`` where none is found.

        ``rounded`` is tried first, then the float32 numbers around the position ``given``, up to ``neighbors`` on each
        side.
        """
        unit, physical = rounded.copy(), physical.astype(np.float32)
        left = np.flatnonzero(self._written(rounded) != physical)
        start = (given / 255.0).astype(np.float32).view(np.int32)  # adjacent integers are adjacent numbers
        for distance in range(neighbors + 1):
            for offset in {distance, -distance}:
                tried = np.maximum(start[left] + np.int32(offset), 0).view(np.float32)
                is_found = self._written(tried) == physical[left]
                unit[left[is_found]] = tried[is_found]
                left = left[~is_found]
        return unit

    def _written(self, unit: np.ndarray) -> np.ndarray:
        """Return the values that ``simcast predict`` writes for [0, 1] numbers of any shape, float32."""
        linear = np.asarray(self._code.linear_of_forecast(unit[None]), np.float32)
        self._code.make_physical(linear)
        return linear[0]

    def _separate(self, unit: np.ndarray, physical: np.ndarray) -> np.ndarray:
        """Return [0, 1] fields that are below, at and above each threshold where the physical values are."""
        assert self._levels is not None
        for position, level in self._levels:
            own = np.float32(position / 255.0)
            below, above = np.nextafter(own, np.float32(0)), np.nextafter(own, np.float32(1))
            error = self.error_of(level)
            unit = np.where(physical < level - error, np.minimum(unit, below), unit)
            unit = np.where(physical > level + error, np.maximum(unit, above), unit)
            unit = np.where(np.abs(physical - level) <= error, own, unit)
        return unit

    def error_of(self, level: float) -> float:
        """Return the rounding error of a value in a file, within which it is equal to a threshold.

        The error is that of float32 and that of the position on the code axis, in float32 too, which was decoded.
        """
        low = np.clip(np.floor(self._encoding.code_of(level)), 0, LAST_CODE - 1)
        below, above = self._encoding.value_of(np.array([low, low + 1]))
        lattice = _LATTICE * (above - below) if np.isfinite(below) else 0.0
        return _ROUNDINGS * _EPSILON * max(abs(level), 10.0 if self._encoding.unit == "dBZ" else 0.0) + float(lattice)
