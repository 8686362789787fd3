"""Windows of another source averaged to a coarser grid or re-encoded, computed in linear physical units."""

import hashlib

import numpy as np

from simcast_hpc.config import DataError

from .dataset_spec import DatasetSpec
from .encoding import block_mean, rain_rate_from_reflectivity
from .frame_share import FrameSource
from .importance_sampling import mean_rates
from .window_source import WindowKey, WindowSource


class ResampledSource:
    """Windows of ``inner``, averaged over the valid pixels of ``factor`` x ``factor`` blocks and encoded as ``target``.

    Reflectivity is converted to rain rate by Z = 200 R^1.6 (Marshall and Palmer) if the target is a rain rate.
    """

    def __init__(self, inner: WindowSource, *, spec: DatasetSpec, target: DatasetSpec, factor: int):
        """Check grid and units.

        Raises:
            DataError: ``factor`` does not divide the grid, or there is no conversion between the two units.
        """
        height, width = inner.grid
        if height % factor or width % factor:
            raise DataError(f"data.block_mean={factor} does not divide the grid {height} x {width} of {spec.name}")
        self._to_rain = spec.encoding.unit == "dBZ" and target.encoding.unit == "mm/h"
        if spec.encoding.unit != target.encoding.unit and not self._to_rain:
            raise DataError(
                f"{spec.name} is in {spec.encoding.unit} and data.recode_as={target.name} in {target.encoding.unit}; "
                "the only conversion is from dBZ to mm/h"
            )
        if factor > 1 and spec.encoding.unit == "dBZ" and not self._to_rain:
            raise DataError(
                f"data.block_mean={factor} needs linear units and {spec.name} is in dBZ; set data.recode_as to a "
                "dataset in mm/h"
            )
        self.inner, self.factor = inner, factor
        self._source_encoding, self._target_encoding = spec.encoding, target.encoding
        self.dates = inner.dates
        self.frames, self.grid = inner.frames, (height // factor, width // factor)
        recipe = f"{inner.fingerprint} {factor} {self._source_encoding!r} {self._target_encoding!r}"
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.inner)

    def mean_rates(self) -> np.ndarray:
        """Return the mean rain rate of each window in mm/h, float64 ``[N]``: that of the frames before averaging."""
        return mean_rates(self.inner)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self.inner.key(index)

    def read(self, index: int) -> np.ndarray:
        """Return window ``index``, uint8 ``[T, H, W]`` in the target's encoding."""
        return self._resample(self.inner.read(index))

    def read_frames(self, index: int, first: int, last: int) -> np.ndarray:
        """Return frames ``first .. last - 1`` of window ``index``, uint8 ``[last - first, H, W]``."""
        if isinstance(self.inner, FrameSource):
            return self._resample(self.inner.read_frames(index, first, last))
        return self._resample(self.inner.read(index)[first:last])

    def _resample(self, codes: np.ndarray) -> np.ndarray:
        values = self._source_encoding.decode(codes)
        if self._to_rain:
            values = rain_rate_from_reflectivity(values)
        return self._target_encoding.encode(block_mean(values, self.factor))
