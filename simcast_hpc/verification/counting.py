"""Count sufficient statistics: one pass over observation and forecast for any number of thresholds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .contingency import frame_scores
from .ensemble_scores import ensemble_sums, single_forecast_sums
from .error_sums import error_sums
from .input_fields import Window, check_fields, windows_of
from .neighbourhood import fraction_sums
from .protocols import ScoreProtocol
from .similarity import ssim
from .spectrum import spectrum_sums
from .structure_amplitude_location import sal_sums
from .sufficient_statistics import TABLE, Statistics, merge, statistics_of
from .threshold_levels import (
    averaged_levels,
    joint_histogram,
    levels_of,
    missing_level,
    pooled_levels,
    released_levels,
    tables,
)


class Accumulator:
    """Streaming verification: add batches, then read ``statistics``.

    Args:
        protocol: defines how pixels are counted.
    """

    def __init__(self, protocol: ScoreProtocol):
        self.protocol = protocol
        self._parts: list[Statistics] = []

    def add(
        self,
        observation: Tensor | np.ndarray,
        forecast: Tensor | np.ndarray,
        *,
        events: Sequence[str],
        valid: Tensor | np.ndarray | None = None,
    ) -> None:
        """Count one batch (see :func:`count`); ``events`` has the event of each window.

        Windows are added in their order, so the sums do not depend on the batches.
        """
        self._parts.append(count_windows(observation, forecast, protocol=self.protocol, events=events, valid=valid))

    @property
    def statistics(self) -> Statistics:
        """All batches added so far, merged; raises a ValueError if there are none."""
        merged = merge(self._parts)
        self._parts = [merged]
        return merged


def count(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: ScoreProtocol,
    events: Sequence[str] | None = None,
    valid: Tensor | np.ndarray | None = None,
) -> Statistics:
    """Count a batch of windows on the device of its inputs.

    Each pixel is assigned the number of thresholds that it reaches (its level) in both fields. The joint histogram of
    these levels contains the 2 x 2 tables of all thresholds, so the fields are read only once.

    Args:
        observation: ``[N, T, H, W]``, uint8 pixel values or floats in [0, 1] (NaN missing).
        forecast: ``[N, T, H, W]`` or members ``[N, M, T, H, W]``, uint8 pixel values or floats (NaN missing). Clipped
            and rounded if the protocol requires it; by default neither.
        protocol: thresholds, comparison, pools, mask rule and further sums.
        events: the event of each window; windows of one event are summed. By default each window is an event.
        valid: boolean, broadcastable to ``[N, T, H, W]``; False pixels count as missing (a domain mask).

    Raises:
        ValueError: shapes differ, or floats are not [0, 1] fields.
        TypeError: a field is neither uint8 nor floating point, or ``valid`` is not boolean.
    """
    return merge([count_windows(observation, forecast, protocol=protocol, events=events, valid=valid)])


def count_windows(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: ScoreProtocol,
    events: Sequence[str] | None = None,
    valid: Tensor | np.ndarray | None = None,
) -> Statistics:
    """Return the sums of each window as :func:`count` does, with one row per window; rows may have equal keys.

    Merged (:func:`.merge`) over any batches in the order of the windows, they give bitwise equal sums.
    """
    batch = check_fields(observation, forecast, protocol=protocol, valid=valid)
    keys = [f"{row:08d}" for row in range(batch.windows)] if events is None else [str(key) for key in events]
    if len(keys) != batch.windows:
        raise ValueError(f"got {len(keys)} event keys for {batch.windows} windows; give one key per window")
    counted = [_count_window(window, protocol) for window in windows_of(batch, protocol, keys)]
    sums = {name: torch.stack([window[name] for window in counted]) for name in counted[0]}
    return statistics_of(protocol, tuple(keys), sums)


def _count_window(window: Window, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return the sums of one window, without the events axis."""
    parts = [_count_fields(window, forecast, protocol) for forecast in window.forecasts]
    sums = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    if window.members is not None:
        predicted = torch.stack([levels_of(member, protocol) for member in window.members])
        observed = _apply_mask(levels_of(window.observation, protocol), window, protocol)
        levels = (observed, predicted)
        sums |= ensemble_sums(window.unit, window.members, levels=levels, protocol=protocol, event=window.event)
    elif "twcrps" in protocol.sums:
        sums |= single_forecast_sums(window.unit, window.forecasts[0], protocol)
    if {"sal", "sal_thresholds"} & set(protocol.sums):
        sums |= sal_sums(window.unit, window.forecasts if window.members is None else window.members, protocol)
    return sums


def _apply_mask(levels: Tensor, window: Window, protocol: ScoreProtocol) -> Tensor:
    return levels if window.valid is None else levels.masked_fill_(~window.valid, missing_level(protocol))


