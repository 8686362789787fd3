"""Count forecasts of the test windows as integer sums per block of events, lead time and threshold.

Forecasts are clipped to [0, 1] and rounded to encoded values before counting, so that every sum is an integer. Scores
are computed from the sums (``intervals.py``), without a model.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence.study_windows import Archive
from simcast_hpc.data.dataset_spec import Split
from simcast_hpc.verification import PROTOCOLS, ScoreProtocol, count

from .study import BOX_KM, Study

Forecast = Callable[[Tensor], Tensor]


class Sums(NamedTuple):
    """Integer sums over the test windows, int64; the first axis is blocks of consecutive events, the last lead times.

    ``hits``, ``forecast`` and ``observed`` count pixels at or above each threshold of the protocol in both fields, the
    forecast or the observation, ``[blocks, thresholds, leads]``. ``fss_difference``, ``fss_forecast`` and
    ``fss_observed`` sum (n_f - n_o)^2, n_f^2 and n_o^2 over all pixels, where n counts such pixels in the square
    neighborhood, ``[blocks, FSS thresholds, leads]`` (Roberts and Lean 2008, Eq. 5-7). ``absolute_error`` and
    ``squared_error`` are in encoded values, ``[blocks, leads]``; ``pixels`` is the number of pixels of these sums.
    """

    hits: np.ndarray
    forecast: np.ndarray
    observed: np.ndarray
    fss_difference: np.ndarray
    fss_forecast: np.ndarray
    fss_observed: np.ndarray
    absolute_error: np.ndarray
    squared_error: np.ndarray
    pixels: np.ndarray


OF_OBSERVATION = ("observed", "fss_observed", "pixels")
"""Sums that depend only on the observations."""


def score_forecast(study: Study, archive: Archive, forecast: Forecast, *, split: Split = "test") -> Sums:
    """Forecast every window of a split and return its sums.

    Args:
        study: frames, blocks and neighborhood.
        archive: the events.
        forecast: function from encoded values, uint8 ``[B, T, H, W]`` to float32 ``[B, T_l, H, W]`` in [0, 1].
        split: test, or val for the selection of weights.
    """
    frames_in, frames_out = study.sequence.frames_in, study.sequence.frames_out
    source = archive.windows(split, frames=frames_in + frames_out)
    per_block = study.scoring.events_per_block * len(source.starts)
    parts: list[Sums] = []
    for first in range(0, len(source), per_block):
        codes = torch.from_numpy(np.stack([source.read(index) for index in range(first, first + per_block)]))
        inputs, observed = codes[:, :frames_in], codes[:, frames_in:]
        forecasts = torch.cat([forecast(part).cpu() for part in inputs.split(study.scoring.batch_size)])
        parts.append(sums_of(observed, to_codes(forecasts), study))
    return Sums(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def to_codes(forecast: Tensor) -> Tensor:
    """Return a forecast in [0, 1] as encoded values, uint8: clipped, rounded, never 255 (missing)."""
    return (forecast.clamp(0, 1) * 255).round().clamp(max=254).to(torch.uint8)


def protocol_of(study: Study) -> ScoreProtocol:
    """Return the protocol of the study: SEVIR's thresholds and the study's FSS window, without other scores."""
    pixel_km = BOX_KM / study.archive.size
    return dataclasses.replace(
        PROTOCOLS["sevir-global"],
        name=f"evidence-{study.name}",
        pools=(),
        ssim=False,
        fss_km=(study.scoring.fss_pixels * pixel_km,),
        grid_km=pixel_km,
    )


def sums_of(observed: Tensor, forecast: Tensor, study: Study) -> Sums:
    """Return the sums of one block, without the first axis, of encoded values ``[N, T_l, H, W]``, none missing."""
    protocol = protocol_of(study)
    table = count(observed, forecast, protocol=protocol, events=["block"] * len(observed))
    hits, misses = table.hits[0], table.misses[0]
    rows = [protocol.thresholds.index(threshold) for threshold in study.scoring.fss_thresholds]
    fractions = table.extra[f"fss/{protocol.fss_km[0]:g}"][0][:, rows]
    difference = forecast.long() - observed.long()
    sums = {
        "hits": hits,
        "forecast": hits + table.false_alarms[0],
        "observed": hits + misses,
        "fss_difference": fractions[0],
        "fss_forecast": fractions[1],
        "fss_observed": fractions[2],
        "absolute_error": difference.abs().sum((0, 2, 3)),
        "squared_error": (difference**2).sum((0, 2, 3)),
        "pixels": table.valid_pixels[0],
    }
    return Sums(**{name: array.numpy().astype(np.int64) for name, array in sums.items()})
