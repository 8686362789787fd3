"""Conversion of fields by the text of their unit, for formats and importers that state it as text."""

from datetime import timedelta
from pathlib import Path

import numpy as np

from simcast_hpc.config import ConfigError, DataError

from .cf_units import depth_factor, is_mass_per_area, rate_factor
from .radar_frame import FieldChoice, Unit

UNIT_OPTIONS = ("unit", "interval")
_REFLECTIVITY = ("dbz", "dbze", "dbz1")
_RAIN = ("rain", "precip", "acrr")
_QUANTITY_UNITS = {"RATE": "mm/h", "DBZH": "dBZ", "TH": "dBZ", "ACRR": "mm"}
_LONGEST_MINUTES = 366 * 1440.0


def unit_of_quantity(quantity: str) -> str:
    """Return the unit of an ODIM quantity, empty if it is unknown."""
    return _QUANTITY_UNITS.get(quantity.strip().upper(), "")


def option_minutes(choice: FieldChoice) -> float | None:
    """Return the option ``interval`` of an importer, the accumulation interval in minutes; None without it.

    Raises:
        ConfigError: it is not a positive number.
    """
    text = choice.option("interval")
    if not text:
        return None
    return number_option(choice, "interval", 0.0, low=1e-3, high=_LONGEST_MINUTES)


def number_option(
    choice: FieldChoice, name: str, default: float, *, low: float = -np.inf, high: float = np.inf
) -> float:
    """Return a numeric option of an importer.

    Raises:
        ConfigError: it is not a number from ``low`` to ``high``.
    """
    text = choice.option(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise ConfigError(f"{name}={text!r} is invalid; it must be a number from {low:g} to {high:g}")
    return value


def to_unit(
    values: np.ndarray, units: str, minutes: float | None, about: str, path: Path
) -> tuple[np.ndarray, Unit, timedelta | None]:
    """Return a field in the unit of a frame, float32, the unit, and the interval of an accumulation.

    Args:
        values: field, NaN where missing, minus infinity where dBZ has no echo.
        units: text such as ``mm/h``, ``kg m-2 s-1``, ``mm`` or ``dBZ``.
        minutes: accumulation interval, required for an amount.
        about: names and descriptions of the quantity; an amount in kg m-2 must be of rain or precipitation, otherwise
            it is vertically integrated liquid if ``vil`` is among them.
        path: named in messages.

    Raises:
        DataError: the unit is not supported, or an amount has no interval.
    """
    text = units.strip()
    words = about.lower()
    interval = None if minutes is None else timedelta(minutes=minutes)
    if text.lower() in _REFLECTIVITY:
        return values.astype(np.float32), "dBZ", None
    if (factor := rate_factor(text)) is not None:
        return (values * factor).astype(np.float32), "mm/h", interval
    factor = depth_factor(text)
    is_rain = any(word in words for word in _RAIN)
    if factor is None or (is_mass_per_area(text) and not is_rain and "vil" not in words and "liquid" not in words):
        raise DataError(
            f"{path}: the unit is {units!r}; mm/h, dBZ, mm with an interval, kg m-2 s-1 and similar are valid. The "
            'options of the importer state them: --importer "NAME unit=mm interval=5"'
        )
    if is_mass_per_area(text) and not is_rain:
        return (values * factor).astype(np.float32), "kg/m^2", None
    if interval is None:
        raise DataError(
            f"{path} is an amount in {units} without an accumulation interval; give it in minutes: "
            '--importer "NAME interval=5"'
        )
    return (values * (factor * timedelta(hours=1) / interval)).astype(np.float32), "mm/h", interval


def check_unit_option(choice: FieldChoice) -> str:
    """Return the option ``unit`` of an importer, empty without it.

    Raises:
        ConfigError: it is none that can be read.
    """
    unit = choice.option("unit")
    if unit and unit.lower() not in _REFLECTIVITY and rate_factor(unit) is None and depth_factor(unit) is None:
        raise ConfigError(f"unit={unit!r} is invalid; mm/h, dBZ, mm, kg/m^2 and other spellings of them are valid")
    return unit
