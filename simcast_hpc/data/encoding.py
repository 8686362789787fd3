"""Encodings of physical values as pixel values (uint8 codes); block means and the Z-R relation in linear units.

All encodings have the same functions. ``decode`` maps codes to float32 values, NaN where missing. ``encode`` returns
the nearest code: ``encode(decode(code)) == code`` for every canonical code, the lowest of those with the same value.
``code_of`` maps a physical threshold to the code axis such that ``code >= code_of(value)`` is equivalent to
``decode(code) >= value``. A threshold equal to the value of a code in float32 gives exactly that code; a threshold
between two codes gives a fraction between them, so that no code equals it; a threshold between no echo and the lowest
value gives half a code below that. ``value_of`` is the inverse for forecasts, which lie between codes.
"""

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from simcast_hpc.config import Unit

if TYPE_CHECKING:
    import torch

MISSING_CODE = 255
LAST_CODE = 254


class _EncodingBase(BaseModel):
    """Base of all encodings: a non-decreasing table of 255 values; code 255 is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    missing_code: ClassVar[int] = MISSING_CODE

    def __eq__(self, other: object) -> bool:
        """Return whether the fields are equal; pydantic would also compare the cached tables, and fail."""
        return isinstance(other, _EncodingBase) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def _fields(self) -> tuple[Any, ...]:
        return type(self), *(getattr(self, name) for name in type(self).model_fields)

    @cached_property
    @abstractmethod
    def _values(self) -> np.ndarray:
        """Physical values of codes 0..254 in float64."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the physical values of uint8 ``codes`` of any shape, float32, NaN where missing.

        Raises:
            TypeError: ``codes`` is not uint8.
        """
        if codes.dtype != np.uint8:
            raise TypeError(f"codes have dtype {codes.dtype}; they must be uint8")
        return np.append(self._values, np.nan).astype(np.float32)[codes]

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return the nearest canonical codes of physical values of any shape, uint8, 255 where NaN.

        Values outside the range of the encoding get its first or last code.
        """
        physical = np.asarray(physical)
        missing = np.isnan(physical)
        codes = self._nearest(np.where(missing, 0.0, physical))
        return np.where(missing, MISSING_CODE, codes).astype(np.uint8)

    def code_of(self, value: float) -> float:
        """Return the position of a physical threshold on the code axis; for ties see the module docstring.

        The position is above 254 for a threshold above the last value, and at most 0 for one at or below the first.

        Raises:
            ValueError: ``value`` is NaN.
        """
        if np.isnan(value):
            raise ValueError("the threshold is NaN; it must be a number")
        values = self._values.astype(np.float32)
        first = int(np.searchsorted(values, np.float32(value)))
        if first <= LAST_CODE and values[first] == np.float32(value):
            return float(first)
        position = self._position(value)
        if first == 0:
            return min(position, 0.0)
        # Rounding may move a value just above a code onto it; keep the position between the two codes.
        above_last = first > LAST_CODE
        return max(position if above_last else min(position, first), float(np.nextafter(first - 1, first)))

    def value_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the physical values, float64, of ``positions`` on the code axis, any shape.

        An integer position has the value of its code; between two codes the value is interpolated. Positions outside
        0..254 are clipped; NaN stays NaN.
        """
        return np.interp(positions, np.arange(LAST_CODE + 1), self._values)

    def position_of(self, physical: np.ndarray) -> np.ndarray:
        """Return the positions, float64, of ``physical`` values on the code axis, the inverse of :meth:`value_of`.

        Values without echo have the position 0; values above the last one are clipped to 254; NaN stays NaN.
        """
        physical = np.asarray(physical, dtype=np.float64)
        first = self.first_echo - 1
        positions = np.interp(physical, self._values[first:], np.arange(first, LAST_CODE + 1))
        return np.where(physical <= self._values[first], 0.0, positions)

    @property
    def first_echo(self) -> int:
        """The lowest code whose value is above that of code 0, which is no echo."""
        return int(np.flatnonzero(self._values > self._values[0])[0])

    @abstractmethod
    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        """Return the codes nearest to physical values, integers 0..254 of any dtype."""

    @abstractmethod
    def _position(self, value: float) -> float:
        """Return the position of ``value`` on the code axis by the formula, with its rounding error."""


class SevirVil(_EncodingBase):
    """SEVIR's vertically integrated liquid (Veillette et al. 2020): 0 to 5 mean 0, then linear to 18, then exponential.

    Encoded values 0 to 5 all mean no liquid, so ``encode`` returns 0 for no liquid. Otherwise it returns the encoded
    value with the nearest VIL in kg/m^2, of two equally near ones the higher.
    """

    kind: Literal["sevir_vil"] = "sevir_vil"
    """Selects the encoding of SEVIR's VIL."""
    unit: Literal["kg/m^2"] = "kg/m^2"
    """Unit of the physical values."""

    @cached_property
    def _values(self) -> np.ndarray:
        code = np.arange(LAST_CODE + 1, dtype=np.float64)
        return np.where(code <= 5, 0.0, np.where(code <= 18, (code - 2) / 90.66, np.exp((code - 83.9) / 38.9)))

    @cached_property
    def _borders(self) -> np.ndarray:
        distinct = self._values[5:]
        return (distinct[1:] + distinct[:-1]) / 2

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        interval = np.searchsorted(self._borders, physical, side="right")
        return np.where(interval == 0, 0, interval + 5)

    def _position(self, value: float) -> float:
        if value <= 0:
            return 0.0
        if value < self._values[6]:
            return 5.5
        if value > self._values[-1]:
            return 83.9 + 38.9 * float(np.log(value))
        # The published formula is discontinuous between 18 and 19, so its branches have no common inverse there.
        return float(np.interp(value, self._values[5:], np.arange(5, LAST_CODE + 1)))


