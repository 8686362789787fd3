"""Packed values of CF variables: missing values, valid range, flags and no echo, compared in the stored data type."""

from typing import Any

import numpy as np

from simcast_hpc.config import DataError

# Defaults of the netCDF library; bytes have none.
_FLOAT_FILL = 9.969209968386869e36
_DEFAULT_FILL: dict[str, float] = {
    **{"i2": -32767, "u2": 65535, "i4": -2147483647, "u4": 4294967295},
    **{"f4": _FLOAT_FILL, "f8": _FLOAT_FILL},
}
_NO_ECHO_WORDS = ("no_echo", "noecho", "undetect", "no_rain", "norain", "no_precip", "dry", "below_threshold")


class Packing:
    """Decoder of one variable from its attributes as stored.

    Missing are: NaN, ``_FillValue`` (or the default of netCDF), ``missing_value``, values outside ``valid_range``,
    ``valid_min`` or ``valid_max``, and ``flag_values`` whose meaning is not no echo. No echo are ``undetect`` and
    ``flag_values`` that mean it. A missing value has priority over no echo, and no echo over the valid range.
    """

    def __init__(self, attributes: dict[str, Any], stored: np.dtype[Any], where: str) -> None:
        """Read the attributes.

        Args:
            attributes: attributes of the variable, not decoded.
            stored: data type of the stored values.
            where: file and variable, for messages.

        Raises:
            DataError: an attribute has the wrong length, or the variable is a bit field.
        """
        self._attributes, self._where = attributes, where
        self._stored, self._dtype = stored, _signedness(stored, attributes.get("_Unsigned"))
        if "flag_masks" in attributes:
            raise DataError(f"{where} has flag_masks, so its values are bit fields; a measurement is valid")
        self._scale, self._offset = (self._number(name, one) for name, one in (("scale_factor", 1), ("add_offset", 0)))
        if self._scale == 0:
            raise DataError(f"{where}: scale_factor is 0; it must not be 0")
        missing = [value for name in ("_FillValue", "missing_value") for value in self._codes(name)]
        if not missing and self._dtype.str[1:] in _DEFAULT_FILL:
            missing = [np.array(_DEFAULT_FILL[self._dtype.str[1:]], self._dtype)]
        no_echo = list(self._codes("undetect"))
        flags, meanings = self._codes("flag_values"), str(attributes.get("flag_meanings", "")).lower().split()
        if len(flags) and len(flags) != len(meanings):
            raise DataError(
                f"{where} has {len(flags)} flag_values and {len(meanings)} flag_meanings; both must be equal"
            )
        for code, meaning in zip(flags, meanings, strict=True):
            (no_echo if any(word in meaning for word in _NO_ECHO_WORDS) else missing).append(code)
        self._missing, self._no_echo = missing, no_echo

    @property
    def description(self) -> dict[str, Any]:
        """Type of the stored values, gain and offset, for the metadata of a frame."""
        return {"stored_type": str(self._dtype), "gain": self._scale, "offset": self._offset}

    def decode(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values, float64 of any shape, NaN where missing, and the mask of no echo."""
        codes = np.ascontiguousarray(stored).view(self._dtype)
        missing = _is_any(codes, self._missing)
        no_echo = _is_any(codes, self._no_echo) & ~missing
        values = codes.astype(np.float64) * self._scale + self._offset
        for name, column, is_outside in (
            ("valid_range", 0, np.less),
            ("valid_min", 0, np.less),
            ("valid_range", 1, np.greater),
            ("valid_max", 0, np.greater),
        ):
            if name not in self._attributes:
                continue
            limits = np.atleast_1d(self._attributes[name])
            if len(limits) != (2 if name == "valid_range" else 1):
                raise DataError(
                    f"{self._where}: {name} is {limits.tolist()}; it must have {1 + (name[6:] == 'range')} values"
                )
            if limits.dtype.kind == "f" and self._dtype.kind in "iu" and not self._is_unscaled:
                # Limits in the type of the unpacked values apply to these; half a code absorbs their rounding.
                slack = 0.5 * abs(self._scale) * (1 if is_outside is np.greater else -1)
                missing |= is_outside(values, float(limits[column]) + slack) & ~no_echo
            else:
                limit = limits[column] if limits.dtype.kind == "f" else self._codes(name)[column]
                limit = limit.astype(self._dtype) if self._dtype.kind == "f" else limit
                missing |= is_outside(codes, limit) & ~no_echo
        values[missing] = np.nan
        return values, no_echo

    @property
    def _is_unscaled(self) -> bool:
        return self._scale == 1 and self._offset == 0

    def _number(self, name: str, default: float) -> float:
        value = np.asarray(self._attributes.get(name, default))
        if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise DataError(f"{self._where}: {name} is {value.tolist()!r}; it must be one finite number")
        return float(value.reshape(()))

    def _codes(self, name: str) -> np.ndarray:
        """Return the values of an attribute in the data type of the codes; empty without the attribute."""
        values = np.atleast_1d(self._attributes.get(name, np.array([], self._dtype)))
        if values.dtype.kind not in "iuf":
            raise DataError(f"{self._where}: {name} is {values.tolist()!r}; it must be a number")
        if self._dtype.kind == "f" or self._dtype == self._stored:
            fits = np.ones(values.shape, bool)
            if self._dtype.kind in "iu":
                limits = np.iinfo(self._dtype)
                fits = (values >= limits.min) & (values <= limits.max) & (values == np.round(values))
                if name.startswith("valid"):
                    return np.clip(values.astype(object), limits.min, limits.max).astype(self._dtype)
            return values[fits].astype(self._dtype)
        # `_Unsigned` also applies to the attributes.
        return values.astype(np.int64).astype(self._stored).view(self._dtype)


def _signedness(stored: np.dtype[Any], unsigned: Any) -> np.dtype[Any]:
    wanted = {"true": "u", "false": "i"}.get(str(unsigned).lower(), stored.kind)
    return np.dtype(f"{wanted}{stored.itemsize}") if stored.kind in "iu" else stored


def _is_any(codes: np.ndarray, values: list[Any]) -> np.ndarray:
    found = np.isnan(codes) if codes.dtype.kind == "f" else np.zeros(codes.shape, bool)
    for value in values:
        found |= codes == value
    return found
