"""Coarser or recoded windows of another source: averaged in physical, linear units, never in dB-like codes."""

import hashlib

import numpy as np

from simcast_hpc.config import DataError

from .dataset_spec import DatasetSpec
from .encoding import block_mean, rain_rate_from_reflectivity
from .window_source import WindowKey, WindowSource


class ResampledSource:
    """Windows of ``inner`` decoded, averaged over ``factor`` x ``factor`` valid pixels, and coded as ``target`` codes.

    Reflectivity becomes rain rate by Marshall-Palmer's Z = 200 R^1.6 where the target is a rain rate.
    """

    def __init__(self, inner: WindowSource, *, spec: DatasetSpec, target: DatasetSpec, factor: int):
        """Check that the quantities can be turned into one another.

        Raises:
            DataError: the grid does not divide by ``factor``, or there is no rule between the two units.
        """
        height, width = inner.grid
        if height % factor or width % factor:
            raise DataError(f"data.block_mean={factor} does not divide the grid {height} x {width} of {spec.name}")
        self._to_rain = spec.encoding.unit == "dBZ" and target.encoding.unit == "mm/h"
        if spec.encoding.unit != target.encoding.unit and not self._to_rain:
            raise DataError(
                f"{spec.name} is in {spec.encoding.unit} and data.recode_as={target.name} in {target.encoding.unit}; "
                "only dBZ to mm/h has a rule"
            )
        if factor > 1 and spec.encoding.unit == "dBZ" and not self._to_rain:
            raise DataError(
                f"{spec.name} is in dBZ, which must not be averaged: set data.recode_as to a rain-rate data set"
            )
        self.inner, self.factor = inner, factor
        self._from, self._into = spec.encoding, target.encoding
        self.dates = inner.dates
        self.frames, self.grid = inner.frames, (height // factor, width // factor)
        recipe = f"{inner.fingerprint} {factor} {self._from!r} {self._into!r}"
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.inner)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self.inner.key(index)

    def read(self, index: int) -> np.ndarray:
        """Return window ``index``, uint8 ``[T, H, W]`` in the target's code."""
        values = self._from.decode(self.inner.read(index))
        if self._to_rain:
            values = rain_rate_from_reflectivity(values)
        return self._into.encode(block_mean(values, self.factor))
