"""Pack the fields of a CF data set as int16 with ``scale_factor`` and ``add_offset`` (CF section 8.1).

The error of a packed value is at most half of ``scale_factor``, which the attribute ``simcast_packing_error`` states.
Zero stays zero. The scale of a unit is fixed unless a value is too large for it, so that files of all times agree.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

FILL_VALUE = -32768
_LOWEST, _HIGHEST = -32767, 32767
# Finest scale by units, and the code of zero.
_SCALES: dict[str, tuple[float, int]] = {
    "mm h-1": (0.01, -32000),
    "mm": (0.01, -32000),
    "kg m-2": (0.01, -32000),
    "dBZ": (0.01, 0),
    "1": (0.0001, 0),
}
_STEPS = (1.0, 2.0, 5.0)
_PART = 1 << 24  # values that are packed at once


def packed(dataset: "xr.Dataset") -> "xr.Dataset":
    """Return a data set with the floating-point fields of a forecast as int16; coordinates are unchanged.

    The other variables share their values with ``dataset``.
    """
    changed = dataset.copy(deep=False)
    for name, variable in dataset.data_vars.items():
        if variable.ndim < 3 or variable.dtype.kind != "f":
            continue
        scale, offset = scale_and_offset(str(variable.attrs["units"]), variable.values)
        attributes: dict[str, Any] = {
            **variable.attrs,
            "scale_factor": scale,
            "add_offset": offset,
            "simcast_packing_error": scale / 2,
        }
        replaced = variable.copy(deep=False, data=pack(variable.values, scale, offset))
        replaced.attrs = attributes
        replaced.encoding = {**variable.encoding, "_FillValue": np.int16(FILL_VALUE)}
        changed[name] = replaced
    return changed


def scale_and_offset(units: str, values: np.ndarray) -> tuple[float, float]:
    """Return ``scale_factor`` and ``add_offset`` for values in units in the spelling of CF.

    The scale is that of the units, or 2, 5, 10, 20, 50, ... times it, the first one at which the values fit.
    """
    finest, zero = _SCALES[units]
    highest, lowest = _extremes(values)
    power = 0
    while True:
        for step in _STEPS:
            scale = finest * step * 10.0**power
            offset = -zero * scale
            if offset + _LOWEST * scale <= lowest and highest <= offset + _HIGHEST * scale:
                return scale, offset
        power += 1


def pack(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """Return the nearest codes of float values, int16 of the same shape; NaN becomes the fill value."""
    codes = np.empty(values.shape, np.int16)
    source, target = np.ascontiguousarray(values).reshape(-1), codes.reshape(-1)
    for begin in range(0, source.size, _PART):
        part = source[begin : begin + _PART].astype(np.float64)
        missing = np.isnan(part)
        part -= offset
        part /= scale
        part[missing] = FILL_VALUE
        target[begin : begin + _PART] = np.rint(part, out=part)
    return codes


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """Return the largest and the smallest value; zeros if all are missing."""
    if not values.size:
        return 0.0, 0.0
    highest, lowest = np.fmax.reduce(values, axis=None), np.fmin.reduce(values, axis=None)
    return (float(highest), float(lowest)) if np.isfinite(highest) else (0.0, 0.0)
