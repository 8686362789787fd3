"""Encode radar frames as the pixel values that a model was trained on, and decode its forecasts to physical units.

Block means, interpolation in time and blending of tiles use units linear in the amount of water or echo: mm/h, kg/m^2,
or Z in mm^6/m^3 for a model in dBZ.
"""

import logging
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, ZRRelation
from simcast_hpc.data.encoding import block_mean, rain_rate_from_reflectivity
from simcast_hpc.data.open_windows import pixel_spacing_km, step_minutes, target_spec

from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, RadarFrame, RadarGrid, Unit

logger = logging.getLogger(__name__)
# The pixel sizes of services differ by some percent (1.07 km in HKO-7, 0.99 km for 0.01 degrees of MRMS).
_SPACING_TOLERANCE = 0.2
_MAX_ASPECT = 1.5  # the two sides of a pixel 20 % above and below the model's
_MAX_INTERVAL_STEPS = 1.5
_MOST_PADDING = 16  # an import makes height and width multiples of this
_MARSHALL_PALMER = ZRRelation(a=200.0, b=1.6)


def spacing_problem(grid: RadarGrid, factor: int, spacing_km: float) -> str:
    """Return why blocks of ``factor`` x ``factor`` pixels are not the pixels of a model; empty if they are.

    Pixels in degrees may be narrower than high, as those of the training data on such a grid.
    """
    block_km = factor * grid.spacing_km
    if abs(block_km / spacing_km - 1) > _SPACING_TOLERANCE:
        blocks = f" ({factor} pixels are {block_km:.3g} km)" if factor > 1 else ""
        return (
            f"the frames have pixels of {grid.spacing_km:.3g} km and the model was trained on {spacing_km:.3g} km; a "
            f"block of pixels must match it within {100 * _SPACING_TOLERANCE:.0f} %{blocks}"
        )
    sides = sorted((grid.spacing_x, grid.spacing_y))
    if grid.unit == "m" and sides[1] > _MAX_ASPECT * sides[0]:
        return (
            f"the frames have pixels of {grid.spacing_x / 1000:.3g} x {grid.spacing_y / 1000:.3g} km and the model was "
            f"trained on square pixels of {spacing_km:.3g} km"
        )
    return ""


