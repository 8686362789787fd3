"""From forecasts of the test windows to integer sums per block of events, lead and threshold.

Forecasts are clipped to [0, 1] and rounded to radar code before anything is counted, so that every sum is an integer
and adding sums loses nothing. Scores follow from the sums (``statistics.py``); they can be computed again, otherwise,
without a model.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_hpc.verification import PROTOCOLS, count

from .study import ScoringSettings, Study
from .windows import Archive

PROTOCOL = PROTOCOLS["sevir-global"]
Forecast = Callable[[Tensor], Tensor]


class Sums(NamedTuple):
    """Integer sums over the test windows, int64; blocks of consecutive events are the first axis, leads the last.

    ``hits``, ``forecast`` and ``observed`` count pixels at or above each of the protocol's thresholds, ``[blocks,
    thresholds, leads]``: hits where both fields are. ``fss_difference``, ``fss_forecast`` and ``fss_observed`` sum
    (n_f - n_o)^2, n_f^2 and n_o^2 over all pixels, where n counts such pixels in the square neighbourhood, ``[blocks,
    FSS thresholds, leads]`` (Roberts and Lean 2008, Eq. 5-7). ``absolute_error`` and ``squared_error`` are in codes,
    ``[blocks, leads]``, and ``pixels`` counts what they sum over.
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
"""The sums that depend on the observations alone."""


def score_forecast(study: Study, archive: Archive, forecast: Forecast) -> Sums:
    """Forecast every test window and return its sums.

    Args:
        study: frames, blocks and neighbourhood.
        archive: the test events.
        forecast: maps uint8 codes ``[B, T, H, W]`` to float32 ``[B, T'l, H, W]`` in [0, 1].
    """
    frames_in, frames_out = study.sequence.frames_in, study.sequence.frames_out
    source = archive.windows("test", frames=frames_in + frames_out)
    per_block = study.scoring.events_per_block * len(source.starts)
    parts: list[Sums] = []
    for first in range(0, len(source), per_block):
        codes = torch.from_numpy(np.stack([source.read(index) for index in range(first, first + per_block)]))
        inputs, observed = codes[:, :frames_in], codes[:, frames_in:]
        made = torch.cat([forecast(part).cpu() for part in inputs.split(study.scoring.batch_size)])
        parts.append(sums_of(observed, to_codes(made), study.scoring))
    return Sums(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def to_codes(forecast: Tensor) -> Tensor:
    """Return a forecast in [0, 1] as uint8 code: clipped, rounded to the nearest; 255 (missing) is never given."""
    return (forecast.clamp(0, 1) * 255).round().clamp(max=254).to(torch.uint8)


def sums_of(observed: Tensor, forecast: Tensor, settings: ScoringSettings) -> Sums:
    """Return the sums of one block, without their first axis, of codes ``[N, T'l, H, W]``; none may be missing."""
    table = count(observed, forecast, protocol=PROTOCOL, events=["block"] * len(observed))
    hits, misses = table.hits[0], table.misses[0]
    difference = forecast.long() - observed.long()
    near_observed, near_forecast = (_counts_nearby(field, settings) for field in (observed, forecast))
    sums = {
        "hits": hits,
        "forecast": hits + table.false_alarms[0],
        "observed": hits + misses,
        "fss_difference": ((near_forecast - near_observed) ** 2).sum((1, 3, 4)),
        "fss_forecast": (near_forecast**2).sum((1, 3, 4)),
        "fss_observed": (near_observed**2).sum((1, 3, 4)),
        "absolute_error": difference.abs().sum((0, 2, 3)),
        "squared_error": (difference**2).sum((0, 2, 3)),
        "pixels": table.valid_pixels[0],
    }
    return Sums(**{name: array.numpy().astype(np.int64) for name, array in sums.items()})


def _counts_nearby(codes: Tensor, settings: ScoringSettings) -> Tensor:
    """Return how many pixels of each neighbourhood reach each FSS threshold, int64 ``[thresholds, N, T, H, W]``.

    Nothing is found outside the grid, as in pysteps and in Roberts and Lean (2008).
    """
    size = settings.fss_pixels
    events = torch.stack([codes >= threshold for threshold in settings.fss_thresholds])
    means = F.avg_pool2d(events.flatten(0, 1).float(), size, stride=1, padding=size // 2, count_include_pad=True)
    return (means * size**2).round().long().view(events.shape)
