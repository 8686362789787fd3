"""Radar codes (uint8) and the physical values they stand for; averaging and the Z-R relation in linear units.

Every encoding is the same three functions. ``decode`` turns codes into float32 values, NaN where missing.
``encode`` returns the nearest code: ``encode(decode(code)) == code`` for every canonical code, the lowest of those
that share a value. ``code_of`` places a physical threshold on the code axis such that, for every code,
``code >= code_of(value)`` is ``decode(code) >= value``. A threshold that equals a code's value to float32 gives that
code exactly, so the code on the threshold is an event; a threshold between two codes gives a fraction between them,
so it can never tie with a code, and one between none and the lowest value stands half a code under that.
``value_of`` goes the other way, for forecasts, which fall between codes.
"""

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

if TYPE_CHECKING:
    import torch

MISSING_CODE = 255
LAST_CODE = 254


class _Coding(BaseModel):
    """What all encodings share: a table of 255 values that never falls; 255 is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    missing_code: ClassVar[int] = MISSING_CODE

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
            raise TypeError(f"codes are {codes.dtype}; radar codes are uint8")
        return np.append(self._values, np.nan).astype(np.float32)[codes]

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return the nearest canonical codes of physical values of any shape, uint8, 255 where NaN.

        Values past the ends of the code take its first or last.
        """
        physical = np.asarray(physical)
        missing = np.isnan(physical)
        codes = self._nearest(np.where(missing, 0.0, physical))
        return np.where(missing, MISSING_CODE, codes).astype(np.uint8)

    def code_of(self, value: float) -> float:
        """Return the place of a physical threshold on the code axis; see the module on ties.

        Above the last code the place is past 254, at or below the first value it is not above 0.

        Raises:
            ValueError: ``value`` is NaN.
        """
        if np.isnan(value):
            raise ValueError("a threshold must be a number, got NaN")
        values = self._values.astype(np.float32)
        first = int(np.searchsorted(values, np.float32(value)))
        if first <= LAST_CODE and values[first] == np.float32(value):
            return float(first)
        place = self._place(value)
        if first == 0:
            return min(place, 0.0)
        # Rounding may bring a value just past a code onto it; such a place stays between its two codes.
        above_last = first > LAST_CODE
        return max(place if above_last else min(place, first), float(np.nextafter(first - 1, first)))

    def value_of(self, places: np.ndarray) -> np.ndarray:
        """Return the physical values, float64, of places on the code axis of any shape, whole or between two codes.

        A whole place has its code's value, between two codes the value is interpolated; it never falls as the place
        rises. Places outside 0..254 take the nearer end; NaN stays.
        """
        return np.interp(places, np.arange(LAST_CODE + 1), self._values)

    @abstractmethod
    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        """Return the codes nearest to physical values, as whole numbers 0..254 of any dtype."""

    @abstractmethod
    def _place(self, value: float) -> float:
        """Return where ``value`` falls on the code axis by the formula, rounding included."""


class SevirVil(_Coding):
    """SEVIR's vertically integrated liquid (Veillette et al. 2020): 0 up to code 5, linear to 18, then exponential.

    Codes 0 to 5 all mean no liquid, so 1 to 5 come back as 0. Nearest is nearest in kg/m^2, ties to the higher code.
    """

    kind: Literal["sevir_vil"] = "sevir_vil"
    unit: Literal["kg/m^2"] = "kg/m^2"

    @cached_property
    def _values(self) -> np.ndarray:
        code = np.arange(LAST_CODE + 1, dtype=np.float64)
        return np.where(code <= 5, 0.0, np.where(code <= 18, (code - 2) / 90.66, np.exp((code - 83.9) / 38.9)))

    @cached_property
    def _borders(self) -> np.ndarray:
        distinct = self._values[5:]
        return (distinct[1:] + distinct[:-1]) / 2

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        place = np.searchsorted(self._borders, physical, side="right")
        return np.where(place == 0, 0, place + 5)

    def _place(self, value: float) -> float:
        if value <= 0:
            return 0.0
        if value < self._values[6]:
            return 5.5
        if value > self._values[-1]:
            return 83.9 + 38.9 * float(np.log(value))
        # The published formula jumps between 18 and 19, so its branches have no common inverse there.
        return float(np.interp(value, self._values[5:], np.arange(5, LAST_CODE + 1)))