@dataclass(frozen=True)
class ModelEncoding:
    """Encoding, pixel size and cadence of the data that a model was trained on.

    ``z_r`` converts between reflectivity and rain rate. Without it, dBZ is converted to mm/h by the relation of
    Marshall and Palmer, as ``data.recode_as`` does in training, and mm/h to dBZ by the ``z_r`` of the description.
    ``any_spacing`` accepts frames of any pixel size without averaging, ``any_interval`` accumulations over more than
    1.5 steps. ``dataset`` is the number of the dataset that is read from ODIM files, and ``importer`` reads the files,
    see :class:`FieldChoice`. Frames are rounded to uint8 codes as in training,
    or kept unrounded (``rounded=False``) for methods without a network. ``rate_thresholds``
    replace the thresholds of the description: rain rates in mm/h, also for dBZ, or kg/m^2.
    """

    spec: DatasetSpec
    step_minutes: float
    spacing_km: float
    z_r: ZRRelation | None = None
    any_spacing: bool = False
    any_interval: bool = False
    dataset: int | None = None
    importer: ImporterChoice | None = None
    rounded: bool = True
    rate_thresholds: tuple[float, ...] = ()

    @property
    def choice(self) -> FieldChoice:
        """The field that is read from radar files."""
        return FieldChoice(self.unit, self.dataset, self.importer)

    @property
    def unit(self) -> Unit:
        """The physical unit of the model."""
        unit = self.spec.encoding.unit
        if unit not in ("mm/h", "dBZ", "kg/m^2"):
            raise ConfigError(
                f"{self.spec.name} is encoded in {unit!r}; a forecast from radar files needs mm/h, dBZ or kg/m^2"
            )
        return unit

    def factor(self, grid: RadarGrid) -> int:
        """Return the block size, in pixels per direction, that averages frames on ``grid`` to the model's pixel size.

        Raises:
            DataError: no whole number of pixels is within 20 % of the model's pixel size, or pixels in m are not
                square.
        """
        if self.any_spacing:
            return 1
        factor = max(1, round(self.spacing_km / grid.spacing_km))
        problem = spacing_problem(grid, factor, self.spacing_km)
        if problem:
            raise DataError(f"{problem}. --any-spacing uses the frames unchanged")
        block_km = factor * grid.spacing_km
        deviation = block_km / self.spacing_km - 1
        if abs(deviation) > 0.05:
            logger.warning("input pixels of %.3g km for a model trained on %.3g km", block_km, self.spacing_km)
        return factor

    def require_interval(self, frame: RadarFrame) -> None:
        """Check that an accumulation is not much longer than the time step.

        The mean rate over a longer interval is smoother than the fields of training and lags behind them. A shorter
        interval is accepted: its mean is closer to an instantaneous rate.

        Raises:
            DataError: the interval is longer than 1.5 steps and ``any_interval`` is False.
        """
        minutes = frame.interval_minutes
        if minutes is not None and minutes > _MAX_INTERVAL_STEPS * self.step_minutes and not self.any_interval:
            raise DataError(
                f"{frame.path} is an accumulation over {minutes:g} minutes and the time step of the model is "
                f"{self.step_minutes:g} minutes; use accumulations over at most "
                f"{_MAX_INTERVAL_STEPS * self.step_minutes:g} minutes, or --any-interval to use the mean rate"
            )

    def linear(self, frame: RadarFrame) -> np.ndarray:
        """Return a frame converted to the model's unit in linear form, float32 ``[H, W]``, NaN where missing.

        Raises:
            DataError: there is no conversion between the two units.
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
            advice = "give a relation with --z-r A B"
        elif self.unit == "kg/m^2":
            advice = (
                "no option converts between them (kg/m^2 is vertically integrated liquid); use a model trained on "
                "dBZ or mm/h (see docs/guides/own-radar.md)"
            )
        else:
            advice = f"no option converts between them; use frames in {self.unit}"
        raise DataError(f"{frame.path} is in {frame.unit} and the model {self.spec.name} in {self.unit}; {advice}")

    def codes(self, linear: np.ndarray, factor: int) -> np.ndarray:
        """Return encoded block means of a linear field, ``[H / factor, W / factor]``, as :meth:`encode`."""
        height, width = (size - size % factor for size in linear.shape)
        coarse = block_mean(linear[:height, :width], factor) if factor > 1 else linear
        return self.encode(self.from_linear(coarse))

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return values in the model's unit as codes: uint8, or unrounded code / 255, float32, if not ``rounded``."""
        if self.rounded:
            return self.spec.encoding.encode(physical)
        return (self.spec.encoding.position_of(physical) / 255.0).astype(np.float32)

    def padded(self, frames: np.ndarray) -> np.ndarray:
        """Return encoded frames ``[..., H, W]`` with the missing rows and columns that an import added to its domain.

        Those are at the south and at the east. A forecast of the padded frames, cut to ``[..., H, W]``, is that of
        ``simcast evaluate``: the windows of the motion depend on the size of the domain. Frames of another domain than
        that of the description are returned unchanged.
        """
        grid = self.spec.grid
        south, east = grid.height - frames.shape[-2], grid.width - frames.shape[-1]
        if self.spec.coverage is None or not (0 <= south < _MOST_PADDING and 0 <= east < _MOST_PADDING):
            return frames
        widths = [(0, 0)] * (frames.ndim - 2) + [(0, south), (0, east)]
        missing = self.spec.encoding.missing_code if frames.dtype == np.uint8 else np.nan
        return np.pad(frames, widths, constant_values=missing) if south or east else frames

    def physical(self, codes: np.ndarray) -> np.ndarray:
        """Return the inverse of :meth:`encode`, float32, NaN where missing."""
        if codes.dtype == np.uint8:
            return self.spec.encoding.decode(codes)
        return self.spec.encoding.value_of(codes * np.float32(255.0)).astype(np.float32)

    def to_linear(self, physical: np.ndarray) -> np.ndarray:
        """Return values of the model's unit in linear form, float32."""
        if self.unit == "dBZ":
            return (10.0 ** (np.asarray(physical, dtype=np.float64) / 10)).astype(np.float32)
        return np.asarray(physical, dtype=np.float32)

    def from_linear(self, linear: np.ndarray) -> np.ndarray:
        """Return values in linear form in the model's unit, float32; no echo is minus infinity in dBZ."""
        if self.unit != "dBZ":
            return linear
        with np.errstate(divide="ignore"):
            return (10.0 * np.log10(linear, dtype=np.float64)).astype(np.float32)

    def make_physical(self, linear: np.ndarray, missing: np.ndarray | None = None) -> None:
        """Convert linear fields ``[T, H, W]`` to the model's unit in place.

        Values below that of no echo, which blending in linear units gives, become no echo; pixels of the bool field
        ``missing`` ``[H, W]`` become NaN. One field at a time, because the fields may take most of the memory.
        """
        for one in linear:
            np.maximum(self.from_linear(one), np.float32(self.no_echo_value()), out=one)
            if missing is not None:
                one[missing] = np.nan

    def linear_of_forecast(self, unit_values: np.ndarray) -> np.ndarray:
        """Return network outputs in [0, 1] (code / 255), of any shape, in linear form, float32."""
        return self.to_linear(self.spec.encoding.value_of(unit_values * np.float32(255.0)))

    def forecast_of_linear(self, linear: np.ndarray) -> np.ndarray:
        """Return the inverse of :meth:`linear_of_forecast`, float32 in [0, 1]; values without echo become 0."""
        positions = self.spec.encoding.position_of(self.from_linear(linear))
        return (positions / 255.0).astype(np.float32)

    @property
    def rate_relation(self) -> ZRRelation | None:
        """The relation by which forecasts in dBZ are converted to rain rates; None if none is known."""
        return self.z_r or self.spec.z_r

    def thresholds(self) -> tuple[float, ...]:
        """Return the thresholds in the model's unit: ``rate_thresholds``, or those of the description as stated.

        Only codes, and rain rates for dBZ, are converted.

        Raises:
            ConfigError: rain rates cannot be converted to dBZ, because no Z-R relation is known.
        """
        if self.rate_thresholds:
            if self.unit != "dBZ":
                return tuple(sorted(self.rate_thresholds))
            if self.rate_relation is None:
                raise ConfigError(
                    f"thresholds in mm/h require a Z-R relation, and {self.spec.name} has none; give one with --z-r A B"
                )
            return tuple(self.rate_relation.reflectivity(rate) for rate in sorted(self.rate_thresholds))
        stated, codes = self.spec.thresholds, self.spec.threshold_codes()
        if stated.unit == self.spec.encoding.unit:
            return tuple(float(value) for value in stated.values)
        if stated.unit == "mm/h" and self.spec.z_r is not None:
            return tuple(self.spec.z_r.reflectivity(rate) for rate in stated.values)
        return tuple(float(self.spec.encoding.value_of(np.array(code))) for code in codes)

    def no_echo_value(self) -> float:
        """Return the value that represents no echo in output files, in the model's unit."""
        values = self.spec.encoding.decode(np.arange(255, dtype=np.uint8))
        return float(values[np.isfinite(values)].min()) if self.unit == "dBZ" else 0.0


