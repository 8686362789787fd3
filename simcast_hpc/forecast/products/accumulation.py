"""Rainfall amounts over windows of lead time, from the observed frames before the issue time and the forecast.

Instantaneous rates are integrated by the trapezoidal rule: the rate is linear in time between two frames. If the frames
are mean rates over intervals (accumulations), each stands for the time step that ends at its time, so that no minute is
counted twice, also where the intervals of the files overlap. Both are weighted sums of the frames; a window may start
and end between two frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.forecast.forecast_fields import Forecast

from .product_fields import Window, file_number

_CLOSE = 1e-6  # minutes; rounding of times
NO_ECHO_TOLERANCE = 1e-3  # dB; rounding of the value of no echo


@dataclass(frozen=True)
class AccumulationGroup:
    """Windows that belong to one variable.

    Attributes:
        name: such as ``60min``, part of the names of variables.
        windows: start and end in minutes after the issue time, with ascending ends.
    """

    name: str
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class TimeAxis:
    """Times of the observed and forecast frames in minutes after the issue time.

    Attributes:
        step_minutes: time between two frames.
        observed: number of observed frames, of which the last is at 0.
        leads: number of forecast frames.
        are_means: whether a frame is the mean rate of the time step that ends at its time.
    """

    step_minutes: float
    observed: int
    leads: int
    are_means: bool

    @property
    def times(self) -> np.ndarray:
        """Times of all frames, float64 ``[observed + leads]``."""
        return self.step_minutes * np.arange(1 - self.observed, self.leads + 1)

    @property
    def start(self) -> float:
        """Earliest start of a window."""
        return -self.step_minutes * (self.observed - (0 if self.are_means else 1))

    @property
    def end(self) -> float:
        """Latest end of a window."""
        return self.step_minutes * self.leads

    def contains(self, window: Window) -> bool:
        """Return whether the frames cover a window."""
        return self.start - _CLOSE <= window[0] and window[1] <= self.end + _CLOSE

    def weights(self, window: Window) -> np.ndarray:
        """Return the hours that each frame stands for in a window, float64 ``[observed + leads]``."""
        begin, end = window
        after = self.times
        before = after - self.step_minutes
        low, high = np.clip([begin, end], before[:, None], after[:, None]).T
        if self.are_means:
            return (high - low) / 60.0
        # Integrals over the part of each step of the rising and the falling half of the hat functions.
        rising = ((high - before) ** 2 - (low - before) ** 2) / (2 * self.step_minutes)
        weights = rising.copy()
        weights[:-1] += (high - low - rising)[1:]
        weights[0] -= rising[0]  # there is no frame before the first
        return weights / 60.0


def time_axis(forecast: Forecast) -> TimeAxis:
    """Return the times of the frames of a forecast."""
    inputs = forecast.inputs
    observed, are_means = (1, False) if inputs is None else (len(inputs.times), inputs.are_means)
    return TimeAxis(forecast.step_minutes, observed, len(forecast.leads_minutes), are_means)


def accumulation_groups(minutes: Sequence[float], windows: Sequence[Window], axis: TimeAxis) -> list[AccumulationGroup]:
    """Return the windows to compute.

    For each length in ``minutes`` there is a window that ends at each lead time; those that start before the first
    observed frame are omitted. Each of ``windows`` is a group of its own.

    Raises:
        ConfigError: a window is not covered by the frames.
    """
    groups = []
    for length in minutes:
        ends = axis.step_minutes * np.arange(1, axis.leads + 1)
        covered = tuple((float(end - length), float(end)) for end in ends if axis.contains((end - length, end)))
        if not covered:
            raise ConfigError(
                f"--accumulate {length:g}: the observed and forecast frames cover {axis.end - axis.start:g} minutes, "
                f"from {axis.start:g} to {axis.end:g} after the issue time; choose at most {axis.end - axis.start:g}"
            )
        groups.append(AccumulationGroup(f"{file_number(length)}min", covered))
    for window in windows:
        if not axis.contains(window):
            raise ConfigError(
                f"--window {window[0]:g}:{window[1]:g} must be from {axis.start:g} to {axis.end:g} minutes after the "
                "issue time, which the observed and forecast frames cover"
            )
        groups.append(AccumulationGroup(f"{file_number(window[0])}_to_{file_number(window[1])}min", (window,)))
    return groups


def rain_rate(values: np.ndarray, forecast: Forecast) -> np.ndarray:
    """Return the rain rates in mm/h of values in the unit of a forecast, float32 of the same shape; no echo is 0.

    Raises:
        DataError: there is no conversion.
    """
    if forecast.unit == "mm/h":
        return values
    relation = forecast.z_r
    if forecast.unit != "dBZ" or relation is None:
        raise DataError(no_rate_reason(forecast.unit))
    # 10 ** (dBZ / 10) = a R ** b, in float32, since there can be 10^9 values
    slope, intercept = np.float32(np.log(10) / (10 * relation.b)), np.float32(np.log(relation.a) / relation.b)
    rates = np.multiply(values, slope, dtype=np.float32)
    rates -= intercept
    np.exp(rates, out=rates)
    rates[values <= np.float32(forecast.no_echo_dbz + NO_ECHO_TOLERANCE)] = 0.0
    return rates


def no_rate_reason(unit: str) -> str:
    """Return why values in a unit cannot be converted to rain rates, and what to do."""
    if unit == "dBZ":
        return (
            "rain rates from dBZ require a Z-R relation, and there is none; give it with --z-r A B, for example "
            "--z-r 200 1.6, or set z_r: {a: 200, b: 1.6} in the data description"
        )
    return f"a model in {unit} forecasts no rain rates; accumulations require a model in mm/h, or in dBZ with --z-r"


def amounts(forecast: Forecast, groups: Sequence[AccumulationGroup], rows: slice) -> list[np.ndarray]:
    """Return the amounts in mm of rows of every member, float32 ``[M, windows, rows, W]`` per group.

    Pixels that are missing in a frame that a window needs are NaN.

    Raises:
        DataError: there is no conversion to rain rates.
    """
    assert forecast.values is not None
    axis = time_axis(forecast)
    members = rain_rate(forecast.values[:, :, rows], forecast)
    observed = observed_rates(forecast, rows)
    accumulated = []
    for group in groups:
        sums = np.empty((len(members), len(group.windows), *members.shape[2:]), np.float32)
        for number, window in enumerate(group.windows):
            sums[:, number] = weighted_sum(members, observed, axis.weights(window))
        accumulated.append(sums)
    return accumulated


def observed_rates(forecast: Forecast, rows: slice) -> np.ndarray:
    """Return rain rates of rows of the observed frames, float32 ``[T, rows, W]``."""
    if forecast.inputs is None:
        return rain_rate(forecast.observed[None, rows], forecast)
    frames = [forecast.inputs.values(k, rows) for k in range(len(forecast.inputs.times))]
    return rain_rate(np.stack(frames), forecast)


def weighted_sum(members: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sums over the frames with a weight above 0.

    Args:
        members: rates ``[M, T', ...]``.
        observed: rates ``[T, ...]`` of the frames before them.
        weights: float ``[T + T']``.

    Returns:
        float32 ``[M, ...]``.
    """
    count = len(observed)
    total = np.zeros((len(members), *members.shape[2:]), np.float32)
    for k in np.flatnonzero(weights[:count]):
        total += np.float32(weights[k]) * observed[k]
    for k in np.flatnonzero(weights[count:]):
        total += np.float32(weights[count + k]) * members[:, k]
    return total
