"""A trained model as a pysteps nowcast method, and as an external nowcast in pysteps' STEPS blending."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.data.encoding import MISSING_CODE, rain_rate_from_reflectivity
from simcast_hpc.radar.radar_frame import require_plausible

if TYPE_CHECKING:
    from simcast_hpc.api import Forecaster

Unit = Literal["mm/h", "dBZ", "kg/m^2"]
_MARSHALL_PALMER = ZRRelation(a=200.0, b=1.6)


class PystepsNowcast:
    """A callable with the signature of pysteps' nowcast methods, around a forecaster.

    ``nowcast(precip, velocity, timesteps)`` takes the last ``frames_in`` fields ``[T, m, n]``, oldest first, and
    returns float64 ``[timesteps, m, n]``, or ``[members, timesteps, m, n]`` of an ensemble, in the unit and transform
    of its input. The motion field is not used: the network has its own representation of motion.

    Args:
        forecaster: of :func:`simcast_hpc.load`.
        unit: of ``precip``: ``mm/h``, ``dBZ`` or ``kg/m^2``. The data set's Z-R relation converts between
            mm/h and dBZ; Marshall and Palmer's (1948) where it has none.
        transform: ``dB`` where ``precip`` is 10 log10 of the unit (``pysteps.utils.transformation.dB_transform``).
        threshold: with ``transform="dB"``, values below ``10 log10(threshold)`` are no precipitation.
        zerovalue: with ``transform="dB"``, the value of no precipitation in dB.

    Raises:
        ConfigError: there is no rule between ``unit`` and the unit of the model.
    """

    def __init__(
        self,
        forecaster: "Forecaster",
        *,
        unit: Unit = "mm/h",
        transform: Literal["dB"] | None = None,
        threshold: float = 0.1,
        zerovalue: float = -15.0,
    ):
        if not hasattr(forecaster, "from_physical"):
            raise TypeError(f"forecaster={forecaster!r} is not a forecaster; give one of simcast_hpc.load")
        own = forecaster.dataset.encoding.unit
        if unit != own and {unit, own} != {"mm/h", "dBZ"}:
            raise ConfigError(f"unit={unit!r} cannot be converted to {own!r}, the unit of {forecaster.name}")
        if transform not in (None, "dB"):
            raise ConfigError(f"transform={transform!r} is not supported; choose None or 'dB'")
        if transform == "dB" and unit == "dBZ":
            raise ConfigError("transform='dB' does not apply to unit='dBZ', which is logarithmic already")
        if not (0 < threshold < np.inf and np.isfinite(zerovalue)):
            raise ConfigError(f"{threshold=} must be positive and {zerovalue=} a number, both finite")
        if transform == "dB" and zerovalue > 10 * np.log10(threshold):
            raise ConfigError(
                f"{zerovalue=} dB must not be above {10 * np.log10(threshold):g} dB, the {threshold=} {unit}"
            )
        self.forecaster, self.unit, self.transform = forecaster, unit, transform
        self.threshold, self.zerovalue = threshold, zerovalue
        self._relation = forecaster.dataset.z_r or _MARSHALL_PALMER

    def __call__(
        self,
        precip: np.ndarray,
        velocity: np.ndarray | None,
        timesteps: int | Sequence[float],
        *,
        n_ens_members: int | None = None,
        timestep: float | None = None,
        measure_time: bool = False,
    ) -> Any:
        """Return the nowcast, NaN where missing; with ``measure_time`` the pair of it and the seconds that it took.

        Args:
            precip: ``[T, m, n]`` in the unit and transform of this method, NaN missing.
            velocity: ``[2, m, n]``, not used.
            timesteps: number of time steps, or which ones (whole steps only).
            n_ens_members: members of an ensemble; the run's number by default.
            timestep: minutes between the fields, compared with the model's where it is given.
            measure_time: also return the wall time.

        Raises:
            ValueError: wrong shape, time step, lead times or members, or values that cannot be in the unit.
        """
        started = time.perf_counter()
        if timestep is not None and not abs(float(timestep) - self.forecaster.step_minutes) <= 1e-6:
            raise ValueError(f"timestep={timestep} min, but the model's step is {self.forecaster.step_minutes:g} min")
        fields = _fields(precip)
        if fields.ndim != 3:
            raise ValueError(f"precip has shape {fields.shape}; [T, m, n] with T={self.forecaster.frames_in} is needed")
        forecast = self.forecaster.forecast(self._encode(fields), lead_times=timesteps, members=n_ens_members)
        result = self._decode(np.asarray(forecast))
        return (result, time.perf_counter() - started) if measure_time else result

    def external_nowcast(self, precip: np.ndarray, timesteps: int, *, n_ens_members: int | None = None) -> np.ndarray:
        """Return the argument ``precip_nowcast`` of pysteps' STEPS blending (``nowcasting_method="external_nowcast"``).

        Returns:
            float64 ``[members, timesteps + 1, m, n]``, the last observation at index 0; one member of a deterministic
            model. Missing pixels are no precipitation, because the blending has no missing values. It needs at least
            as many members as its own ``n_ens_members``.
        """
        nowcast = self(precip, None, timesteps, n_ens_members=n_ens_members)
        members = nowcast if nowcast.ndim == 4 else nowcast[None]
        observed = _fields(precip)[-1]
        first = np.broadcast_to(observed, (len(members), 1, *observed.shape))
        fields = np.concatenate([first, members], axis=1)
        return np.where(np.isnan(fields) | np.isneginf(fields), self._no_precipitation(), fields)

    def register(self, name: str = "simcast") -> None:
        """Make this method known to ``pysteps.nowcasts.get_method(name)``, as pysteps' linear blending looks it up.

        pysteps has no public registration, so this adds to its table of methods.

        Raises:
            ValueError: pysteps has another method of this name, or the name is not in lower case.
        """
        from pysteps.nowcasts import interface

        if name != str(name).lower():
            raise ValueError(f"{name=} must be text in lower case: pysteps looks methods up in lower case")
        methods = interface._nowcast_methods
        if not isinstance(methods.get(name, self), PystepsNowcast):
            raise ValueError(f"pysteps has a nowcast method {name!r}; choose another name")
        methods[name] = self

    def _encode(self, fields: np.ndarray) -> np.ndarray:
        """Return uint8 encoded values of ``precip``."""
        if self.transform == "dB":
            dry = fields < 10.0 * np.log10(self.threshold)
            fields = np.where(dry, 0.0, 10.0 ** (fields / 10.0))
        require_plausible(fields, self.unit)
        own = self.forecaster.dataset.encoding.unit
        if self.unit == "mm/h" and own == "dBZ":
            with np.errstate(divide="ignore"):
                fields = 10.0 * np.log10(self._relation.a * np.maximum(fields, 0.0) ** self._relation.b)
        elif self.unit == "dBZ" and own == "mm/h":
            fields = rain_rate_from_reflectivity(fields, self._relation.a, self._relation.b)
        return self.forecaster.from_physical(fields)

    def _decode(self, forecast: np.ndarray) -> np.ndarray:
        """Return a forecast in [0, 1] in the unit and transform of ``precip``."""
        values = self.forecaster.to_physical(forecast).astype(np.float64)
        own = self.forecaster.dataset.encoding.unit
        if self.unit == "mm/h" and own == "dBZ":
            values = rain_rate_from_reflectivity(values, self._relation.a, self._relation.b).astype(np.float64)
        elif self.unit == "dBZ" and own == "mm/h":
            with np.errstate(divide="ignore"):
                values = 10.0 * np.log10(self._relation.a * values**self._relation.b)
        if self.transform == "dB":
            wet = values >= self.threshold
            decibels = np.where(wet, 10.0 * np.log10(np.maximum(values, self.threshold)), self.zerovalue)
            return np.where(np.isnan(values), np.nan, decibels)
        return np.where(np.isneginf(values), self._no_precipitation(), values)

    def _no_precipitation(self) -> float:
        if self.transform == "dB":
            return self.zerovalue
        if self.unit != "dBZ":
            return 0.0
        lowest = self.forecaster.dataset.encoding.decode(np.arange(MISSING_CODE, dtype=np.uint8))
        return float(lowest[np.isfinite(lowest)].min())


def _fields(precip: np.ndarray) -> np.ndarray:
    """Return ``precip`` as float64; masked pixels are NaN."""
    return np.ma.filled(np.ma.asarray(precip).astype(np.float64), np.nan)
