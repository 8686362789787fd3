"""``ProductSettings``: which products are derived from every forecast, and the checks of their options."""

import json
import math
from dataclasses import asdict, dataclass

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.radar.radar_frame import Unit

from .accumulation import TimeAxis, accumulation_groups, no_rate_reason
from .product_fields import Window

STORAGE_TYPES = ("float32", "int16")
OVERLAY_PROJECTIONS = ("EPSG:3857", "EPSG:4326")


@dataclass(frozen=True)
class ProductSettings:
    """Products of every forecast.

    Attributes:
        accumulate: lengths in minutes of accumulations that end at each lead time.
        windows: start and end in minutes after the issue time of further accumulations; a negative start includes
            observed frames.
        percentiles: of the members, in percent.
        thresholds: of rates in mm/h, or in kg/m^2; empty takes those of the data description.
        accumulation_thresholds: of accumulations in mm.
        matched_mean: whether the probability-matched mean is computed.
        neighborhood_km: half the side in km of the square in which neighborhood probabilities are computed; 0 for none.
        dtype: stored type of the fields in netCDF and Zarr, one of ``STORAGE_TYPES``.
        overlay_projection: of the overlays, one of ``OVERLAY_PROJECTIONS``.
        members: whether the members of an ensemble are written.
    """

    accumulate: tuple[float, ...] = ()
    windows: tuple[Window, ...] = ()
    percentiles: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    accumulation_thresholds: tuple[float, ...] = ()
    matched_mean: bool = False
    neighborhood_km: float = 0.0
    dtype: str = "float32"
    overlay_projection: str = "EPSG:3857"
    members: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: a number is outside its valid range, or occurs twice, or a name is unknown.
        """
        for option, name, names in (
            ("--dtype", self.dtype, STORAGE_TYPES), ("--overlay-crs", self.overlay_projection, OVERLAY_PROJECTIONS)
        ):  # fmt: skip
            if name not in names:
                raise ConfigError(f"{option} {name!r} must be {' or '.join(names)}")
        for option, values, low, high in (
            ("--accumulate", self.accumulate, 0.0, math.inf),
            ("--percentile", self.percentiles, math.nextafter(0.0, -1.0), math.nextafter(100.0, 101.0)),
            ("--threshold", self.thresholds, 0.0, math.inf),
            ("--accumulation-threshold", self.accumulation_thresholds, 0.0, math.inf),
        ):
            if outside := [value for value in values if not low < value < high]:
                valid = "from 0 to 100" if option == "--percentile" else "above 0 and finite"
                raise ConfigError(f"{option} {outside[0]:.15g} must be {valid}")
            if len({f"{value:.10g}" for value in values}) < len(values):  # the digits of file names
                raise ConfigError(f"{option} {' '.join(f'{value:g}' for value in values)}: give each number once")
        for begin, end in self.windows:
            if not -math.inf < begin < end < math.inf:
                raise ConfigError(f"--window {begin:g}:{end:g} must be START:END in minutes with START before END")
        if len(set(self.windows)) < len(self.windows):
            raise ConfigError("--window: give each window once")
        if not 0.0 <= self.neighborhood_km < math.inf:
            raise ConfigError(f"--neighborhood {self.neighborhood_km:g} must be a number of km, 0 or more")
        if self.accumulation_thresholds and not self.accumulates:
            raise ConfigError("--accumulation-threshold requires accumulations: --accumulate or --window")

    @property
    def accumulates(self) -> bool:
        """Whether there are accumulations."""
        return bool(self.accumulate or self.windows)

    def observed_frames(self, step_minutes: float) -> int:
        """Return the number of observed frames up to the issue time that the accumulations begin with."""
        earliest = [step_minutes - length for length in self.accumulate] + [begin for begin, _ in self.windows]
        return math.ceil(-min(earliest, default=step_minutes) / step_minutes - 1e-6) + 1

    @property
    def need_members(self) -> bool:
        """Whether products of an ensemble are computed from all its members."""
        return bool(self.accumulates or self.percentiles or self.matched_mean)

    @property
    def identity(self) -> str:
        """Text that differs between settings that give different files; empty for the default."""
        return "" if self == ProductSettings() else json.dumps(asdict(self), sort_keys=True)

    def check_unit(self, unit: Unit, z_r: ZRRelation | None) -> None:
        """Check that rain rates can be derived from values in a unit, if a product needs them.

        Raises:
            ConfigError: they cannot.
        """
        if self.accumulates and (unit == "kg/m^2" or (unit == "dBZ" and z_r is None)):
            raise ConfigError(no_rate_reason(unit))
        if self.thresholds and unit == "dBZ" and z_r is None:
            raise ConfigError(f"--threshold is in mm/h: {no_rate_reason(unit)}")

    def check(self, unit: Unit, z_r: ZRRelation | None, axis: TimeAxis, *, is_ensemble: bool) -> None:
        """Check the settings against a model.

        Args:
            unit: of the model.
            z_r: its relation between reflectivity and rain rate.
            axis: times of its frames.
            is_ensemble: whether it forecasts several members.

        Raises:
            ConfigError: a product cannot be computed from forecasts of this model.
        """
        self.check_unit(unit, z_r)
        accumulation_groups(self.accumulate, self.windows, axis)
        if is_ensemble:
            return
        for option, given in (("--percentile", self.percentiles), ("--matched-mean", self.matched_mean)):
            if given:
                raise ConfigError(f"{option} requires an ensemble, and this model forecasts one field; omit the option")
        for option, given in (
            ("--threshold", self.thresholds), ("--accumulation-threshold", self.accumulation_thresholds)
        ):  # fmt: skip
            if given and not self.neighborhood_km:
                raise ConfigError(
                    f"{option} requires an ensemble: whether one forecast reaches a threshold, 0 or 1, is not a "
                    "probability; --neighborhood KM computes the share of the pixels of a neighborhood"
                )