def encoding_of_run(
    data: DataConfig,
    *,
    z_r: ZRRelation | None = None,
    any_spacing: bool = False,
    any_interval: bool = False,
    dataset: int | None = None,
    importer: ImporterChoice | None = None,
    rate_thresholds: tuple[float, ...] = (),
) -> ModelEncoding:
    """Return the encoding of a run's model from the ``data`` section of its configuration.

    The other arguments are fields of :class:`ModelEncoding`.

    Raises:
        ConfigError: the description cannot be read, or its unit or cadence is not valid for radar files.
    """
    spec = target_spec(data)
    spacing = pixel_spacing_km(data)
    encoding = ModelEncoding(
        spec, step_minutes(data), spacing, z_r, any_spacing, any_interval, dataset, importer,
        rate_thresholds=rate_thresholds,
    )  # fmt: skip
    if not math.isfinite(encoding.step_minutes) or not encoding.unit:
        raise ConfigError(f"{spec.name} has no cadence; set step_minutes in its description")
    return encoding


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A radar frame encoded for a model: ``codes`` ``[H, W]`` on ``grid``; unit and interval of its file.

    ``codes`` are uint8 (255 missing), or unrounded code / 255 as float32 (NaN missing).
    """

    codes: np.ndarray
    grid: RadarGrid
    unit: Unit
    time: datetime
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    interval_minutes: float | None = None


def encode_frame(frame: RadarFrame, encoding: ModelEncoding) -> EncodedFrame:
    """Return a frame with the encoding and pixel size of a model.

    Raises:
        DataError: the unit or pixel size cannot be converted to the model's, or the frame is a long accumulation.
    """
    linear = encoding.linear(frame)  # check the unit first: no option overrides that error
    encoding.require_interval(frame)
    factor = encoding.factor(frame.grid)
    codes = encoding.codes(linear, factor)
    grid = frame.grid.coarser(factor)
    return EncodedFrame(codes, grid, frame.unit, frame.time, frame.path, frame.metadata, frame.interval_minutes)
