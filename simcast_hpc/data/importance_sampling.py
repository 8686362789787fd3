"""Importance sampling of training windows by their mean rain rate, as in DGMR and mlcast-dataset-sampler.

A window of mean rain rate R has the relative probability

    q = min(1, minimum_probability + mean_weight (1 - exp(-R / saturation)))

DGMR (Ravuri et al. 2021, Methods) averages the saturated rate over pixels; mlcast-dataset-sampler
(``mlcast_dataset_sampler/sampling.py``, ``importance_weights``) saturates the mean rate of a window, which does not
suppress small intense cells. This is the second form; the rates are those of ``statistics.h5``.
"""

import hashlib
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataConfig, DataError, ImportanceSamplingConfig

from .dataset_spec import DatasetSpec
from .sample_order import SampleOrder
from .sampling_statistics import EventStatistics, rates
from .window_source import ArraySource


def probabilities(mean_rate: np.ndarray, config: ImportanceSamplingConfig) -> np.ndarray:
    """Return the relative probabilities q of mean rain rates of any shape, float64; 0 where the rate is NaN."""
    rate = np.maximum(np.asarray(mean_rate, np.float64), 0.0)
    q = config.minimum_probability - config.mean_weight * np.expm1(-rate / config.saturation)
    return np.where(np.isnan(rate), 0.0, np.minimum(q, 1.0))


def window_means(
    statistics: EventStatistics, events: np.ndarray, starts: np.ndarray, *, frames: int, frame_stride: int
) -> EventStatistics:
    """Return the statistics of windows: means over their frames, weighted by the number of valid pixels.

    Args:
        statistics: of the frames of events, ``[E, T]``.
        events: row of each window, ``[N]``.
        starts: first frame of each window, counted after ``frame_stride``, ``[N]``.
        frames: frames per window.
        frame_stride: every n-th frame of an event is used.

    Returns:
        float64 ``[N]``; rate and wet share are NaN for a window without a valid pixel.
    """
    missing = statistics.missing_share[:, ::frame_stride].astype(np.float64)
    valid = 1.0 - np.nan_to_num(missing, nan=1.0)

    def sums(values: np.ndarray) -> np.ndarray:
        total = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
        return total[events, starts + frames] - total[events, starts]

    count = sums(valid)
    with np.errstate(invalid="ignore", divide="ignore"):
        totals = (
            sums(np.nan_to_num(values[:, ::frame_stride].astype(np.float64)) * valid)
            for values in (statistics.mean_rate, statistics.wet_share)
        )
        rate, wet = (np.where(count > 1e-9, total / count, np.nan) for total in totals)
    return EventStatistics(rate, wet, 1.0 - count / frames)


def mean_rates(source: Any) -> np.ndarray:
    """Return the mean rain rate in mm/h of each window of a source, float64 ``[N]``.

    Raises:
        ConfigError: the source has no rain statistics, as an archive that was not prepared.
        DataError: they are damaged.
    """
    method = getattr(source, "mean_rates", None)
    if method is None:
        raise ConfigError(
            "data.sampling needs the rain statistics of prepared data, and data.root contains an archive; run "
            "`simcast data prepare ARCHIVE SHARDS` and set data.root=SHARDS, or set data.sampling=null"
        )
    return method()


def training_order(config: DataConfig, source: ArraySource, *, seed: int) -> tuple[SampleOrder, str | None]:
    """Return the order of the training windows, and a hash of the rain statistics that it depends on.

    Raises:
        ConfigError: ``data.sampling`` is set and the source has no rain statistics.
        DataError: no window can be drawn.
    """
    if config.sampling is None:
        return SampleOrder(len(source), seed=seed), None
    rate = mean_rates(source)
    weights = probabilities(rate, config.sampling)
    if not weights.any():
        raise DataError("data.sampling: no training window has a valid pixel")
    digest = hashlib.sha256(np.ascontiguousarray(rate, "<f8").data).hexdigest()[:16]
    return SampleOrder(len(source), seed=seed, weights=weights), digest


def rate_table(spec: DatasetSpec) -> np.ndarray:
    """Return the rain rate of the codes 0..255, float32; 0 for missing."""
    return np.append(rates(spec), 0.0).astype(np.float32)