def _count_fields(window: Window, forecast: Tensor, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return the sums of one forecast ``[T, H, W]`` of the window."""
    leads = window.observation.shape[0]
    # On a CPU one frame at a time, so that a frame is still in the cache at the next threshold.
    chunk = 1 if window.observation.device.type == "cpu" else leads
    parts = [slice(begin, begin + chunk) for begin in range(0, leads, chunk)]
    averaged = [pool for pool in protocol.pools if pool.kind == "avg"]
    # 1. Levels of pixels and of block averages
    if averaged and protocol.comparison.startswith("released"):
        codes = window.observation.dtype == torch.uint8 or window.valid is not None
        fields = ((window.unit, codes or window.observation_has_nan), (forecast, window.forecast_has_nan))
        means = [
            _concatenate([released_levels(field[part], averaged, protocol, has_nan=nan) for part in parts])
            for field, nan in fields
        ]
        observed, predicted = (levels.pop("") for levels in means)
    else:
        observation, has_nan = window.observation, window.observation_has_nan
        observed = torch.cat([levels_of(observation[part], protocol, has_nan=has_nan) for part in parts])
        has_nan = window.forecast_has_nan
        predicted = torch.cat([levels_of(forecast[part], protocol, has_nan=has_nan) for part in parts])
        means = []
    observed = _apply_mask(observed, window, protocol)
    hidden = _missing_mask(observed, predicted, window, protocol)
    if averaged and not means:
        means = [averaged_levels(field, hidden, averaged, protocol) for field in (window.unit, forecast)]
    # 2. Tables and errors
    joint = _histograms((observed, predicted), means, hidden, protocol)
    errors = [
        error_sums(
            window.unit[part],
            forecast[part],
            (observed[part], predicted[part]),
            None if hidden is None else hidden[part],
            protocol,
        )
        for part in parts
    ]
    sums = _concatenate(errors) | _counts(joint, protocol)
    # 3. Spatial scores
    if protocol.fss_km:
        sums |= fraction_sums(observed, predicted, protocol)
    return sums | _frame_sums(window, forecast, hidden, protocol)


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _missing_mask(observed: Tensor, predicted: Tensor, window: Window, protocol: ScoreProtocol) -> Tensor | None:
    """Return True where a pixel is missing in either field; None if no pixel is."""
    codes = window.observation.dtype == torch.uint8
    if not (codes or window.valid is not None or window.observation_has_nan or window.forecast_has_nan):
        return None
    highest, missing = torch.maximum(observed, predicted), missing_level(protocol)
    return highest == missing if int(highest.max()) == missing else None


def _histograms(
    levels: tuple[Tensor, Tensor], means: list[dict[str, Tensor]], hidden: Tensor | None, protocol: ScoreProtocol
) -> dict[str, Tensor]:
    """Return the joint histograms of pixels (empty key) and of each pool; ``means`` has levels of averages by pool."""
    bins = missing_level(protocol) + 1
    histograms = {"": joint_histogram(*levels, bins=bins)}
    for pool in protocol.pools:
        if pool.kind == "max":
            blocks = pooled_levels(*levels, hidden, pool, protocol)
        else:
            blocks = (means[0][pool.key], means[1][pool.key])
        histograms[pool.key] = joint_histogram(*blocks, bins=bins)
    return histograms


def _counts(joint: dict[str, Tensor], protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return tables and pixel counts of one window from its joint histograms."""
    pixels = joint[""]
    by_pool = {name: tables(histogram, protocol) for name, histogram in joint.items()}
    sums = dict(zip(TABLE, by_pool[""], strict=True))
    sums |= {f"{name}/table": counts for name, counts in by_pool.items() if name}
    sums |= {"valid_pixels": pixels[:, :-1, :-1].sum((1, 2)), "observed_pixels": pixels[:, :-1].sum((1, 2))}
    return sums | (frame_scores(by_pool, protocol) if protocol.scores_frames else {})


def _frame_sums(window: Window, forecast: Tensor, hidden: Tensor | None, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return the sums of scores that are computed on whole frames: SSIM, power spectra, Gaussian CRPS."""
    sums: dict[str, Tensor] = {}
    if protocol.ssim:
        sums |= _sum_of_defined("ssim", ssim(window.unit, forecast, hidden=hidden))
    if "ssim_batch_range" in protocol.oddities:
        # The published evaluator uses the 255 scale; its constants scale with the range, so [0, 1] fields are equal.
        # It has no rule for missing pixels: as in the standard SSIM, windows of 11 pixels with one are excluded.
        values = ssim(window.unit, forecast, data_range=window.batch_range, hidden=hidden, reflect=True)
        sums |= _sum_of_defined("ssim_batch_range", values)
    if "crps_gaussian" in protocol.oddities and window.members is None:
        sums["crps_gaussian"] = torch.nan_to_num(forecast.double() - window.unit).abs().sum((1, 2))
    if protocol.spectrum:
        averaged = window.members if protocol.members == "mean" else None
        sums |= spectrum_sums(window.unit, forecast, hidden, members=averaged)
    return sums


def _sum_of_defined(name: str, values: Tensor) -> dict[str, Tensor]:
    defined = ~torch.isnan(values)
    return {f"{name}/sum": torch.nan_to_num(values), f"{name}/frames": defined.long()}
