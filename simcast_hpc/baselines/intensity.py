"""Conversion between codes and the intensities, linear or in decibel, that the pysteps methods need."""

import hashlib
from typing import Protocol

import numpy as np

from simcast_hpc.data.encoding import MISSING_CODE

# Marshall and Palmer 1948: Z = 200 R^1.6, for methods that need a rain rate; inverted after the forecast.
_A, _B = 200.0, 1.6
# Threshold of wet pixels (mm/h or kg/m2); dry pixels are set to 5 dB below it, as in the examples of pysteps.
WET = 0.1
WET_DB = 10.0 * np.log10(WET)
DRY_DB = WET_DB - 5.0


class PhysicalEncoding(Protocol):
    """Interface of an encoding, implemented by ``DatasetSpec.encoding``."""

    @property
    def unit(self) -> str:
        """Physical unit of the values, for example ``mm/h``, ``kg/m2`` or ``dBZ``."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of uint8 codes in ``unit``, NaN where missing."""
        ...

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return uint8 codes of values in ``unit``, clipped to the range of the encoding."""
        ...


def encoding_hash(encoding: PhysicalEncoding) -> str:
    """Return a hash of unit and values of an encoding."""
    values = np.asarray(encoding.decode(np.arange(256, dtype=np.uint8)), dtype=np.float64)
    return hashlib.sha256(encoding.unit.encode() + values.tobytes()).hexdigest()[:16]


def intensity(codes: np.ndarray, encoding: PhysicalEncoding) -> np.ndarray:
    """Return mm/h or kg/m2, float64, of codes of any shape (dBZ by Marshall and Palmer), 0 where missing."""
    values = np.asarray(encoding.decode(codes), dtype=np.float64)
    if encoding.unit == "dBZ":
        values = (10.0 ** (values / 10.0) / _A) ** (1.0 / _B)
    return np.where((codes == MISSING_CODE) | ~np.isfinite(values), 0.0, values)


def decibel(codes: np.ndarray, encoding: PhysicalEncoding) -> np.ndarray:
    """Return 10 log10 of the intensity, float64, ``DRY_DB`` where the intensity is below ``WET``."""
    linear = intensity(codes, encoding)
    return np.where(linear >= WET, 10.0 * np.log10(np.maximum(linear, WET)), DRY_DB)


def codes_of_intensity(linear: np.ndarray, encoding: PhysicalEncoding) -> np.ndarray:
    """Return uint8 codes of intensities; NaN (outside the domain of the method) and negative values are no echo."""
    linear = np.maximum(np.nan_to_num(linear, nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    if encoding.unit == "dBZ":
        # 1e-10 is far below the first code of any radar and avoids log10(0).
        linear = 10.0 * np.log10(np.maximum(_A * linear**_B, 1e-10))
    return np.minimum(encoding.encode(linear), MISSING_CODE - 1)


def codes_of_decibel(field: np.ndarray, encoding: PhysicalEncoding) -> np.ndarray:
    """Return uint8 codes of 10 log10 of the intensity; values below ``WET_DB`` are no echo."""
    field = np.nan_to_num(field, nan=DRY_DB)
    return codes_of_intensity(np.where(field >= WET_DB, 10.0 ** (field / 10.0), 0.0), encoding)
