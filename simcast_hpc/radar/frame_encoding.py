"""From radar frames to the codes that a run's model was trained on, and from its forecasts back to physical units.

Averaging over pixels, bridging a gap in time and blending tiles happen in units linear in the amount of water or echo:
mm/h, kg/m^2, or of a model in dBZ the linear Z in mm^6/m^3.
"""

import logging
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, ZRRelation, read_spec
from simcast_hpc.data.encoding import block_mean, rain_rate_from_reflectivity
from simcast_hpc.data.open_windows import coded_as, step_minutes

from .radar_frame import RadarFrame, RadarGrid, Unit

logger = logging.getLogger(__name__)
# Services' kilometres differ by some percent (1.07 km in HKO-7, 0.99 km in MRMS' hundredths of a degree).
_SPACING_TOLERANCE = 0.2
_MARSHALL_PALMER = ZRRelation(a=200.0, b=1.6)


@dataclass(frozen=True)
class ModelCode:
    """What a model sees: the code, the pixel's side and the cadence of the data that it was trained on.

    ``z_r`` turns reflectivity into rain rate and back. Without it that is Marshall and Palmer's from dBZ to mm/h, as
    training's ``data.recode_as`` has it, and the description's own ``z_r`` from mm/h to dBZ.
    """

    spec: DatasetSpec
    step_minutes: float
    spacing_km: float
    z_r: ZRRelation | None = None
    any_spacing: bool = False

    @property
    def unit(self) -> Unit:
        """The unit of the model's code."""
        unit = self.spec.encoding.unit
        if unit not in ("mm/h", "dBZ", "kg/m^2"):
            raise ConfigError(
                f"{self.spec.name} is coded in {unit!r}; forecasts from radar files are of mm/h, dBZ or kg/m^2"
            )
        return unit

    def factor(self, grid: RadarGrid) -> int:
        """Return over how many pixels in each direction frames on ``grid`` are averaged to the model's pixel.

        Raises:
            DataError: no whole number of the grid's pixels is near the model's pixel.
        """
        if self.any_spacing:
            return 1
        factor = max(1, round(self.spacing_km / grid.spacing_km))
        made = factor * grid.spacing_km
        off = made / self.spacing_km - 1
        if abs(off) > _SPACING_TOLERANCE:
            raise DataError(
                f"the frames have pixels of {grid.spacing_km:.3g} km and the model was trained on "
                f"{self.spacing_km:.3g} km; a whole number of them must make one within "
                f"{100 * _SPACING_TOLERANCE:.0f} % ({factor} make {made:.3g} km). --any-spacing takes them as they are"
            )
        if abs(off) > 0.05:
            logger.warning("pixels of %.3g km are given to a model of %.3g km", made, self.spacing_km)
        return factor

    def linear(self, frame: RadarFrame) -> np.ndarray:
        """Return a frame in the linear form of the model's unit, float32 ``[H, W]``, NaN where missing.

        Raises:
            DataError: there is no rule between the two units.
        """
        if frame.unit == self.unit:
            return self.to_linear(frame.values)
        if (frame.unit, self.unit) == ("dBZ", "mm/h"):
            relation = self.z_r or _MARSHALL_PALMER
            return rain_rate_from_reflectivity(frame.values, relation.a, relation.b)
        relation = self.z_r or self.spec.z_r
        if (frame.unit, self.unit) == ("mm/h", "dBZ") and relation is not None:
            return (relation.a * frame.values.astype(np.float64) ** relation.b).astype(np.float32)
        if (frame.unit, self.unit) == ("mm/h", "dBZ"):
            wants = "there is no rule from one to the other: --z-r A B gives one"
        elif self.unit == "kg/m^2":
            wants = (
                "no option converts one to the other (kg/m^2 is vertically integrated liquid); take a model trained on "
                "dBZ or mm/h (docs/own_radar.md says how to get one)"
            )
        else:
            wants = f"no option converts one to the other; give frames in {self.unit}"
        raise DataError(f"{frame.path} is in {frame.unit} and the model {self.spec.name} in {self.unit}; {wants}")

    def codes(self, linear: np.ndarray, factor: int) -> np.ndarray:
        """Return uint8 codes ``[H / factor, W / factor]`` of a linear field; 255 where no pixel of a block is valid."""
        height, width = (size - size % factor for size in linear.shape)
        coarse = block_mean(linear[:height, :width], factor) if factor > 1 else linear
        return self.spec.encoding.encode(self.from_linear(coarse))

    def to_linear(self, physical: np.ndarray) -> np.ndarray:
        """Return values of the model's unit in their linear form, float32."""
        if self.unit == "dBZ":
            return (10.0 ** (np.asarray(physical, dtype=np.float64) / 10)).astype(np.float32)
        return np.asarray(physical, dtype=np.float32)

    def from_linear(self, linear: np.ndarray) -> np.ndarray:
        """Return the model's unit of its linear form, float32; no echo is minus infinity in dBZ."""
        if self.unit != "dBZ":
            return linear
        with np.errstate(divide="ignore"):
            return (10.0 * np.log10(linear, dtype=np.float64)).astype(np.float32)

    def linear_of_forecast(self, unit_values: np.ndarray) -> np.ndarray:
        """Return the linear form, float32, of what a network puts out, codes / 255 of any shape."""
        return self.to_linear(self.spec.encoding.value_of(unit_values * np.float32(255.0)))

    def thresholds(self) -> tuple[float, ...]:
        """Return the description's thresholds in the model's unit."""
        return tuple(float(self.spec.encoding.value_of(np.array(code))) for code in self.spec.threshold_codes())

    def silent(self) -> float:
        """Return the value that a forecast of no echo has in a file, in the model's unit."""
        lowest = self.spec.encoding.decode(np.arange(255, dtype=np.uint8))
        return float(lowest[np.isfinite(lowest)].min()) if self.unit == "dBZ" else 0.0


def code_of_run(data: DataConfig, *, z_r: ZRRelation | None = None, any_spacing: bool = False) -> ModelCode:
    """Return what the model of a run with this ``data`` section sees.

    Raises:
        ConfigError: the description cannot be read, or its unit is none of radar files.
    """
    spec = coded_as(data)
    spacing = read_spec(data.dataset).grid.spacing_km * data.block_mean
    code = ModelCode(spec, step_minutes(data), spacing, z_r, any_spacing)
    if not math.isfinite(code.step_minutes) or not code.unit:
        raise ConfigError(f"{spec.name} says no cadence")
    return code


@dataclass(frozen=True, eq=False)
class CodedFrame:
    """A radar frame as a model sees it: uint8 ``codes`` ``[H, W]`` on ``grid``, and where it came from."""

    codes: np.ndarray
    grid: RadarGrid
    unit: Unit
    time: datetime
    path: Path
    about: dict[str, Any] = field(default_factory=dict)


def coded(frame: RadarFrame, code: ModelCode) -> CodedFrame:
    """Return a frame in the code and the pixels of a model.

    Raises:
        DataError: its unit or its pixels cannot be turned into the model's.
    """
    linear = code.linear(frame)  # the unit first: no option mends that one
    factor = code.factor(frame.grid)
    codes = code.codes(linear, factor)
    return CodedFrame(codes, frame.grid.coarser(factor), frame.unit, frame.time, frame.path, frame.about)