class Decibel(_EncodingBase):
    """Encoded values c, equally spaced in decibels: ``10 ** ((offset_db + step_db (c - first_code)) / 10)``.

    The quantity is linear, such as a rain rate. Encoded values below ``first_code``, or with a physical value below
    ``floor``, mean no echo and decode to 0. Physical values below ``floor`` are encoded as 0, others as the encoded
    value that is nearest in decibels. With ``offset_db=-10, step_db=0.15, first_code=1, floor=0.1`` consecutive encoded
    values differ by 3.5 %.
    """

    kind: Literal["decibel"] = "decibel"
    """Selects pixel values that are equally spaced in decibels of a linear quantity."""
    unit: str
    """Unit of the linear quantity, such as `mm/h`."""
    offset_db: Annotated[float, Unit("dB")]
    """Decibels of the pixel value `first_code`."""
    step_db: Annotated[PositiveFloat, Unit("dB")]
    """Step between consecutive pixel values."""
    first_code: Annotated[int, Unit("1")] = Field(default=1, ge=1, le=LAST_CODE)
    """First pixel value with an echo; lower values mean no echo."""
    floor: Annotated[PositiveFloat, Unit("`encoding.unit`")]
    """Smallest physical value that counts as an echo."""

    @model_validator(mode="after")
    def _floor_is_reached(self) -> Self:
        if not self._values.any():
            raise ValueError(
                f"floor={self.floor:g} {self.unit} is above the value of the last code, "
                f"{10 ** (self._decibels(LAST_CODE) / 10):g}; choose a lower floor"
            )
        return self

    def _decibels(self, code: np.ndarray | int) -> np.ndarray | float:
        return self.offset_db + self.step_db * (code - self.first_code)

    @cached_property
    def _values(self) -> np.ndarray:
        code = np.arange(LAST_CODE + 1)
        value = 10.0 ** (self._decibels(code) / 10)
        is_echo = (code >= self.first_code) & (value.astype(np.float32) >= np.float32(self.floor))
        return np.where(is_echo, value, 0.0)

    @cached_property
    def _lowest(self) -> int:
        return int(np.flatnonzero(self._values)[0])

    def _code_position(self, physical: np.ndarray | float) -> np.ndarray:
        return (10 * np.log10(physical) - self.offset_db) / self.step_db + self.first_code

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        is_echo = physical.astype(np.float32) >= np.float32(self.floor)
        code = self._code_position(np.where(is_echo, physical, 1.0).astype(np.float64))
        return np.where(is_echo, np.clip(np.rint(code), self._lowest, LAST_CODE), 0)

    def _position(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return max(float(self._code_position(value)), self._lowest - 0.5)


class Linear(_EncodingBase):
    """Encoded values c with a linear relation ``gain c + offset``, for example dBZ = 0.5 c - 32.

    With ``zero_is_no_echo``, 0 means no echo and decodes to minus infinity instead of ``offset``; a Z-R relation
    converts minus infinity to a rain rate of 0. In both cases a physical value below ``offset + gain / 2`` is encoded
    as 0.
    """

    kind: Literal["linear"] = "linear"
    """Selects a linear relation."""
    unit: str
    """Unit of the physical values, such as `dBZ`."""
    gain: Annotated[PositiveFloat, Unit("`encoding.unit`")]
    """Physical step between consecutive pixel values."""
    offset: Annotated[float, Unit("`encoding.unit`")] = 0.0
    """Physical value of pixel value 0."""
    zero_is_no_echo: bool = False
    """Whether pixel value 0 means no echo instead of the value `offset`."""

    @cached_property
    def _values(self) -> np.ndarray:
        values = self.gain * np.arange(LAST_CODE + 1, dtype=np.float64) + self.offset
        if self.zero_is_no_echo:
            values[0] = -np.inf
        return values

    def value_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the physical values of ``positions``; if code 0 is no echo, positions below 0.5 are no echo."""
        values = self.gain * np.clip(positions, 0, LAST_CODE).astype(np.float64) + self.offset
        return np.where(np.asarray(positions) < 0.5, -np.inf, values) if self.zero_is_no_echo else values

    def position_of(self, physical: np.ndarray) -> np.ndarray:
        """Return the positions of ``physical`` values on the code axis; minus infinity has the position 0."""
        return np.clip((np.asarray(physical, dtype=np.float64) - self.offset) / self.gain, 0, LAST_CODE)

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        code = np.rint((physical.astype(np.float64) - self.offset) / self.gain)
        return np.clip(code, 0, LAST_CODE)

    def _position(self, value: float) -> float:
        position = (value - self.offset) / self.gain
        return max(position, 0.5) if self.zero_is_no_echo else position


Encoding = Annotated[SevirVil | Decibel | Linear, Field(discriminator="kind")]


def rain_rate_from_reflectivity(dbz: np.ndarray, a: float = 200.0, b: float = 1.6) -> np.ndarray:
    """Return rain rates in mm/h, float32, from reflectivity in dBZ by ``Z = a R**b`` (Marshall and Palmer 1948).

    NaN stays NaN; minus infinity (no echo) becomes 0.
    """
    linear = 10.0 ** (np.asarray(dbz, dtype=np.float64) / 10)
    return ((linear / a) ** (1 / b)).astype(np.float32)


def block_mean(physical: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of ``factor`` x ``factor`` blocks, ``[..., H, W]`` to float32 ``[..., H / factor, W / factor]``.

    The mean is over the valid pixels of a block, NaN if it has none. ``physical`` must be linear in the amount of
    water or echo (mm/h, kg/m^2, Z), not codes or decibels.

    Raises:
        ValueError: ``factor`` is not positive or does not divide H and W.
    """
    height, width = physical.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor={factor} does not divide the grid {height} x {width}")
    blocks = physical.reshape(*physical.shape[:-2], height // factor, factor, width // factor, factor)
    valid = ~np.isnan(blocks)
    count = valid.sum(axis=(-3, -1))
    total = np.where(valid, blocks, 0.0).sum(axis=(-3, -1), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def as_native(fields: np.ndarray) -> np.ndarray:
    """Return fields as a plain array that torch can read, without a copy where possible.

    The byte order becomes native and long double becomes float64; masked pixels become 255 (uint8) or NaN (floats).
    """
    if isinstance(fields, np.ma.MaskedArray) and fields.dtype == np.uint8:
        fields = fields.filled(MISSING_CODE)
    elif isinstance(fields, np.ma.MaskedArray) and fields.dtype.kind == "f":
        fields = fields.filled(np.nan)
    if fields.dtype.kind == "f" and fields.dtype.itemsize > 8:
        return fields.astype(np.float64)
    return np.asarray(fields).astype(fields.dtype.newbyteorder("="), copy=False)


def code_to_unit(codes: "torch.Tensor", scale: float = 255.0) -> "torch.Tensor":
    """Return uint8 ``codes`` as the float32 network input ``codes / scale`` in [0, 1], by correctly rounded division.

    The divisor is a tensor because CUDA multiplies by the reciprocal of a scalar, which rounds 219 / 255 down.
    """
    values = codes.float()
    return values / values.new_full((), scale)