class Decibel(_Coding):
    """Codes equally spaced in decibels of a linear quantity: ``10 ** ((offset_db + step_db (code - first)) / 10)``.

    Codes below ``first_code``, or whose value lies below ``floor``, mean none and decode to 0; physical values below
    ``floor`` become code 0. Nearest is nearest in decibels. Rain rates of -10 dB, 0.15 dB, code 1, 0.1 mm/h step by
    3.5 %.
    """

    kind: Literal["decibel"] = "decibel"
    unit: str
    offset_db: float
    step_db: PositiveFloat
    first_code: int = Field(default=1, ge=1, le=LAST_CODE)
    floor: PositiveFloat

    @model_validator(mode="after")
    def _floor_is_reached(self) -> Self:
        if not self._values.any():
            raise ValueError(
                f"floor={self.floor:g} {self.unit} lies above the value of the last code, "
                f"{10 ** (self._decibels(LAST_CODE) / 10):g}; every code would mean none"
            )
        return self

    def _decibels(self, code: np.ndarray | int) -> np.ndarray | float:
        return self.offset_db + self.step_db * (code - self.first_code)

    @cached_property
    def _values(self) -> np.ndarray:
        code = np.arange(LAST_CODE + 1)
        value = 10.0 ** (self._decibels(code) / 10)
        seen = (code >= self.first_code) & (value.astype(np.float32) >= np.float32(self.floor))
        return np.where(seen, value, 0.0)

    @cached_property
    def _lowest(self) -> int:
        return int(np.flatnonzero(self._values)[0])

    def _line(self, physical: np.ndarray | float) -> np.ndarray:
        return (10 * np.log10(physical) - self.offset_db) / self.step_db + self.first_code

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        seen = physical.astype(np.float32) >= np.float32(self.floor)
        code = self._line(np.where(seen, physical, 1.0).astype(np.float64))
        return np.where(seen, np.clip(np.rint(code), self._lowest, LAST_CODE), 0)

    def _place(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return max(float(self._line(value)), self._lowest - 0.5)


class Linear(_Coding):
    """``value = gain code + offset``; ``dBZ = 0.5 code - 32`` for one.

    With ``zero_is_no_echo`` code 0 decodes to minus infinity (no echo in a decibel quantity: 0 after a Z-R relation)
    instead of ``offset``. Either way every value nearer to ``offset`` than to code 1, or below, becomes code 0.
    """

    kind: Literal["linear"] = "linear"
    unit: str
    gain: PositiveFloat
    offset: float = 0.0
    zero_is_no_echo: bool = False

    @cached_property
    def _values(self) -> np.ndarray:
        values = self.gain * np.arange(LAST_CODE + 1, dtype=np.float64) + self.offset
        if self.zero_is_no_echo:
            values[0] = -np.inf
        return values

    def value_of(self, places: np.ndarray) -> np.ndarray:
        """As of every encoding; where code 0 is no echo, so is a place nearer to it than to code 1."""
        values = self.gain * np.clip(places, 0, LAST_CODE).astype(np.float64) + self.offset
        return np.where(np.asarray(places) < 0.5, -np.inf, values) if self.zero_is_no_echo else values

    def _nearest(self, physical: np.ndarray) -> np.ndarray:
        code = np.rint((physical.astype(np.float64) - self.offset) / self.gain)
        return np.clip(code, 0, LAST_CODE)

    def _place(self, value: float) -> float:
        place = (value - self.offset) / self.gain
        return max(place, 0.5) if self.zero_is_no_echo else place


Encoding = Annotated[SevirVil | Decibel | Linear, Field(discriminator="kind")]


def rain_rate_from_reflectivity(dbz: np.ndarray, a: float = 200.0, b: float = 1.6) -> np.ndarray:
    """Return rain rates in mm/h, float32, of reflectivities in dBZ by ``Z = a R**b`` (Marshall and Palmer 1948).

    NaN stays NaN; minus infinity (no echo) becomes 0.
    """
    linear = 10.0 ** (np.asarray(dbz, dtype=np.float64) / 10)
    return ((linear / a) ** (1 / b)).astype(np.float32)


def block_mean(physical: np.ndarray, factor: int) -> np.ndarray:
    """Return means over ``factor`` x ``factor`` blocks, ``[..., H, W]`` to float32 ``[..., H / factor, W / factor]``.

    The mean is over the valid pixels of a block, NaN where it has none. ``physical`` must be linear in the amount of
    water or echo (mm/h, kg/m^2, Z), never codes or decibels.

    Raises:
        ValueError: ``factor`` is not positive or does not divide H and W.
    """
    height, width = physical.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"a block of {factor} x {factor} pixels does not divide the grid {height} x {width}")
    blocks = physical.reshape(*physical.shape[:-2], height // factor, factor, width // factor, factor)
    valid = ~np.isnan(blocks)
    count = valid.sum(axis=(-3, -1))
    total = np.where(valid, blocks, 0.0).sum(axis=(-3, -1), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def code_to_unit(codes: "torch.Tensor", scale: float = 255.0) -> "torch.Tensor":
    """Return uint8 ``codes`` as the float32 network input ``codes / scale`` in [0, 1], by correctly rounded division.

    The divisor is a tensor because CUDA multiplies by the reciprocal of a scalar, which rounds 219 / 255 down.
    """
    values = codes.float()
    return values / values.new_full((), scale)
